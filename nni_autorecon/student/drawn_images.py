"""Images that are drawn, and that nothing trains, in place of a generator's: smooth noise, or leaves on the ground."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..config.compress import CompressConfig
from ..config.generator_spec import LEAVES, NOISE
from ..generator.training import Objective, objective_for
from ..runs.snapshots import State
from ..shapes import ImageShape
from ..teacher.loading import Teacher
from .images import OnStep
from .noise import STEEPEST, smooth_noise, within_pixels

Pixels = npt.NDArray[np.float32]
MOST_LEAVES = 200
"""An image has so many leaves or fewer; with none it is smooth noise."""
RADII = 0.04, 0.6
"""The least and the largest radius of a leaf, in sides of an image."""
DEVIATION = 0.6
"""Leaves have colours of this deviation, in standard deviations of pixels."""


def dead_leaves(count: int, image: ImageShape, *, seed: int) -> Tensor:
    """Return images [count, C, H, W] of leaves on the ground, ellipses and rectangles that hide each other.

    They have edges, occlusion and objects of all sizes, as photographs do (dead leaves: Lee, Mumford and Huang, 2001;
    networks learn from them: Baradad et al., NeurIPS 2021). Radii r have a density of r^-3. A leaf has a colour, which
    is rather grey, and a texture of smooth noise, with a contrast of its own.
    """
    random = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        texture, ground = smooth_noise(2, image, seed=int(random.integers(2**31)), least=random.uniform(1, STEEPEST))
        images.append(_covered(ground.numpy(), texture.numpy(), random))
    return torch.from_numpy(np.stack(images))


def _covered(ground: Pixels, texture: Pixels, random: np.random.Generator) -> Pixels:
    """Return the ground [C, H, W] when leaves with pieces of the texture [C, H, W] lie on it."""
    channels, *size = ground.shape
    for _ in range(random.integers(MOST_LEAVES + 1)):
        radius = random.uniform(RADII[1] ** -2, RADII[0] ** -2) ** -0.5 * min(size)
        stretch, angle, position = np.exp(random.uniform(-0.8, 0.8)), random.uniform(0, np.pi), random.random(2) * size
        reach = radius * 1.5 * max(stretch, 1 / stretch)
        low, high = np.clip([position - reach, position + reach], 0, size).astype(int)
        down, right = np.ogrid[low[0] : high[0], low[1] : high[1]]
        down, right = down - position[0], right - position[1]
        along = ((np.cos(angle) * right + np.sin(angle) * down) / (radius * stretch)) ** 2
        across = ((np.cos(angle) * down - np.sin(angle) * right) / (radius / stretch)) ** 2
        within = (along + across if random.random() < 0.5 else np.maximum(along, across)) < 1
        top, left = random.integers(np.array(size) - (high - low) + 1)
        piece = texture[:, top : top + high[0] - low[0], left : left + high[1] - low[1]]
        colour = random.normal() + 0.4 * random.normal(size=(channels, 1, 1))
        leaf = DEVIATION * (colour + random.random() * piece)
        np.copyto(ground[:, low[0] : high[0], low[1] : high[1]], leaf, where=within, casting="same_kind")
    return ground


DRAWINGS: dict[str, Callable[..., Tensor]] = {NOISE: smooth_noise, LEAVES: dead_leaves}
"""These functions draw images; each has the kind of the generator in whose place they stand."""


@dataclass
class DrawnImages:
    """Smooth noise or dead leaves in place of a generator's images."""

    teacher: Teacher
    batch_size: int
    seed: int
    objective: Objective
    draw: Callable[..., Tensor]
    disturbs = True

    @classmethod
    def start(
        cls,
        config: CompressConfig,
        teacher: Teacher,
        on_step: OnStep = lambda: None,
        state: State | None = None,
        on_ready: OnStep = lambda: None,
    ) -> DrawnImages:
        """Return the images, which depend on the seed alone. ``on_step`` is never called."""
        on_ready()
        assert config.generator_spec is not None
        draw = DRAWINGS[config.generator_spec.kind]
        return cls(teacher, config.batch_size, config.seed, objective_for(teacher.observed, config), draw)

    def state(self) -> State:
        """Return nothing, for the images can be made again."""
        return {}

    def fixed(self, count: int) -> Tensor:
        """Return ``count`` images [count, C, H, W], the same each time."""
        return self._drawn(count, 0)

    def held_out(self, steps: int) -> Iterator[Tensor]:
        """Yield batches [N, C, H, W] of other images."""
        yield from self._drawn(steps * self.batch_size, 1).split(self.batch_size)

    def cost(self) -> tuple[int | None, int | None]:
        """Return None for MACs and parameters, because there is no generator."""
        return None, None

    def _drawn(self, count: int, which: int) -> Tensor:
        seed = int(np.random.SeedSequence(self.seed).generate_state(2)[which])
        return within_pixels(self.teacher, self.draw(count, self.teacher.image, seed=seed))
