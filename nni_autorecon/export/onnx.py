"""The quantized network as ONNX: integer weights, QuantizeLinear and DequantizeLinear, for onnxruntime alone.

The graph keeps clear of what onnxruntime 1.31 does to others. It rounds a bias between quantizers to int32 at the
product of their scales, which is coarse at few bits: here, biases are Add nodes. It fails on narrow activations: here,
their codes are UINT8 behind a Clip. It fuses a Gemm, or a convolution without bias, with the quantizers around it to an
operator that cannot have 2-bit weights: here, only weights of convolutions with a bias (or folded norm) are UINT2.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import InputError
from ..files import write_atomically
from ..quantization.folding import fold_norms
from ..quantization.integers import FixedQuantizer, IntegerWeight, replace_modules
from .onnx_runtime import INPUT, METADATA, OUTPUT, OnnxNetwork
from .student_file import SavedNetwork

CLOSE = 1e-4
"""Logits are alike if they differ by no more than this fraction of an image's largest."""
ALIKE = 0.85
"""The fraction of images whose logits must be alike; rounding differs, and a code that flips moves others."""
LARGEST_TOLERANCE = 0.2
"""No rounding excuses logits that differ by more than this fraction of an image's largest.

It must be so large for a mean of few integers that keeps their scale, as DFQ has it: often it lies midway between two
codes, and rounding alone decides.
"""
DECISIONS = 0.99
"""The fraction of decisions that must be equal, among images with a clear decision."""
MARGIN = 0.01
"""A decision is clear if the two largest logits differ by more than this fraction of the largest."""


@dataclass(frozen=True)
class Agreement:
    """ONNX in onnxruntime against the network in PyTorch. Differences are fractions of an image's largest logit."""

    images: int
    decisions: float
    """Fraction of the images on which both decide alike."""
    clear_decisions: float
    """The same among images whose two largest logits differ clearly."""
    close: float
    """Fraction of the images whose logits differ by at most 1e-4."""
    alike: float
    """Fraction of the images whose logits differ by at most ``tolerance``."""
    tolerance: float
    """1e-4, or 4 times what float64 changes in PyTorch for 85 % of the images, if that is more; at most 0.2."""
    largest_difference: float

    def summary(self) -> str:
        """What a person reads."""
        return (
            f"onnxruntime and PyTorch decide alike on {self.decisions:.2%} of {self.images} images; "
            f"logits within {CLOSE:g} on {self.close:.2%}, largest difference {self.largest_difference:.1e}"
        )


def export_onnx(
    saved: SavedNetwork, path: str | Path, *, images: Tensor | None = None, noise_images: int = 256, seed: int = 0
) -> Agreement:
    """Write ``saved`` as ONNX, replacing ``path``, if onnxruntime then agrees with PyTorch.

    The model takes ``images`` (normalized, float32 [N, C, H, W], any N) and returns ``logits`` [N, K]. A BatchNorm
    behind a convolution is folded into it. Compared on are ``noise_images`` of standard normal noise and ``images``.

    Raises InputError if the extra ``onnx`` is not installed, the network has a part that ONNX lacks, the runtimes
    disagree, or the file cannot be written.
    """
    try:
        import onnx_ir  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"ONNX needs {error.name}; pip install -e '.[onnx]'") from error
    try:
        program, exported = _exported(saved, narrowest=2)
    except InputError:
        if all(weight.bits > 2 for weight in saved.weights.values()):
            raise
        program, exported = _exported(saved, narrowest=4)  # onnxruntime 1.23, the last for Python 3.10, lacks UINT2
    noise = torch.randn(noise_images, *saved.description.image, generator=torch.Generator().manual_seed(seed))
    agreement = compare(
        saved.network,
        exported,
        noise if images is None else torch.cat([noise, images.cpu()]),
    )
    if agreement.alike < ALIKE or agreement.clear_decisions < DECISIONS:
        raise InputError(f"{path} is not written: {agreement.summary()}; use the .safetensors file, and report this")
    known = {
        "description": dataclasses.asdict(saved.description),
        "float_bytes": saved.float_bytes,
        "agreement": dataclasses.asdict(agreement),
    }
    program.model.metadata_props[METADATA] = json.dumps(known, ensure_ascii=False)
    content = program.model_proto.SerializeToString()
    write_atomically(Path(path), lambda file: file.write(content))
    return agreement


