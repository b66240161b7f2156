"""Checkpoints are read as data only and loaded into a network; an error names the keys that do not fit."""

from __future__ import annotations

import argparse
import logging
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ..errors import InputError

WRAPPERS = ("state_dict", "model")
"""Training scripts usually keep the state_dict under one of these keys of a checkpoint."""
PREFIXES = ("module.", "model.", "_orig_mod.")
"""DataParallel, Lightning and torch.compile put these before every key."""
COUNTERS = re.compile(r"(.*\.)?(total_ops|total_params|n_averaged)")
"""Tools leave these numbers beside the weights: thop counts operations, an averaged model its averages."""
REMEDY = "give torch.save(network.state_dict(), FILE)"

_log = logging.getLogger(__name__)


class StateDict(NamedTuple):
    """A state_dict within a checkpoint."""

    key: str
    """Where it lies, as in ``model.state_dict``; empty if it is the whole file."""
    tensors: Mapping[str, Tensor]
    """The weights, under the names that the network gives them."""
    fitting: int
    """How many names the network knows."""


def load_checkpoint(network: nn.Module, path: Path, name: str, *, key: str | None = None) -> None:
    """Load the state_dict in ``path`` into ``network``, which errors call ``name``.

    A file may hold several, as that of an exponential moving average (EMA) beside the last weights. The one whose names
    fit best is taken, among equals the usual one; a message says which it was. ``key`` names another, such as
    ``state_dict_ema``. Prefixes that the network's names do not have (``module.`` and the like) are removed, with all
    that lies beside them, such as a loss in a Lightning module.

    Raises InputError if the file cannot be read, or if keys or shapes do not fit; it names them.
    """
    content = _read_checkpoint(path)
    own = [*network.state_dict()]
    found = [_of_network(key, tensors, own) for key, tensors in _state_dicts(content)]
    if not found:
        raise InputError(
            f"checkpoint {path} holds no state_dict but {_listing(_strangers(content)) or 'nothing'}; "
            f"give one, alone or under {' or '.join(WRAPPERS)}"
        )
    chosen = _chosen(found, path, key)
    state = chosen.tensors
    settle_lazy_layers(network, {name: tensor.shape for name, tensor in state.items()})
    targets = network.state_dict()
    shapes = [
        f"{key} ({list(state[key].shape)} for {list(tensor.shape)})"
        for key, tensor in targets.items()
        if key in state and state[key].shape != tensor.shape
    ]
    fitting = {key: tensor for key, tensor in state.items() if key not in targets or tensor.shape == targets[key].shape}
    missing, unexpected = network.load_state_dict(fitting, strict=False)  # strict=True would not list wrong shapes
    missing = [key for key in missing if key not in state]
    faults = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes}
    if any(faults.values()):
        listed = "; ".join(f"{kind}: {_listing(names)}" for kind, names in faults.items() if names)
        raise InputError(
            f"checkpoint {path} does not fit {name}: {listed}; give one of exactly this network (and --num-classes)"
        )


