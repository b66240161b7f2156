"""The cost of a network is counted."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..shapes import ImageShape


@torch.no_grad()
def macs(network: nn.Module, image: ImageShape) -> int:
    """Count the multiply-accumulates of one image in convolutions and products, by a forward pass in eval mode."""
    like = next(network.parameters(), torch.empty(0))
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *image, device=like.device, dtype=like.dtype))
    return int(counter.get_total_flops()) // 2
