"""Networks are built by functions in the person's own files, which may import what lies beside them."""

from __future__ import annotations

import builtins
import copy
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ..errors import InputError, named
from ..files import digest, is_there

_folders: list[Path] = []
"""The folders whose files were imported, the last one first."""
_appended: list[str] = []
"""Some of these folders stand at the end of ``sys.path``, in this order."""
_aside: dict[Path, dict[str, ModuleType]] = {}
"""Modules of each folder that made room for those of the same name in another folder."""


def network_of_factory(place: str, name: str, num_classes: int | None, spec: str) -> nn.Module:
    """Return what the function or class ``name`` of a module or file ``place`` returns, without wrappers.

    It is called with ``num_classes`` if that is given and it takes it. Errors call the network ``spec``.
    Raises InputError if there is no such function, if it raises an error, or if it returns no module.
    """
    is_file = place.endswith(".py")
    path = Path(place).resolve() if is_file else None
    with _on_path(_folders_of(path) if path else [Path.cwd()]):
        module = _import_file(Path(place), spec) if is_file else _import_module(place, spec)
        factory = getattr(module, name, None)
        if not callable(factory):
            known = [key for key, value in vars(module).items() if callable(value)]
            raise InputError(f"network {place} has no function or class {name!r}; {hint(name, known)}")
        return _build(factory, num_classes, spec, path)


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network within DataParallel, DistributedDataParallel or ``torch.compile``."""
    while True:
        if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            network = network.module
        elif type(network).__name__ == "OptimizedModule" and isinstance(inner := network._orig_mod, nn.Module):
            network = inner
        else:
            return network


def unwrap_parts(network: nn.Module) -> nn.Module:
    """Put what :func:`unwrapped` returns in the place of each part of a network, in place, and return the network.

    Norms are no longer synchronized.
    """
    for path, module in list(network.named_modules(remove_duplicate=False)):
        if path and (inner := unwrapped(module)) is not module:
            network.set_submodule(path, inner)
    return without_synchronization(network)


def without_synchronization(network: nn.Module) -> nn.Module:
    """Make every SyncBatchNorm a BatchNorm2d, in place: they differ in distributed training only."""
    for layer in network.modules():
        if type(layer) is nn.SyncBatchNorm:
            layer.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
    return network


def hint(name: str, known: Sequence[str]) -> str:
    """Return the end of an error for a ``name`` that is not among the ``known`` ones: those that are like it."""
    close = difflib.get_close_matches(name, known)
    return f"did you mean {' or '.join(close)}?" if close else "check the spelling"


def _folders_of(path: Path) -> list[Path]:
    """Return the folders from which a file imports: its own, and the one of the outermost package that it is in."""
    outer = path.parent
    while (outer / "__init__.py").is_file():
        outer = outer.parent
    return list(dict.fromkeys([path.parent, outer]))


@contextmanager
def _on_path(folders: Sequence[Path]) -> Iterator[None]:
    """Let modules be found in ``folders`` first within the block, as a script does, and last afterwards.

    Modules of the same name that lie in the folder of another file make room, and come back when it imports again.
    """
    others = [folder for folder in _folders if folder not in folders]
    places = {name: folder for folder in reversed(folders) for name in _modules_in([folder])}
    for name, module in list(sys.modules.items()):
        own = places.get(_top(name))
        if own and (folder := _folder_of(name, module)) != own and folder in [*folders, *others]:
            _aside.setdefault(folder, {})[name] = sys.modules.pop(name)
    for folder in folders:
        found = _aside.get(folder, {})
        sys.modules.update({name: found.pop(name) for name in list(found) if places.get(_top(name)) == folder})
    _folders[:] = [*folders, *others]
    importlib.invalidate_caches()
    ours = {str(folder) for folder in _folders}
    before = [entry for entry in sys.path if entry not in _appended]
    _appended.clear()
    sys.path[:] = [*map(str, folders), *before]
    try:
        yield
    finally:
        new = [entry for entry in sys.path if entry not in ours and entry not in before]  # the person's code added it
        _appended[:] = [str(folder) for folder in _folders if str(folder) not in before]
        sys.path[:] = [*new, *before, *_appended]


def _top(name: str) -> str:
    return name.partition(".")[0]


def _folder_of(name: str, module: ModuleType) -> Path | None:
    """Return the folder from which a module, or the package that it is in, is imported."""
    file = getattr(module, "__file__", None)
    if not file:
        return None
    path = Path(file)
    above = (path.parent if path.stem == "__init__" else path).parents
    return above[name.count(".")] if name.count(".") < len(above) else None


def _modules_in(folders: Sequence[Path]) -> set[str]:
    """Return the names of the modules and packages that lie in ``folders``."""
    entries = [entry for folder in folders if folder.is_dir() for entry in folder.iterdir()]
    return {entry.stem for entry in entries if entry.suffix == ".py" or (entry.is_dir() and entry.name.isidentifier())}


def _builtins_beside(folders: Sequence[Path]) -> dict[str, Any]:
    """Return builtins for a file whose functions, such as ``forward``, may import from ``folders`` at any time."""
    entries = [str(folder) for folder in folders]

    def import_beside(name: str, *context: Any, **more: Any) -> ModuleType:
        is_ready = sys.path[: len(entries)] == entries or _top(name) not in _modules_in(folders)
        with nullcontext() if is_ready else _on_path(folders):
            return builtins.__import__(name, *context, **more)

    return {**vars(builtins), "__import__": import_beside}


def _import_file(path: Path, spec: str) -> ModuleType:
    """Import a Python file, once for the same contents. Raises InputError if it is missing or raises an error.

    Its module lies in a package of its own, so that files of one name do not collide and may import relatively.
    """
    if not is_there(path, Path.is_file):
        raise InputError(f"network {spec}: file {path} does not exist; check the path")
    given, path = path, path.resolve()
    code = hashlib.sha256(os.fsencode(path) + str(digest(path)).encode()).hexdigest()[:16]
    folders = _folders_of(path)
    outer = folders[-1]
    # Each folder above is a package, too, for ``from ..parts``.
    above = [f"_nni_autorecon_network_{code}", *["above"] * (len(outer.parts) - 1)]
    package = ".".join([*above, *path.parent.relative_to(outer).parts])
    name = f"{package}.{path.stem.replace('.', '_')}"
    if name in sys.modules:  # a second copy would take it away from networks that exist, which pickle needs
        return sys.modules[name]
    try:
        for depth, folder in enumerate([*reversed(outer.parents), outer], start=1):
            _make_package(".".join(above[:depth]), folder)
        importlib.import_module(package)
        found = importlib.util.spec_from_file_location(name, path)
        if found is None or found.loader is None:
            raise InputError(f"network {spec}: Python cannot import {path}; give a file whose name ends in .py")
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module  # dataclasses in the file look up their module here
        vars(module)["__builtins__"] = _builtins_beside(folders)
        found.loader.exec_module(module)
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # the person's code may raise anything, and a script may call sys.exit
        sys.modules.pop(name, None)
        raise InputError(
            f"network {spec}: importing {given} raised {named(error)}{_elsewhere(error, path)}; repair the file"
        ) from error
    return module


def _make_package(name: str, folder: Path) -> None:
    """Make an empty package of this name whose modules lie in ``folder``."""
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules.setdefault(name, package)


def _elsewhere(error: BaseException, path: Path) -> str:
    """Return where an error was raised, if that is another file of the person's than ``path``."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_own(Path(frame.filename))]
    return f" in {own[-1].filename}, line {own[-1].lineno}" if own and Path(own[-1].filename) != path else ""


