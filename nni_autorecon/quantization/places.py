"""The places of a traced network where a protocol quantizes values, and those where it leaves them as they are."""

from __future__ import annotations

import operator
from collections.abc import Iterator

from torch import fx, nn

from .calls import QUANTIZED, called
from .divisors import divided_by, divisors, is_only_divisor
from .operators import (
    ACTIVATION,
    ADDITION,
    CLAMP,
    CONCATENATION,
    CONSTANT,
    DIVISOR,
    FLOAT_BY_PROTOCOL,
    KEEPS_ORDER,
    NORMS,
    ORIGINS,
    PREPARING,
    SIZES,
    STORED,
    averaged_axes,
    is_activation,
    is_product,
    is_real,
    moves_values,
    pads_other_values,
    source_of,
)
from .quantizers import ActivationQuantizer
from .specification import INPUT_BITS, STORED_BITS, Quantization


def quantized_places(traced: fx.GraphModule, quantization: Quantization) -> dict[fx.Node, int]:
    """Return the nodes whose results get quantizers, with the bits of each."""
    nodes, bits = list(traced.graph.nodes), quantization.bits.activations
    found = divisors(traced)
    no_factors = {node for node in nodes if not is_real(node)}
    no_factors |= {node for node in found if is_only_divisor(traced, node, found)}
    if quantization.protocol == "activations":
        answers = {source_of(traced, each) for node in nodes if node.op == "output" for each in node.all_input_nodes}
        left_out = no_factors | {answer for answer in answers if len(answer.users) == 1}
        return {node: bits for node in nodes if is_activation(traced, node) and node not in left_out}
    prepared = prepared_nodes(traced)
    left_out = _numbers(traced) | _logits(traced) | prepared | no_factors
    inputs = [source_of(traced, node) for node in nodes if node in prepared and not prepared.issuperset(node.users)]
    stored = {node: bits for node in nodes if node not in left_out and _is_stored(traced, node)}
    stored |= dict.fromkeys((node for node in stored if _is_no_factor(traced, node)), STORED_BITS)
    stored |= dict.fromkeys(_last_convolution(traced), STORED_BITS)
    places = {**dict.fromkeys(inputs, quantization.input_bits or INPUT_BITS), **stored}
    if quantization.last_bits is not None and (calls := layer_calls(traced)):
        source = source_of(traced, calls[-1][0].all_input_nodes[0])
        if source in places and source not in prepared:
            places[source] = quantization.last_bits
    return places


def advance_clamps(traced: fx.GraphModule) -> None:
    """Let each activation that only limits values come before the operations that move them, in place.

    So a value is limited before it is stored, and stored once: ``relu(pool(conv(x)))`` is ``pool(relu(conv(x)))``.
    """
    for clamp in list(traced.graph.nodes):
        if not CLAMP.fullmatch(called(traced, clamp)[1]):
            continue
        first = clamp
        while KEEPS_ORDER.fullmatch(called(traced, (before := first.all_input_nodes[0]))[1]) and len(before.users) == 1:
            first = before
        source = first.all_input_nodes[0]
        if first is clamp or len(source.users) > 1:
            continue
        last = clamp.all_input_nodes[0]
        clamp.replace_all_uses_with(last)
        clamp.replace_input_with(last, source)
        first.replace_input_with(source, clamp)
        first.prepend(clamp)
    traced.recompile()


def join_means(traced: fx.GraphModule) -> None:
    """Let a mean over one axis of a mean over another, as in ``x.mean(3).mean(2)``, be one over both, in place."""
    for node in list(traced.graph.nodes):
        before = next(iter(node.all_input_nodes), node)
        first, second = (
            averaged_axes(traced, each) if called(traced, each)[1] == "mean" else None for each in (before, node)
        )
        if first is None or second is None or before is node or len(before.users) > 1 or first[1] != second[1]:
            continue
        (axis, *more), (other, *others), keeps = first[0], second[0], first[1]
        if more or others or (axis < 0) != (other < 0):
            continue
        if not keeps:  # then the second counts the axes that are left
            other += (other >= axis) if axis >= 0 else -(other <= axis)
        node.args, node.kwargs = (before.all_input_nodes[0], (axis, other), keeps), {}
        traced.graph.erase_node(before)
    traced.recompile()


