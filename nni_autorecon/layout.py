"""How the pixels of images and features lie in memory."""

from __future__ import annotations

import logging

import torch
from torch import nn

from .topology import ImageShape

log = logging.getLogger(__name__)


def in_channels_last(network: nn.Module, image: ImageShape) -> nn.Module:
    """``network`` itself, its convolutions in channels_last: faster, and the same up to rounding.

    A network whose code depends on the usual layout (``view`` does) stays as it is; that is logged.
    """
    training, device = network.training, next(network.parameters()).device
    network.eval().to(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            network(torch.zeros(2, *image, device=device))
    except RuntimeError as error:
        in_usual_layout(network)
        log.info("%s stays in the usual layout: %s", type(network).__name__, error)
    return network.train(training)


def in_usual_layout(network: nn.Module) -> nn.Module:
    """``network`` itself, as it was before ``in_channels_last``."""
    return network.to(memory_format=torch.contiguous_format)
