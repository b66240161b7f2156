"""CUDA graphs: a GPU runs a training step as it was recorded, without Python between its kernels."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from .. import accel
from ..errors import one_line

log = logging.getLogger(__name__)

Result = TypeVar("Result")
WARM_UP = 2
"""Calls before a step is recorded: libraries choose their kernels in them, and optimizers make their state."""


class Recorded(Generic[Result]):
    """``step``, which maps tensors of fixed shapes to tensors, or to tuples of them, all detached.

    On the CPU it is called. On a GPU the third call records its kernels, and all others replay them. What it uses
    besides its arguments must then stay where it is and change in place: parameters, the state of optimizers, their
    learning rates (:mod:`.optimizers`). Numbers of Python are recorded as they are, and so are decisions: where such
    change, ``depends_on`` returns a key that changes with them. With another key, or arguments of other shapes, the
    step begins again, with two calls before it is recorded.

    A step that makes the CPU wait for the GPU cannot be recorded; it is called each time, and a warning says ``what``
    it is.
    """

    def __init__(
        self, step: Callable[..., Result], what: str, *, depends_on: Callable[[], object] = lambda: None
    ) -> None:
        self.step, self.what, self.depends_on = step, what, depends_on
        self._key: object = None
        self._calls = 0
        self._recordable = True
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: Any = None

    def forget(self) -> None:
        """Let the recording and its memory go."""
        self._graph, self._inputs, self._outputs = None, (), None

    def __call__(self, *inputs: Tensor) -> Result:
        if not (self._recordable and can_be_recorded(inputs[0].device)):
            return self.step(*inputs)
        key = self.depends_on(), *((x.shape, x.dtype) for x in inputs)
        if key != self._key:
            self.forget()
            self._key, self._calls = key, 0
        if self._calls < WARM_UP:
            self._calls += 1
            return self._warm_up(*inputs)
        if self._graph is None:
            self._record(*inputs)
        if self._graph is None:
            return self.step(*inputs)
        for known, given in zip(self._inputs, inputs, strict=True):
            known.copy_(given)
        self._graph.replay()
        return cast(Result, _each(self._outputs, Tensor.clone))

    def _warm_up(self, *inputs: Tensor) -> Result:
        """Call the step on another stream, as PyTorch asks for, and look whether it waits."""
        here, aside = torch.cuda.current_stream(), _stream_aside(inputs[0].device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside), _waits_listed() as waits:
            result = self.step(*inputs)
        here.wait_stream(aside)
        if waits and self._calls == WARM_UP:  # what is done but once may wait in the call before
            self._give_up("the CPU waits for the GPU in it")
        return result

    def _record(self, *inputs: Tensor) -> None:
        here, device = torch.cuda.current_stream(), inputs[0].device
        random = torch.cuda.default_generators[here.device_index]
        state, graph = random.clone_state(), torch.cuda.CUDAGraph()
        self._inputs = tuple(x.clone() for x in inputs)
        try:
            with torch.cuda.graph(graph, stream=_stream_aside(device)):
                self._outputs = _each(self.step(*self._inputs), Tensor.detach)
        except RuntimeError as error:  # of what waits without being noticed, is not allowed, or finds no memory
            torch.cuda.set_stream(here)  # PyTorch leaves both as they were while it recorded
            random.graphsafe_set_state(state)
            self.forget()
            self._give_up(one_line(error))
        else:
            self._graph = graph

    def _give_up(self, reason: str) -> None:
        self._recordable = False
        log.warning("%s is not recorded as a CUDA graph and will be slower: %s", self.what, reason)


def can_be_recorded(device: torch.device) -> bool:
    """Whether steps on ``device`` can be."""
    return accel.enabled and device.type == "cuda"


@cache
def _stream_aside(device: torch.device) -> torch.cuda.Stream:
    """One for all steps: libraries keep memory for every stream that they have seen."""
    return torch.cuda.Stream(device)


@contextmanager
def _waits_listed() -> Iterator[list[str]]:
    """At its end, the list that it gives has an entry for every time that the CPU waited for the GPU."""
    waits: list[str] = []
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for warning in caught:
        message = str(warning.message)
        if "called a synchronizing" in message:
            waits.append(message)
        elif "Synchronization debug mode" not in message:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _each(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """``value``, which is a tensor or a tuple of such, with ``function`` applied to every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    parts = [_each(part, function) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
