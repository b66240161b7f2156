"""A generator's inputs are fresh z ~ N(0, I) and uniform labels, reproducible from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Stream = Literal[
    "search", "validation", "final", "final-validation", "compress", "agreement", "figure", "distill", "blocks"
]
"""Each use of random inputs has a stream of its own. Seeds depend on the order of the names, so new ones go last."""

_STREAMS: tuple[Stream, ...] = get_args(Stream)


@dataclass(frozen=True)
class LatentSource:
    """A source of batches (z [N, latent_dim], labels [N]).

    If ``mixed_share`` is above 0, labels are probabilities [N, num_classes]. Each image then belongs, with this
    probability, to ``mixed_classes`` classes at once, in proportions that are the softmax of standard normal numbers
    (Qimera: Choi et al., NeurIPS 2021).

    The batches of an epoch depend on the seed, the stream and the epoch alone, not on earlier draws. A run that is
    resumed at an epoch therefore sees the same batches as an uninterrupted one. Batches are drawn on ``device``; CPUs
    and GPUs draw different numbers from the same seed.
    """

    batch_size: int
    latent_dim: int
    num_classes: int
    seed: int
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)
    mixed_share: float = 0.0
    mixed_classes: int = 2
    on_batch: Callable[[], object] = lambda: None
    """This function is called before each batch."""

    def batches(self, stream: Stream, epoch: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``steps`` batches of z [N, latent_dim] and labels [N], or probabilities [N, K] of mixed classes.

        The same arguments yield the same batches.
        """
        entropy = np.random.SeedSequence((self.seed, _STREAMS.index(stream), epoch))
        generator = torch.Generator(self.device).manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
        for _ in range(steps):
            self.on_batch()
            z = torch.randn(self.batch_size, self.latent_dim, generator=generator, device=self.device)
            labels = torch.randint(self.num_classes, (self.batch_size,), generator=generator, device=self.device)
            yield z, labels if self.mixed_share == 0 else self._mixed(labels, generator)

    def _mixed(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Draw which labels [N] are mixed, with which classes; return probabilities [N, num_classes]."""
        count = len(labels)
        here: dict[str, Any] = {"generator": generator, "device": self.device}
        others = torch.rand(count, self.num_classes, **here).topk(self.mixed_classes).indices  # [N, M], all different
        strengths, chance = torch.randn(count, self.mixed_classes, **here), torch.rand(count, **here)
        return mixed_labels(labels, others, strengths, chance < self.mixed_share, num_classes=self.num_classes)


def mixed_labels(labels: Tensor, others: Tensor, strengths: Tensor, mixed: Tensor, *, num_classes: int) -> Tensor:
    """Return probabilities [N, num_classes] of labels.

    Where ``mixed`` is true, they are softmax(strengths) on the classes ``others``; elsewhere they are one-hot at
    ``labels``.  labels: [N]; others, strengths: [N, M]; mixed: bool [N].
    """
    one_hot = F.one_hot(labels, num_classes).to(strengths.dtype)
    mixture = torch.zeros_like(one_hot).scatter_add_(1, others, strengths.softmax(1))
    return torch.where(mixed[:, None], mixture, one_hot)


class LatentLoader:
    """A loader without data, which yields ``steps`` fresh batches of (z, labels) for the epoch ``epoch()``.

    labels are [N], or probabilities [N, K] as :class:`LatentSource` gives them.
    """

    def __init__(self, source: LatentSource, stream: Stream, steps: int, epoch: Callable[[], int]) -> None:
        self.source, self.stream, self.steps, self.epoch = source, stream, steps, epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.source.batches(self.stream, self.epoch(), self.steps)
