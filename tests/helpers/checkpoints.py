"""Checkpoints written, networks compared with what was loaded, and refusals to load one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nni_autorecon.errors import InputError, MachineError
from nni_autorecon.teacher.loading import load_teacher


def save(content: object, folder: Path) -> Path:
    """The file in the folder that holds the content, as PyTorch writes it."""
    torch.save(content, folder / "weights.pt")
    return folder / "weights.pt"


def refusal(*arguments: Any, **settings: Any) -> str:
    """Return the line with which load_teacher refuses."""
    with pytest.raises((InputError, MachineError)) as caught:
        load_teacher(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def equal_states(one: nn.Module, other: nn.Module) -> bool:
    """Return True if every entry of one's state is in the other's, bit for bit."""
    state = other.state_dict()
    return all(torch.equal(tensor, state[key]) for key, tensor in one.state_dict().items())
