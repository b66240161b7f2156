"""A traced call that changes a value in place has a counterpart that does not, and changes the views of that value."""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.proxy import TraceError

IN_ORDER = re.compile("view(_as)?|reshape(_as)?|(un)?flatten|(un)?squeeze|ravel")
"""Views by these calls have the elements of their base in the same order."""


class View(NamedTuple):
    """The call by which a value became a view of another one, ``base``."""

    base: Any
    kind: str
    target: Any
    args: tuple[Any, ...]
    """The arguments after ``base``."""
    kwargs: Mapping[str, Any]

    def call(self) -> tuple[str, Any, tuple[Any, ...], dict[str, Any]]:
        """Return the call again."""
        return self.kind, self.target, (self.base, *self.args), dict(self.kwargs)

    def put_back(self, changed: Any) -> tuple[str, Any, tuple[Any, ...], dict[str, Any]] | None:
        """Return the call that computes the base from a ``changed`` view of it; None if none is known."""
        name = getattr(self.target, "__name__", self.target)
        given = [*self.args, *self.kwargs.values()]
        if self.target is operator.getitem:
            return "call_function", set_item, (self.base, self.args[0], changed), {}
        if name in ("select", "narrow") and given[0] >= 0:
            part = given[1] if name == "select" else slice(given[1], given[1] + given[2])
            return "call_function", set_item, (self.base, (*[slice(None)] * given[0], part), changed), {}
        if name in ("t", "transpose", "swapaxes", "swapdims"):
            return self.kind, self.target, (changed, *self.args), dict(self.kwargs)
        if name == "permute":
            order = given[0] if isinstance(given[0], (tuple, list)) else given
            inverse = sorted(range(len(order)), key=lambda place: order[place] % len(order))
            return "call_method", "permute", (changed, *inverse), {}
        if IN_ORDER.fullmatch(str(name)) and self.base.known[0].dtype == changed.known[0].dtype:
            shapes = zip(*(before.shape for before in self.base.known), strict=True)
            sizes = [one if one == other else -1 for one, other in shapes]
            return ("call_method", "reshape", (changed, *sizes), {}) if sizes.count(-1) < 2 else None
        return None


def view_of(kind: str, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], known: Any) -> View | None:
    """Return the view that a call makes of its first argument; None if it makes a new tensor. known: its results."""
    base = args[0]
    if not shares_memory(base.known[0], known[0]):
        return None
    return base.view_of if is_same(base.known[0], known[0]) else View(base, kind, target, args[1:], kwargs)


def set_item(x: Tensor, index: Any, value: Any) -> Tensor:
    """Return ``x`` with other values at ``index``."""
    changed = x.clone()
    changed[index] = value
    return changed


def without_change(
    in_place: Collection[nn.Module], module: nn.Module | None, kind: str, target: Any, args: Any, kwargs: dict[str, Any]
) -> Any:
    """Return what a call changes in place, and the call that computes the same; None for an ordinary call.

    module: the layer that is called; it works in place if it is one of ``in_place``.
    """
    if kind == "call_module":
        return (args[0] if args else kwargs["input"], kind, target, args, kwargs) if module in in_place else None
    if kwargs.get("out") is not None:
        return kwargs["out"], kind, target, args, {key: value for key, value in kwargs.items() if key != "out"}
    label = target if kind == "call_method" else getattr(target, "__name__", "")
    if label == "copy_":
        return args[0], "call_function", set_item, (args[0], ..., args[1]), {}
    if label.endswith("_") and not label.endswith("__"):
        return args[0], *_counterpart(kind, target, label[:-1]), args, kwargs
    if kind == "call_function" and inspect.isfunction(target):
        given = inspect.signature(target)
        if "inplace" in given.parameters:
            call = given.bind(*args, **kwargs)
            if call.arguments.get("inplace"):
                call.arguments["inplace"] = False
                return call.args[0], kind, target, call.args, call.kwargs
    return None


def _counterpart(kind: str, target: Any, name: str) -> tuple[str, Callable[..., Any] | str]:
    """Return the call of the function or method ``name`` that computes what ``target`` computes in place.

    Raises TraceError if there is none.
    """
    special: Mapping[str, Callable[..., Any]] = {"zero": torch.zeros_like, "fill": torch.full_like}
    if name in special:
        return "call_function", special[name]
    if kind == "call_method" and hasattr(Tensor, name):
        return kind, name
    for module in (torch, F):
        if kind == "call_function" and hasattr(module, name):
            return kind, getattr(module, name)
    raise TraceError(f"{name}_ changes values in place in a way that cannot be written down")


def shares_memory(one: Any, other: Any) -> bool:
    """Return True for two tensors in the same memory."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def is_same(one: Any, other: Any) -> bool:
    """Return True if two are the same tensor: the same memory, seen in the same way."""
    if not shares_memory(one, other):
        return False
    return bool((one.data_ptr(), one.shape, one.stride()) == (other.data_ptr(), other.shape, other.stride()))
