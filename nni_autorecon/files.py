"""Files: written whole or not at all, read with one-line errors."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import platformdirs

from .errors import InputError

CACHE_VARIABLE = "NNI_AUTORECON_CACHE"


def cache_folder() -> Path:
    """Where what is fetched or trained once is kept: the variable's folder, or the person's own."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("nni-autorecon")).expanduser()


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write(file)`` on a temporary file beside ``path``, then move it into place.

    A reader never sees half a file, and a failed write leaves what stood at ``path`` as it was.

    Raises InputError if the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose a writable place") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose a writable place") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN is refused: no other reader accepts it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_text(path: Path, what: str) -> str:
    """The text of ``path``; InputError names ``what`` it should have been."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{what} {path} does not exist; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise InputError(f"cannot read {what} {path}: {reason}") from error


def require_absent(path: Path, *, force: bool = False) -> None:
    """Raise InputError if ``path`` already holds something that a write would replace."""
    path = Path(path)
    try:
        if not path.exists() or force or (path.is_dir() and not any(path.iterdir())):
            return
    except OSError as error:
        raise InputError(f"cannot look into {path}: {error.strerror or error}; choose another place") from error
    raise InputError(f"{path} already exists; choose another place or pass --force to replace it")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
