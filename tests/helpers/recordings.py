"""A CUDA graph has a stand-in on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from nni_autorecon.accel import cuda_graphs
from nni_autorecon.accel.cuda_graphs import Recorded

Step = Callable[..., Any]


def record_on_the_cpu(
    patch: pytest.MonkeyPatch, recorder: Callable[[Step, tuple[Tensor, ...]], Step] = lambda step, inputs: step
) -> list[str]:
    """Let ``recorder`` make what is replayed, instead of a GPU.

    The list names every step that is recorded from here on.
    """
    recorded: list[str] = []

    def record(step: Recorded[Any], *inputs: Tensor) -> None:
        recorded.append(step.what)
        recording = recorder(step.step, inputs)

        def replay() -> None:
            step._outputs = recording(*step._inputs)

        step._inputs, step._graph = tuple(x.clone() for x in inputs), SimpleNamespace(replay=replay)

    patch.setattr(cuda_graphs, "can_be_recorded", lambda device: True)
    patch.setattr(Recorded, "_warm_up", lambda step, *inputs: step.step(*inputs))
    patch.setattr(Recorded, "_record", record)
    return recorded
