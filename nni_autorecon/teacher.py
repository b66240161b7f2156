"""The frozen classifier: found by name, loaded, checked, and described."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import digits
from .checkpoint import load_checkpoint
from .config import Config
from .errors import InputError
from .networks import digits_resnet
from .statistics import record_bn_statistics
from .topology import ImageShape

SPECS = "digits, torchvision:NAME, or module:factory (path/to/file.py:factory) with --checkpoint"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_SIZE = 224


@dataclass(frozen=True)
class Teacher:
    """A pre-trained classifier M_p, frozen in eval mode, and what it expects: (images / 255 − mean) / std."""

    name: str
    network: nn.Module
    num_classes: int
    image: ImageShape
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device


def load_teacher(
    spec: str,
    *,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
    need_batchnorm: bool = True,
) -> Teacher:
    """The network that ``spec`` names: ``digits``, ``torchvision:NAME`` or ``module-or-file.py:factory``.

    ``checkpoint`` is a state_dict, possibly wrapped; a factory needs one, a torchvision network then leaves
    its ImageNet weights. The factory is called without arguments, or with ``num_classes`` if it takes it.

    Raises InputError if anything is missing, does not fit, or (unless ``need_batchnorm`` is False) if the
    network calls no BatchNorm2d with running statistics.
    """
    device = resolve_device(device) if isinstance(device, str) else device
    source = _find(spec, checkpoint, num_classes)
    network = source.network.requires_grad_(False).eval().to(device)
    channels = _input_channels(network, spec)
    height, width = (image_size, image_size) if image_size is not None else _image_size(source, spec)
    image = ImageShape(channels, height, width)
    with record_bn_statistics(network) as statistics:
        found_classes = _count_classes(network, image, device, spec)
    if need_batchnorm and not statistics:
        raise InputError(
            f"teacher {spec} has no BatchNorm2d with running statistics to match; "
            "set --bns-weight 0 or choose another teacher"
        )
    if num_classes not in (None, found_classes):
        raise InputError(f"teacher {spec} has {found_classes} classes, not {num_classes}; correct --num-classes")
    mean, std = source.normalization or _usual_normalization(channels)
    return Teacher(spec, network, found_classes, image, mean, std)


def configured_teacher(config: Config) -> Teacher:
    """The teacher that a configuration names, on its device; also sets torch's number of CPU threads."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return load_teacher(
        config.teacher,
        checkpoint=config.checkpoint,
        num_classes=config.num_classes,
        image_size=config.image_size,
        device=config.device,
        need_batchnorm=config.bns_weight > 0,
    )


