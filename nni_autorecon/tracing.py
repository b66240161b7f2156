"""A network as a graph of calls (torch.fx)."""

from __future__ import annotations

import re
from typing import Any

from torch import fx, nn

QUANTIZED = (nn.Conv2d, nn.Linear)
"""The layers whose weights are quantized: what a traced graph never looks into."""


class Tracer(fx.Tracer):
    """Keeps subclasses of Conv2d and Linear whole, and arguments that have a default at that default."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, QUANTIZED) or super().is_leaf_module(m, module_qualified_name)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        if kind == "placeholder" and args and any(node.op == "placeholder" for node in self.graph.nodes):
            return args[0]  # a stand-in would take the branch of `if mask is not None`
        return super().create_proxy(kind, target, args, kwargs, *rest, **named)


def called(traced: fx.GraphModule, node: fx.Node) -> tuple[nn.Module | None, str]:
    """The module that a node calls, if any, and the name of its class, or of the function or method: lower case,
    without "_" except at the end, where it says in-place."""
    module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    name = getattr(node.target, "__name__", node.target if node.op == "call_method" else node.op)
    name = type(module).__name__ if module is not None else str(name)
    return module, re.sub("_(?=.)", "", name.lower())