def overlooked(traced: fx.GraphModule, quantization: Quantization) -> dict[fx.Node, int]:
    """Return the nodes that layers read in floating point although the protocol does not provide for it, with bits.

    They are of operations of no table, as ``pow`` and ``local_response_norm``. What returns several tensors stays.
    """
    found = {}
    for _, source, reason in unquantized(traced, quantization.protocol):
        if not is_provided(reason, quantization.protocol) and not all(map(_is_picked, source.users)):
            stored = quantization.protocol == "integer" and _is_no_factor(traced, source)
            found[source] = STORED_BITS if stored else quantization.bits.activations
    return found


def _is_picked(node: fx.Node) -> bool:
    """Return True if a node is one of several results."""
    return node.target is operator.getitem and isinstance(node.args[1], int)


def unquantized(traced: fx.GraphModule, protocol: str) -> Iterator[tuple[fx.Node, fx.Node, str]]:
    """Yield each layer and each product of activations whose input is not quantized, the input's source, and its kind.

    Protocol ``integer`` also asks this of additions and concatenations. Divisors are yielded in both.
    """
    left_out, dividing = _numbers(traced) | _logits(traced), divisors(traced)
    prepared = prepared_nodes(traced)
    for node in traced.graph.nodes:
        divisor = divided_by(traced, node)
        if divisor is not None and divisor not in left_out | prepared:
            yield node, source_of(traced, divisor), DIVISOR
        module, kind = called(traced, node)
        is_layer = isinstance(module, QUANTIZED)
        joins = CONCATENATION.fullmatch(kind) or (ADDITION.fullmatch(kind) and node not in dividing)
        is_asked = is_product(traced, node) or (protocol == "integer" and joins)
        for argument in node.all_input_nodes[:1] if is_layer else node.all_input_nodes if is_asked else ():
            if argument.op == "get_attr" or (not is_layer and (argument in left_out or node in prepared)):
                continue
            if not is_real(argument):
                continue
            origin = source_of(traced, argument)
            source, kind = called(traced, origin)
            if CONSTANT.fullmatch(kind):
                continue
            if isinstance(source, (*QUANTIZED, *NORMS)):
                kind = "linear bottleneck"
            elif argument in prepared:
                kind = "placeholder"
            if not isinstance(source, ActivationQuantizer):
                yield node, origin, ORIGINS.get(kind, kind)


def is_provided(reason: str, protocol: str) -> bool:
    """Return True if the protocol leaves what comes from there in floating point."""
    return reason == DIVISOR or (protocol == "activations" and FLOAT_BY_PROTOCOL.fullmatch(reason) is not None)


def layer_calls(traced: fx.GraphModule) -> list[tuple[fx.Node, nn.Conv2d | nn.Linear]]:
    """Return the calls of Conv2d and Linear, in the order of execution."""
    calls = [(node, called(traced, node)[0]) for node in traced.graph.nodes]
    return [(node, module) for node, module in calls if isinstance(module, QUANTIZED)]


def prepared_nodes(traced: fx.GraphModule) -> set[fx.Node]:
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
    logits = {node for node, _ in layer_calls(traced)[-1:]}
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
    kinds = [kind for user in node.users if (kind := called(traced, user)[1]) not in SIZES]
    return node.op == "placeholder" or len(kinds) != 1 or not CLAMP.fullmatch(kinds[0])


def _is_no_factor(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if ``node`` is no activation and no layer reads its values, also after they were moved.

    Fewer bits than an integer engine stores would spare nothing there.
    """
    if ACTIVATION.fullmatch(called(traced, node)[1]):
        return False
    for user in node.users:
        module = called(traced, user)[0]
        is_factor = isinstance(module, QUANTIZED) or is_product(traced, user)
        if is_factor or (moves_values(traced, user) and not _is_no_factor(traced, user)):
            return False
    return True


def _last_convolution(traced: fx.GraphModule) -> list[fx.Node]:
    """Return the call of the last layer, if that is a convolution: an integer engine has none with a float result."""
    return [node for node, layer in layer_calls(traced)[-1:] if isinstance(layer, nn.Conv2d)]
