"""A network as a graph of calls (torch.fx)."""

from __future__ import annotations

import copy
import re
from typing import Any

from torch import fx, nn

from ..errors import InputError, one_line

QUANTIZED = (nn.Conv2d, nn.Linear)
"""The layers whose weights are quantized: what a traced graph never looks into."""


BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Tracer(fx.Tracer):
    """Keeps subclasses of Conv2d and Linear whole, and arguments that have a default at that default."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, QUANTIZED) or super().is_leaf_module(m, module_qualified_name)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        if kind == "placeholder" and args and any(node.op == "placeholder" for node in self.graph.nodes):
            return args[0]  # a stand-in would take the branch of `if mask is not None`
        return super().create_proxy(kind, target, args, kwargs, *rest, **named)


def trace(network: nn.Module, *, remedy: str) -> fx.GraphModule:
    """A deep copy of ``network`` in eval mode, as a graph. Raises InputError with ``remedy`` if it cannot be traced."""
    twin, name = copy.deepcopy(network).eval(), type(network).__name__
    try:
        return fx.GraphModule(twin, Tracer().trace(twin), class_name=name)
    except Exception as error:  # tracing runs the network's own code on stand-ins: anything may be raised
        raise InputError(f"{name} cannot be traced ({one_line(error)}); {remedy}") from error


def is_plain(layer: nn.Module) -> bool:
    """Whether a Conv2d or Linear computes what these classes do, with a weight that is a parameter of its own."""
    forwards = {nn.Conv2d.forward, nn.Linear.forward}
    return type(layer).forward in forwards and layer._parameters.get("weight") is not None


def is_in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a call changes its first input, by what its name or arguments say."""
    module, kind = called(traced, node)
    said = node.kwargs.get("inplace") or any(argument is True for argument in node.args[1:])
    return bool(kind.endswith("_") or said or getattr(module, "inplace", False))


def called(traced: fx.GraphModule, node: fx.Node) -> tuple[nn.Module | None, str]:
    """The module that a node calls, if any, and the name of its class, or of the function or method: lower case,
    without "_" except at the end, where it says in-place."""
    module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    name = getattr(node.target, "__name__", node.target if node.op == "call_method" else node.op)
    name = type(module).__name__ if module is not None else str(name)
    return module, re.sub("_(?=.)", "", name.lower())
