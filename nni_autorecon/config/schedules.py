"""Schedules of a learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "step": lambda progress: 0.1 ** sum(progress >= quarter for quarter in (0.25, 0.5, 0.75)),
}
"""Factor of a learning rate at a progress in [0, 1) through training."""
