"""What enters each BatchNorm of a frozen network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class BatchNormStatistics(NamedTuple):
    """Per-channel statistics of one BatchNorm's input, and those it remembers from training. All [C]."""

    mean: Tensor
    var: Tensor
    running_mean: Tensor
    running_var: Tensor


@contextmanager
def record_bn_statistics(network: nn.Module) -> Iterator[list[BatchNormStatistics]]:
    """Record mean and biased variance of the input of every BatchNorm2d that keeps running statistics.

    The list fills during each forward pass inside the block, in execution order. The entries are part of the
    autograd graph. The hooks go when the block ends, also by an exception.
    """
    recorded: list[BatchNormStatistics] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        var, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)  # both [C]
        recorded.append(BatchNormStatistics(mean, var, module.running_mean, module.running_var))  # type: ignore[arg-type]

    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()