def resolve_device(name: str) -> torch.device:
    """The device for ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``. Raises InputError for any other."""
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device {name!r} is unknown; choose auto, cpu or cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("device cuda: PyTorch sees no GPU here; choose --device cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def architecture(spec: str, num_classes: int) -> nn.Module:
    """The network that ``spec`` names, with initial weights: nothing is downloaded or trained.

    Raises InputError if ``spec`` is not understood or its factory fails.
    """
    place, colon, name = spec.rpartition(":")
    if spec == "digits":
        return digits_resnet()
    if place == "torchvision":
        from torchvision import models

        if name not in models.list_models(module=models):
            raise InputError(f"torchvision has no classifier {name!r}; check the spelling")
        return models.get_model(name, weights=None, num_classes=num_classes)
    if not colon:
        raise InputError(f"teacher {spec!r} is not understood; give {SPECS}")
    return _build(_factory(place, name, spec), num_classes, spec)


class _Source(NamedTuple):
    """A network with its weights, and what came with it."""

    network: nn.Module
    image_size: tuple[int, int] | None = None
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def _find(spec: str, checkpoint: str | Path | None, num_classes: int | None) -> _Source:
    place, colon, name = spec.rpartition(":")
    if spec == "digits":
        if checkpoint is not None:
            raise InputError("the digits teacher has its own weights; leave out --checkpoint or name another teacher")
        return _Source(digits.load_digits_teacher(), digits.IMAGE[1:], (digits.MEAN, digits.STD))
    if place == "torchvision":
        return _from_torchvision(name, checkpoint, num_classes)
    if not (colon and name.isidentifier() and (place.endswith(".py") or re.fullmatch(r"\w+(\.\w+)*", place))):
        raise InputError(f"teacher {spec!r} is not understood; give {SPECS}")
    if checkpoint is None:
        raise InputError(f"teacher {spec} has no weights of its own; give its state_dict with --checkpoint")
    network = _build(_factory(place, name, spec), num_classes, spec)
    load_checkpoint(network, Path(checkpoint), spec)
    return _Source(network)


def _from_torchvision(name: str, checkpoint: str | Path | None, num_classes: int | None) -> _Source:
    from torchvision import models  # slow to import, and most runs do without

    names = models.list_models(module=models)  # the classifiers: detection and the like are in submodules
    if name not in names:
        raise InputError(f"torchvision has no classifier {name!r}; {_hint(name.lower(), names)}")
    if checkpoint is not None:
        network = models.get_model(name, weights=None, **({} if num_classes is None else {"num_classes": num_classes}))
        load_checkpoint(network, Path(checkpoint), f"torchvision:{name}")
        return _Source(network, (IMAGENET_SIZE, IMAGENET_SIZE))
    weights = models.get_model_weights(name).DEFAULT
    try:
        network = models.get_model(name, weights=weights)
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: a download with a wrong hash
        raise InputError(
            f"cannot download the weights of torchvision:{name}: {_one_line(error)}; give a file with --checkpoint"
        ) from error
    expects = weights.transforms()
    (size,) = expects.crop_size
    return _Source(network, (size, size), (tuple(expects.mean), tuple(expects.std)))


def _factory(place: str, name: str, spec: str) -> Callable[..., object]:
    module = _import_file(Path(place), spec) if place.endswith(".py") else _import_module(place, spec)
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise InputError(f"teacher {place} has no function or class {name!r}; {_hint(name, known)}")
    return factory


def _import_file(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise InputError(f"teacher {spec}: file {path} does not exist; check the path")
    name = f"_nni_autorecon_teacher_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None  # the path ends in .py
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses in the file look their module up
    try:
        found.loader.exec_module(module)
    except Exception as error:  # the person's code may raise anything
        del sys.modules[name]
        raise InputError(f"teacher {spec}: importing {path} raised {_named(error)}; repair the file") from error
    return module


def _import_module(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # the person's code may raise anything
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise InputError(
                f"teacher {spec}: there is no module {error.name}; install it, or give path/to/file.py:factory"
            ) from error
        raise InputError(f"teacher {spec}: importing {name} raised {_named(error)}; repair the module") from error


def _build(factory: Callable[..., object], num_classes: int | None, spec: str) -> nn.Module:
    arguments = {} if num_classes is None or not _takes_num_classes(factory) else {"num_classes": num_classes}
    try:
        network = factory(**arguments)
    except Exception as error:  # the person's code may raise anything
        raise InputError(
            f"teacher {spec}: the factory raised {_named(error)}; it must work without arguments"
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(f"teacher {spec}: the factory returned {type(network).__name__}; it must return an nn.Module")
    return network


def _takes_num_classes(factory: Callable[..., object]) -> bool:
    try:
        inspect.signature(factory).bind(num_classes=0)
    except (TypeError, ValueError):  # it does not take it, or is a builtin without a signature
        return False
    return True


def _input_channels(network: nn.Module, spec: str) -> int:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    raise InputError(f"teacher {spec} has no Conv2d, so it takes no images; choose an image classifier")


def _image_size(source: _Source, spec: str) -> tuple[int, int]:
    """Height and width: what the weights came with, else what the network says of itself."""
    if source.image_size is not None:
        return source.image_size
    for attribute in ("image_size", "input_size"):
        match getattr(source.network, attribute, None):
            case int(size):
                return size, size
            case (int(height), int(width)):
                return height, width
    raise InputError(f"teacher {spec} does not tell the size of its images; give --image-size")


def _count_classes(network: nn.Module, image: ImageShape, device: torch.device, spec: str) -> int:
    """K, from the logits [1, K] of one blank image."""
    size = "×".join(map(str, image))
    try:
        with torch.no_grad():
            logits = network(torch.zeros(1, *image, device=device))
    except Exception as error:  # the person's code may raise anything
        raise InputError(
            f"teacher {spec} fails on a {size} image: {_named(error)}; give the size it needs with --image-size"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != 1 or logits.shape[1] < 2:
        got = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise InputError(f"teacher {spec} returns {got} for one image; it must return logits [1, classes]")
    if not logits.isfinite().all():
        raise InputError(f"teacher {spec} returns NaN or infinity for a blank image; its weights are damaged")
    return logits.shape[1]


def _usual_normalization(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.0,) * channels, (1.0,) * channels)


def _hint(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known)
    return f"did you mean {' or '.join(close)}?" if close else "check the spelling"


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
