"""This module tells the C library to keep the memory of tensors, and chooses the layout of their pixels."""

from __future__ import annotations

import copy
import ctypes
import logging

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from .. import accel
from ..errors import one_line
from ..shapes import ImageShape

log = logging.getLogger(__name__)

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # these are names of mallopt's parameters in glibc's malloc.h
LARGEST_INT, LARGEST_MMAP_THRESHOLD = 2**31 - 1, 2**25


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for new ones; return True if the C library can do that.

    A training step frees memory that the next step asks for again. glibc would return most of it to the system in
    between, page by page, and every page costs time when it is first touched again. Blocks over 32 MB still go back at
    once, so that no large holes are kept.
    """
    if not accel.enabled:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # this is another C library, or another system
        return False
    return bool(mallopt(TRIM_THRESHOLD, LARGEST_INT) and mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD))


def conv_layout() -> torch.memory_format:
    """Return ``torch.channels_last``, in which convolutions are faster; if not accelerated, the usual layout."""
    return torch.channels_last if accel.enabled else torch.contiguous_format


def memory_format(network: nn.Module, image: ImageShape, *, modes: tuple[bool, ...] = (False,)) -> torch.memory_format:
    """Return :func:`conv_layout` if ``network`` works in it, else the usual layout.

    A network whose code depends on the usual layout (``view`` does) does not work in it; that is logged. ``modes`` are
    the modes in which it will run: True for training, False for evaluation. Only a copy is run, on zeros [2, *image].
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
    """Bring ``network`` into the usual layout, in place, as if its weights were loaded from a file, and return it."""
    for tensor in (*network.parameters(), *network.buffers()):
        if not is_lazy(tensor) and tensor.ndim in (4, 5):  # Module.to would ask tensors without a shape for theirs
            tensor.data = tensor.data.to(memory_format=torch.contiguous_format)
    return network
