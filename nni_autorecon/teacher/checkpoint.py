"""A state_dict in a checkpoint is found and loaded into a network; an error names the keys that do not fit."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ..errors import InputError, one_line
from .averages import completed, is_average, listed_averages
from .checkpoint_file import read_checkpoint

WRAPPERS = ("state_dict", "model")
"""Training scripts usually keep the state_dict under one of these keys of a checkpoint."""
PREFIXES = ("module.", "model.", "_orig_mod.")
"""DataParallel, Lightning and torch.compile put these before every key."""
USUAL = {*WRAPPERS, *(prefix.removesuffix(".") for prefix in PREFIXES)}
"""A state_dict under these keys and prefixes alone is taken before others that fit as well."""
COUNTERS = re.compile(r"(.*\.)?(total_ops|total_params|n_averaged)")
"""Tools leave these numbers beside the weights: thop counts operations, an averaged model its averages."""

VERSIONS = "_metadata"
"""PyTorch keeps the versions of layers in this attribute of a state_dict, by their places."""

_log = logging.getLogger(__name__)


class StateDict(NamedTuple):
    """A state_dict within a checkpoint."""

    key: str
    """The place in the file, as ``model.state_dict``, with a prefix of its names; empty if it is the whole file."""
    tensors: Mapping[str, Any]
    """The weights, under the names that the network gives them; an ``_extra_state`` may be no tensor."""
    fitting: int
    """The number of names that the network knows."""
    beside: Sequence[str] = ()
    """Names in the same mapping that are left out: of another prefix, of tools, or of what is no tensor."""
    versions: Mapping[str, Any] = {}
    """What the file says of the versions of layers, by their places in the network; empty if it says nothing."""

    @property
    def place(self) -> str:
        """Return the key, or words for the whole file."""
        return self.key or "the whole file"


def load_checkpoint(network: nn.Module, path: Path, name: str, *, key: str | None = None) -> None:
    """Load the state_dict in ``path`` into ``network``, which errors call ``name``.

    A file may hold several, as that of an exponential moving average (EMA) beside the last weights, or a student's and
    a teacher's under two prefixes. The one whose names fit best is taken, among equals the usual one; a message says
    which it was, and what was left out. ``key`` names another, such as ``state_dict_ema`` or ``student``; an average of
    parameters alone has its buffers from another. Prefixes that the network's names do not have (``module.`` and the
    like) are removed.

    Raises InputError if the file cannot be read, if several fit equally and none is the usual one, or if keys or shapes
    do not fit; it names them.
    """
    content = read_checkpoint(path)
    own = [*network.state_dict()]
    places = [*_state_dicts(content), *listed_averages(content, network)]
    found = [each for where, mapping in places for each in _of_network(where, mapping, own)]
    if not found:
        raise InputError(
            f"checkpoint {path} holds no state_dict but {_listing(_strangers(content)) or 'nothing'}; "
            f"give one, alone or under {' or '.join(WRAPPERS)}"
        )
    chosen = _chosen(found, path, key)
    others = {each.place: each.tensors for each in found if each is not chosen}
    state = completed(chosen.place, chosen.tensors, others, network)
    if chosen.fitting and chosen.beside:
        _log.info("checkpoint %s: %s left out, beside the network's weights", path, _listing(chosen.beside))
    settle_lazy_layers(network, {name: value.shape for name, value in state.items() if isinstance(value, Tensor)})
    targets = network.state_dict()
    misfits = {
        name: f"{name} ({list(state[name].shape)} for {list(target.shape)})"
        for name, target in targets.items()
        if isinstance(target, Tensor) and name in state and state[name].shape != target.shape
    }
    whole = [
        f"{key} ({str(state[key].dtype).removeprefix('torch.')})"
        for key, parameter in network.named_parameters()
        if key in state and parameter.is_floating_point() and not state[key].is_floating_point()
    ]
    fitting = {name: value for name, value in state.items() if name not in misfits}
    missing, unexpected = _load(network, fitting, chosen.versions, path, name)
    missing = [name for name in missing if name not in state]
    faults = {"missing": missing, "unexpected": unexpected, "wrong shape": [*misfits.values()]}
    faults["no floating-point numbers"] = whole
    if any(faults.values()):
        listed = "; ".join(f"{kind}: {_listing(names)}" for kind, names in faults.items() if names)
        raise InputError(
            f"checkpoint {path} does not fit {name}: {listed}; give one of exactly this network (and --num-classes)"
        )


def load_in_order(network: nn.Module, path: Path, name: str) -> None:
    """Load a state_dict in ``path`` whose names are other than those of ``network``, but whose order is the same.

    Raises InputError, which calls the network ``name``, if the file cannot be read, or if a tensor has another shape
    than its counterpart, or its name another end (``weight``, ``running_mean``).
    """
    content = read_checkpoint(path)
    state = content if isinstance(content, Mapping) else {}
    targets = network.state_dict()
    fault = "" if len(state) == len(targets) else f"it has {len(state)} tensors instead of {len(targets)}"
    for (key, value), (target, own) in zip(state.items(), targets.items(), strict=False):
        shape = list(getattr(value, "shape", ()))
        if not isinstance(value, Tensor) or value.shape != own.shape or _end(str(key)) != _end(target):
            fault = fault or f"it has {key} ({shape}) for {target} ({list(own.shape)})"
    if fault:
        raise InputError(f"checkpoint {path} does not fit {name}: {fault}; give another file with --checkpoint")
    _load(network, dict(zip(targets, state.values(), strict=True)), {}, path, name)


def _load(
    network: nn.Module, tensors: Mapping[str, Any], versions: Mapping[str, Any], path: Path, name: str
) -> tuple[list[str], list[str]]:
    """Load tensors into ``network``, and return the names that are missing there, and those that it does not have.

    Layers that ask which version of them was saved are told that of the file, or else that of today; a BatchNorm is
    told none, at which PyTorch does without its counter. Raises InputError if a layer refuses what it gets.
    """
    known = versions or getattr(network.state_dict(), VERSIONS, {})
    normed = {place for place, layer in network.named_modules() if isinstance(layer, nn.modules.batchnorm._NormBase)}
    state = OrderedDict(tensors)
    setattr(state, VERSIONS, {place: version for place, version in known.items() if place not in normed})
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)  # strict=True would not list wrong shapes
    except Exception as error:  # layers may load their weights by code of their own
        raise InputError(f"checkpoint {path} cannot be loaded into {name}: {one_line(error)}") from error
    return missing, unexpected


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


def _state_dicts(content: object, key: str = "", depth: int = 3) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield every mapping that holds tensors by name, with where it lies; mappings in mappings are looked through."""
    if not isinstance(content, Mapping):
        return
    if any(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        yield key, content
    if depth:
        for name, value in content.items():
            yield from _state_dicts(value, f"{key}.{name}" if key else str(name), depth - 1)


def _of_network(key: str, mapping: Mapping[str, object], own: Sequence[str]) -> Iterator[StateDict]:
    """Yield what a mapping holds under the network's ``own`` names, once for each prefix that fits best."""
    named = {name: value for name, value in mapping.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor) or _is_extra(name)}
    known = set(own)
    kept = {name: value for name, value in tensors.items() if name in known or not COUNTERS.fullmatch(name)}
    prefixes = {"", *(name.removesuffix(each) for each in own[:1] for name in kept if name.endswith(f".{each}"))}
    fitting = {prefix: sum(prefix + name in kept for name in own) for prefix in prefixes}
    most = max(fitting.values())
    best = [prefix for prefix in sorted(prefixes) if fitting[prefix] == most] if most else [_strange_prefix(kept, own)]
    for prefix in best:
        state = {name.removeprefix(prefix): value for name, value in kept.items() if name.startswith(prefix)}
        beside = [name for name in named if not name.startswith(prefix) or name not in kept]
        place = ".".join(part for part in (key, prefix.removesuffix(".")) if part)
        versions = {
            f"{name}.".removeprefix(prefix).rstrip("."): version
            for name, version in getattr(mapping, VERSIONS, {}).items()
            if f"{name}.".startswith(prefix)
        }
        yield StateDict(place if len(best) > 1 else key, state, most, beside, versions)


