"""The time of an image in onnxruntime on the CPU is measured, beside that of the network in floating point."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor

from ..shapes import ImageShape
from .onnx import Exported, floating_point
from .onnx_runtime import OnnxNetwork
from .saved_network import SavedNetwork

ROUNDS = 30
WARM_UP = 3


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one image, medians over rounds in which both networks take turns."""

    milliseconds: float
    float_milliseconds: float | None
    """None if there is no network to compare with."""
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """Return the same under the names of result.json."""
        return dict(zip(("latency", "float_latency", "latency_threads"), astuple(self), strict=True))

    def summary(self) -> str:
        """Return one line for people."""
        line = f"latency of one image in onnxruntime, {self.threads} thread(s): {self.milliseconds:.2f} ms"
        if self.float_milliseconds is None:
            return line
        times = self.float_milliseconds / self.milliseconds
        compared = f"{times:.2f} times as fast" if times >= 1 else f"{1 / times:.2f} times as slow"
        return f"{line}, in floating point {self.float_milliseconds:.2f} ms: {compared}"


def measure_latency(saved: SavedNetwork, float_network: OnnxNetwork | None, *, rounds: int = ROUNDS) -> Latency:
    """Measure a student, from a file of any kind, beside its teacher with any weights, ``onnx.floating_point``.

    Both have as many threads as PyTorch. Raises InputError if the student cannot be exported.
    """
    networks = {"student": _in_onnxruntime(saved)} | ({} if float_network is None else {"float": float_network})
    times = in_turns(networks, saved.description.image, rounds=rounds)
    medians = {name: 1000 * statistics.median(each) for name, each in times.items()}
    return Latency(medians["student"], medians.get("float"), torch.get_num_threads())


def _in_onnxruntime(saved: SavedNetwork) -> OnnxNetwork:
    if isinstance(saved.network, OnnxNetwork):
        return saved.network
    if saved.description.quantization is None:
        return floating_point(saved.network, saved.description.image)
    return Exported.of(saved).network


def in_turns(
    networks: Mapping[str, Callable[[Tensor], object]], image: ImageShape, *, rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of one image of noise, by network and round; each network runs once in every round."""
    images: Tensor = torch.randn(1, *image, generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {name: [] for name in networks}
    for round_ in range(WARM_UP + rounds):
        for name, network in networks.items():
            started = time.perf_counter()
            network(images)
            if round_ >= WARM_UP:
                times[name].append(time.perf_counter() - started)
    return times
