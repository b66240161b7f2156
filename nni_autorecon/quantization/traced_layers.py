"""The layers of a graph: those of the network that is traced, and those that stand for its calls."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from torch import nn

from .functional_layers import LAYERS, are_equal, takes_place


class TracedLayers:
    """All modules that a graph may call, by their paths.

    The network gets ``new`` ones and ``replacements`` only after it was traced, for meanwhile it may go through its
    modules. None of the layers works in place; ``in_place`` are those that did.
    """

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._own = dict(root.named_modules(remove_duplicate=False))
        self._paths = {module: path for path, module in root.named_modules()}
        self.new: dict[str, nn.Module] = {}
        self.replacements: dict[str, nn.Module] = {}
        self.in_place: set[nn.Module] = set()
        for module in root.modules():
            self._take_out_of_place(module)

    def get(self, path: str) -> nn.Module | None:
        """Return the module that the graph will have at a path, if there is one."""
        return self.replacements.get(path) or self.new.get(path) or self._own.get(path)

    def path_of(self, module: nn.Module) -> str | None:
        """Return the path of a module; a layer without tensors, as ``nn.ReLU()(x)`` makes it, becomes a new one.

        None is returned for others of which the network does not know.
        """
        if module not in self._paths and self.is_layer(module) and not _has_tensors(module):
            self._paths[module] = self.add(module, type(module).__name__.lower())
        return self._paths.get(module)

    def is_transparent(self, module: nn.Module) -> bool:
        """Return True for what only calls others and is no part of the network, as a slice of a Sequential."""
        return not (module in self._paths or self.is_layer(module) or _has_tensors(module))

    def is_layer(self, module: nn.Module) -> bool:
        """Return True for a layer, which is one call: a module whose forward is that of a class of ``torch.nn``."""
        if "forward" in vars(module) or module is self._root or isinstance(module, (nn.Sequential, nn.Conv1d)):
            return False  # a Conv1d's call of conv1d becomes one of Conv2d
        forward_class = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
        return forward_class.__module__.startswith(("torch.nn.", "torch.ao.nn."))

    def add(self, layer: nn.Module, name: str) -> str:
        """Let a layer be a new one, and return its path, which begins with ``name``."""
        path = next(path for k in itertools.count() if self.get(path := f"{name}_{k}") is None)
        self.new[path] = layer
        self._take_out_of_place(layer)
        return path

    def of_call(self, target: Any, arguments: Mapping[str, Any], within: str) -> str | None:
        """Return the path of a layer that does the same as a function with weights; None if there is none.

        ``within`` is the path of the module whose code calls it; arguments are those that its key in ``LAYERS`` takes.
        """
        if (layer := LAYERS[target](**arguments)) is None:
            return None
        replaces = within in self._own and takes_place(layer, self._own[within])
        if replaces and are_equal(layer, self.replacements.setdefault(within, layer)):
            return within
        return self.add(layer, f"functional_{getattr(target, '__name__', target)}")

    def _take_out_of_place(self, module: nn.Module) -> None:
        if getattr(module, "inplace", False) is True and self.is_layer(module):
            self.in_place.add(module)
            module.inplace = False  # type: ignore[assignment]


def _has_tensors(module: nn.Module) -> bool:
    """Return True if a module has parameters or buffers of its own."""
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return bool(tensors)
