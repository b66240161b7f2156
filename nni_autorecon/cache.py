"""The cache folder: what is fetched or trained once is kept there, and one process at a time writes it."""

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
    """Hold ``path``'s lock across processes; a folder in which nothing can be written is an InputError."""
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot write the cache folder {path.parent}: {reason}; set {CACHE_VARIABLE} to a writable folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


CACHE_VARIABLE = "NNI_AUTORECON_CACHE"


def cache_folder() -> Path:
    """Where what is fetched or trained once is kept: the variable's folder, or the person's own."""
    return Path(os.path.expanduser(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("nni-autorecon")))
