"""Timing side by side: every case once in each of many rounds, so that a slow moment slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from nni_autorecon.accel.cuda_graphs import Recorded

Case = Callable[[], object]
WARM_UP = 3
AT_ONCE = {"cpu": 1, "cuda": 3}
"""Calls that are timed together: a GPU may still work on one while the CPU prepares the next."""


@dataclass(frozen=True)
class Timing:
    """The timing of one call."""

    seconds: tuple[float, ...]
    """By round."""
    peak_megabytes: float
    """The most that it held at a time beyond what it began with, in 10^6 bytes."""
    convolution_share: float
    """The time of its convolutions, run by themselves, over its own."""
    convolution_gflops: float
    """The operations a second in them, in units of 10^9."""

    @property
    def milliseconds(self) -> list[float]:
        """First quartile, median and third quartile."""
        return statistics.quantiles([1000 * s for s in self.seconds], n=4)

    def times_faster(self, than: Timing) -> list[float]:
        """First quartile, median and third quartile of the ratios of the rounds."""
        return statistics.quantiles([b / a for a, b in zip(self.seconds, than.seconds, strict=True)], n=4)


def compare(cases: Mapping[str, Case], *, rounds: int, device: torch.device) -> dict[str, Timing]:
    """The timing of each case, after some calls that do not count.

    Its first two calls, which are not recorded yet, tell its convolutions and its memory.
    """
    memory, convolutions, flops = {}, {}, {}
    for name, run in cases.items():
        with Convolutions() as called:
            run()
        memory[name] = peak_megabytes(run, device)
        with FlopCounterMode(display=False) as counter:
            called.again()
        flops[name] = counter.get_total_flops()
        convolutions[name] = partial(Recorded(called.again, f"convolutions of {name}"), torch.zeros((), device=device))
        for _ in range(WARM_UP):
            run()
            convolutions[name]()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    alone: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(rounds + 1):
        for name, run in cases.items():
            step, rest = _seconds(run, device), _seconds(convolutions[name], device)
            if round_:
                seconds[name].append(step)
                alone[name].append(rest)
    return {name: _timing(seconds[name], alone[name], memory[name], flops[name]) for name in cases}


class Convolutions(TorchDispatchMode):
    """Remembers the convolutions that are run inside the block, forward and backward, to run them again."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.convolution, torch.ops.aten.convolution_backward):
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def again(self, result: Tensor | None = None) -> Tensor | None:
        """Run them; the ``result`` is the caller's."""
        with torch.no_grad():
            for func, args, kwargs in self.calls:
                func(*args, **kwargs)
        return result


def peak_megabytes(run: Case, device: torch.device) -> float:
    """Return what ``run`` holds at most, beyond what is held when it begins."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 1e6


def _seconds(run: Case, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(AT_ONCE[device.type]):
        run()
    _wait(device)
    return (time.perf_counter() - start) / AT_ONCE[device.type]


def _timing(seconds: list[float], alone: list[float], peak: float, flops: int) -> Timing:
    convolutions = statistics.median(alone)
    return Timing(tuple(seconds), peak, convolutions / statistics.median(seconds), flops / convolutions / 1e9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
