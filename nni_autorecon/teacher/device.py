"""A run computes on the device that is chosen here."""

from __future__ import annotations

import os

import torch

from ..errors import InputError, MachineError


def resolve_device(name: str) -> torch.device:
    """Return the device for ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.

    Raises InputError for any other name, MachineError for ``cuda`` if PyTorch sees no GPU, and for ``auto`` if NNI gave
    this trial a GPU but PyTorch sees none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device {name!r} is unknown; choose auto, cpu or cuda")
    available = torch.cuda.is_available()
    if name != "cpu" and not available and (promised := promised_gpus()):
        raise MachineError(
            f"NNI gave this trial GPU {promised}, but PyTorch sees none; see nni-autorecon doctor, "
            "or add --device cpu to trialCommand"
        )
    if name == "cuda" and not available:
        raise MachineError("device cuda: PyTorch sees no GPU here; choose --device cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def promised_gpus() -> str | None:
    """Return the indices of the GPUs that NNI gave this trial, such as ``"0,2"``; None if none, or outside a trial."""
    indices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return indices if "NNI_PLATFORM" in os.environ and indices and not indices.startswith("-") else None
