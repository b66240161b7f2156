"""These optimizers have one kernel for all parameters, and a GPU can record their steps (:mod:`.cuda_graphs`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from .. import accel

AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer)


def adam(parameters: Iterable[nn.Parameter], lr: float, **settings: Any) -> torch.optim.Adam:
    """Return PyTorch's Adam, with its further ``settings``."""
    return _recordable(torch.optim.Adam(parameters, lr, fused=accel.enabled, **settings))


def sgd(parameters: Iterable[nn.Parameter], lr: float, *, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Return SGD, with Nesterov's momentum if ``momentum`` is above 0."""
    nesterov, fused = momentum > 0, accel.enabled
    return _recordable(
        torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay, nesterov=nesterov, fused=fused)
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the learning rate of all parameters."""
    return float(optimizer.param_groups[0]["lr"])


def clear_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Remove the gradients of all parameters; ``zero_grad`` does the same in several times the time."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def _recordable(optimizer: AnyOptimizer) -> AnyOptimizer:
    _place(optimizer)
    optimizer.register_load_state_dict_post_hook(_place)  # the state may come from another device
    return optimizer


def _place(optimizer: torch.optim.Optimizer) -> None:
    """Put the learning rate on the GPU of the parameters, if any: a recorded step would read a number only once."""
    for group in optimizer.param_groups:
        device, rate = group["params"][0].device, float(group["lr"])
        recordable = accel.enabled and device.type == "cuda"
        group["lr"] = torch.tensor(rate, device=device) if recordable else rate
        if "capturable" in group:
            group["capturable"] = recordable
