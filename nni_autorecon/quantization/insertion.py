"""Fake quantizers are put into a network here, and a report lists what they leave out.

The weights of every Conv2d and Linear are quantized per output channel. Activations are quantized per tensor. The
protocol says which of them:

* ``activations`` quantizes the output of every activation function, unless that is the answer, and nothing else, as
  GDFQ's published figures do. Network input, residual branches, pooled features and linear bottlenecks stay in floating
  point.
* ``integer`` makes the network that an integer engine computes. BatchNorms are folded into the convolutions before
  them, weights fit into INT8, biases are integers in the scale of the sums that they are added to, and everything that
  the engine stores between two operations is quantized. This includes the network input, and every output of a layer,
  norm, addition, concatenation, product or pooling that is not merged with the activation after it. An activation is
  merged if it only limits values, as ReLU does. What no layer reads, as the terms of a sum or the input of a SiLU, has
  8 bits, whatever others have. The output of a last linear layer, and all that follows it, stays in floating point, as
  does all that follows a last convolution.

In both protocols divisors stay in floating point, as does what enters a root or a logarithm.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from torch import fx, nn
from torch.nn.utils import parametrize

from ..errors import InputError, one_line
from ..shapes import ImageShape
from .calls import QUANTIZED, called, child_name
from .coverage import Coverage, Gap, Quantized
from .divisors import dividing_users, divisors
from .folding import fold_batchnorms
from .operators import ACTIVATIONS, EXPECTED, ORIGINS, PRODUCT, SAME_VALUES, TRANSPARENT, is_product, source_of
from .places import (
    advance_clamps,
    is_provided,
    join_means,
    layer_calls,
    overlooked,
    prepared_nodes,
    quantized_places,
    unquantized,
)
from .quantizers import ActivationQuantizer, BiasQuantizer, WeightQuantizer
from .specification import Quantization
from .tracing import WITHOUT_GRAPH, name_of, trace


def quantize_network(
    network: nn.Module, quantization: Quantization, *, image: ImageShape | None = None
) -> tuple[nn.Module, Coverage]:
    """Return a quantized deep copy of ``network``, and the coverage that lists what is quantized in it.

    The copy is in eval mode, and every parameter of it is trainable. It is the graph that :func:`~.tracing.trace` makes
    of the network, for images of shape ``image``. Each value that the protocol quantizes gets a quantizer of its own.
    In protocol ``integer`` every quantized layer has a bias.

    The first and the last layer are those that are called first and last; if tracing fails, those registered first and
    last. With ``allow_partial``, parts that cannot be quantized stay in floating point, and ``Coverage.gaps`` lists
    them; in a network that cannot be traced, each activation module then gets one quantizer for all its calls.

    Raises InputError if a part cannot be quantized or the network cannot be traced, and ``allow_partial`` is False or,
    for the latter, the protocol is ``integer``; if a layer's weight is not a parameter of its own; or if ``layer_bits``
    names no layer.
    """
    protocol = quantization.protocol
    name = name_of(network)
    make = partial(ActivationQuantizer, ranges=quantization.activation_ranges)
    float_inputs = None
    try:
        student: nn.Module = (traced := trace(network, remedy=WITHOUT_GRAPH, image=image))
    except InputError as error:
        if protocol == "integer" or not quantization.allow_partial or error.__cause__ is None:
            raise
        student = copy.deepcopy(network).eval()
        gaps = [Gap("forward", f"untraceable: {one_line(error.__cause__)}")]
        activations = _wrap_activations(student, make, quantization.bits.activations)
        calls = [(path, module) for path, module in student.named_modules() if isinstance(module, QUANTIZED)]
    else:
        if protocol == "integer":
            fold_batchnorms(traced)
            advance_clamps(traced)
            join_means(traced)
        gaps = list(_float_functions(traced))
        activations = _insert_quantizers(traced, make, quantized_places(traced, quantization))
        activations += _insert_quantizers(traced, make, overlooked(traced, quantization))
        float_inputs = tuple(_float_inputs(traced, protocol))
        gaps += _unexplained(float_inputs, protocol)
        calls = [(str(node.target), module) for node, module in layer_calls(traced)]
    gaps += _float_parameters(student, name)
    layers = {module: path for path, module in calls}
    if not layers or not activations:
        gaps.append(Gap("the network", "no Conv2d or Linear, or no activation function, was found"))
    if gaps and not quantization.allow_partial:
        first = f"{gaps[0].name} ({gaps[0].reason})" + (f" and {len(gaps) - 1} more parts" if len(gaps) > 1 else "")
        raise InputError(f"{name}: cannot quantize {first}; allow_partial (--allow-partial) skips it")

    own = quantization.layer_bits or {}
    if unknown := own.keys() - layers.values():
        raise InputError(f"{name} has no layer {min(unknown)} to have bits of its own; name the network that it is of")
    bits = {module: own.get(path, quantization.bits.weights) for module, path in layers.items()}
    for index, chosen in (0, quantization.first_bits), (-1, quantization.last_bits):
        if calls and chosen is not None:
            bits[calls[index][1]] = chosen
    weights = [Quantized(path, type(m).__name__, bits[m], tuple(m.weight.shape)) for m, path in layers.items()]
    for module in layers:
        quantizer = WeightQuantizer(bits[module], ranges=quantization.weight_ranges, contained=protocol == "integer")
        parametrize.register_parametrization(module, "weight", quantizer)
    if protocol == "integer":
        _quantize_biases(traced)
    return student.eval().requires_grad_(True), Coverage(tuple(weights), tuple(activations), float_inputs, tuple(gaps))


def _quantize_biases(traced: fx.GraphModule) -> None:
    """Give every layer with a quantized weight a bias in integers, in place.

    The bias of a layer that is called several times, on inputs of several scales, stays in floating point.
    """
    inputs: dict[nn.Conv2d | nn.Linear, list[nn.Module | None]] = {}
    for node, layer in layer_calls(traced):
        inputs.setdefault(layer, []).append(called(traced, source_of(traced, node.all_input_nodes[0]))[0])
    for layer, quantizers in inputs.items():
        if layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(layer.weight.shape[0]))
        if len(quantizers) == 1 and isinstance(quantizers[0], ActivationQuantizer):
            parametrize.register_parametrization(layer, "bias", BiasQuantizer(layer, quantizers[0]), unsafe=True)


def _insert_quantizers(
    traced: fx.GraphModule, make: Callable[[int], nn.Module], places: Mapping[fx.Node, int]
) -> list[Quantized]:
    """Put a quantizer after each of ``places``; its users, unless they divide by it, use the quantizer's result."""
    found = []
    prepared, dividing = prepared_nodes(traced), divisors(traced)
    for node, bits in places.items():
        kind = "placeholder" if node in prepared else called(traced, node)[1]
        name = f"activation_quantizers.{child_name(node)}"
        traced.add_submodule(name, make(bits))
        with traced.graph.inserting_after(node):
            quantized = traced.graph.call_module(name, (node,))
        left = set() if node in prepared else dividing_users(traced, node, dividing)
        for user in [user for user in node.users if user is not quantized and user not in left]:
            user.replace_input_with(node, quantized)
        found.append(Quantized(node.name, ORIGINS.get(kind, kind), bits))
    traced.recompile()
    return found


