"""Fake quantization: range → scale and zero point → values; where it goes in a network, and what it leaves out.

GDFQ's protocol: the weights of every Conv2d and Linear, first and last included, asymmetric min-max per output
channel; an asymmetric per-tensor quantizer after every activation function, its range tracked for a while, then frozen.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from .errors import DivergenceError, InputError

QUANTIZED = (nn.Conv2d, nn.Linear)
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Tanhshrink, nn.Softplus),
    *(nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.GLU),
)
_EXPECTED = (*QUANTIZED, *NORMS, *ACTIVATIONS, fx.GraphModule)

# Classes, functions and methods meet under one name, see _called: MaxPool2d and max_pool2d, ReLU and relu.
_ACTIVATION = re.compile(f"({'|'.join(activation.__name__.lower() for activation in ACTIVATIONS)})_?")
_PRODUCT = re.compile(r"(bi)?linear|conv(transpose)?[123]d|matmul|(add|b|baddb)?mm|einsum|embedding|.*attention.*")
_SAME_VALUES = re.compile(  # the result has the values of the first input, possibly with zeros added
    r"identity|\w*dropout[123]?d?|stochasticdepth|(un)?flatten|reshape|view|permute|transpose|(un)?squeeze|expand"
    r"|contiguous|clone|detach|chunk|split|getitem|(adaptive)?maxpool[123]d|pixel(un)?shuffle|zeropad2d"
)
_ORIGINS = {"placeholder": "network input", "add": "addition", "iadd": "addition", "cat": "concatenation"}
_FLOAT_BY_PROTOCOL = re.compile(  # what GDFQ leaves in floating point; a product may be a squeeze-and-excitation gate
    "network input|addition|concatenation|linear bottleneck|i?mul|mean|.*pool.*|interpolate|upsample.*|.*norm.*"
)
_TRANSPARENT = {"torch", "_operator", "builtins", "math"}  # modules whose functions fx shows as they are


def affine_qparams(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int32) of asymmetric min-max quantization to the codes 0 .. 2**bits - 1.

        scale = (high - low) / (2**bits - 1),   zero_point = round(-low / scale)

    of the range widened to contain 0, which thus has a code. Worked example: -1 to 2 at 2 bits has scale 1, zero point
    1 and the values -1, 0, 1, 2. A range too narrow for a float32 scale, such as 0 to 0, has scale 1.

    low, high: any one shape, that of the results.  Raises ValueError unless 1 <= bits <= 8.
    """
    largest = _largest_code(bits)
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    scale = (high - low) / largest
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)  # 1 / scale must be finite, too
    return scale, torch.round(-low / scale).clamp(0, largest).to(torch.int32)


class WeightQuantizer(nn.Module):
    """Parametrization of a weight [out, ...]: fake quantization to the min-max range of each output channel.

    The range is taken anew at each forward, so nothing is clipped and the gradient passes unchanged. (One exception:
    where both ends of a range lie exactly midway between codes, as in -1 to 1, one is clipped by half a step.)
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.largest_code = _largest_code(bits)

    def forward(self, weight: Tensor) -> Tensor:
        _require_finite(weight, "weights")
        return torch.fake_quantize_per_channel_affine(weight, *self.qparams(weight), 0, 0, self.largest_code)

    def qparams(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each output channel, both [out]. weight: [out, ...]."""
        low, high = weight.detach().flatten(1).aminmax(dim=1)
        return affine_qparams(low, high, self.bits)


