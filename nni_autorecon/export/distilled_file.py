"""A distilled network as one file: its state_dict, and what is needed to measure it again."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError, one_line
from ..files import parse_json, tensor_bytes, write_atomically
from ..shapes import ImageShape
from ..teacher.checkpoint import load_checkpoint
from ..teacher.loading import Teacher
from ..teacher.sources import architecture, names_code
from .description import Description
from .saved_network import SavedNetwork
from .student_file import float_size

ABOUT = "nni-autorecon"
"""The key beside ``state_dict`` under which JSON says what the network is."""


def save_distilled(path: Path, network: nn.Module, structure: str, teacher: Teacher) -> None:
    """Write the state_dict of ``network``, which ``structure`` names, replacing ``path``; with what it takes and says.

    Raises InputError if the file cannot be written.
    """
    about = {
        "student": structure,
        "num_classes": teacher.num_classes,
        "image": list(teacher.image),
        "mean": teacher.mean,
        "std": teacher.std,
        "resize": teacher.resize,
        "teacher": teacher.name,
    }
    state = {name: value.cpu() for name, value in network.state_dict().items()}
    content = tensor_bytes({"state_dict": state, ABOUT: json.dumps(about)})
    write_atomically(path, lambda file: file.write(content))


def load_distilled(path: str | Path, *, structure: str | None = None) -> SavedNetwork:
    """Return the network that :func:`save_distilled` wrote, on the CPU in eval mode.

    ``structure`` names it where that is code of the person's own, which a file has no business to name.
    Raises InputError if the file is missing, damaged or of another kind, or does not fit the network.
    """
    try:
        about = parse_json(torch.load(path, map_location="cpu", weights_only=True)[ABOUT])
        spec, image = structure or str(about["student"]), ImageShape(*about["image"])
        classes, resize = int(about["num_classes"]), int(about["resize"])
        mean, std = (tuple(map(float, about[name])) for name in ("mean", "std"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except Exception as error:  # damaged bytes can make the reader raise anything
        raise InputError(f"{path} was not written by distill ({one_line(error)}); give its student.pt") from error
    if structure is None and names_code(spec):
        raise InputError(f"{path} is of {spec}, code that loading would run; if it is yours, add --teacher {spec}")
    with torch.random.fork_rng(devices=[]):
        network = architecture(spec, classes)
    load_checkpoint(network, Path(path), spec)
    network.eval().requires_grad_(False)
    size = Path(path).stat().st_size
    description = Description(str(about["teacher"]), classes, image, mean, std, None, resize=resize)
    return SavedNetwork(network, description, float_size(network), size)
