"""torch.fx traces a network into a graph of calls, and helpers here read that graph."""

from __future__ import annotations

import copy
import re
from typing import Any

from torch import fx, nn

from ..errors import InputError, one_line

QUANTIZED = (nn.Conv2d, nn.Linear)
"""Layers of these classes have quantized weights, and a traced graph shows each as one call."""


BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Tracer(fx.Tracer):
    """A tracer that keeps subclasses of Conv2d and Linear whole, and keeps arguments at their default.

    The first argument of the network, its images, is traced even if it has a default.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, QUANTIZED) or super().is_leaf_module(m, module_qualified_name)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        if kind == "placeholder" and args and any(node.op == "placeholder" for node in self.graph.nodes):
            return args[0]  # the default itself: a proxy would take the branch of `if mask is not None`
        return super().create_proxy(kind, target, args, kwargs, *rest, **named)


def trace(network: nn.Module, *, remedy: str) -> fx.GraphModule:
    """Return a deep copy of ``network`` in eval mode as a graph.

    Raises InputError, which ends in ``remedy``, if it cannot be traced.
    """
    twin, name = copy.deepcopy(network).eval(), type(network).__name__
    try:
        return fx.GraphModule(twin, Tracer().trace(twin), class_name=name)
    except Exception as error:  # tracing runs the network's own code on proxies, so any exception may come
        raise InputError(f"{name} cannot be traced ({one_line(error)}); {remedy}") from error


def is_plain(layer: nn.Module) -> bool:
    """Return True if a Conv2d or Linear has that class's own forward, and a weight that is a parameter of its own."""
    forwards = {nn.Conv2d.forward, nn.Linear.forward}
    return type(layer).forward in forwards and layer._parameters.get("weight") is not None


def is_in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if the name or the arguments of a call say that it changes its first input in place."""
    module, kind = called(traced, node)
    said = node.kwargs.get("inplace") or any(argument is True for argument in node.args[1:])
    return bool(kind.endswith("_") or said or getattr(module, "inplace", False))


def called(traced: fx.GraphModule, node: fx.Node) -> tuple[nn.Module | None, str]:
    """Return the module that a node calls, or None, and the name of its class, of the function or of the method.

    The name is in lower case and has no "_" except at its end, where it stands for in-place: ``maxpool2d``, ``relu_``.
    A node that calls nothing has the name of its operation, such as ``placeholder``.
    """
    module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    name = getattr(node.target, "__name__", node.target if node.op == "call_method" else node.op)
    name = type(module).__name__ if module is not None else str(name)
    return module, re.sub("_(?=.)", "", name.lower())
