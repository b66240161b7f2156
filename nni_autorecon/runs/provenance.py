"""A result records its origin: the versions of this package and of those on which it depends."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from ..version import __version__

PACKAGES = ("nni", "torch", "torchvision", "pytorch-lightning", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python, and of the packages on which results depend."""
    installed = {name: metadata.version(name) for name in PACKAGES}
    return {"nni-autorecon": revision(), "python": platform.python_version(), **installed}


def revision(root: Path = Path(__file__).parents[2]) -> str:
    """Return this package's version; a git checkout adds its commit, ``0.2.0+gb9f1c2d``, and ``.dirty`` if edited."""
    if not (root / ".git").exists():
        return __version__
    command = ["git", "--no-optional-locks", "-C", str(root)]  # a lock could get in the way of the person's own git
    command += ["describe", "--always", "--abbrev=7", "--dirty=.dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # there is no git here, or the checkout is not this user's
        return __version__
    return f"{__version__}+g{commit}"
