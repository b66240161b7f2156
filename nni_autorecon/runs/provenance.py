"""Where a result comes from: the versions of this package and of those that it depends on."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from ..version import __version__

PACKAGES = ("nni", "torch", "torchvision", "pytorch-lightning", "numpy")


def versions() -> dict[str, str]:
    """This package, Python, and what results depend on."""
    installed = {name: metadata.version(name) for name in PACKAGES}
    return {"nni-autorecon": revision(), "python": platform.python_version(), **installed}


def revision(root: Path = Path(__file__).parents[2]) -> str:
    """This package's version; of a git checkout, with its commit: ``0.1.0+gb9f1c2d``, and ``.dirty`` if edited."""
    if not (root / ".git").exists():
        return __version__
    command = ["git", "--no-optional-locks", "-C", str(root)]  # a lock could get into the way of the person's own git
    command += ["describe", "--always", "--abbrev=7", "--dirty=.dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout that is not this user's
        return __version__
    return f"{__version__}+g{commit}"
