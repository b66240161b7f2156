"""The cache folder keeps what is fetched or trained once, and one process at a time writes to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock

from .errors import InputError


@contextmanager
def cache_lock(path: Path) -> Iterator[None]:
    """Hold the lock of ``path`` within the block; other processes wait for it.

    Raises InputError if nothing can be written to its folder.
    """
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # a file system without locks gives NotImplementedError
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot write the cache folder {path.parent}: {reason}; set {CACHE_VARIABLE} to a writable folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


CACHE_VARIABLE = "NNI_AUTORECON_CACHE"
"""This environment variable names the cache folder."""


def cache_folder() -> Path:
    """Return the cache folder: the one that the environment variable names, or else the person's own."""
    return Path(os.path.expanduser(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("nni-autorecon")))
