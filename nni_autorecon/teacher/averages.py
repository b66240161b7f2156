"""Averages of a network's parameters alone, as some training scripts keep them, are completed to a state_dict."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

MARKS = ("ema", "shadow")
"""One of these is in the name of every place where scripts keep an exponential moving average (EMA)."""

_log = logging.getLogger(__name__)


def is_average(key: str) -> bool:
    """Return True for the place in a file, as ``state_dict_ema``, of an average."""
    return any(mark in key.lower() for mark in MARKS)


def listed_averages(
    content: object, network: nn.Module, key: str = "", depth: int = 3
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each average that ``content`` holds as a list, by the network's names, with the place where it lies.

    Such a list (as torch_ema's ``shadow_params``) has the network's parameters in their order, or those that learn.
    """
    if isinstance(content, Mapping) and depth:
        for name, value in content.items():
            yield from listed_averages(value, network, f"{key}.{name}" if key else str(name), depth - 1)
    elif isinstance(content, Sequence) and is_average(key):
        for own in (dict(network.named_parameters()), _learning(network)):
            if len(own) == len(content) and all(map(_fits, content, own.values())):
                yield key, dict(zip(own, content, strict=True))
                return


def _learning(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that learn, by name; all of them if the network is frozen."""
    parameters = dict(network.named_parameters())
    return {name: parameter for name, parameter in parameters.items() if parameter.requires_grad} or parameters


def _fits(value: object, parameter: nn.Parameter) -> bool:
    return isinstance(value, Tensor) and (is_lazy(parameter) or value.shape == parameter.shape)


def completed(
    key: str, tensors: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]], network: nn.Module
) -> Mapping[str, Any]:
    """Return ``tensors``, from the place ``key`` of a file, with what they lack if they have all parameters that learn.

    That comes from the first of the ``others``, by their places, which has it all; a message says so.
    """
    lacking = [name for name in network.state_dict() if name not in tensors]
    if not lacking or not _learning(network).keys().isdisjoint(lacking):
        return tensors
    for place, other in others.items():
        if all(name in other for name in lacking):
            _log.info("%s has parameters alone; the rest, such as %s, is that of %s", key, lacking[0], place)
            return {**tensors, **{name: other[name] for name in lacking}}
    return tensors
