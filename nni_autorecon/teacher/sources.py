"""Networks come by name from this package or a model library, or from a factory that the person wrote."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from ..data import digits
from ..errors import InputError, MachineError, named, one_line
from ..files import digest, is_there
from ..networks import digits_resnet
from .checkpoint import load_checkpoint
from .digits import load_digits_teacher

SPECS = (
    "digits, torchvision:NAME, timm:NAME, pytorchcv:NAME, or module:factory (path/to/file.py:factory) with --checkpoint"
)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_SIZE = 224
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)


class Expected(NamedTuple):
    """The images that a network expects, as far as its source tells; None means unknown."""

    image_size: tuple[int, int] | None = None
    """Height and width in pixels."""
    resize: int | None = None
    """Short side of an image, in pixels, before the centre crop to ``image_size``."""
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and standard deviation of each channel, of pixels from 0 to 1."""
    channels: int | None = None
    """Channels of an image."""


def find_network(
    spec: str, *, checkpoint: str | Path | None = None, num_classes: int | None = None
) -> tuple[nn.Module, Expected]:
    """Return the network that ``spec`` names, and the images that it expects.

    It has the weights of the file ``checkpoint``, or its own if that is None. Only libraries and ``digits`` have
    weights of their own. num_classes: the number of classes, for :func:`architecture`.
    Raises InputError if there is no such network, file or library, or if the checkpoint does not fit.
    """
    library, name = _parse(spec)
    if spec == "digits":
        if checkpoint is not None:
            raise InputError("the digits teacher has its own weights; leave out --checkpoint or name another teacher")
        return load_digits_teacher(), Expected(digits.IMAGE[1:], None, (digits.MEAN, digits.STD), digits.IMAGE.channels)
    if checkpoint is not None:
        network = architecture(spec, num_classes)
        load_checkpoint(network, Path(checkpoint), spec)
    elif library in LIBRARIES:
        network = _create(spec, pretrained=True)
    else:
        raise InputError(f"teacher {spec} has no weights of its own; give its state_dict with --checkpoint")
    if library not in LIBRARIES:
        return network, Expected()
    return network, LIBRARIES[library]().expected(network, name, checkpoint is None)


def architecture(spec: str, num_classes: int | None = None) -> nn.Module:
    """Return the network that ``spec`` names, freshly initialized; nothing is downloaded or trained.

    ``num_classes`` is passed to library networks, and to factories that take it; None means their own default.
    Raises InputError if there is no such network, or if it cannot be built.
    """
    place, name = _parse(spec)
    if spec == "digits":
        return digits_resnet()
    if place in LIBRARIES:
        return _create(spec, num_classes)
    return _build(_factory(place, name, spec), num_classes, spec)


def names_code(spec: str) -> bool:
    """Return True if building the network runs a module or file that is neither a library nor part of this package."""
    place = spec.rpartition(":")[0]
    return spec != "digits" and place not in LIBRARIES and place != "nni_autorecon.networks"


def _parse(spec: str) -> tuple[str, str]:
    """Split a specification into (library, module or file) and name. Raises InputError if it has another form."""
    place, colon, name = spec.rpartition(":")
    is_factory = name.isidentifier() and (place.endswith(".py") or re.fullmatch(r"\w+(\.\w+)*", place))
    if spec != "digits" and place not in LIBRARIES and not (colon and is_factory):
        raise InputError(f"network {spec!r} is not understood; give {SPECS}")
    return place, name


@dataclass(frozen=True)
class Library:
    """A package of networks."""

    names: Sequence[str]
    """The names of its classifiers."""
    create: Callable[..., nn.Module]
    """The function ``create(name, pretrained=…)`` builds a network."""
    expected: Callable[[Any, str, bool], Expected]
    """The function ``expected(network, name, pretrained)`` returns the images that the network expects."""


def _torchvision() -> Library:
    from torchvision import models  # slow to import, and most runs do not need it

    def create(name: str, *, pretrained: bool, **arguments: int) -> nn.Module:
        weights = models.get_model_weights(name).DEFAULT if pretrained else None
        network = models.get_model(name, weights=weights, **arguments)
        if getattr(network, "transform_input", False):  # it would turn ImageNet's normalization into the weights' own
            network.transform_input = False
        return network

    def expected(network: nn.Module, name: str, pretrained: bool) -> Expected:
        if not pretrained:
            return Expected((IMAGENET_SIZE, IMAGENET_SIZE), channels=3)
        of_weights = models.get_model_weights(name).DEFAULT.transforms()
        (size,), (resize,) = of_weights.crop_size, of_weights.resize_size
        if hasattr(network, "transform_input"):
            return Expected((size, size), resize, ((0.5,) * 3, (0.5,) * 3), 3)
        return Expected((size, size), resize, (tuple(of_weights.mean), tuple(of_weights.std)), 3)

    # ``models`` itself has the classifiers; other networks, such as detectors, are in its submodules.
    return Library(models.list_models(module=models), create, expected)


