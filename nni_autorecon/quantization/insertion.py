"""Fake quantizers are put into a network here, and a report lists what they leave out.

The weights of every Conv2d and Linear are quantized per output channel. Activations are quantized per tensor. The
protocol says which of them:

* ``activations`` quantizes the output of every activation function and nothing else, as GDFQ's published figures do.
  Network input, residual branches, pooled features and linear bottlenecks stay in floating point.
* ``integer`` makes the network that an integer engine computes. BatchNorms are folded into the convolutions before
  them, weights fit into INT8, biases are integers in the scale of the sums that they are added to, and everything that
  the engine stores between two operations is quantized. This includes the network input, and every output of a layer,
  norm, addition, concatenation, product or pooling that is not merged with the activation after it. An activation is
  merged if it only limits values, as ReLU does. What no layer reads, as the terms of a sum or the input of a SiLU, has
  8 bits, whatever others have. The output of a last linear layer, and all that follows it, stays in floating point, as
  does all that follows a last convolution.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from torch import fx, nn
from torch.nn.utils import parametrize

from ..errors import InputError
from ..shapes import ImageShape
from .calls import QUANTIZED, called
from .coverage import Coverage, Gap, Quantized
from .folding import fold_batchnorms
from .operators import (
    ACTIVATION,
    ACTIVATIONS,
    ADDITION,
    CLAMP,
    CONCATENATION,
    CONSTANT,
    EXPECTED,
    FLOAT_BY_PROTOCOL,
    NORMS,
    ORIGINS,
    PREPARING,
    PRODUCT,
    SAME_VALUES,
    SIZES,
    STORED,
    TRANSPARENT,
    is_activation,
    moves_values,
    pads_other_values,
    source_of,
)
from .quantizers import ActivationQuantizer, BiasQuantizer, WeightQuantizer
from .specification import INPUT_BITS, STORED_BITS, Quantization
from .tracing import trace

INTEGER = "protocol integer needs that; use protocol activations"


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

    Raises InputError if a part cannot be quantized and ``allow_partial`` is False, if a layer's weight is not a
    parameter of its own, if ``layer_bits`` names no layer, or if the network cannot be traced and protocol ``integer``
    needs that.
    """
    protocol = quantization.protocol
    name = type(network).__name__
    make = partial(ActivationQuantizer, ranges=quantization.activation_ranges)
    float_inputs, untraceable = None, None
    try:
        student: nn.Module = (traced := trace(network, remedy=INTEGER, image=image))
    except InputError as error:
        if protocol == "integer" or error.__cause__ is None:
            raise
        student, untraceable = copy.deepcopy(network).eval(), error.__cause__
        gaps = [Gap("forward", f"untraceable: {' '.join(str(untraceable).split())}")]
        activations = _wrap_activations(student, make, quantization.bits.activations)
        calls = [(path, module) for path, module in student.named_modules() if isinstance(module, QUANTIZED)]
    else:
        if protocol == "integer":
            fold_batchnorms(traced)
        gaps = list(_float_functions(traced))
        places = _places(traced, quantization)
        activations = _insert_quantizers(traced, make, places)
        float_inputs = tuple(_float_inputs(traced, protocol))
        gaps += _unexplained(float_inputs, protocol)
        calls = [(str(node.target), module) for node, module in _layer_calls(traced)]
    gaps += _float_parameters(student, name)
    layers = {module: path for path, module in calls}
    if not layers or not activations:
        gaps.append(Gap("the network", "no Conv2d or Linear, or no activation function, was found"))
    if gaps and not quantization.allow_partial:
        first = f"{gaps[0].name} ({gaps[0].reason})" + (f" and {len(gaps) - 1} more parts" if len(gaps) > 1 else "")
        raise InputError(f"{name}: cannot quantize {first}; allow_partial (--allow-partial) skips it") from untraceable

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
    for node, layer in _layer_calls(traced):
        inputs.setdefault(layer, []).append(called(traced, source_of(traced, node.all_input_nodes[0]))[0])
    for layer, quantizers in inputs.items():
        if layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(layer.weight.shape[0]))
        if len(quantizers) == 1 and isinstance(quantizers[0], ActivationQuantizer):
            parametrize.register_parametrization(layer, "bias", BiasQuantizer(layer, quantizers[0]), unsafe=True)


