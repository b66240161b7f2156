"""An activation that a person wrote out, such as ``x * sigmoid(x)``, becomes one call in a traced graph."""

from __future__ import annotations

import re
from typing import cast

from torch import Tensor, fx, nn

from .calls import called
from .operators import ACTIVATION, BENDING, CASTS, SCALING, SIZES

CURVED = re.compile("square|pow|r?sqrt|reciprocal|exp|expm1|log|log1p|erf|sin|cos|sign|gt|ge|lt|le|greater|less|where")
"""These are found within activations, but also where no activation is, as in a standard deviation."""


class PointwiseActivation(nn.Module):
    """A function of each element of an activation, as a person has written it."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to each element of x, of any shape."""
        return cast(Tensor, self.function(x))


def join_pointwise(traced: fx.GraphModule) -> None:
    """Put a ``PointwiseActivation`` in the place of each activation that consists of several calls, in place.

    Such a function combines one value with functions of the same value, as ``x * sigmoid(x)`` does, or it bends the
    value by a call that is no activation by name, such as a clamp. Factors and terms that follow belong to it.
    """
    sources = _sources(traced)
    for top in list(traced.graph.nodes):
        region = _region(traced, top, sources)
        if region is not None:
            _replace(traced, region, sources[top], top)
            sources = _sources(traced)
    traced.recompile()


def _sources(traced: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Map each node that is a function of the elements of one other node to that node, through all such calls.

    Numbers may take part: parameters and buffers of one element, as the learned factor of a swish.
    """
    sources: dict[fx.Node, fx.Node] = {}
    numbers: set[fx.Node] = set()
    for node in traced.graph.nodes:
        kind = called(traced, node)[1]
        if _is_number(traced, node) or (node.all_input_nodes and numbers.issuperset(node.all_input_nodes)):
            numbers.add(node)
        elif any(pattern.fullmatch(kind) for pattern in (ACTIVATION, SCALING, CURVED, CASTS, BENDING)):
            inputs = {_source(traced, each, sources) for each in node.all_input_nodes if each not in numbers}
            if len(inputs) == 1 and kind not in ("glu", "prelu"):  # these mix channels, or treat each in its own way
                (sources[node],) = inputs
    return sources


def _source(traced: fx.GraphModule, node: fx.Node, sources: dict[fx.Node, fx.Node]) -> fx.Node:
    """Return the source of a node; an activation that several calls use is one itself, because it is stored."""
    stored = len(node.users) > 1 and ACTIVATION.fullmatch(called(traced, node)[1])
    return node if stored else sources.get(node, node)


def _is_number(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Return True for a parameter or buffer of one element."""
    if node.op != "get_attr":
        return False
    owner, _, name = str(node.target).rpartition(".")
    value = getattr(traced.get_submodule(owner), name)
    return isinstance(value, Tensor) and value.numel() == 1


def _region(traced: fx.GraphModule, top: fx.Node, sources: dict[fx.Node, fx.Node]) -> list[fx.Node] | None:
    """Return the calls of which ``top`` is the last and that together are one activation, in order; None if not."""
    if top not in sources or called(traced, sources[top])[1] in {"placeholder", *SIZES}:
        return None
    source = sources[top]
    if len(top.users) == 1 and _extends(traced, next(iter(top.users)), top, sources):
        return None  # a later call is the last
    inside, waiting = {top}, [top]
    while waiting:
        for each in waiting.pop().all_input_nodes:
            if each is not source and sources.get(each) is source and each not in inside:
                inside.add(each)
                waiting.append(each)
    region = [node for node in traced.graph.nodes if node in inside]
    kinds = [called(traced, node)[1] for node in region]
    has_join = any(
        len({each for each in node.all_input_nodes if each is source or each in inside}) > 1 for node in region
    )
    bends, is_curved, is_activation = (any(map(pattern.fullmatch, kinds)) for pattern in (BENDING, CURVED, ACTIVATION))
    if not (has_join or bends or (is_curved and is_activation)):
        return None
    return None if any(user not in inside for node in region if node is not top for user in node.users) else region


def _extends(traced: fx.GraphModule, user: fx.Node, top: fx.Node, sources: dict[fx.Node, fx.Node]) -> bool:
    """Return True if ``user`` belongs to the activation that ends in ``top`` so far."""
    if sources.get(user) is not sources[top]:
        return False
    kind = called(traced, user)[1]
    return not ACTIVATION.fullmatch(kind) or len(user.all_input_nodes) > 1


def _replace(traced: fx.GraphModule, region: list[fx.Node], source: fx.Node, top: fx.Node) -> None:
    """Move the calls of ``region``, of which ``top`` is the last, into a module of its own."""
    graph = fx.Graph()
    copies = {source: graph.placeholder("x")}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            copies[node] = graph.node_copy(node, copied)
        return copies[node]

    for node in region:
        copied(node)
    graph.output(copies[top])
    name, path = top.name, f"pointwise_{top.name}"
    traced.add_submodule(path, PointwiseActivation(fx.GraphModule(traced, graph)).eval())
    with traced.graph.inserting_after(top):
        joined = traced.graph.call_module(path, (source,))
    top.replace_all_uses_with(joined)
    traced.graph.eliminate_dead_code()
    joined.name = name
    joined.meta["dtype"] = top.meta.get("dtype")
