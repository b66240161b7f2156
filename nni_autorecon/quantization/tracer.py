"""A tracer follows a network's own code and writes down a graph of calls in which nothing is changed in place.

It runs the code on two batches of different sizes at once. A number that is the same for both, such as a height, is
known; one that differs, such as the number of images, stays a call. Whatever depends on the values of the images cannot
be written down, and ends in an error.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from .changes import View, is_same, shares_memory, view_of, without_change
from .functional_layers import LAYERS, attention
from .proxies import numbers_that_take_proxies, what_takes_no_proxies
from .traced_layers import TracedLayers
from .traced_values import (
    ELEMENTWISE,
    UNKNOWN,
    Value,
    adds_nothing,
    attribute,
    depends_on_images,
    dtype_of,
    is_known,
    is_one_value,
    is_plain,
    is_tensor,
    passes_on,
    positional,
    require_no_autocast,
    resolved,
)


class Tracer(fx.Tracer):
    """A tracer that writes down calls of layers, functions and methods, none of which changes anything in place.

    A layer is a module whose forward is that of a class of ``torch.nn``. Hooks and forwards of a person's own are
    followed like all other code. A call of ``conv2d``, ``linear`` or ``batch_norm`` whose weights do not depend on the
    images becomes one of the ``layers``; within a subclass of such a layer, it takes the subclass's place.

    batches: two batches of images of different sizes; None if nothing is known about the images.
    """

    def __init__(self, batches: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self.batches = batches
        self._names: dict[nn.Parameter, str] = {}
        self._computing = False
        self._alive: list[weakref.ref[Value]] = []

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Return the graph of ``root``, whose layers no longer work in place afterwards."""
        self.root, self._names = root, {parameter: name for name, parameter in root.named_parameters()}
        self.layers = TracedLayers(root)
        with what_takes_no_proxies():
            try:
                return super().trace(root, concrete_args)
            except TypeError:  # perhaps of int(x.shape[0])
                with numbers_that_take_proxies(root):
                    return super().trace(root, concrete_args)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """Trace a call of the network with images alone, and with all its hooks."""
        parameters = inspect.signature(self.root.forward).parameters
        name = next((name for name, each in parameters.items() if each.kind == each.POSITIONAL_OR_KEYWORD), "images")
        images = self.create_proxy("placeholder", name, (), {})
        if self.batches is not None:
            images.known = self.batches
        return (lambda root, images: root(images)), [self.root, images]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return True for a layer: a module whose forward is that of a class of ``torch.nn``."""
        return self.layers.is_layer(m)

    def path_of_module(self, mod: nn.Module) -> str:
        """Return the path of a module. Raises TraceError if it has weights of which the network does not know."""
        path = self.layers.path_of(mod)
        if path is None:
            kind = type(mod).__name__
            raise TraceError(f"it calls a {kind} that is none of its modules; keep it in an nn.ModuleList")
        return path

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Raise TraceError, for code decides by a value that is not known."""
        raise TraceError("control flow by values or by the number of images")

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """Follow the call of a module; the call of a layer is written down between its hooks."""
        if self._computing or self.layers.is_transparent(m):
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if not self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        vars(m)["forward"] = lambda *args, **kwargs: self.create_proxy("call_module", path, args, kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            del vars(m)["forward"]

    def proxy(self, node: fx.Node) -> Value:
        """Return a new value for ``node``."""
        value = Value(node, self)
        self._alive.append(weakref.ref(value))
        return value

    def create_arg(self, a: Any) -> Any:
        """Return an argument as a graph holds it. Raises TraceError for a value a view of which has been changed."""
        if isinstance(a, np.generic):
            return a.item()
        if isinstance(a, Value):
            if a.stale:
                raise TraceError(f"{a.node.name} is used after a part of it was changed in place")
            return a.node
        return super().create_arg(a)

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        *rest: Any,
    ) -> Any:
        """Write down a call and return its value, or a plain number or text where it is the same for both batches."""
        if kind == "get_attr":
            parameter = cast(Value, super().create_proxy(kind, target, args, kwargs, name, *rest))
            with self._computing_values():
                parameter.known = (attribute(self.root, target),) * 2
            return parameter
        if kind == "placeholder":
            return super().create_proxy(kind, target, args, kwargs, name, *rest)
        module = self.layers.get(target) if kind == "call_module" else None
        args, kwargs = positional(module, args, kwargs)
        if (without := without_change(self.layers.in_place, module, kind, target, args, kwargs)) is not None:
            return self.change(*without, name=name or (target if kind == "call_method" else None))
        return self._write(kind, target, args, kwargs, name)

    def _write(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None) -> Any:
        """Write down a call that changes nothing in place, as :meth:`create_proxy` does."""
        if self.batches is not None:
            require_no_autocast(self.batches[0].device)
        if target in LAYERS and (found := self._as_layer(target, args, kwargs)):
            path, x = found
            if target is not torch.conv1d:
                return self._write("call_module", path, (x,), {}, None)
            return self._write("call_module", path, (x.unsqueeze(-2),), {}, None).squeeze(-2)  # [N, C, 1, L]
        if target in ELEMENTWISE and is_tensor(args[1] if len(args) > 1 else kwargs.get("other")):
            kind, target = "call_function", ELEMENTWISE[target]
        if target is F.scaled_dot_product_attention and (attended := attention(*args, **kwargs)) is not None:
            return attended
        known = self._compute(kind, target, args, kwargs)
        if known is not UNKNOWN and is_plain(known[0]) and known[0] == known[1]:
            return known[0]
        if known is not UNKNOWN and args and passes_on(kind, args[0], known):
            return args[0]
        result = cast(Value, super().create_proxy(kind, target, args, kwargs, name))
        result.known = known
        if args and isinstance(args[0], Value) and is_known(args[0]) and is_known(result):
            result.view_of = view_of(kind, target, args, kwargs, known)
        result.node.meta |= {"adds_nothing": adds_nothing(target, args), "dtype": dtype_of(known)}
        return result

    def change(
        self,
        changed: Value,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        name: str | None,
    ) -> Value:
        """Write down a call whose result takes the place of ``changed``, and of all that are the same tensor.

        So do the values of which it is a view, and other views of these. Where it is not known how, they become stale.
        """
        if not isinstance(changed, Value):
            raise TraceError(f"{name or target} changes something other than a value of the network in place")
        top, result = changed, self._write(kind, target, args, kwargs, name)
        above: list[Value] = []
        others = {id(value): value for value in self._sharing(changed) if value is not result}
        while True:
            same = [top, *(value for value in others.values() if is_same(value.known[0], top.known[0]))]
            for value in same:
                value.node, value.known = result.node, result.known
                others.pop(id(value), None)
            call = top.view_of.put_back(top) if top.view_of and others else None
            if top.view_of is None or call is None:
                break
            above = [*same, *above]
            top, result = top.view_of.base, self._write(*call, None)
        for value in others.values():
            value.stale = top.view_of is not None
        for value in above if top.view_of is None else ():
            value.known = self._compute(*cast(View, value.view_of).call())
        while others and top.view_of is None:
            self._renew(others.popitem()[1], others)
        return changed

    def _sharing(self, changed: Value) -> list[Value]:
        """Return all values in the memory of ``changed``."""
        alive = [value for reference in self._alive if (value := reference()) is not None and is_known(value)]
        return [value for value in alive if is_known(changed) and shares_memory(value.known[0], changed.known[0])]

    def _renew(self, view: Value, others: dict[int, Value]) -> None:
        """Let a view follow from its base, and the base before, if it is one of ``others``."""
        view.stale = view.view_of is None
        if view.view_of is not None:
            if (base := others.pop(id(view.view_of.base), None)) is not None:
                self._renew(base, others)
            result = self._write(*view.view_of.call(), None)
            view.node, view.known = result.node, result.known

    def _as_layer(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Any] | None:
        """Return the path of a layer that does the same as a function with weights, and its input.

        None is returned if the weights depend on the images.
        """
        try:
            call = inspect.signature(LAYERS[target]).bind(*args, **kwargs).arguments
        except TypeError:
            return None
        given = {name: value if name == "input" else self._constant(value) for name, value in call.items()}
        if any(value is UNKNOWN for value in given.values()):
            return None
        path = self.layers.of_call(target, given, self.scope.module_path)
        return None if path is None else (path, call["input"])

    def _constant(self, argument: Any) -> Any:
        """Return an argument that does not depend on the images as it is; UNKNOWN for others.

        What only has their kind, as ``x.new_ones(3)``, does not depend on them.
        """
        if not isinstance(argument, Value):
            return UNKNOWN if isinstance(argument, fx.Proxy) else argument
        if argument.known is UNKNOWN or depends_on_images(argument.node) or not is_one_value(argument.known):
            return UNKNOWN
        return argument.known[0]

    def _compute(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the results of a call for both batches; UNKNOWN if an argument is, or if they are data of images."""
        proxies: list[Any] = []
        fx.node.map_aggregate((args, kwargs), lambda a: proxies.append(a) if isinstance(a, fx.Proxy) else None)
        if target in ("item", "tolist", "numpy") or not all(map(is_known, proxies)):
            return UNKNOWN
        with self._computing_values(), torch.no_grad():
            return tuple(self._run(kind, target, *resolved((args, kwargs), index)) for index in range(2))

    @contextmanager
    def _computing_values(self) -> Iterator[None]:
        """Let modules compute within the block instead of being traced."""
        self._computing = True
        try:
            yield
        finally:
            self._computing = False

    def _run(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if kind == "call_module":
            module: Any = self.layers.get(target)
            return type(module).forward(module, *args, **kwargs)
        return target(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Return an attribute of a module; a parameter is a call unless values are being computed."""
        name = self._names.get(attr_val) if isinstance(attr_val, nn.Parameter) and not self._computing else None
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]
