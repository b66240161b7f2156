"""Hooks and other functions within functions are copied with the network whose parts they know."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, MutableMapping
from types import CellType, FunctionType
from typing import Any

from torch import nn

HOOKS = "_forward_pre_hooks", "_forward_hooks"


class Copied:
    """A function whose outer variables are copied with it, as a deep copy of a function alone does not.

    So a hook that keeps features in ``self`` keeps them in the copy of the network that calls it.
    """

    def __init__(self, function: FunctionType) -> None:
        self.function = function
        functools.update_wrapper(self, function)  # also its signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Copied:
        known = self.function
        cells = tuple(_copied(cell, memo) for cell in known.__closure__ or ())
        twin = FunctionType(known.__code__, known.__globals__, known.__name__, known.__defaults__, cells)
        twin.__kwdefaults__ = known.__kwdefaults__
        twin.__dict__.update(known.__dict__)
        return Copied(twin)


def _copied(cell: CellType, memo: dict[int, Any]) -> CellType:
    try:
        return CellType(copy.deepcopy(cell.cell_contents, memo))
    except Exception:  # it is empty, or holds a file, a lock or the like, which is no part of the network
        return cell


def copied_with_hooks(network: nn.Module) -> nn.Module:
    """Return a deep copy whose hooks know the copy where those of ``network`` know that."""
    memo: dict[int, Any] = {}
    twin = copy.deepcopy(network, memo)
    for kept, key, function in _inner_functions(twin):
        kept[key] = copy.deepcopy(Copied(function), memo)
    return twin


def let_hooks_be_copied(network: nn.Module) -> None:
    """Let every later deep copy of ``network`` have hooks of its own, in place."""
    for kept, key, function in _inner_functions(network):
        kept[key] = Copied(function)


def _inner_functions(network: nn.Module) -> Iterator[tuple[MutableMapping[Any, Any], Any, FunctionType]]:
    """Yield the hooks and attributes that know variables of an outer function: where each is kept, its key, itself."""
    for module in network.modules():
        for kept in (vars(module), *(vars(module)[name] for name in HOOKS)):
            for key, function in list(kept.items()):
                if isinstance(function, FunctionType) and function.__closure__:
                    yield kept, key, function
