"""Tensors that memory should not hold lie in a file, which the system reads and writes as it needs to."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ..cache import CACHE_VARIABLE, cache_folder
from ..errors import InputError

IN_MEMORY = 2**28
"""Bytes of a tensor up to which it stays in memory."""


def joined(batches: Iterable[Tensor], count: int) -> Tensor:
    """Join batches [n, ...] to one tensor [count, ...], in a file of the cache folder if it is large and on the CPU.

    The file has no name and goes with the tensor. Raises InputError if the folder cannot be written in, and OSError if
    the disk is full.
    """
    made: Tensor | None = None
    start = 0
    for batch in batches:
        made = _room(count, batch) if made is None else made
        made[start : start + len(batch)] = batch
        start += len(batch)
    assert made is not None
    return made


def _file(folder: Path) -> IO[bytes]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise InputError(
            f"cannot write in {folder}: {error.strerror}; set {CACHE_VARIABLE} to a writable folder"
        ) from error


def _reserve(file: IO[bytes], size: int) -> None:
    """Make a file so many bytes long, or raise OSError: without their space, a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    elif shutil.disk_usage(cache_folder()).free < size:  # macOS and Windows
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    else:
        file.truncate(size)


def _room(count: int, like: Tensor) -> Tensor:
    """Return space for ``count`` rows like those of a tensor, in its layout."""
    shape = (count, *like.shape[1:])
    last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    size = count * like[0].nbytes
    if like.device.type != "cpu" or size <= IN_MEMORY:
        layout = torch.channels_last if last else torch.contiguous_format
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
    with _file(cache_folder()) as file:  # it stays as long as it is mapped
        _reserve(file, size)
        stored = (count, *like.shape[2:], like.shape[1]) if last else shape
        tensor = torch.from_numpy(np.memmap(file, np.dtype(str(like.dtype).removeprefix("torch.")), "r+", shape=stored))
    return tensor.permute(0, 3, 1, 2) if last else tensor
