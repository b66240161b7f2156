"""The inputs of a generator: fresh z ~ N(0, I) and uniform labels, reproducible from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Stream = Literal["search", "validation", "final", "final-validation", "compress", "agreement", "figure", "distill"]
_STREAMS: tuple[Stream, ...] = (
    "search", "validation", "final", "final-validation", "compress", "agreement", "figure", "distill",
)  # fmt: skip


@dataclass(frozen=True)
class LatentSource:
    """Batches of (z [N, latent_dim], labels [N]).

    The batches of an epoch depend on the seed, the stream and the epoch alone, not on what was drawn before:
    a run resumed at an epoch sees what the uninterrupted one saw. They are drawn on ``device``, each kind of which
    has numbers of its own.
    """

    batch_size: int
    latent_dim: int
    num_classes: int
    seed: int
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)

    def batches(self, stream: Stream, epoch: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        entropy = np.random.SeedSequence((self.seed, _STREAMS.index(stream), epoch))
        generator = torch.Generator(self.device).manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
        for _ in range(steps):
            z = torch.randn(self.batch_size, self.latent_dim, generator=generator, device=self.device)
            labels = torch.randint(self.num_classes, (self.batch_size,), generator=generator, device=self.device)
            yield z, labels


class LatentLoader:
    """A data-free "loader": ``steps`` fresh batches of (z, labels) for the epoch that ``epoch()`` names."""

    def __init__(self, source: LatentSource, stream: Stream, steps: int, epoch: Callable[[], int]) -> None:
        self.source, self.stream, self.steps, self.epoch = source, stream, steps, epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.source.batches(self.stream, self.epoch(), self.steps)