def _layer_calls(traced: fx.GraphModule) -> list[tuple[fx.Node, nn.Conv2d | nn.Linear]]:
    """Return the calls of Conv2d and Linear, in the order of execution."""
    calls = [(node, called(traced, node)[0]) for node in traced.graph.nodes]
    return [(node, module) for node, module in calls if isinstance(module, QUANTIZED)]


def _places(traced: fx.GraphModule, quantization: Quantization) -> dict[fx.Node, int]:
    """Return the nodes whose results get quantizers, with the bits of each."""
    nodes, bits = list(traced.graph.nodes), quantization.bits.activations
    if quantization.protocol == "activations":
        return {node: bits for node in nodes if is_activation(traced, node)}
    prepared = _prepared(traced)
    left_out = _numbers(traced) | _logits(traced) | prepared
    inputs = [source_of(traced, node) for node in nodes if node in prepared and not prepared.issuperset(node.users)]
    stored = {node: bits for node in nodes if node not in left_out and _is_stored(traced, node)}
    stored |= dict.fromkeys((node for node in stored if _is_no_factor(traced, node)), STORED_BITS)
    stored |= dict.fromkeys(_last_convolution(traced), STORED_BITS)
    places = {**dict.fromkeys(inputs, quantization.input_bits or INPUT_BITS), **stored}
    if quantization.last_bits is not None and (calls := _layer_calls(traced)):
        source = source_of(traced, calls[-1][0].all_input_nodes[0])
        if source in places and source not in prepared:
            places[source] = quantization.last_bits
    return places


def _prepared(traced: fx.GraphModule) -> set[fx.Node]:
    """Return the network input, and the nodes that only standardize or rearrange it before the first layer."""
    prepared: set[fx.Node] = set()
    numbers = _numbers(traced)
    for node in traced.graph.nodes:
        inputs = [each for each in node.all_input_nodes if each.op != "get_attr" and each not in numbers]
        if node.op == "placeholder" or (
            inputs and prepared.issuperset(inputs) and PREPARING.fullmatch(called(traced, node)[1])
        ):
            prepared.add(node)
    return prepared


