"""What the epochs of a compression will do and cost is known before they begin, and shown as progress."""

from __future__ import annotations

from ..config.compress import BLOCK, REFINING, TRACKING, TRAINING, WARM_UP
from .compression import Compression


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