def _timm() -> Library:
    import timm

    def create(name: str, *, pretrained: bool, **arguments: int) -> nn.Module:
        return timm.create_model(name, pretrained=pretrained, **arguments)

    def expected(network: Any, name: str, pretrained: bool) -> Expected:
        known = network.pretrained_cfg
        channels, height, width = known["input_size"]
        resize = math.floor(min(height, width) / known["crop_pct"])
        return Expected((height, width), resize, (tuple(known["mean"]), tuple(known["std"])), channels)

    names = [*timm.list_models(), *timm.list_models(pretrained=True)]  # such as resnet18, and resnet18.TAG
    return Library(names, create, expected)


def _pytorchcv() -> Library:
    from pytorchcv import model_provider

    def create(name: str, *, pretrained: bool, **arguments: int) -> nn.Module:
        with redirect_stdout(sys.stderr):  # pytorchcv prints that it downloads
            return model_provider.get_model(name, pretrained=pretrained, **arguments)

    def expected(network: Any, name: str, pretrained: bool) -> Expected:
        channels = getattr(network, "in_channels", None)
        if name.endswith(("_cifar10", "_cifar100", "_svhn")):  # all of them were trained with CIFAR's normalization
            return Expected(tuple(network.in_size), None, (CIFAR_MEAN, CIFAR_STD), channels)
        return Expected(tuple(network.in_size), None, (IMAGENET_MEAN, IMAGENET_STD), channels)

    return Library(list(model_provider._models), create, expected)  # pytorchcv has no public list


LIBRARIES: dict[str, Callable[[], Library]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "pytorchcv": _pytorchcv,
}


def _create(spec: str, num_classes: int | None = None, *, pretrained: bool = False) -> nn.Module:
    """Build a library's network. Raises InputError if the library, the name or the weights are not available."""
    library, name = _parse(spec)
    try:
        source = LIBRARIES[library]()
    except ModuleNotFoundError as error:
        raise InputError(
            f"network {spec} needs {error.name}, which is not installed; pip install -e '.[teachers]'"
        ) from error
    if name not in source.names:
        raise InputError(f"{library} has no classifier {name!r}; {_hint(name.lower(), source.names)}")
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    try:
        return source.create(name, pretrained=pretrained, **arguments)
    except Exception as error:  # a library may raise anything
        if pretrained:
            raise MachineError(
                f"cannot download the weights of {spec}: {one_line(error).rstrip('.')}; give a file with --checkpoint"
            ) from error
        raise InputError(f"{library} cannot build {name}: {named(error)}; correct --num-classes") from error


def _factory(place: str, name: str, spec: str) -> Callable[..., object]:
    """Return the function or class ``name`` of a module or file. Raises InputError if there is none."""
    module = _import_file(Path(place), spec) if place.endswith(".py") else _import_module(place, spec)
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise InputError(f"network {place} has no function or class {name!r}; {_hint(name, known)}")
    return factory


def _import_file(path: Path, spec: str) -> ModuleType:
    """Import a Python file, once for the same contents. Raises InputError if it is missing or raises an error."""
    if not is_there(path, Path.is_file):
        raise InputError(f"network {spec}: file {path} does not exist; check the path")
    code = hashlib.sha256(os.fsencode(path.resolve()) + str(digest(path)).encode()).hexdigest()[:16]
    name = f"_nni_autorecon_network_{code}"
    if name in sys.modules:  # a second copy would take it away from networks that exist, which pickle needs
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise InputError(f"network {spec}: Python cannot import {path}; give a file whose name ends in .py")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses in the file look up their module here
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the person's code may raise anything, and a script may call sys.exit
        del sys.modules[name]
        raise InputError(f"network {spec}: importing {path} raised {named(error)}; repair the file") from error
    return module


def _import_module(name: str, spec: str) -> ModuleType:
    """Import an installed module. Raises InputError if it is missing or raises an error."""
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the person's code may raise anything, and a script may call sys.exit
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise InputError(
                f"network {spec}: there is no module {error.name}; install it, or give path/to/file.py:factory"
            ) from error
        raise InputError(f"network {spec}: importing {name} raised {named(error)}; repair the module") from error


def _build(factory: Callable[..., object], num_classes: int | None, spec: str) -> nn.Module:
    """Call the factory. Raises InputError if it raises an error, or does not return a module."""
    arguments = {} if num_classes is None or not _takes_num_classes(factory) else {"num_classes": num_classes}
    try:
        network = factory(**arguments)
    except (Exception, SystemExit) as error:  # the person's code may raise anything
        raise InputError(
            f"network {spec}: the factory raised {named(error)}; it must work without arguments, or with num_classes "
            "if --num-classes is given"
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(f"network {spec}: the factory returned {type(network).__name__}; it must return an nn.Module")
    for layer in network.modules():
        if type(layer) is nn.SyncBatchNorm:  # it differs from BatchNorm2d in distributed training only
            layer.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
    return network


def _takes_num_classes(factory: Callable[..., object]) -> bool:
    try:
        inspect.signature(factory).bind(num_classes=0)
    except (TypeError, ValueError):  # the factory does not take the argument, or is a builtin without a signature
        return False
    return True


def _hint(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known)
    return f"did you mean {' or '.join(close)}?" if close else "check the spelling"
