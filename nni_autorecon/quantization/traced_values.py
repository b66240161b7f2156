"""A tracer passes these values through a network's code, in place of tensors and numbers."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from .changes import View, set_item

UNKNOWN: Any = object()
"""The value of a proxy about which nothing is known."""
TRANSPOSED: dict[str, tuple[str, tuple[int, ...]]] = {"T": ("t", ()), "mT": ("transpose", (-2, -1))}
"""These attributes of a tensor are written down as calls of methods."""
ELEMENTWISE = {torch.max: torch.maximum, torch.min: torch.minimum, "max": torch.maximum, "min": torch.minimum}
"""These functions of two tensors are called by other names, so that what is left takes values of one tensor."""


class Value(fx.Proxy):
    """A value of the network while it is traced, with what it is for each of the two batches."""

    known: Any = UNKNOWN
    """A pair of values, or UNKNOWN."""
    stale: bool = False
    """True if it is a view of a value that has been changed in place, and is no longer what the graph has of it."""
    view_of: View | None = None
    """How it became a view of another value."""

    def is_tensor(self) -> bool:
        """Return True if it is known to be a tensor, rather than a number."""
        return self.known is not UNKNOWN and isinstance(self.known[0], Tensor)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # NumPy asks for some of these
        if self.known is UNKNOWN:
            return super().__getattr__(name)
        if name == "shape":
            return self.size()
        if name in TRANSPOSED and self.is_tensor():
            method, dims = TRANSPOSED[name]
            return self.tracer.create_proxy("call_method", method, (self, *dims), {})
        found = getattr(self.known[0], name)
        if callable(found) and not isinstance(found, Tensor):
            return super().__getattr__(name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def size(self, dim: int | None = None) -> Any:
        """Return the sizes; those that depend on the number of images are calls."""
        call: Callable[..., Any] = self.tracer.create_proxy
        if dim is not None or self.known is UNKNOWN:
            return call("call_method", "size", (self,) if dim is None else (self, dim), {})
        sizes = tuple(call("call_method", "size", (self, index), {}) for index in range(self.known[0].ndim))
        return torch.Size(sizes) if all(type(size) is int for size in sizes) else Sizes(sizes)

    def __iter__(self) -> Iterator[Any]:
        if self.known is UNKNOWN:
            return super().__iter__()
        return iter([cast(Any, self)[index] for index in range(self.__len__())])

    def __len__(self) -> int:
        if not isinstance(count := self.length(), int):
            raise TraceError("a loop over images")
        return count

    def __index__(self) -> int:
        raise TypeError("a value or a number of images where Python needs a number, as in range()")

    def length(self) -> Any:
        """Return the length; that of a batch of images is a call."""
        if self.known is UNKNOWN:
            return super().__len__()
        return self.size(0) if self.is_tensor() else len(self.known[0])

    def to_number(self, kind: type) -> Any:
        """Return what ``kind``, int or float, makes of a number; that of a number of images is a call."""
        if self.known is UNKNOWN or self.is_tensor():
            return kind(self)
        if isinstance(self.known[0], kind):
            return self
        function = torch.sym_int if kind is int else torch.sym_float
        return self.tracer.create_proxy("call_function", function, (self,), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, Value) and value.view_of and value.view_of.base is self and value.view_of.args == (index,):
            return  # x[0] += 1 has changed the view x[0] in place, and so x
        cast(Any, self.tracer).change(self, "call_function", set_item, (self, index, value), {}, name="setitem")


class Sizes(tuple[Any, ...]):
    """The sizes of a tensor of images, whose number is a call."""

    def numel(self) -> Any:
        """Return the number of elements, as ``torch.Size`` does."""
        return math.prod(self)


def _in_place_operator(name: str) -> Callable[[Value, Any], Any]:
    def apply(self: Value, other: Any) -> Any:
        tracer = cast(Any, self.tracer)
        if self.known is not UNKNOWN and not isinstance(self.known[0], Tensor):
            return getattr(operator, name)(self, other)  # a number cannot be changed in place
        label = f"i{name.strip('_')}"
        return tracer.change(self, "call_function", getattr(operator, name), (self, other), {}, name=label)

    return apply


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor"):
    setattr(Value, f"__i{_name.strip('_')}__", _in_place_operator(_name))


def is_known(value: fx.Proxy) -> bool:
    """Return True if it is known what a proxy is for each of the batches."""
    return isinstance(value, Value) and value.known is not UNKNOWN


def is_tensor(value: Any) -> bool:
    """Return True for a tensor, traced or not."""
    return isinstance(value, (fx.Proxy, Tensor))


def dtype_of(known: Any) -> torch.dtype | None:
    """Return the type of the numbers in a pair of tensors; None for anything else, and if nothing is known."""
    return known[0].dtype if known is not UNKNOWN and isinstance(known[0], Tensor) else None


def require_no_autocast(device: torch.device) -> None:
    """Raise TraceError within ``torch.autocast``, which a graph would leave out."""
    if torch.is_autocast_enabled(device.type):
        kind = str(torch.get_autocast_dtype(device.type)).removeprefix("torch.")
        raise TraceError(f"it makes values of {kind} by autocast")


def adds_nothing(target: Any, args: tuple[Any, ...]) -> bool:
    """Return True for the sum of a tensor of real numbers and 0, with which ``sum`` begins."""
    if target is not operator.add or not any(type(each) in (int, float) and each == 0 for each in args):
        return False
    return any(isinstance(each, Value) and each.is_tensor() and each.known[0].is_floating_point() for each in args)


def passes_on(kind: str, argument: Any, known: Any) -> bool:
    """Return True if a call of a layer or function only returns its argument, as those for training do in eval mode."""
    if kind not in ("call_module", "call_function"):
        return False
    return isinstance(argument, Value) and is_known(argument) and known[0] is argument.known[0]


def resolved(arguments: Any, index: int) -> Any:
    """Return arguments with the values of one of the batches in the place of proxies."""
    return fx.node.map_aggregate(arguments, lambda a: a.known[index] if isinstance(a, Value) else a)


def is_plain(value: Any) -> bool:
    """Return True for a number, a text and the like, and for tuples of them."""
    if isinstance(value, (tuple, list)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device, torch.layout))


def attribute(root: nn.Module, path: str) -> Any:
    """Return the parameter, buffer or other attribute at ``path``."""
    owner, _, name = path.rpartition(".")
    return getattr(root.get_submodule(owner), name)


MADE_LIKE = tuple(f"new_{what}" for what in ("ones", "zeros", "full", "tensor")) + tuple(
    f"{what}_like" for what in ("ones", "zeros", "full")
)
"""Of their first argument these functions take only the shape and the kind."""


def depends_on_images(node: fx.Node) -> bool:
    """Return True if values of what the network is given go into a node, directly or through others."""
    nodes, seen = [node], {node}
    while nodes:
        node = nodes.pop()
        if node.op == "placeholder":
            return True
        made_like = getattr(node.target, "__name__", node.target) in MADE_LIKE
        new = [each for each in node.all_input_nodes[made_like:] if each not in seen]
        seen.update(new)
        nodes += new
    return False


def is_one_value(known: tuple[Any, Any]) -> bool:
    """Return True if a call returns the same for both batches, which are of different sizes."""
    one, other = known
    return one is other or (isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other))


def positional(module: nn.Module | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the arguments of a module, or of a function of PyTorch, with the first one by its position."""
    names = ("input", "tensors") if module is None else [*inspect.signature(type(module).forward).parameters][1:2]
    first = next(iter(kwargs), "")
    if args or first not in names:
        return args, kwargs
    return (kwargs[first],), {name: value for name, value in kwargs.items() if name != first}