@torch.no_grad()
def compare(network: nn.Module, onnx: nn.Module, images: Tensor, *, batch_size: int = 64) -> Agreement:
    """How well ``onnx`` agrees with ``network`` on ``images`` [N, C, H, W], both on the CPU."""
    precise = copy.deepcopy(network).double()
    batches = images.split(batch_size)
    logits = torch.cat([network(batch) for batch in batches])  # [N, K]
    onnx_logits = torch.cat([onnx(batch) for batch in batches])
    precise_logits = torch.cat([precise(batch.double()) for batch in batches])
    largest = logits.abs().amax(1).clamp(min=torch.finfo(logits.dtype).tiny)  # [N]
    difference = (onnx_logits - logits).abs().amax(1) / largest
    rounding = (precise_logits - logits).abs().amax(1) / largest
    tolerance = min(max(CLOSE, 4 * rounding.quantile(ALIKE).item()), LARGEST_TOLERANCE)
    decisions = onnx_logits.argmax(1) == logits.argmax(1)
    first, second = logits.topk(2).values.unbind(1)
    clear = (first - second) / largest > max(MARGIN, 2 * tolerance)
    return Agreement(
        images=len(images),
        decisions=decisions.double().mean().item(),
        clear_decisions=decisions[clear].double().mean().item() if clear.any() else 1.0,
        close=(difference <= CLOSE).double().mean().item(),
        alike=(difference <= tolerance).double().mean().item(),
        tolerance=tolerance,
        largest_difference=difference.max().item(),
    )


def _exported(saved: SavedNetwork, *, narrowest: int) -> tuple[Any, OnnxNetwork]:
    """The ``torch.onnx.ONNXProgram``, and what it is in onnxruntime. InputError if it cannot be made or is refused."""
    program = _translate(_onnx_form(saved, narrowest), torch.zeros(2, *saved.description.image))
    _narrow_weights(program.model.graph)
    _strip(program.model.graph)
    remedy = "use another onnxruntime, or the .safetensors file"
    return program, OnnxNetwork(program.model_proto.SerializeToString(), "the exported network", remedy)


def _onnx_form(saved: SavedNetwork, narrowest: int) -> nn.Module:
    """A copy of the network with its quantizers and weights, of 8, 4 or the ``narrowest`` bits, as ONNX operators.

    For tracing only.
    """
    form, weights = copy.deepcopy(saved.network), dict(saved.weights)
    fold_norms(form, weights)
    replaced: dict[nn.Module, nn.Module] = {
        module: _QuantizeDequantize(module) for module in form.modules() if isinstance(module, FixedQuantizer)
    }
    for name, weight in weights.items():
        layer: Any = form.get_submodule(name)
        parametrize.register_parametrization(layer, "weight", _Dequantize(name, weight, layer, narrowest), unsafe=True)
        if layer.bias is not None:
            replaced[layer] = nn.Sequential(layer, _Bias(layer.bias, is_map=isinstance(layer, nn.Conv2d)))
            layer.bias = None
    replace_modules(form, replaced)
    return form.eval()


class _Dequantize(nn.Module):
    """Parametrization of a weight: DequantizeLinear of its codes."""

    def __init__(self, name: str, weight: IntegerWeight, layer: nn.Module, narrowest: int) -> None:
        super().__init__()
        has_bias = isinstance(layer, nn.Conv2d) and layer.bias is not None
        bits = 8 if weight.bits > 4 else 4 if weight.bits > 2 or not has_bias else narrowest
        self.note = {"weight": f"{name}.weight", "type": f"UINT{bits}"}  # for _narrow_weights
        for part in ("codes", "scale", "zero_point"):
            self.register_buffer(part, getattr(weight, part))

    def forward(self, weight: Tensor) -> Tensor:
        inputs, result = (self.codes, self.scale, self.zero_point), {"dtype": torch.float32, "shape": weight.shape}
        return _onnx_operator("DequantizeLinear", inputs, {"axis": 0}, metadata_props=self.note, **result)


