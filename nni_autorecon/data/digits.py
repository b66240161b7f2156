"""The handwritten digits of scikit-learn are read here as 16×16 images, split into training and test."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from ..shapes import ImageShape
from .images import LabelledImages

IMAGE = ImageShape(1, 16, 16)
MEAN = (0.3049,)
"""The mean of the training images' pixels, divided by 255."""
STD = (0.3183,)
"""The standard deviation of the training images' pixels, divided by 255."""


def digits_data(split: Literal["train", "test"]) -> LabelledImages:
    """Return the digits of one split as images [N, 1, 16, 16] with labels [N].

    Every fourth image of each class belongs to ``"test"``, the others to ``"train"``. Raises ValueError for any other
    split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split = {split!r}; choose 'train' or 'test'")
    table = torch.from_numpy(_table())  # [N, 65]
    labels = table[:, 64].long()  # [N]
    grey = table[:, :64].float().view(-1, 1, 8, 8) * (255 / 16)  # 0 to 255
    images = F.interpolate(grey, size=IMAGE[1:], mode="bilinear").round().to(torch.uint8)  # [N, 1, 16, 16]
    rank_in_class = F.one_hot(labels).cumsum(0).gather(1, labels[:, None]).squeeze(1)  # [N], from 1
    chosen = (rank_in_class % 4 == 0) == (split == "test")
    return LabelledImages(images[chosen], labels[chosen])


def _table() -> np.ndarray[Any, Any]:
    """Return a table [N, 65] in float64: the 64 pixels of each digit, from 0 to 16, and its label."""
    sklearn = importlib.util.find_spec("sklearn")  # importing it would take seconds
    for folder in (sklearn and sklearn.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])
