"""Labelled images serve to measure only: no label or image of a real data set reaches the method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError, one_line
from ..shapes import measured_at_once

EvaluationData: TypeAlias = Dataset[tuple[Tensor, int]]
"""A data set to measure on; each item is an image, uint8 [C, H, W], all of one shape, and its label, from 0."""


@dataclass(frozen=True, eq=False)  # eq=False, because comparing tensors does not give one bool
class LabelledImages(EvaluationData):
    """Images with their labels, held in memory.

    images: uint8 [N, C, H, W]; labels: int64 [N], from 0.  Raises InputError if they are anything else, or empty.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise InputError(f"images are {_describe(images)}; give uint8 [N, C, H, W]")
        if labels.dtype != torch.int64 or labels.ndim != 1:
            raise InputError(f"labels are {_describe(labels)}; give int64 [N]")
        if not images[0:1].numel() and len(images):
            raise InputError(f"images are {_describe(images)}, without a pixel; give uint8 [N, C, H, W]")
        if len(images) != len(labels) or not len(images):
            raise InputError(f"{len(images)} images and {len(labels)} labels; give one label for every image")
        if labels.min() < 0:
            raise InputError(f"the least label is {labels.min()}; number the classes from 0")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def normalize(images: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (images / 255 − mean) / std per channel, float32 [N, C, H, W].

    images: uint8 [N, C, H, W]; mean, std: C numbers.
    """
    center, scale = (images.new_tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
    return (images / 255 - center) / scale  # [N, C, H, W]


@torch.no_grad()
@parametrize.cached()
def accuracy(
    network: nn.Module,
    data: EvaluationData,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int | None = None,
    device: str | torch.device,
    on_images: Callable[[int], object] = lambda count: None,
) -> float:
    """Return the fraction of ``data``, in [0, 1], to whose label ``network`` gives its highest logit.

    mean, std: one number per channel, for :func:`normalize`; device: the device on which the network is; batch_size:
        None to choose it by the size of an image; on_images: called with the number of images of each batch.

    No more than one batch is held in memory, unless ``data`` itself holds more. Raises ValueError if any part of the
    network is in training mode, InputError if the images or labels do not fit the network.
    """
    if any(module.training for module in network.modules()):
        raise ValueError("the network is in training mode; call network.eval() before measuring")
    first = data[0][0][None]  # [1, C, H, W]
    if not len(mean) == len(std) == first.shape[1]:
        raise InputError(
            f"images have {first.shape[1]} channel(s), mean {len(mean)} and std {len(std)}; "
            "measure on images of the kind the network was trained for"
        )

    _check_fit(network, normalize(first.to(device), mean=mean, std=std))
    hits = total = 0
    own_generator = torch.Generator()  # without it the loader draws from the global one, and training would change
    for images, labels in DataLoader(data, batch_size or measured_at_once(first.shape[1:]), generator=own_generator):
        logits = network(normalize(images.to(device), mean=mean, std=std))  # [N, K]
        _check_labels(labels, logits.shape[1])
        hits += int((logits.argmax(1) == labels.to(device)).sum())
        total += len(labels)
        on_images(len(labels))
    return hits / total


def _check_fit(network: nn.Module, image: Tensor) -> None:
    """Raise InputError unless ``network`` takes ``image`` [1, C, H, W]."""
    try:
        network(image)
    except RuntimeError as error:  # PyTorch raises it if shapes do not fit
        raise InputError(
            f"the network does not take images of {_shape(image)}: {one_line(error)}; give its size"
        ) from error


def _check_labels(labels: Tensor, num_classes: int) -> None:
    """Raise InputError unless every label [N] is below ``num_classes``."""
    if labels.max() >= num_classes:
        from_one = labels.min() == 1 and labels.max() == num_classes
        remedy = "number the classes from 0" if from_one else "measure on the classes it was trained for"
        raise InputError(f"labels go up to {labels.max()}, the network has {num_classes} classes; {remedy}")


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {_shape(tensor)}"


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def load_images(path: str | Path) -> LabelledImages:
    """Read the arrays ``images`` (uint8 [N, C, H, W]) and ``labels`` (integers [N]) of an ``.npz`` file.

    The file is read as data only: it cannot run code. Raises InputError if it is missing, damaged or holds anything
    else.
    """
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
            return LabelledImages(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64, casting="safe")))
    except FileNotFoundError as error:
        raise InputError(f"test data {path} does not exist; check the path") from error
    except InputError as error:
        raise InputError(f"test data {path}: {error}") from None
    except Exception as error:  # the reader may raise anything if the file is of another kind
        need = "an .npz with uint8 images [N, C, H, W] and integer labels [N]"
        raise InputError(f"cannot read test data {path} ({one_line(error)}); give {need}") from error
