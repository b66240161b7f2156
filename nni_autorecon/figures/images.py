"""Synthetic images are drawn here, class by class, with how much those of one class differ."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..errors import InputError
from .canvas import Floats, new_canvas


def image_grid_info(images: Tensor, labels: Tensor, *, per_class: int, max_classes: int = 10) -> Floats:
    """Sort images [N, C, H, W] by class: return [classes, up to per_class, H, W, 1 or 3].

    Each image is scaled to [0, 1] by its minimum and maximum. The classes are the first ``max_classes`` in ``labels``
    [N]; where a class has too few images, the grid holds NaN. If there are neither 1 nor 3 channels, their mean is
    shown. Raises InputError if the shapes do not fit or if there is nothing to show.
    """
    if images.ndim != 4 or labels.shape != images.shape[:1] or min(*images.shape, per_class, max_classes) < 1:
        shapes = f"images {list(images.shape)}, labels {list(labels.shape)}, {max_classes} x {per_class} cells"
        raise InputError(f"cannot show {shapes}; give images [N, C, H, W], labels [N] and at least one cell")
    pixels = images.detach().cpu().double().numpy().transpose(0, 2, 3, 1)  # [N, H, W, C]
    if pixels.shape[-1] not in (1, 3):
        pixels = pixels.mean(axis=-1, keepdims=True)
    low, high = pixels.min(axis=(1, 2, 3), keepdims=True), pixels.max(axis=(1, 2, 3), keepdims=True)
    pixels = (pixels - low) / np.where(high > low, high - low, 1)  # a constant image is black
    classes = labels.unique()[:max_classes].tolist()
    per_class = min(per_class, int(labels.bincount().max()))
    grid = np.full((len(classes), per_class, *pixels.shape[1:]), np.nan)
    for row, class_ in enumerate(classes):
        members = pixels[(labels == class_).cpu().numpy()][:per_class]
        grid[row, : len(members)] = members
    return grid


def diversity(images: Tensor, labels: Tensor) -> float | None:
    """Return the variance of the pixels within classes, divided by that of all: 0 if those of a class are the same.

    It is about 1 if classes look alike. Both variances are unbiased, so that few images of a class do not pass for
    alike. images: [N, C, H, W]; labels: [N]. None if no class has two images, or if all images are the same.
    """
    pixels, classes = images.flatten(1).double(), labels.unique()
    apart = (pixels - pixels.mean(0)).square().sum()
    if len(pixels) == len(classes) or apart == 0:
        return None
    members = [pixels[labels == class_] for class_ in classes]
    within = torch.stack([(own - own.mean(0)).square().sum() for own in members]).sum()
    return float(within / (len(pixels) - len(classes)) / (apart / (len(pixels) - 1)))


def plot_images(images: Tensor, labels: Tensor, *, per_class: int, max_classes: int = 10, title: str = "") -> Figure:
    """Draw one row of images per class, with the class at the left; the title says so if not all classes are shown.

    Below the images stands their :func:`diversity`. images: [N, C, H, W]; labels: [N]. Raises InputError as
    :func:`image_grid_info` does.
    """
    grid = image_grid_info(images, labels, per_class=per_class, max_classes=max_classes)
    rows, columns, height, width, channels = grid.shape
    classes = labels.unique().tolist()
    left_out = f" (first {rows} of {len(classes)} classes)" if rows < len(classes) else ""
    gap = 1 + height // 16
    tiles = np.pad(grid, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=np.nan)
    canvas = tiles.swapaxes(1, 2).reshape(rows * (height + gap), columns * (width + gap), channels)[:-gap, :-gap]
    figure, axes = new_canvas(columns * 0.7 * width / height + 1.0, rows * 0.7 + 0.7, (title + left_out).strip())
    axes.imshow(np.nan_to_num(canvas[..., 0] if channels == 1 else canvas, nan=1.0), cmap="gray", vmin=0, vmax=1)
    axes.set_yticks(np.arange(rows) * (height + gap) + (height - 1) / 2, [str(class_) for class_ in classes[:rows]])
    axes.tick_params(length=0, labelsize=9.5)
    axes.set(xticks=[], ylabel="class")
    if (share := diversity(images, labels)) is not None:
        axes.set_xlabel(f"variance in a class / in all: {share:.2f}")
    return figure
