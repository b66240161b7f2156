"""Checkpoints are read as data only and loaded into a network; an error names the keys that do not fit."""

from __future__ import annotations

import re
import typing
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ..errors import InputError

WRAPPERS = ("state_dict", "model")
"""Training scripts keep the state_dict under one of these keys of a checkpoint."""
PREFIXES = ("module.", "model.", "_orig_mod.")
"""DataParallel, Lightning and torch.compile put these before every key."""


def load_checkpoint(network: nn.Module, path: Path, name: str) -> None:
    """Load the state_dict in ``path`` into ``network``, which errors call ``name``.

    Wrappers (``{"state_dict": …}``, ``{"model": …}``) and prefixes that all keys have (``module.`` and the like) are
    removed first. Raises InputError if the file cannot be read, or if keys or shapes do not fit; it names them.
    """
    own = network.state_dict()
    state = _unwrapped(_read_checkpoint(path), own, path)
    settle_lazy_layers(network, {key: tensor.shape for key, tensor in state.items()})
    own = network.state_dict()
    shapes = [
        f"{key} ({list(state[key].shape)} for {list(tensor.shape)})"
        for key, tensor in own.items()
        if key in state and state[key].shape != tensor.shape
    ]
    fitting = {key: tensor for key, tensor in state.items() if key not in own or tensor.shape == own[key].shape}
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

    Raises InputError if the file is missing, damaged or could run code.
    """
    try:
        _require_sound(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read checkpoint {path}: {error.strerror or error}; check the path") from error
    except Exception as error:  # damaged bytes can make the reader raise anything
        refused = re.search(r"(?i)unsupported (?:global: )?global (\S+)", str(error))
        fault = f"holds {refused[1]}, which could run code" if refused else "is damaged or no PyTorch checkpoint"
        raise InputError(f"checkpoint {path} {fault}; give torch.save(network.state_dict(), FILE)") from error


def _require_sound(path: Path) -> None:
    """Raise BadZipFile if the file is an archive, as torch.save writes it, and a checksum in it is wrong."""
    if zipfile.is_zipfile(path):  # torch.load does not check the checksums
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} has another CRC-32")


def _unwrapped(content: object, own: Iterable[str], path: Path) -> Mapping[str, Tensor]:
    """Return the state_dict in a checkpoint's ``content``, without prefixes that the network's keys ``own`` lack.

    Raises InputError if it holds anything but tensors by name.
    """
    while isinstance(content, Mapping) and (found := [w for w in WRAPPERS if isinstance(content.get(w), Mapping)]):
        content = content[found[0]]
    entries: Mapping[str, object] = content if isinstance(content, Mapping) else {type(content).__name__: content}
    strangers = [str(k) for k, value in entries.items() if not (isinstance(k, str) and isinstance(value, Tensor))]
    if strangers or not entries:
        raise InputError(
            f"checkpoint {path} holds no state_dict but {_listing(strangers) or 'nothing'}; "
            f"give one, alone or under {' or '.join(WRAPPERS)}"
        )
    state = typing.cast(Mapping[str, Tensor], entries)
    while prefixes := [p for p in PREFIXES if _all_start(state, p) and not _all_start(own, p)]:
        state = {key.removeprefix(prefixes[0]): tensor for key, tensor in state.items()}
    return state


def _all_start(keys: Iterable[str], prefix: str) -> bool:
    return all(key.startswith(prefix) for key in keys)


def _listing(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
