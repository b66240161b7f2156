"""A saved network is described by the source of its structure and by the form of its input and output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..quantization.specification import Quantization
from ..shapes import ImageShape
from ..teacher.checkpoint import settle_lazy_layers
from ..teacher.factories import unwrap_parts
from ..teacher.inputs import as_teacher
from ..teacher.loading import Teacher
from ..teacher.sources import architecture, names_code


@dataclass(frozen=True)
class Description:
    """The description of a saved network: the source of its structure, and the form of its input and output.

    Raises ValueError if a value has the wrong type or size.
    """

    teacher: str
    """The specification from which ``teacher.sources.architecture`` builds the structure."""
    num_classes: int
    image: ImageShape
    mean: tuple[float, ...]
    """The mean of each channel, of pixels from 0 to 1; the network takes normalized images."""
    std: tuple[float, ...]
    """The standard deviation of each channel, of pixels from 0 to 1."""
    quantization: Quantization | None
    """The settings by which the teacher became the student; None for a network in floating point."""
    folded: bool = False
    """True if BatchNorms were folded before quantization, as method dfq does."""
    resize: int = 0
    """Pixels of the shorter side before pictures are cropped to ``image``; 0 means the size of the crop itself."""
    factory_arguments: Mapping[str, int] | None = None
    """The arguments with which the structure is built; None, as in earlier files, stands for ``num_classes``."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further facts that JSON can hold, such as the generator and the accuracy."""

    def __post_init__(self) -> None:
        sizes, numbers = (self.num_classes, *self.image), (*self.mean, *self.std)
        if not (
            isinstance(self.teacher, str)
            and all(type(size) is int and size > 0 for size in sizes)
            and all(isinstance(number, (int, float)) for number in numbers)
            and len(self.mean) == len(self.std) == self.image.channels
            and isinstance(self.folded, bool)
            and (self.factory_arguments is None or all(type(n) is int for n in self.factory_arguments.values()))
            and type(self.resize) is int
        ):
            raise ValueError("its description holds an impossible value")

    @classmethod
    def of(cls, teacher: Teacher, quantization: Quantization, *, folded: bool = False, **details: Any) -> Description:
        """Describe a student of ``teacher``. The arguments are the fields of the same names."""
        known = (teacher.name, teacher.num_classes, teacher.image, teacher.mean, teacher.std)
        arguments = {name: teacher.settings[name] for name in ("num_classes",) if name in teacher.settings}
        return cls(*known, quantization, folded, teacher.resize, arguments, details)

    def structure(self, teacher: str) -> nn.Module:
        """Return the network that ``teacher`` names, built as it was for this student, freshly initialized."""
        arguments = {"num_classes": self.num_classes} if self.factory_arguments is None else self.factory_arguments
        return architecture(teacher, arguments.get("num_classes"))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Description:
        """Undo ``dataclasses.asdict``, even if the values went through JSON.

        Raises TypeError, KeyError or ValueError if they are no description.
        """
        image, mean, std = ImageShape(*values["image"]), tuple(values["mean"]), tuple(values["std"])
        quantization = values["quantization"] and Quantization.from_dict(values["quantization"])
        return cls(**{**values, "image": image, "mean": mean, "std": std, "quantization": quantization})


def require_same_structure(teacher: Teacher) -> None:
    """Raise InputError if the person's code builds another network when a student is loaded; it names a difference.

    Networks of libraries and networks in memory are not built again by such code.
    """
    if not teacher.settings or not names_code(teacher.name):
        return
    with torch.random.fork_rng(devices=[]):
        again = unwrap_parts(architecture(teacher.name, teacher.settings.get("num_classes")))
    own = {name: tensor.shape for name, tensor in teacher.network.state_dict().items()}
    settle_lazy_layers(again, own)
    again = as_teacher(again, teacher.image)
    other = {name: tensor.shape for name, tensor in again.state_dict().items()}
    if wrong := [name for name in {**own, **other} if own.get(name) != other.get(name)]:
        shapes = " and ".join(str(list(each[wrong[0]])) if wrong[0] in each else "none" for each in (own, other))
        raise InputError(
            f"teacher {teacher.name} is another network each time it is built ({wrong[0]}: {shapes}), so that a saved "
            "student could not be loaded; let the factory build the same layers at every call"
        )
