"""Code of PyTorch that fails on the proxies of ``torch.fx`` is replaced while a network is traced."""

from __future__ import annotations

import builtins
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from .traced_values import Value

MISSING: Any = object()


@contextmanager
def what_takes_no_proxies() -> Iterator[None]:
    """Let proxies go within the block where PyTorch refuses them.

    A traced number may come first in ``zeros(n, 4)`` and ``x.expand(n, -1)``, and may stand in ``tensor([n, 4])``. A
    traced tensor is one to ``isinstance``, except in PyTorch's own code, and has a ``len``. A TorchScript
    function is followed as the function of Python that it was made of.
    """
    with ExitStack() as stack:
        for name in ("zeros", "ones", "empty", "rand", "randn"):
            stack.enter_context(_replaced(torch, name, _with_tuple_of_sizes))
        for name in ("tensor", "as_tensor"):
            stack.enter_context(_replaced(torch, name, _written_down))
        stack.enter_context(_replaced(Tensor, "expand", _with_tuple_of_sizes))
        stack.enter_context(_replaced(builtins, "isinstance", _that_knows_tensors))
        stack.enter_context(_replaced(builtins, "len", _of_values_too))
        stack.enter_context(_replaced(torch.autograd.Variable, "__new__", _passing_proxies_on))
        stack.enter_context(_replaced(torch.jit.ScriptFunction, "__call__", _followed))
        yield


@contextmanager
def numbers_that_take_proxies(network: nn.Module) -> Iterator[None]:
    """Let ``int`` and ``float`` take a traced number within the block, in the files that define the network's classes.

    They are no longer the types that PyTorch knows there, so that ``dtype=int`` fails.
    """
    names = {type(module).__module__ for module in network.modules()}
    own = [name for name in names.intersection(sys.modules) if not name.startswith("torch.")]
    with ExitStack() as stack:
        for name, kind in itertools.product(own, (int, float)):
            stack.enter_context(_replaced(sys.modules[name], kind.__name__, partial(_taking_proxies, kind)))
        yield


def _taking_proxies(kind: type, _: object) -> type:
    """Return a type that is ``kind`` to a call, which may be one of the graph, and to ``isinstance``."""

    class Kind(type):
        def __call__(cls, *args: Any, **named: Any) -> Any:
            return args[0].to_number(kind) if _has_proxy(args) else kind(*args, **named)

        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, kind)

    return Kind(kind.__name__, (kind,), {})


@contextmanager
def _replaced(owner: Any, name: str, change: Callable[[Any], Any]) -> Iterator[None]:
    """Put ``change`` of an attribute in its place within the block."""
    own = vars(owner).get(name, MISSING)
    setattr(owner, name, change(getattr(owner, name, None)))
    try:
        yield
    finally:
        if own is MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _with_tuple_of_sizes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that passes sizes on as one tuple if there is a proxy among them."""

    def call(*args: Any, **named: Any) -> Any:
        tensors = [each for each in args[:1] if isinstance(each, Tensor)]
        sizes = args[len(tensors) :]
        return function(*tensors, sizes, **named) if _has_proxy(sizes) else function(*args, **named)

    return call


def _written_down(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that becomes a call of the graph if a proxy is within its first argument."""

    def call(data: Any, **named: Any) -> Any:
        proxies: list[Any] = []
        fx.node.map_aggregate(data, lambda a: proxies.append(a) if issubclass(type(a), fx.Proxy) else None)
        if not proxies:
            return function(data, **named)
        return proxies[0].tracer.create_proxy("call_function", function, (data,), named)

    return call


def _that_knows_tensors(is_instance: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    """Return an ``isinstance`` by which traced tensors are tensors."""

    def check(value: Any, kinds: Any) -> bool:
        if is_instance(value, kinds) or not issubclass(type(value), Value):
            return is_instance(value, kinds)
        asked_by = str(sys._getframe(1).f_globals.get("__name__"))
        return not asked_by.startswith(("torch.", "nni_autorecon.")) and value.is_tensor() and issubclass(Tensor, kinds)

    return check


def _of_values_too(length: Callable[[Any], int]) -> Callable[[Any], Any]:
    """Return a ``len`` that may be a call, as it is for a batch of images."""
    return lambda value: value.length() if issubclass(type(value), Value) else length(value)


def _passing_proxies_on(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``Variable`` that is its argument, as it has long been, if that is a proxy."""

    def new(kind: type, *args: Any, **named: Any) -> Any:
        return args[0] if _has_proxy(args) else make(kind, *args, **named)

    return new


def _followed(call_script: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls the Python function of a TorchScript function if an argument is a proxy."""

    def call(script: Any, *args: Any, **named: Any) -> Any:
        original = getattr(script, "_torchdynamo_inline", None)
        if original is not None and _has_proxy((*args, *named.values())):
            return original(*args, **named)
        return call_script(script, *args, **named)

    return call


def _has_proxy(values: tuple[Any, ...]) -> bool:
    return any(issubclass(type(each), fx.Proxy) for each in values)


def line_of_code(error: BaseException) -> str:
    """Return file and line of the network's code from which an error came, `` in FILE:LINE``; empty if from none."""
    ours = ("/torch/", "/nni_autorecon/quantization/")
    raised = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in raised if not any(part in frame.filename for part in ours)]
    return f" in {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
