"""The cache folder keeps what is fetched or trained once, and one process at a time writes to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock

from .errors import InputError

CACHE_VARIABLE = "NNI_AUTORECON_CACHE"
"""This environment variable names the cache folder."""


def cache_folder() -> Path:
    """Return the cache folder: the one that the environment variable names, or else the person's own."""
    return Path(os.path.expanduser(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("nni-autorecon")))


def cache_lock(path: Path) -> AbstractContextManager[None]:
    """Hold the lock of ``path``, a file in the cache folder, as :func:`lock` does."""
    return lock(path, remedy=f"set {CACHE_VARIABLE} to a writable folder")


@contextmanager
def lock(path: Path, *, remedy: str) -> Iterator[None]:
    """Hold the lock of ``path`` across processes, which wait for each other.

    Raises InputError, ending in ``remedy``, if nothing can be written in its folder.
    """
    held = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write in {path.parent}: {reason}; {remedy}") from error
    try:
        yield
    finally:
        held.release()
