"""How the pixels of images and features lie in memory."""

from __future__ import annotations

import copy
import logging

import torch
from torch import nn

from ..errors import one_line
from ..generator.topology import ImageShape

log = logging.getLogger(__name__)


def memory_format(network: nn.Module, image: ImageShape, *, modes: tuple[bool, ...] = (False,)) -> torch.memory_format:
    """``torch.channels_last``, in which convolutions are faster, if ``network`` can be brought into it.

    A network whose code depends on the usual layout (``view`` does) cannot; that is logged. ``modes`` are those in
    which it will run: training or not. Only a copy is run.
    """
    device = next(network.parameters()).device
    try:
        twin = copy.deepcopy(network).to(memory_format=torch.channels_last)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for training in modes:
                twin.train(training)(torch.zeros(2, *image, device=device))
    except RuntimeError as error:
        log.warning("%s stays in the usual layout and will be slower: %s", type(network).__name__, one_line(error))
        return torch.contiguous_format
    return torch.channels_last


def in_usual_layout(network: nn.Module) -> nn.Module:
    """``network`` itself, as a file of its weights would be loaded."""
    return network.to(memory_format=torch.contiguous_format)
