"""A traced network is cut into blocks, each of which maps one tensor to the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import fx, nn

from .calls import QUANTIZED, called


class _Part(NamedTuple):
    """The nodes after ``start`` up to ``end``, which read no earlier result but that of ``start``."""

    start: fx.Node
    end: fx.Node
    nodes: Sequence[fx.Node]

    def joined(self, other: _Part) -> _Part:
        return _Part(self.start, other.end, [*self.nodes, *other.nodes])


def blocks(network: fx.GraphModule) -> list[fx.GraphModule]:
    """Return ``network`` as blocks in a row that share its layers; each takes what the one before it returns.

    The graph is cut wherever one tensor is all that later operations read, so that a residual block, an inverted
    residual, a step of a densely connected network or a plain layer is a block. Operations without a layer, such as an
    activation and its quantizer, belong to the block before them, and to the first one at the beginning. From the first
    to the last use of a parameter that is used several times, all is one block.
    """
    parts: list[_Part] = []
    for part in _parts(network):
        if parts and not (_has_layer(network, part) and _has_layer(network, parts[-1])):
            part = parts.pop().joined(part)
        parts.append(part)
    return [_block(network, part) for part in _joined_by_parameters(network, parts)]


def _parts(network: fx.GraphModule) -> Iterator[_Part]:
    """Yield the smallest parts."""
    nodes = list(network.graph.nodes)
    position = {node: index for index, node in enumerate(nodes)}
    last_use = {node: max((position[user] for user in node.users), default=0) for node in nodes}
    start = next(node for node in nodes if node.op == "placeholder")
    live: set[fx.Node] = set()
    inner: list[fx.Node] = []
    for index, node in enumerate(nodes):
        if node.op == "output":
            if inner:
                yield _Part(start, node.args[0], inner)
            return
        live = {each for each in (live | {node}) if last_use[each] > index and each.op != "get_attr"}
        if node is start or node.op == "get_attr":
            continue
        inner.append(node)
        if live == {node} and not _is_taken_apart(network, node):
            yield _Part(start, node, inner)
            start, inner = node, []


def _is_taken_apart(network: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if an element of the node's result is read, which may be a tuple."""
    return any(called(network, user)[1] == "getitem" for user in node.users)


def _has_layer(network: fx.GraphModule, part: _Part) -> bool:
    return any(isinstance(called(network, node)[0], QUANTIZED) for node in part.nodes)


def _joined_by_parameters(network: fx.GraphModule, parts: Sequence[_Part]) -> list[_Part]:
    """Return the parts, joined so that no parameter is in two of them."""
    own = [_parameters(network, part) for part in parts]
    last = {parameter: index for index, parameters in enumerate(own) for parameter in parameters}
    joined: list[_Part] = []
    end = -1
    for index, part in enumerate(parts):
        joined.append(joined.pop().joined(part) if index <= end else part)
        end = max([end, *(last[parameter] for parameter in own[index])])
    return joined


def _parameters(network: fx.GraphModule, part: _Part) -> set[nn.Parameter]:
    """Return the parameters of the modules that a part calls, and those that it reads itself."""
    found: set[nn.Parameter] = set()
    for node in part.nodes:
        if node.op == "call_module":
            found.update(network.get_submodule(str(node.target)).parameters())
        for constant in node.all_input_nodes:
            value = _attribute(network, str(constant.target)) if constant.op == "get_attr" else None
            found.update([value] if isinstance(value, nn.Parameter) else [])
    return found


def _attribute(network: nn.Module, path: str) -> object:
    owner, _, name = path.rpartition(".")
    return getattr(network.get_submodule(owner), name)


def _block(network: fx.GraphModule, part: _Part) -> fx.GraphModule:
    graph = fx.Graph()
    copies = {part.start: graph.placeholder("x")}
    for node in part.nodes:
        for constant in node.all_input_nodes:
            if constant.op == "get_attr" and constant not in copies:
                copies[constant] = graph.node_copy(constant)
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[part.end])
    return fx.GraphModule(network, graph).eval()