def _float_inputs(traced: fx.GraphModule, protocol: str) -> Iterator[Gap]:
    """Yield the layers and products whose input is not quantized, each with the operation that the input comes from."""
    for node, _, reason in unquantized(traced, protocol):
        yield Gap(str(node.target) if node.op == "call_module" else node.name, reason)


def _unexplained(float_inputs: Iterable[Gap], protocol: str) -> Iterator[Gap]:
    """Yield the unquantized inputs that the protocol does not provide for."""
    for gap in float_inputs:
        if not is_provided(gap.reason, protocol):
            yield Gap(gap.name, f"its input comes from {gap.reason} in floating point")


def _float_parameters(network: nn.Module, name: str) -> Iterator[Gap]:
    """Yield the modules that have parameters of their own, although no quantizer is meant for their kind."""
    for path in dict.fromkeys(path.rpartition(".")[0] for path, _ in network.named_parameters()):
        owner = network.get_submodule(path)  # fx keeps parameters that are used directly in a plain Module
        if not isinstance(owner, EXPECTED) and type(owner) is not nn.Module:
            yield Gap(path or name, f"a {type(owner).__name__} computes in floating point")


def _float_functions(traced: fx.GraphModule) -> Iterator[Gap]:
    """Yield the calls that multiply outside of a layer, and those that tracing cannot look into (``torch.fx.wrap``)."""
    for node in traced.graph.nodes:
        kind = called(traced, node)[1]
        origin = (getattr(node.target, "__module__", None) or "torch").partition(".")[0]
        is_sum = kind == "einsum" and len(node.all_input_nodes) == 1
        if node.op in ("call_function", "call_method") and PRODUCT.fullmatch(kind):
            if not is_sum and not is_product(traced, node):
                yield Gap(_named(node), "a product outside of any layer")
        elif node.op == "call_function" and origin not in TRANSPARENT and not SAME_VALUES.fullmatch(kind):
            yield Gap(_named(node), "a function that tracing cannot look into")


def _named(node: fx.Node) -> str:
    """Return the name of a call, and the path of the module whose code makes it."""
    path = next(reversed(node.meta.get("nn_module_stack", {"": ""})))
    return f"{node.name} in {path}" if path else node.name


def _wrap_activations(network: nn.Module, make: Callable[[int], nn.Module], bits: int) -> list[Quantized]:
    """Replace every activation module, under each of its names, by a Sequential of itself and a quantizer."""
    found = {module: path for path, module in network.named_modules() if isinstance(module, ACTIVATIONS)}
    wrapped = {module: nn.Sequential(module, make(bits)) for module in found}
    for path, module in list(network.named_modules(remove_duplicate=False)):
        if module in wrapped:
            network.set_submodule(path, wrapped[module])
    return [Quantized(path, type(module).__name__.lower(), bits) for module, path in found.items()]
