"""The memory of tensors: what the C library keeps of it, and how the pixels of images and features lie in it."""

from __future__ import annotations

import copy
import ctypes
import logging

import torch
from torch import nn

from .. import accel
from ..errors import one_line
from ..shapes import ImageShape

log = logging.getLogger(__name__)

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, as in glibc's malloc.h
LARGEST_INT, LARGEST_MMAP_THRESHOLD = 2**31 - 1, 2**25


def keep_freed_memory() -> bool:
    """Let this process keep what tensors leave, for the next ones. Returns whether the C library can do that.

    A training step frees what the next one asks for again. glibc would return the larger part to the system in
    between, page by page, and every page costs when it is first touched again. What is larger than 32 MB still goes
    back at once, so that no large holes are kept.
    """
    if not accel.enabled:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(TRIM_THRESHOLD, LARGEST_INT) and mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD))


def conv_layout() -> torch.memory_format:
    """``torch.channels_last``, in which convolutions are faster; the usual layout where nothing is accelerated."""
    return torch.channels_last if accel.enabled else torch.contiguous_format


def memory_format(network: nn.Module, image: ImageShape, *, modes: tuple[bool, ...] = (False,)) -> torch.memory_format:
    """:func:`conv_layout`, if ``network`` can be brought into it.

    A network whose code depends on the usual layout (``view`` does) cannot; that is logged. ``modes`` are those in
    which it will run: training or not. Only a copy is run.
    """
    if not accel.enabled:
        return conv_layout()
    device = next(network.parameters()).device
    try:
        twin = copy.deepcopy(network).to(memory_format=torch.channels_last)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for training in modes:
                twin.train(training)(torch.zeros(2, *image, device=device))
    except RuntimeError as error:
        log.warning("%s stays in the usual layout and will be slower: %s", type(network).__name__, one_line(error))
        return torch.contiguous_format
    return conv_layout()


def in_usual_layout(network: nn.Module) -> nn.Module:
    """``network`` itself, as a file of its weights would be loaded."""
    return network.to(memory_format=torch.contiguous_format)
