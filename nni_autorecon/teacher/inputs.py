"""The images that a network takes: channels, size and normalization, as given, as its source says, or by trying."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError, shown
from ..shapes import ImageShape
from .answers import take_logits
from .examination import failure, images_to_try, require_logits
from .locating import equal_within
from .norms import with_batchnorms
from .sources import IMAGENET_MEAN, IMAGENET_STD, Expected

LIKELY_CHANNELS = 64
"""Larger numbers of channels are tried last, for they are more often those of an inner layer, and cost memory."""
LARGEST_MEAN, LARGEST_STD = 1.5, 5.0
"""Pixels are from 0 to 1, so that their mean is, too, and their standard deviation is at most 0.5. Some networks scale
by other numbers, such as std 2; numbers for pixels to 255 are 10 and more."""

_log = logging.getLogger(__name__)

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation, a number for each channel."""


class Given(NamedTuple):
    """The person's word on the images; None stands for what is to be found out."""

    image: tuple[int, ...] | None
    """Channels, height and width, or height and width alone, in pixels."""
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    @classmethod
    def of(cls, image: tuple[int, ...] | None, mean: object, std: object) -> Given:
        """Return these, mean and std as tuples. Raises InputError, naming the one that is not a list of numbers."""
        return cls(image, _given_numbers("mean", mean), _given_numbers("std", std))


def channels_height_width(image: Sequence[int], name: str) -> tuple[int, ...]:
    """Return a shape as a tuple. Raises InputError unless it has three numbers."""
    if len(image) != 3:
        raise InputError(
            f"teacher {name}: image {shown(tuple(image))} is not (channels, height, width); give all three"
        )
    return tuple(image)


def image_size(network: nn.Module, expected: Expected, name: str) -> tuple[int, int]:
    """Return height and width: those of the weights, else the network's own. Raises InputError if neither is known."""
    if expected.image_size is not None:
        return expected.image_size
    for attribute in ("image_size", "input_size"):
        match getattr(network, attribute, None):
            case int(size):
                return size, size
            case (int(height), int(width)) | (int(), int(height), int(width)):
                return height, width
    raise InputError(f"teacher {name} does not tell the size of its images; give --image-size")


def usual_resize(size: int) -> int:
    """Return the usual short side before a crop: 256 for 224; small images keep their size."""
    return size if size < 64 else math.ceil(size * 8 / 7)


