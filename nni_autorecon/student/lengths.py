"""The parts of method blockwise are as long as asked for, or as the network's cost or the person's time allow."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..config.compress import CompressConfig
from ..config.generator_spec import LEAVES

_log = logging.getLogger(__name__)

STEPS, REFINE_STEPS, BLOCK_IMAGES, LEAST_IMAGES = 50, 30, 1024, 96
WARM_UP_BUDGET = 6e12
IMAGES_BUDGET = 1e13
BLOCKS_BUDGET = 1e13
"""The warm-up of the generator, the images and all blocks cost so many multiply-accumulates, each some minutes of a
core. They suffice for the lengths that suit networks of 32×32 pixels."""
FEW_UPDATES = 30
"""On fewer images than those of small networks, blocks have no more updates than these (docs/results/imagenet.md)."""
FACTORS = 2.0**-10, 2.0**6
"""Lengths are multiplied by something between these to fit a person's time."""


@dataclass(frozen=True)
class Lengths:
    """Batches of an epoch; images to which blocks are fitted, updates of their pixels, and updates of each block."""

    steps: int
    block_images: int
    refine_steps: int
    block_steps: int

    @classmethod
    def of(cls, config: CompressConfig, *, macs: int, generator_macs: int) -> Lengths:
        """Return the lengths for a network of ``macs`` multiply-accumulates an image, and such a generator.

        What was not asked for is shortened, down to a least, where it would exceed its budget, and a line says so; an
        update costs three forward passes. Images that are not refined are as many as if they were. A run that is to be
        short has no more images than its blocks see, and no more updates of their pixels than batches in an epoch.
        Where images are few, blocks have few updates: they soon learn what holds for these images alone.
        """
        steps, updates = config.steps or STEPS, config.block_updates(config.steps or STEPS)
        refining = config.refine_steps
        if refining is None:
            refining = 0 if config.generator == LEAVES else min(REFINE_STEPS, config.steps or REFINE_STEPS)
        images = config.block_images or min(BLOCK_IMAGES, max(updates * config.block_batch_size, LEAST_IMAGES))
        asked = steps, images, updates
        if config.method == "blockwise":
            if config.steps is None:
                warm_up = 3 * config.warmup_epochs * config.batch_size * (macs + generator_macs)
                steps = _within(WARM_UP_BUDGET, warm_up, 1, steps)
            affordable = _within(IMAGES_BUDGET, 3 * (refining or REFINE_STEPS) * macs, LEAST_IMAGES, BLOCK_IMAGES)
            if config.block_images is None:
                images = min(images, affordable)
            if config.steps is None and config.block_steps is None:
                updates = _within(BLOCKS_BUDGET, 3 * config.block_batch_size * macs, 1, updates)
                if max(images, affordable) < BLOCK_IMAGES:
                    updates = min(updates, FEW_UPDATES)
            if config.minutes is None and (steps, images, updates) != asked:
                _log.info(
                    "an image costs %d million multiply-accumulates, so that epochs have %d batches, and blocks %d "
                    "images and %d updates; --steps, --block-images and --block-steps change that",
                    *(macs / 1e6, steps, images, updates),
                )
        return cls(steps, images, refining, updates)

    def within(self, config: CompressConfig, seconds: float, needed: Callable[[Lengths], float]) -> Lengths:
        """Return the longest lengths that need no more than so many seconds; what was asked for stays as it is.

        Batches, images and updates are multiplied alike, images up to as many as small networks have. Where images are
        few, so are updates, and the time that is left then stays unused. A line says what was chosen, and warns if even
        the shortest lengths need more.
        """
        least, most = FACTORS
        if self._has_few(config):
            most = BLOCK_IMAGES / self.block_images
        for _ in range(30):
            middle = (least * most) ** 0.5
            least, most = (middle, most) if needed(self._times(middle, config)) <= seconds else (least, middle)
        found = self._times(least, config)
        _log.info(
            "%g minutes allow epochs of %d batches, and blocks of %d images and %d updates",
            *(config.minutes, found.steps, found.block_images, found.block_steps),
        )
        if needed(found) > seconds:
            _log.warning("they need about %.3g minutes, for nothing can be shorter", needed(found) / 60)
        return found

    def _times(self, factor: float, config: CompressConfig) -> Lengths:
        def times(value: int) -> int:
            return max(round(factor * value), 1)

        found = self
        if config.steps is None:
            found = replace(found, steps=times(self.steps))
        if config.block_images is None:
            found = replace(found, block_images=max(min(times(self.block_images), BLOCK_IMAGES), LEAST_IMAGES))
        if config.steps is None and config.block_steps is None:
            updates = times(self.block_steps)
            found = replace(found, block_steps=min(updates, FEW_UPDATES) if self._has_few(config) else updates)
        return found

    def _has_few(self, config: CompressConfig) -> bool:
        """Return True if an image costs so much that blocks see few of them, and learn little from each."""
        return config.block_images is None and self.block_images < BLOCK_IMAGES and self.block_steps <= FEW_UPDATES


def _within(budget: float, cost: float, least: int, most: int) -> int:
    return max(min(most, int(budget / max(cost, 1))), min(least, most))
