"""An experiment's file is read in one way, to be started and to be examined; this needs no NNI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config.reading import read_names_and_values
from ..errors import InputError

EXAMPLE = "nni-autorecon new FOLDER writes an example"


def read_experiment(file: Path) -> dict[str, Any]:
    """Return the file's settings as they are written. Raises InputError if it is missing or holds no settings."""
    content = read_names_and_values(file, "experiment file", remedy=EXAMPLE)
    if not content:
        raise InputError(f"experiment file {file} is empty; {EXAMPLE}")
    return content
