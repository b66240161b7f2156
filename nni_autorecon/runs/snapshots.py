"""A killed run goes on from a snapshot at the end of an epoch, and comes to the same result."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..files import tensor_bytes, write_atomically

log = logging.getLogger(__name__)
LAYOUT = 12
"""This number grows when names or shapes of the saved state change, so that earlier snapshots are refused."""
State = Mapping[str, Any]
"""A state holds tensors, numbers, strings, and lists and dicts of them."""


def save_snapshot(path: Path, state: State) -> None:
    """Write a checksum and ``state``, whole or not at all. Raises InputError if the folder cannot be written."""
    content = tensor_bytes(dict(state))
    parts = hashlib.sha256(content).digest(), content  # they stay apart, because joining them would copy the content
    write_atomically(path, lambda file: file.writelines(parts))


def load_snapshot(path: Path) -> dict[str, Any] | None:
    """Return the saved state, its tensors on the CPU; None if there is none or, with a warning, if it is damaged."""
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s cannot be read (%s); starting from the beginning", path, error.strerror)
        return None
    checksum, content = stored[:32], memoryview(stored)[32:]
    if hashlib.sha256(content).digest() != checksum:
        log.warning("%s is damaged; starting from the beginning", path)
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of the random generators from which a run on ``device`` draws."""
    state = {"cpu": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def set_random_state(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Set the random generators to a state that :func:`random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