def _numbers(traced: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes that are sizes, or that are computed from sizes alone."""
    numbers: set[fx.Node] = set()
    for node in traced.graph.nodes:
        if called(traced, node)[1] in SIZES or (node.all_input_nodes and numbers.issuperset(node.all_input_nodes)):
            numbers.add(node)
    return numbers


def _logits(traced: fx.GraphModule) -> set[fx.Node]:
    """Return the call of the last layer, and all nodes that depend on it."""
    logits = {node for node, _ in _layer_calls(traced)[-1:]}
    for node in traced.graph.nodes:
        if logits.intersection(node.all_input_nodes):
            logits.add(node)
    return logits


def _is_stored(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if an integer engine stores the node's result; it may merge the node with the operation after it."""
    module, kind = called(traced, node)
    if ACTIVATION.fullmatch(kind):
        return True
    if not (isinstance(module, (*QUANTIZED, *NORMS)) or STORED.fullmatch(kind) or pads_other_values(traced, node)):
        return False
    user = next(iter(node.users), None)
    if user is None or len(node.users) > 1:
        return True
    _, following = called(traced, user)
    mergeable = isinstance(module, (*QUANTIZED, *NORMS)) or ADDITION.fullmatch(kind)
    return not (mergeable and CLAMP.fullmatch(following))


def _is_no_factor(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if ``node`` is no activation and no layer reads its values, also after they were moved.

    Fewer bits than an integer engine stores would spare nothing there.
    """
    if ACTIVATION.fullmatch(called(traced, node)[1]):
        return False
    for user in node.users:
        module = called(traced, user)[0]
        if isinstance(module, QUANTIZED) or (moves_values(traced, user) and not _is_no_factor(traced, user)):
            return False
    return True


def _last_convolution(traced: fx.GraphModule) -> list[fx.Node]:
    """Return the call of the last layer, if that is a convolution: an integer engine has none with a float result."""
    return [node for node, layer in _layer_calls(traced)[-1:] if isinstance(layer, nn.Conv2d)]


def _insert_quantizers(
    traced: fx.GraphModule, make: Callable[[int], nn.Module], places: Mapping[fx.Node, int]
) -> list[Quantized]:
    """Put a quantizer after each of ``places``; the users of its result then use the quantizer's result."""
    found = []
    prepared = _prepared(traced)
    for node, bits in places.items():
        kind = "placeholder" if node in prepared else called(traced, node)[1]
        name = f"activation_quantizers.{node.name}"
        traced.add_submodule(name, make(bits))
        with traced.graph.inserting_after(node):
            quantized = traced.graph.call_module(name, (node,))
        node.replace_all_uses_with(quantized)
        quantized.args = (node,)
        found.append(Quantized(node.name, ORIGINS.get(kind, kind), bits))
    traced.recompile()
    return found


def _float_inputs(traced: fx.GraphModule, protocol: str) -> Iterator[Gap]:
    """Yield the layers whose input is not quantized, each with the operation that the input comes from.

    Protocol ``integer`` also asks this of additions and concatenations.
    """
    left_out = _numbers(traced) | _logits(traced)
    prepared = _prepared(traced)
    for node in traced.graph.nodes:
        module, kind = called(traced, node)
        is_layer = isinstance(module, QUANTIZED)
        joins = protocol == "integer" and (ADDITION.fullmatch(kind) or CONCATENATION.fullmatch(kind))
        for argument in node.all_input_nodes[:1] if is_layer else node.all_input_nodes if joins else ():
            if argument.op == "get_attr" or (not is_layer and (argument in left_out or node in prepared)):
                continue
            source, origin = called(traced, source_of(traced, argument))
            if CONSTANT.fullmatch(origin):
                continue
            if isinstance(source, (*QUANTIZED, *NORMS)):
                origin = "linear bottleneck"
            elif argument in prepared:
                origin = "placeholder"
            if not isinstance(source, ActivationQuantizer):
                yield Gap(str(node.target if is_layer else node.name), ORIGINS.get(origin, origin))


def _unexplained(float_inputs: Iterable[Gap], protocol: str) -> Iterator[Gap]:
    """Yield the unquantized inputs that the protocol does not provide for."""
    for gap in float_inputs:
        if protocol == "integer":
            yield Gap(gap.name, f"its input comes from {gap.reason} in floating point")
        elif not FLOAT_BY_PROTOCOL.fullmatch(gap.reason):
            yield Gap(gap.name, f"its input comes from {gap.reason}, which may be an activation in disguise")


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
        if node.op in ("call_function", "call_method") and PRODUCT.fullmatch(kind):
            yield Gap(node.name, "a product outside of any layer")
        elif node.op == "call_function" and origin not in TRANSPARENT and not SAME_VALUES.fullmatch(kind):
            yield Gap(node.name, "a function that tracing cannot look into")


def _wrap_activations(network: nn.Module, make: Callable[[int], nn.Module], bits: int) -> list[Quantized]:
    """Replace every activation module, under each of its names, by a Sequential of itself and a quantizer."""
    found = {module: path for path, module in network.named_modules() if isinstance(module, ACTIVATIONS)}
    wrapped = {module: nn.Sequential(module, make(bits)) for module in found}
    for path, module in list(network.named_modules(remove_duplicate=False)):
        if module in wrapped:
            network.set_submodule(path, wrapped[module])
    return [Quantized(path, type(module).__name__.lower(), bits) for module, path in found.items()]