class ActivationQuantizer(nn.Module):
    """Per-tensor asymmetric fake quantization; the gradient is zero where the input was clipped.

    While ``observing``, each forward first moves an exponential average of the batch minimum and maximum. The buffers
    hold the raw averages, bias-corrected on reading only; in float64, so that constants come back unchanged.
    """

    averages: Tensor  # [2]: minimum, maximum
    observations: Tensor  # []

    def __init__(self, bits: int, *, decay: float = 0.9) -> None:
        super().__init__()
        self.bits = bits
        self.largest_code = _largest_code(bits)
        self.decay = decay
        self.observing = False
        self.register_buffer("averages", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("observations", torch.zeros((), dtype=torch.int64))

    def forward(self, activation: Tensor) -> Tensor:
        if self.observing:
            extremes = torch.stack(activation.detach().aminmax())
            _require_finite(extremes, "activations")
            self.averages.lerp_(extremes.double(), 1 - self.decay)
            self.observations += 1
        return torch.fake_quantize_per_tensor_affine(activation, *self.qparams(), 0, self.largest_code)

    def qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the present range, both []. Raises RuntimeError before the first observation."""
        return affine_qparams(*self.range(), self.bits)

    def set_range(self, low: float, high: float) -> None:
        """Make the range ``low`` to ``high``, as one observed batch with these extremes would. Raises ValueError unless
        both are finite and in order."""
        if not -math.inf < low <= high < math.inf:
            raise ValueError(f"a range from {low} to {high} cannot be quantized; give two finite numbers in order")
        self.averages.copy_((1 - self.decay) * self.averages.new_tensor([low, high]))
        self.observations.fill_(1)

    def range(self) -> tuple[Tensor, Tensor]:
        """The bias-corrected average minimum and maximum. Raises RuntimeError before the first observation."""
        if (count := int(self.observations)) == 0:
            raise RuntimeError("an activation quantizer has no range yet; run batches within observe_ranges() first")
        low, high = (self.averages / (1 - self.decay**count)).float()
        return low, high


@contextmanager
def observe_ranges(network: nn.Module) -> Iterator[None]:
    """Within it every ActivationQuantizer of ``network`` tracks its range; outside, ranges never change."""
    before = {module: module.observing for module in network.modules() if isinstance(module, ActivationQuantizer)}
    try:
        for quantizer in before:
            quantizer.observing = True
        yield
    finally:
        for quantizer, observing in before.items():
            quantizer.observing = observing


@dataclass(frozen=True)
class Quantized:
    name: str  # of the layer, or of the call in the traced graph
    kind: str  # the layer's type, or the function, method or module called
    bits: int
    shape: tuple[int, ...] | None = None  # of a weight


@dataclass(frozen=True)
class Gap:
    name: str
    reason: str


@dataclass(frozen=True)
class Coverage:
    """What of a network is quantized and what is not."""

    weights: tuple[Quantized, ...]
    activations: tuple[Quantized, ...]
    float_inputs: tuple[Gap, ...] | None  # layers whose input arrives unquantized; None: the graph is unknown
    gaps: tuple[Gap, ...]  # parts that could not be quantized at all

    def summary(self) -> str:
        """A line each for weights, activations and unquantized inputs, counted, and one for every gap."""
        inputs = "unknown" if self.float_inputs is None else _count(gap.reason for gap in self.float_inputs)
        lines = [
            f"quantized weights: {_count(f'{each.kind} at {each.bits} bits' for each in self.weights)}",
            f"quantized activations: {_count(f'{each.kind} at {each.bits} bits' for each in self.activations)}",
            f"inputs of Conv2d and Linear left unquantized: {inputs}",
        ]
        return "\n".join(lines + [f"not quantized: {gap.name} ({gap.reason})" for gap in self.gaps])

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def quantize_network(
    network: nn.Module, *, weight_bits: int, activation_bits: int, allow_partial: bool = False
) -> tuple[nn.Module, Coverage]:
    """A quantized deep copy of ``network``, in eval mode with every parameter trainable, and what it covers.

    The copy is what ``torch.fx`` traces in eval mode; arguments that have a default keep it, except the first. Each
    call of an activation function, be it a module, function or method, gets a quantizer of its own.

    Raises InputError if a part cannot be quantized, unless ``allow_partial``: then ``Coverage.gaps`` lists it, and in
    a network that cannot be traced each activation module gets one quantizer for all its calls.
    """
    student, name = copy.deepcopy(network).eval().requires_grad_(True), type(network).__name__
    float_inputs, untraceable = None, None
    try:
        traced = fx.GraphModule(student, _Tracer().trace(student), class_name=name)
    except Exception as error:  # tracing runs the network's own code on stand-ins: anything may be raised
        untraceable = error
        gaps = [Gap("forward", f"untraceable: {' '.join(str(error).split())}")]
        activations = _wrap_activations(student, activation_bits)
    else:
        student = traced
        gaps = list(_float_functions(traced))
        activations = _insert_quantizers(traced, activation_bits)
        float_inputs = tuple(_float_inputs(traced))
        gaps += [
            Gap(gap.name, f"its input comes from {gap.reason}, which may be an activation in disguise")
            for gap in float_inputs
            if not _FLOAT_BY_PROTOCOL.fullmatch(gap.reason)
        ]

    layers = {module: path for path, module in student.named_modules() if isinstance(module, QUANTIZED)}
    for path in dict.fromkeys(path.rpartition(".")[0] for path, _ in student.named_parameters()):
        owner = student.get_submodule(path)  # a bare Module is where fx keeps parameters that are used directly
        if not isinstance(owner, _EXPECTED) and type(owner) is not nn.Module:
            gaps.append(Gap(path or name, f"a {type(owner).__name__} computes in floating point"))
    if not layers or not activations:
        gaps.append(Gap("the network", "no Conv2d or Linear, or no activation function, was found"))
    if gaps and not allow_partial:
        first = f"{gaps[0].name} ({gaps[0].reason})" + (f" and {len(gaps) - 1} more parts" if len(gaps) > 1 else "")
        raise InputError(f"{name}: cannot quantize {first}; allow_partial (--allow-partial) skips it") from untraceable

    weights = []
    for module, path in layers.items():
        weights.append(Quantized(path, type(module).__name__, weight_bits, tuple(module.weight.shape)))
        parametrize.register_parametrization(module, "weight", WeightQuantizer(weight_bits))
    return student.eval(), Coverage(tuple(weights), tuple(activations), float_inputs, tuple(gaps))


class _Tracer(fx.Tracer):
    """Keeps subclasses of Conv2d and Linear whole, and arguments that have a default at that default."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, QUANTIZED) or super().is_leaf_module(m, module_qualified_name)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        if kind == "placeholder" and args and any(node.op == "placeholder" for node in self.graph.nodes):
            return args[0]  # a stand-in would take the branch of `if mask is not None`
        return super().create_proxy(kind, target, args, kwargs, *rest, **named)


def _insert_quantizers(traced: fx.GraphModule, bits: int) -> list[Quantized]:
    """Put a quantizer after every call of an activation function; whoever used its result uses the quantizer's."""
    found = []
    position = {node: index for index, node in enumerate(traced.graph.nodes)}
    for node in position:
        module, kind = _called(traced, node)
        if not _ACTIVATION.fullmatch(kind):
            continue
        name = f"activation_quantizers.{node.name}"
        traced.add_submodule(name, ActivationQuantizer(bits))
        with traced.graph.inserting_after(node):
            quantized = traced.graph.call_module(name, (node,))
        node.replace_all_uses_with(quantized, delete_user_cb=lambda user, new=quantized: user is not new)
        if kind.endswith("_") or node.kwargs.get("inplace") or getattr(module, "inplace", False):
            source = node.all_input_nodes[0]  # changed in place: who uses it from here on sees the activation, too
            for user in [user for user in source.users if position.get(user, -1) > position[node]]:
                user.replace_input_with(source, quantized)
        found.append(Quantized(node.name, kind, bits))
    traced.recompile()
    return found


def _float_inputs(traced: fx.GraphModule) -> Iterator[Gap]:
    """The calls of Conv2d and Linear that no quantizer precedes, and what does."""
    for node in traced.graph.nodes:
        if isinstance(_called(traced, node)[0], QUANTIZED):
            source = node.all_input_nodes[0]
            while _SAME_VALUES.fullmatch(_called(traced, source)[1]):
                source = source.all_input_nodes[0]
            module, kind = _called(traced, source)
            if isinstance(module, (*QUANTIZED, *NORMS)):
                kind = "linear bottleneck"
            if not isinstance(module, ActivationQuantizer):
                yield Gap(str(node.target), _ORIGINS.get(kind, kind))


def _float_functions(traced: fx.GraphModule) -> Iterator[Gap]:
    """Calls that multiply outside of a layer, and those that tracing cannot look into (``torch.fx.wrap``)."""
    for node in traced.graph.nodes:
        kind = _called(traced, node)[1]
        origin = (getattr(node.target, "__module__", None) or "torch").partition(".")[0]
        if node.op in ("call_function", "call_method") and _PRODUCT.fullmatch(kind):
            yield Gap(node.name, "a product outside of any layer")
        elif node.op == "call_function" and origin not in _TRANSPARENT and not _SAME_VALUES.fullmatch(kind):
            yield Gap(node.name, "a function that tracing cannot look into")


def _called(traced: fx.GraphModule, node: fx.Node) -> tuple[nn.Module | None, str]:
    """The module that a node calls, if any, and the name of its class, or of the function or method: lower case,
    without "_" except at the end, where it says in-place."""
    module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    name = getattr(node.target, "__name__", node.target if node.op == "call_method" else node.op)
    name = type(module).__name__ if module is not None else str(name)
    return module, re.sub("_(?=.)", "", name.lower())


def _wrap_activations(network: nn.Module, bits: int) -> list[Quantized]:
    """Replace every activation module, under each of its names, by itself and a quantizer."""
    found = {module: path for path, module in network.named_modules() if isinstance(module, ACTIVATIONS)}
    wrapped = {module: nn.Sequential(module, ActivationQuantizer(bits)) for module in found}
    for path, module in list(network.named_modules(remove_duplicate=False)):
        if module in wrapped:
            network.set_submodule(path, wrapped[module])
    return [Quantized(path, type(module).__name__.lower(), bits) for module, path in found.items()]


def _largest_code(bits: int) -> int:
    if not 1 <= bits <= 8:
        raise ValueError(f"{bits} bits are not supported; choose 1 to 8")
    return int(2**bits - 1)


def _require_finite(values: Tensor, what: str) -> None:
    if not bool(values.isfinite().all()):
        raise DivergenceError(f"the {what} of the quantized network are no longer finite; lower the learning rate")


def _count(items: Iterable[str]) -> str:
    return ", ".join(f"{number} {item}" for item, number in Counter(items).items()) or "none"