def _is_own(file: Path) -> bool:
    """Return True for a file in a folder of the person's that is no library's, as in an environment that lies there."""
    installed = [Path(__file__).parents[1], *(Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib"))]
    beside = any(file.is_relative_to(folder) for folder in _folders)
    return beside and not any(file.is_relative_to(folder) for folder in installed)


def _import_module(name: str, spec: str) -> ModuleType:
    """Import a module that is installed or lies here. Raises InputError if it is missing or raises an error."""
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the person's code may raise anything, and a script may call sys.exit
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise InputError(
                f"network {spec}: there is no module {error.name}; install it, or give path/to/file.py:factory"
            ) from error
        raise InputError(f"network {spec}: importing {name} raised {named(error)}; repair the module") from error


def _build(factory: Callable[..., object], num_classes: int | None, spec: str, path: Path | None) -> nn.Module:
    """Call the factory of the file ``path``; a network in its place is copied.

    Raises InputError if the factory raises an error, or does not return a module.
    """
    arguments = {} if num_classes is None or not _takes_num_classes(factory) else {"num_classes": num_classes}
    try:
        network = copy.deepcopy(factory) if isinstance(factory, nn.Module) else factory(**arguments)
    except (Exception, SystemExit) as error:  # the person's code may raise anything
        raise InputError(
            f"network {spec}: the factory raised {named(error)}{_elsewhere(error, path) if path else ''}; "
            "it must work without arguments, or with num_classes if --num-classes is given"
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(f"network {spec}: the factory returned {type(network).__name__}; it must return an nn.Module")
    return without_synchronization(unwrapped(network))


def _takes_num_classes(factory: Callable[..., object]) -> bool:
    try:
        inspect.signature(factory).bind(num_classes=0)
    except (TypeError, ValueError):  # the factory does not take the argument, or is a builtin without a signature
        return False
    return True
