"""The logits in what a network returns, where that is more than a tensor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

_log = logging.getLogger(__name__)


def take_logits(network: nn.Module, answer: object, name: str | None) -> object:
    """Return the logits in an ``answer`` of the network, and let it answer by them alone, by a hook, in place.

    A message names the network, if it has a name.
    """
    if (logits_of := _within(answer)) is None:
        return answer
    if name is not None:
        _log.info("teacher %s returns a %s, of which its logits are taken", name, type(answer).__name__)
    network.register_forward_hook(lambda _, given, answer: logits_of(answer))
    return logits_of(answer)


def _within(answer: Any) -> Callable[[Any], Any] | None:
    """Return the function that takes the logits from such an answer; None if it is a tensor, or does not tell.

    They are what is called ``logits``, or all that there is, or the only tensor [N, K], or the one whose softmax is the
    only other one, as in YOLO's classifiers.
    """
    if isinstance(answer, Tensor):
        return None
    get: Any = itemgetter
    if isinstance(answer, Mapping):
        parts = dict(answer)
    elif isinstance(answer, (tuple, list)) and not hasattr(answer, "logits"):
        parts = dict(enumerate(answer))
    else:
        parts, get = {"logits": getattr(answer, "logits", None), **getattr(answer, "__dict__", {})}, attrgetter
    if isinstance(parts.get("logits"), Tensor):
        return get("logits")
    there = {place: part for place, part in parts.items() if part is not None}
    tensors = {place: part for place, part in there.items() if isinstance(part, Tensor) and part.is_floating_point()}
    rows = [place for place, part in tensors.items() if part.ndim == 2 or len(there) == 1]
    if len(rows) == 2:
        rows = [one for one, other in (rows, rows[::-1]) if _is_softmax(there[other], there[one])]
    return get(rows[0]) if len(rows) == 1 else None


def _is_softmax(shares: Tensor, logits: Tensor) -> bool:
    return shares.shape == logits.shape and torch.allclose(shares.float(), logits.float().softmax(1), atol=1e-6)