def channels_to_try(network: nn.Module, expected: Expected, mean: Sequence[float] | None, name: str) -> tuple[int, ...]:
    """Return the numbers of channels that the network may take, the likeliest first.

    The library knows best, then the person, who gives ``mean``, then the network's attributes. Its first convolution
    comes next: another layer may come before it, or it may not be the first that is called.
    Raises InputError if nothing is known and there is no Conv2d.
    """
    known = [expected.channels, None if mean is None else len(mean), *_channels_of_attributes(network)]
    likely = [count for count in known if count is not None]
    # A lazy layer has in_channels 0, whatever its weight.
    convolutions = [
        layer.in_channels or layer.weight.shape[1] * layer.groups
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    if not likely and not convolutions:
        raise InputError(f"teacher {name} has no Conv2d, so it takes no images; choose an image classifier")
    guesses = [*likely, *convolutions[:1], 3, 1, 4, 2, *convolutions[1:]]
    return tuple(sorted(dict.fromkeys(guesses), key=lambda count: count > LIKELY_CHANNELS))


def _channels_of_attributes(network: nn.Module) -> Iterator[int]:
    """Yield the numbers of channels that attributes of the network seem to tell."""
    if (mean := numbers(getattr(network, "mean", None))) is not None:
        yield len(mean)
    for attribute in ("input_size", "image_size", "in_channels", "in_chans", "num_channels"):
        match getattr(network, attribute, None):
            case (int(channels), int(), int()):
                yield channels
            case int(channels) if "size" not in attribute and channels > 0:
                yield channels


def find_image(
    network: nn.Module, channels: Sequence[int], size: Sequence[int], device: torch.device, name: str, remedy: str
) -> tuple[ImageShape, Tensor]:
    """Return the shape of the images that the network takes, and its logits [1, K] for the first of them.

    Shapes are tried in the order of ``channels``. Raises InputError if it fails on all, with the error of the shape on
    which the network got furthest, and with ``remedy``. Raises InputError if its answer is anything but finite logits.
    From a structure with a field ``logits``, as Hugging Face's transformers have it, a hook takes that field, in place.
    """
    failures = []
    for count in channels:
        shape = ImageShape(count, *size)
        with (
            images_to_try(1, shape, device, f"teacher {name}") as images,
            torch.no_grad(),
            _ended_calls(network) as ended,
        ):
            try:
                answer = network(images)
            except Exception as error:  # the person's code may raise anything
                failures.append((len(ended), shape, error))
            else:
                return shape, require_logits(network, images, take_logits(network, answer, name), name, count=1)
    _, shape, cause = max(failures, key=lambda tried: tried[0])  # the first of the furthest
    raise failure(network, name, f"on a {'×'.join(map(str, shape))} image", cause, remedy) from cause


def as_teacher(network: nn.Module, image: ImageShape) -> nn.Module:
    """Return a network, in eval mode, in the form in which a teacher has it: with plain logits and BatchNorms.

    Images have the shape ``image``. What fails for them is returned as it is. The network may be changed in place.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, *image, generator=generator).to(next(network.parameters()).device)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = take_logits(network.eval(), network(images.clone()), None)
            return with_batchnorms(network, images, logits, quiet=True) if isinstance(logits, Tensor) else network
    except Exception:  # the person's code may raise anything
        return network


@contextmanager
def _ended_calls(network: nn.Module) -> Iterator[list[nn.Module]]:
    """Yield a list to which every layer is added whose call inside the block has ended."""
    ended: list[nn.Module] = []
    handles = [
        module.register_forward_hook(lambda module, inputs, outputs: ended.append(module))
        for module in network.modules()
    ]
    try:
        yield ended
    finally:
        for handle in handles:
            handle.remove()


def numbers(values: object) -> tuple[float, ...] | None:
    """Return the numbers of a tuple, list, array or tensor as a flat tuple; None for anything else, as one number."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    if not isinstance(values, (tuple, list, np.ndarray)):
        return None
    try:
        found = np.asarray(values, dtype=float)
    except (TypeError, ValueError):  # it holds something else
        return None
    return tuple(found.ravel().tolist()) if found.ndim and found.size else None


def _given_numbers(name: str, values: object) -> tuple[float, ...] | None:
    """Return :func:`numbers`; None stays None. Raises InputError, naming the argument, for anything else."""
    found = numbers(values)
    if values is not None and found is None:
        raise InputError(f"{name} = {shown(values)} is not a list of numbers; give one number for each channel")
    return found


def normalization(
    network: nn.Module,
    images_and_logits: tuple[Tensor, Tensor],
    expected: Expected,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    name: str,
) -> Normalization:
    """Return mean and std as given, else the network's attributes, else those of its weights, else the usual ones.

    images_and_logits: images [N, C, H, W] and the network's logits [N, K] for them. If its answer depends on its
    attributes ``mean`` and ``std``, it normalizes by itself, and gets pixels from 0 to 1.
    Raises InputError if only one is given, if they are not one number per channel, or if they are out of range.
    """
    channels = images_and_logits[0].shape[1]
    plain = (0.0,) * channels, (1.0,) * channels
    if (mean is None) != (std is None):
        raise InputError(f"teacher {name}: mean and std belong together; give both --mean and --std")
    if mean is None or std is None:
        own = (numbers(getattr(network, "mean", None)), numbers(getattr(network, "std", None)))
        if None in own:
            mean, std = expected.normalization or ((IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else plain)
        else:
            mean, std = plain if _depends_on(network, ("mean", "std"), *images_and_logits) else own
    return _checked(mean, std, channels, name)


def _checked(mean: Any, std: Any, channels: int, name: str) -> Normalization:
    """Return mean and std as tuples. Raises InputError unless they are one number per channel, and within range."""
    if not len(mean) == len(std) == channels:
        raise InputError(
            f"teacher {name} takes {channels} channel(s), but mean has {len(mean)} and std {len(std)}; "
            "give a number of each per channel with --mean and --std"
        )
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise InputError(f"teacher {name}: mean {mean} or std {std} is out of range; std must be above 0")
    if max(map(abs, mean)) > LARGEST_MEAN or max(std) > LARGEST_STD:
        raise InputError(
            f"teacher {name}: mean {mean} and std {std} are not of pixels from 0 to 1; divide --mean, --std by 255"
        )
    return tuple(mean), tuple(std)


def _depends_on(network: nn.Module, attributes: Sequence[str], images: Tensor, logits: Tensor) -> bool:
    """Return True if other values of the attributes give other ``logits`` [N, K] for ``images`` [N, C, H, W]."""
    before = {attribute: getattr(network, attribute) for attribute in attributes}
    try:
        for attribute, values in before.items():
            is_plain = isinstance(values, (tuple, list))
            setattr(network, attribute, type(values)(v + 0.5 for v in values) if is_plain else values + 0.5)
        with torch.no_grad():
            return not equal_within(logits, network(images.clone()), tolerance=1e-5)
    except Exception:  # it may be a parameter or read-only, which a mere description is not
        return True
    finally:
        for attribute, values in before.items():
            if getattr(network, attribute) is not values:
                setattr(network, attribute, values)