class _QuantizeDequantize(nn.Module):
    """Clip to the range of the codes, QuantizeLinear and DequantizeLinear."""

    def __init__(self, quantizer: FixedQuantizer) -> None:
        super().__init__()
        ends = torch.tensor([0, quantizer.largest_code]) - quantizer.zero_point
        self.low, self.high = (ends * quantizer.scale).tolist()
        self.register_buffer("scale", quantizer.scale)
        self.register_buffer("zero_point", quantizer.zero_point.byte())

    def forward(self, activation: Tensor) -> Tensor:
        inputs, shape = (activation.clamp(self.low, self.high), self.scale, self.zero_point), activation.shape
        codes = _onnx_operator("QuantizeLinear", inputs, dtype=torch.uint8, shape=shape)
        return _onnx_operator("DequantizeLinear", (codes, *inputs[1:]), dtype=torch.float32, shape=shape)


class _Bias(nn.Module):
    def __init__(self, bias: Tensor, *, is_map: bool) -> None:
        super().__init__()
        self.register_buffer("bias", bias.detach().view(-1, 1, 1) if is_map else bias.detach())

    def forward(self, activation: Tensor) -> Tensor:
        return activation + self.bias  # type: ignore[operator]


def _onnx_operator(name: str, *arguments: Any, **named: Any) -> Tensor:
    import torch.onnx.ops  # slow to import

    return torch.onnx.ops.symbolic(name, *arguments, **named)


def _translate(form: nn.Module, images: Tensor) -> Any:
    """The ``torch.onnx.ONNXProgram`` of ``form`` for any number of images. Raises InputError where it fails."""
    types = {module.note["type"] for module in form.modules() if isinstance(module, _Dequantize)}
    try:
        with _silent():
            program = torch.export.export(form, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            return torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT],
                opset_version=25 if "UINT2" in types else 21,  # the first that have UINT2, UINT4
            )  # fmt: skip
    except Exception as error:  # tracing runs the network's own code, and translation fails in many ways
        causes = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)  # type: ignore[arg-type]
        reason = next(line for line in str(causes[-1]).splitlines() if line)
        found = re.search(r"translating node %(\w+)", " ".join(map(str, causes)))
        where = f"{_layer(program, found[1])}: " if found else ""
        raise InputError(f"cannot export to ONNX: {where}{reason}; use the .safetensors file") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Keep what PyTorch's exporter says to its developers off the screen: it prints whole graphs before an error."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(max(before, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(before)


def _layer(program: torch.export.ExportedProgram, node_name: str) -> str:
    """The innermost module that computes a node, or the node where no module does."""
    for node in program.graph.nodes:
        if node.name == node_name and (modules := list(node.meta.get("nn_module_stack", {}).values())):
            path, kind = modules[-1]
            return f"{path} ({kind.rpartition('.')[2]})" if path else node_name
    return node_name


def _narrow_weights(graph: Any) -> None:
    """Give the codes and zero points of weights their own ONNX type, and names that tell the layer."""
    import ml_dtypes  # numpy's types of 2 and 4 bits; onnx brings it
    import onnx_ir as ir

    for node in graph:
        if "weight" in node.metadata_props:
            name, type_ = node.metadata_props["weight"], node.metadata_props["type"]
            for index, part in ((0, "codes"), (2, "zero_point")):
                codes = node.inputs[index].const_value.numpy()
                dtype = getattr(ml_dtypes, type_.lower(), codes.dtype)
                tensor = ir.Tensor(codes.astype(dtype), dtype=ir.DataType[type_], name=f"{name}.{part}")
                value = ir.Value(
                    name=tensor.name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype)
                )
                graph.register_initializer(value)
                node.replace_input_with(index, value)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]


def _strip(graph: Any) -> None:
    """Take off what the exporter notes about the Python code: half of a small file."""
    for node in graph:
        for noted in (node, *node.outputs):
            noted.metadata_props.clear()
    for value in graph.initializers.values():
        value.metadata_props.clear()