def _strange_prefix(tensors: Mapping[str, object], own: Sequence[str]) -> str:
    """Return the usual prefix that all names of another network's state_dict have, so that it is listed without it."""
    prefix = ""
    while more := [
        each for each in PREFIXES if _all_start(tensors, prefix + each) and not _all_start(own, prefix + each)
    ]:
        prefix += more[0]
    return prefix


def _is_extra(name: str) -> bool:
    """Return True for the name that PyTorch gives what a layer's ``get_extra_state`` returns."""
    return _end(name) == "_extra_state"


def _end(name: str) -> str:
    return name.rpartition(".")[2]


def _chosen(found: Sequence[StateDict], path: Path, key: str | None) -> StateDict:
    """Return the state_dict named ``key``, or the likeliest one. Raises InputError if there is none, or no such one."""

    def rank(each: StateDict) -> tuple[int, bool, bool]:
        parts = [part for part in each.key.lower().split(".") if part and each.fitting]
        return -each.fitting, any(map(is_average, parts)), not USUAL.issuperset(parts)

    ranked = sorted(found, key=lambda each: (*rank(each), -len(each.tensors)))
    places = _listing([each.place for each in ranked])
    if key is not None:
        named = [each for each in ranked if key in (each.key, each.place)]
        named = named or [each for each in ranked if each.fitting and each.key.startswith(f"{key}.")]
        if len(named) != 1:
            fault = "several state_dicts in" if named else "no state_dict"
            raise InputError(f"checkpoint {path} has {fault} {key!r}, but {places}; choose with --checkpoint-key")
        return named[0]
    best, *others = ranked
    equals = [each for each in others if rank(each) == rank(best)] if best.fitting else []
    if equals:
        equal = " and ".join(each.place for each in (best, *equals))
        raise InputError(f"checkpoint {path}: {equal} fit equally; choose with --checkpoint-key")
    more = [each.place for each in others if each.fitting]
    if more:
        _log.info("checkpoint %s: %s is taken; --checkpoint-key takes another, %s", path, best.place, " or ".join(more))
    return best


def _strangers(content: object) -> list[str]:
    """Return the keys of a checkpoint without a state_dict, or the type of what it is instead."""
    return [str(key) for key in content] if isinstance(content, Mapping) else [type(content).__name__]


def _all_start(names: Iterable[str], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)


def _listing(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
