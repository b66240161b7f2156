"""Timing side by side: every case once in each of many rounds, so that a slow moment slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Timing:
    """Of one call: median and quartiles over the rounds in milliseconds, and what is kept for the backward pass."""

    milliseconds: float
    quartiles: tuple[float, float]
    saved_megabytes: float


def compare(cases: Mapping[str, Callable[[], object]], *, rounds: int, device: torch.device) -> dict[str, Timing]:
    """The timing of each case, after two rounds that do not count."""
    saved = {name: saved_megabytes(run) for name, run in cases.items()}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(rounds + 2):
        for name, run in cases.items():
            _wait(device)
            start = time.perf_counter()
            run()
            _wait(device)
            if round_ >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: _timing(times, saved[name]) for name, times in seconds.items()}


def saved_megabytes(run: Callable[[], object]) -> float:
    """The most that one of the graphs in ``run`` keeps for its backward pass, parameters excluded, in 10^6 bytes."""
    alive: dict[int, int] = {}
    largest = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal largest
        storage = tensor.untyped_storage()
        if not isinstance(tensor if tensor._base is None else tensor._base, torch.nn.Parameter):
            alive[storage.data_ptr()] = storage.nbytes()
            largest = max(largest, sum(alive.values()))
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        alive.clear()  # a backward pass has begun; what follows it is another graph
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        run()
    return largest / 1e6


def _timing(seconds: list[float], saved: float) -> Timing:
    first, median, third = statistics.quantiles([1000 * s for s in seconds], n=4)
    return Timing(median, (first, third), saved)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