def settle_lazy_layers(network: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give lazy layers, in place, the sizes that follow from the ``shapes`` of their tensors, which are named as usual.

    They become ordinary layers, as at a first forward pass.
    """
    for path, layer in list(network.named_modules()):
        if isinstance(layer, LazyModuleMixin):
            weight = shapes.get(f"{path}.weight") or shapes.get(f"{path}.running_mean")
            if weight is not None:
                lazy: Any = layer  # torch has no public function that does this without a forward pass
                lazy._infer_parameters(lazy, (torch.empty(_input_shape(lazy, weight)),))


def _input_shape(layer: nn.Module, weight: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of an input of a lazy layer whose weight has this shape."""
    kind = type(layer).__name__
    if len(weight) > 1:
        channels = weight[0] if "Transpose" in kind else weight[1] * getattr(layer, "groups", 1)
        return 1, channels, *[1] * (len(weight) - 2)
    return 1, weight[0], *[1] * int(next((digit for digit in kind if digit.isdigit()), "0"))


def _read_checkpoint(path: Path) -> object:
    """Return the content of ``path``, which may consist of tensors and plain containers only.

    Raises InputError if the file is missing, damaged, something else, or could run code.
    """
    try:
        _require_weights(path)
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments of a training script
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read checkpoint {path}: {error.strerror or error}; check the path") from error
    except Exception as error:  # damaged bytes can make the reader raise anything
        refused = re.search(r"(?i)unsupported (?:global: )?global (\S+)", str(error))
        fault = f"holds {refused[1]}, which could run code" if refused else "is damaged or no PyTorch checkpoint"
        raise InputError(f"checkpoint {path} {fault}; {REMEDY}") from error


def _require_weights(path: Path) -> None:
    """Raise InputError for files that are known to be no weights, BadZipFile for an archive with a wrong checksum."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise InputError(f"checkpoint {path} is empty; {REMEDY}")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"checkpoint {path} only points to a file of git-lfs; fetch it with git lfs pull")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise InputError(f"checkpoint {path} is a web page; download the file itself")
    if zipfile.is_zipfile(path):  # torch.load does not check the checksums
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise InputError(
                    f"checkpoint {path} is TorchScript; "
                    "give its weights, torch.save(torch.jit.load(FILE).state_dict(), FILE)"
                )
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} has another CRC-32")


def _state_dicts(content: object, key: str = "", depth: int = 3) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield every state_dict in a checkpoint's content, with where it lies; mappings in mappings are looked through."""
    if not isinstance(content, Mapping):
        return
    if content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        yield key, content
    elif depth:
        for name, value in content.items():
            yield from _state_dicts(value, f"{key}.{name}" if key else str(name), depth - 1)


def _of_network(key: str, tensors: Mapping[str, Tensor], own: Sequence[str]) -> StateDict:
    """Return a state_dict under the network's ``own`` names, without a prefix and without tools' counters."""
    prefixes = {name.removesuffix(first) for first in own[:1] for name in tensors if name.endswith(first)}
    best = max(
        sorted(prefixes | {""}, key=len),
        key=lambda prefix: sum(prefix + name in tensors for name in own),
    )
    state = {name.removeprefix(best): tensor for name, tensor in tensors.items() if name.startswith(best)}
    fitting = sum(name in state for name in own)
    while not fitting and (
        known := [p for p in PREFIXES if _all_start(state, p) and not _all_start(own, p)]
    ):  # a checkpoint of another network is listed without them, too
        state = {name.removeprefix(known[0]): tensor for name, tensor in state.items()}
    kept = {name: tensor for name, tensor in state.items() if name in own or not COUNTERS.fullmatch(name)}
    left_out = [name for name in tensors if not name.startswith(best) and not COUNTERS.fullmatch(name)]
    if left_out and fitting:
        _log.info("checkpoint: %s left out, beside the network (%s)", _listing(left_out), best)
    return StateDict(key, kept, fitting)


def _chosen(found: Sequence[StateDict], path: Path, key: str | None) -> StateDict:
    """Return the state_dict named ``key``, or the likeliest one. Raises InputError if there is none of this name."""
    if key is not None:
        named = [each for each in found if each.key == key]
        if not named:
            keys = _listing([each.key or "the whole file" for each in found])
            raise InputError(f"checkpoint {path} has no state_dict {key!r}, but {keys}; choose with --checkpoint-key")
        return named[0]

    def rank(each: StateDict) -> tuple[int, bool, bool]:
        parts = each.key.lower().split(".")
        return -each.fitting, any("ema" in part for part in parts), not all(part in WRAPPERS for part in parts if part)

    best, *others = sorted(found, key=rank)
    equals = [other.key for other in others if other.fitting == best.fitting > 0]
    if equals:
        _log.info("checkpoint %s: %s is taken; --checkpoint-key takes another, %s", path, best.key, " or ".join(equals))
    return best


def _strangers(content: object) -> list[str]:
    """Return the keys of a checkpoint without a state_dict, or the type of what it is instead."""
    return [str(key) for key in content] if isinstance(content, Mapping) else [type(content).__name__]


def _all_start(keys: Iterable[str], prefix: str) -> bool:
    return all(key.startswith(prefix) for key in keys)


def _listing(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
