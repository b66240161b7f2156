"""A few synthetic images of the teacher lie beside a student's file, for exported forms of it to be compared on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import write_atomically
from ..shapes import ImageShape

NAME = "images.npz"
LARGEST_SIZE = 2**22
MOST = 64


def save_images(path: Path, images: Tensor) -> None:
    """Write some of ``images`` [N, C, H, W], normalized, evenly spread, as float16: at most 64 and 4 MB."""
    count = max(min(MOST, len(images), LARGEST_SIZE // (2 * images[0].numel())), 1)
    chosen = torch.linspace(0, len(images) - 1, count).round().long()
    kept = images[chosen].detach().cpu().to(torch.float16).numpy()
    write_atomically(path, lambda file: np.savez_compressed(file, images=kept))


def images_beside(path: Path, image: ImageShape) -> Tensor | None:
    """Return the images [N, C, H, W] that lie beside the file at ``path``; None if there are none of this shape."""
    try:
        with np.load(path.parent / NAME, allow_pickle=False) as content:
            images = torch.from_numpy(content["images"].astype(np.float32))
    except (OSError, ValueError, KeyError, EOFError):  # anything may lie there under this name
        return None
    return images if images.shape[1:] == tuple(image) and images.isfinite().all() else None
