"""The frozen classifier is loaded, checked and described."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..accel.memory import memory_format
from ..data.images import EvaluationData, accuracy
from ..errors import InputError
from ..losses.batchnorm import observed, record_bn_statistics
from ..quantization.tracing import WITHOUT_GRAPH, DifferentGraphError, trace
from ..shapes import ImageShape
from .costs import macs
from .device import resolve_device
from .examination import copied, examine, frozen, images_to_try
from .factories import unwrapped
from .inputs import (
    Given,
    channels_height_width,
    channels_to_try,
    find_image,
    image_size,
    normalization,
    usual_resize,
)
from .norms import calls_batchnorms, needs_graph, with_batchnorms
from .sources import Expected, find_network

log = logging.getLogger(__name__)

IN_MEMORY = "in memory: "
"""The name of a network that was handed over in Python begins so; nothing else says where it comes from."""


@dataclass(frozen=True)
class Teacher:
    """A pre-trained classifier M_p, frozen in eval mode, with the normalization that it expects.

    ``of`` and ``load_teacher`` make it. It takes (images / 255 - mean) / std, [N, C, H, W], and returns logits [N, K].

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        >>> teacher = Teacher.of(network, (1, 8, 8), mean=(0.5,), std=(0.25,))
        >>> teacher.num_classes, teacher.name
        (10, 'in memory: Sequential')
    """

    name: str
    """The name by which it can be loaded again, or ``in memory:`` and a name for people."""
    network: nn.Module
    """The frozen network itself."""
    num_classes: int
    """The number K of its logits."""
    image: ImageShape
    """Channels, height and width of its images, in pixels."""
    mean: tuple[float, ...]
    """The mean of each channel, of pixels from 0 to 1."""
    std: tuple[float, ...]
    """The standard deviation of each channel, likewise."""
    resize: int = 0
    """The short side of a picture before the centre crop to ``image``; 0 stands for the crop's own size."""
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """The settings by which it can be loaded again; a network in memory has none."""

    @classmethod
    def of(
        cls,
        network: nn.Module,
        image: Sequence[int] | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        name: str | None = None,
        resize: int | None = None,
        device: str | torch.device | None = None,
        need_batchnorm: bool = True,
    ) -> Teacher:
        """Copy a live network as the frozen teacher, after a check of its behaviour.

        Args:
            network: The classifier, which maps normalized images [N, C, H, W] to logits [N, K]. It stays as it is.
            image: Channels, height and width of its images. None takes the size from its attribute ``image_size`` or
                ``input_size``, and finds the channels by ``mean``, its attributes and by trying.
            mean: Mean of its pixels, which are from 0 to 1, a number for each channel. None takes its attribute of that
                name, unless it normalizes by it itself, else ImageNet's for three channels and 0 for others.
            std: Standard deviation of its pixels, likewise; None takes 1 for other than three channels.
            name: Its name in errors and results, after ``in memory:``. None takes its class.
            resize: Short side of a picture before the centre crop to ``image``, when test data are measured.
            device: The device: ``cpu``, ``cuda`` or ``auto``. None keeps the network's own.
            need_batchnorm: True if BatchNorm2d layers with running statistics are needed (eq. 1 compares with them).

        Returns:
            The teacher.

        Raises:
            InputError: If the network does not take such images, one or several, or changes them in place; if it
                returns anything but finite logits, answers differently each time or gives no gradient to its images;
                if it calls no BatchNorm2d although they are needed; if a weight, or mean or std, is out of range.
            MachineError: If ``device`` is cuda and PyTorch sees no GPU.
        """
        # The prefix keeps anything from taking the name for one that can be loaded.
        name = f"{IN_MEMORY}{name or type(unwrapped(network)).__name__}"
        where = resolve_device(device) if isinstance(device, str) else device
        own = frozen(copied(unwrapped(network), name), where, name)
        given = Given.of(None if image is None else channels_height_width(image, name), mean, std)
        return _examined(own, name, given, Expected(resize=resize), need_batchnorm)

    @property
    def device(self) -> torch.device:
        """Return the device of its parameters."""
        return next(self.network.parameters()).device

    @property
    def device_name(self) -> str:
        """Return ``cpu``, or the GPU's name, as in ``cuda:0 NVIDIA A100``."""
        return "cpu" if self.device.type == "cpu" else f"{self.device} {torch.cuda.get_device_name(self.device)}"

    @property
    def inputs(self) -> dict[str, str | None]:
        """Return a digest of the weights of a network in memory, by which a run recognizes it; others have none."""
        if self.settings:
            return {}
        digest = hashlib.sha256()
        for key, tensor in self.network.state_dict().items():
            digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return {"teacher": digest.hexdigest()}

    @property
    def pixel_range(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the least and the largest normalized value of each channel, which are those of black and of white."""
        low, high = (tuple((value - m) / s for m, s in zip(self.mean, self.std, strict=True)) for value in (0.0, 1.0))
        return low, high

    @cached_property
    def memory_format(self) -> torch.memory_format:
        """Return the fastest layout that the network, and whatever is made of it, can have."""
        return memory_format(self.network, self.image)

    @cached_property
    def macs(self) -> int:
        """Return the multiply-accumulates of one image."""
        return macs(self.network, self.image)

    @cached_property
    def graph(self) -> nn.Module:
        """Return the network as a graph of calls, of which students are made; the network itself if it has none.

        Raises DifferentGraphError if it computes something else than the network.
        """
        return self.network if isinstance(self._traced, InputError) else self._traced

    @property
    def untraceable(self) -> InputError | None:
        """Return why the network has no graph, and what compress needs then; None if it has one."""
        return self._traced if isinstance(self._traced, InputError) else None

    @cached_property
    def _traced(self) -> nn.Module | InputError:
        try:
            return trace(self.network, remedy=f"to compress it, {WITHOUT_GRAPH}", image=self.image)
        except DifferentGraphError:
            raise
        except InputError as error:
            return error

    @cached_property
    def observed(self) -> nn.Module:
        """Return the same network, faster and ready for the recording of its statistics; losses use it.

        Norms merged with activations, and calls of ``batch_norm``, are plain norms in the graph, and each runs once.
        """
        network = self.graph if needs_graph(self.network, self.graph, self.image) else self.network
        return observed(network).to(memory_format=self.memory_format)

    def accuracy(
        self, network: nn.Module, data: EvaluationData, *, on_images: Callable[[int], object] = lambda count: None
    ) -> float:
        """Return the fraction of ``data``, normalized as this teacher takes them, that ``network`` gets right.

        Args:
            network: The teacher's own network or a student's, in eval mode, on the teacher's device.
            data: A data set of images, uint8 [C, H, W], each with its label.
            on_images: A function called with the number of images of each batch.

        Raises:
            InputError: If the images or labels do not fit the network.
        """
        return accuracy(network, data, mean=self.mean, std=self.std, device=self.device, on_images=on_images)


def load_teacher(
    spec: str,
    *,
    checkpoint: str | Path | None = None,
    checkpoint_key: str | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device = "cpu",
    need_batchnorm: bool = True,
) -> Teacher:
    """Load the network that ``spec`` names as the frozen teacher.

    Args:
        spec: ``digits``, ``LIBRARY:NAME`` (torchvision, timm, pytorchcv or lite) or ``module-or-file.py:factory``. A
            factory is called without arguments, or with ``num_classes`` if it takes it.
        checkpoint: A state_dict, possibly wrapped. A factory needs one; for a library's network it replaces the
            pre-trained weights.
        checkpoint_key: Key of the state_dict in that file, such as ``state_dict_ema``, if there are several.
        num_classes: The number of classes, if the network cannot tell. The network may have one more, for a
            background.
        image_size: Height and width of its images, if it cannot tell.
        mean: Mean of its pixels, which are from 0 to 1, a number for each channel. None takes the network's attribute
            of that name, unless it normalizes by it itself, else the one of its weights, else ImageNet's for three
            channels and 0 for others.
        std: Standard deviation of its pixels, likewise; the last resort for other channels is 1.
        device: The device: ``cpu``, ``cuda`` or ``auto``.
        need_batchnorm: True if BatchNorm2d layers with running statistics are needed (eq. 1 compares with them).

    Returns:
        The teacher.

    Raises:
        InputError: If anything is missing or does not fit.
        MachineError: If weights cannot be downloaded, or ``device`` is cuda and PyTorch sees no GPU.

    Example:
        >>> load_teacher("digits").image
        ImageShape(channels=1, height=16, width=16)
    """
    where = resolve_device(device) if isinstance(device, str) else device
    network, expected = find_network(
        spec, checkpoint=checkpoint, checkpoint_key=checkpoint_key, num_classes=num_classes
    )
    size = None if image_size is None else (image_size, image_size)
    if size not in (None, expected.image_size):
        expected = expected._replace(resize=None)
    given = Given.of(size, mean, std)
    teacher = _examined(frozen(network, where, spec), spec, given, expected, need_batchnorm)
    if num_classes is not None and teacher.num_classes == num_classes + 1:
        log.info("teacher %s has a class beside the %d of --num-classes, as for a background", spec, num_classes)
    elif num_classes not in (None, teacher.num_classes):
        raise InputError(f"teacher {spec} has {teacher.num_classes} classes, not {num_classes}; correct --num-classes")
    settings = {
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "checkpoint_key": checkpoint_key,
        "num_classes": num_classes,
        "image_size": image_size,
        "mean": _text(given.mean),
        "std": _text(given.std),
    }
    known = {name: value for name, value in settings.items() if value is not None}
    return dataclasses.replace(teacher, settings={"teacher": spec, **known})


def _examined(network: nn.Module, name: str, given: Given, expected: Expected, need_batchnorm: bool) -> Teacher:
    """Return a frozen network as a teacher, after all checks of its behaviour. Raises InputError if one fails."""
    channels: tuple[int, ...]
    if given.image is not None and len(given.image) == 3:
        channels, remedy = given.image[:1], "give the image=(channels, height, width) that it takes"
    else:
        channels, remedy = channels_to_try(network, expected, given.mean, name), _FLAGS
    size = image_size(network, expected, name) if given.image is None else given.image[-2:]
    device = next(network.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        with record_bn_statistics(network) as statistics:
            image, logits = find_image(network, channels, size, device, name, remedy)
        with images_to_try(1, image, device, f"teacher {name}") as images:
            network = with_batchnorms(network, images, logits)
            mean, std = normalization(network, (images, logits), expected, given.mean, given.std, name)
        examine(network, image, logits, name)
    resize = expected.resize or usual_resize(min(image[1:]))
    teacher = Teacher(name, network, logits.shape[1], image, mean, std, resize)
    teacher.graph  # noqa: B018 -- it is compared with the network before anything is trained
    if need_batchnorm and not (statistics or any(calls_batchnorms(each, image) for each in (network, teacher.graph))):
        away = "give need_batchnorm=False and later bns_weight=0" if IN_MEMORY in name else "set --bns-weight 0"
        no_norms = f"teacher {name} has no BatchNorm2d with running statistics to match"
        raise InputError(f"{no_norms}; {away}, or give it before its norms are folded, if they were")
    return teacher


_FLAGS = "if it takes other images, give --image-size, and --mean and --std with one number for each channel"


def _text(numbers: Sequence[float] | None) -> str | None:
    """Return numbers as text, in the form of the settings ``mean`` and ``std``."""
    return None if numbers is None else ",".join(map(repr, map(float, numbers)))
