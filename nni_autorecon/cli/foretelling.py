"""How long a search and a student take on this machine is measured by their first steps. Heavy imports wait."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..teacher.loading import Teacher

BRIEF = {"epochs": 1, "weight_steps": 3, "architecture_steps": 2, "validation_steps": 1, "final_steps": 1}
"""In so short a search, all updates of the supernet but the first are timed."""
DERIVED = 1 / 3
"""An update of the generator that was found takes about this part of one of the supernet, which computes them all."""


def search_seconds(teacher: Teacher, settings: Mapping[str, Any]) -> float:
    """Return about how long a search with these settings takes."""
    from ..config.search import SearchConfig
    from ..nas.search import run_search
    from ..runs.folder import NoFolder

    config = SearchConfig(**settings)
    ticks: list[float] = []
    with _threads(config.threads):
        brief = SearchConfig(**{**settings, **BRIEF})
        run_search(brief, NoFolder(), teacher, on_step=lambda: ticks.append(time.perf_counter()))
    update = statistics.mean(after - before for before, after in itertools.pairwise(ticks[1:6]))
    return update * (config.updates + DERIVED * config.final_steps)


def student_seconds(teacher: Teacher, settings: Mapping[str, Any]) -> float:
    """Return about how long a student of method ``blockwise`` takes, without what is measured on test data."""
    from ..config.compress import CompressConfig
    from ..student.compression import Compression
    from ..student.forecast import epoch_costs

    config = CompressConfig(**settings)
    started = time.perf_counter()
    with _threads(config.threads):
        costs = epoch_costs(Compression.start(config, teacher))
    return time.perf_counter() - started + sum(costs)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Compute on so many threads within the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
