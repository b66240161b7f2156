"""Optimizers of one kernel for all parameters, whose steps can be recorded on a GPU (:mod:`.recording`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import nn

AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer)


def adam(parameters: Iterable[nn.Parameter], lr: float, **settings: Any) -> torch.optim.Adam:
    """PyTorch's Adam, with its further ``settings``."""
    return _recordable(torch.optim.Adam(parameters, lr, fused=True, **settings))


def sgd(parameters: Iterable[nn.Parameter], lr: float, *, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """SGD with Nesterov's momentum."""
    return _recordable(
        torch.optim.SGD(parameters, lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0, fused=True)
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The one of all parameters."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The one of all parameters."""
    return float(optimizer.param_groups[0]["lr"])


def clear_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Of all parameters; ``zero_grad`` would do the same in several times the time."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def _recordable(optimizer: AnyOptimizer) -> AnyOptimizer:
    _place(optimizer)
    optimizer.register_load_state_dict_post_hook(_place)  # the state may come from another device
    return optimizer


def _place(optimizer: torch.optim.Optimizer) -> None:
    """Where parameters are on a GPU, so is their learning rate: a recorded step would read a number only once."""
    for group in optimizer.param_groups:
        device, rate = group["params"][0].device, float(group["lr"])
        group["lr"] = torch.tensor(rate, device=device) if device.type == "cuda" else rate
        if "capturable" in group:
            group["capturable"] = device.type == "cuda"
