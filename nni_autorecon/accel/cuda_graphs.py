"""CUDA graphs let a GPU run a training step as it was recorded, without Python between its kernels."""

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
"""A step is called this often before it is recorded: libraries choose their kernels, optimizers make their state."""


class Recorded(Generic[Result]):
    """A step that a GPU records: ``step`` maps tensors of fixed shapes to detached tensors, or to tuples of them.

    On the CPU the step is just called. On a GPU the third call records its kernels, and all later calls replay them.
    All that the step uses besides its arguments must then stay in its place and change in place: parameters, the state
    of optimizers, their learning rates (:mod:`.optimizers`). Python's numbers are recorded as they are, and so are
    decisions. If such things change, ``depends_on`` must return a key that changes with them. With another key, or with
    arguments of other shapes, the step begins again, with two calls before it is recorded.

    A step that makes the CPU wait for the GPU cannot be recorded. It is called each time, and a warning names it by
    ``what``.
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
        """Release the recording and its memory."""
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
        """Call the step on another stream, as PyTorch asks for, and check that it does not make the CPU wait."""
        here, aside = torch.cuda.current_stream(), _stream_aside(inputs[0].device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside), _waits_listed() as waits:
            result = self.step(*inputs)
        here.wait_stream(aside)
        if waits and self._calls == WARM_UP:  # the first call may wait for what is done only once
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
        except RuntimeError as error:  # the step waits unnoticed, does what is not allowed, or finds no memory
            torch.cuda.set_stream(here)  # PyTorch leaves the stream and the generator as they were while it recorded
            random.graphsafe_set_state(state)
            self.forget()
            self._give_up(one_line(error))
        else:
            self._graph = graph

    def _give_up(self, reason: str) -> None:
        self._recordable = False
        log.warning("%s is not recorded as a CUDA graph and will be slower: %s", self.what, reason)


def can_be_recorded(device: torch.device) -> bool:
    """Return True if steps on ``device`` can be recorded."""
    return accel.enabled and device.type == "cuda"


@cache
def _stream_aside(device: torch.device) -> torch.cuda.Stream:
    """Return one stream for all steps, for libraries keep memory for every stream that they have seen."""
    return torch.cuda.Stream(device)


@contextmanager
def _waits_listed() -> Iterator[list[str]]:
    """Give a list that has, when the block ends, an entry for every time that the CPU waited for the GPU."""
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
    """Return ``value``, a tensor or a tuple of tensors, with ``function`` applied to every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    parts = [_each(part, function) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
