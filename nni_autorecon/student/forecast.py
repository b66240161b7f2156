"""What the epochs of a compression will do and cost is known before they begin, and shown as progress."""

from __future__ import annotations

import logging
import time

from ..config.compress import BLOCK, REFINING, TRACKING, TRAINING, WARM_UP
from ..runs.progress import Bar
from .compression import Compression

_log = logging.getLogger(__name__)


def phase_name(compression: Compression, epoch: int) -> str:
    """Return what an epoch does, or what follows the last one, for a person."""
    if epoch == len(compression.phases):
        return "the student is measured"
    phase = compression.phases[epoch]
    if phase == BLOCK:
        first = compression.phases.index(BLOCK)
        return f"block {epoch - first + 1} of {len(compression.phases) - first}"
    names = {WARM_UP: "the generator learns", REFINING: "images are made", TRACKING: "ranges"}
    return names.get(phase, "the student learns")


def steps_of(compression: Compression, epoch: int) -> int:
    """Return how often ``on_step`` is called in an epoch."""
    phase, blockwise = compression.phases[epoch], compression.blockwise
    if blockwise and phase == REFINING:
        return blockwise.refining_steps()
    if blockwise and phase == TRACKING:
        return blockwise.tracking_steps()
    return blockwise.lengths.block_steps if blockwise and phase == BLOCK else compression.lengths.steps


def epoch_costs(compression: Compression) -> list[float]:
    """Return about what each epoch costs: seconds for method ``blockwise``, multiply-accumulates for others.

    A step that learns costs three forward passes.
    """
    config = compression.config
    if compression.blockwise and compression.pace:
        phases, blocks = compression.blockwise.seconds(compression.pace)
        return [*(phases[phase] for phase in config.phases), *blocks]
    teacher = compression.teacher.macs
    images = 3 * teacher + (3 * (compression.images.cost()[0] or 0) if config.generator_spec else 0)
    one = {WARM_UP: images, TRACKING: images + teacher, TRAINING: images + 3 * teacher}
    costs = {phase: compression.lengths.steps * config.batch_size * cost for phase, cost in one.items()}
    return [float(max(costs[phase], 1)) for phase in config.phases]


class Course:
    """The course of a compression on a bar, in units of what it costs.

    updates: how many updates of distilled images come before the epochs, at ``update_cost`` each.
    """

    def __init__(self, bar: Bar, *, updates: int, update_cost: float) -> None:
        self.bar, self._step_cost = bar, update_cost
        bar.total = max(updates * update_cost, 1)
        bar.set_postfix_str("images are distilled" if updates else "getting ready", refresh=False)

    def begin(self, compression: Compression) -> None:
        """Begin the epochs, whose costs can now be told; say how long they take in method ``blockwise``."""
        self.compression = compression
        self.costs = epoch_costs(compression)
        self._begun, self._before = time.perf_counter(), self._cost_of_past()
        if compression.pace is not None:
            seconds = self._cost_of_rest()
            about = f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{max(round(seconds), 1)} seconds"
            _log.info("the student takes about %s", about)
        self.bar.total = (self.bar.total or 0) + sum(self.costs)
        self.bar.begin(self._before, in_seconds=compression.pace is not None)

    def enter(self, epoch: int) -> None:
        """Show what the epoch that begins will do, or what follows the last one."""
        if after_last := epoch == len(self.costs):
            self._show_left(0)
        else:
            self._step_cost = self.costs[epoch] / max(steps_of(self.compression, epoch), 1)
        self.bar.set_postfix_str(phase_name(self.compression, epoch), refresh=after_last)

    def step(self) -> None:
        """Show that a step is done."""
        self.bar.update(self._step_cost)

    def seconds_left(self) -> float:
        """Return about how many seconds the epochs left take, now that one is over, and show it on the bar.

        Seconds are foreseen in method ``blockwise``, where images that are drawn need no warm-up; units in others.
        """
        left, done = self._cost_of_rest(), self._cost_of_past()
        self._show_left(left)  # not all work of an epoch is in its steps
        pace = (time.perf_counter() - self._begun) / (done - self._before) if done > self._before else 1.0
        return pace * left

    def _show_left(self, left: float) -> None:
        self.bar.update((self.bar.total or 0) - left - self.bar.n)

    def _cost_of_past(self) -> float:
        return sum(self.costs[: self.compression.epoch])

    def _cost_of_rest(self) -> float:
        return sum(self.costs[self.compression.epoch :])
