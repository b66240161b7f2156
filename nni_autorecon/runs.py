"""The folder that every run leaves behind."""

from __future__ import annotations

import csv
import io
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .config import Config
from .errors import InputError
from .files import require_absent, write_json, write_text
from .version import __version__

PACKAGES = ("nni", "torch", "torchvision", "pytorch-lightning", "numpy")


class RunFolder:
    """``config.json`` (resolved settings, versions) at the start, ``metrics.csv`` row by row, the rest by the caller.

    Raises InputError if the folder holds something already, unless ``force``.
    """

    def __init__(self, path: str | Path, *, force: bool = False) -> None:
        self.path = Path(path)
        require_absent(self.path, force=force)
        self.rows: list[dict[str, Any]] = []

    def start(self, command: str, config: Config) -> None:
        """Write the resolved settings: what was asked for has proved usable, and work begins."""
        write_json(self / "config.json", {"command": command, "config": config.to_dict(), "versions": versions()})

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row of metrics; the file on disk is always whole."""
        self.rows.append(dict(row))
        write_text(self / "metrics.csv", to_csv(self.rows))


def versions() -> dict[str, str]:
    """This package, Python, and what results depend on."""
    installed = {name: metadata.version(name) for name in PACKAGES}
    return {"nni-autorecon": __version__, "python": platform.python_version(), **installed}


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV under the union of their keys, in order of first appearance; missing values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def new_folder(stage: str, root: Path = Path("runs")) -> Path:
    """A folder name for a run that was given none, e.g. ``runs/search-20210819-143000``."""
    path = root / f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}"
    if path.exists():
        raise InputError(f"{path} already exists; name another folder with --output")
    return path
