"""Files: written whole or not at all, read with one-line errors."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError, shown

LARGEST_TEXT = 2**20
"""Bytes. No settings, genotype or record of a run come near."""


DEEPEST = 32


SEAL = "sha256"
"""The name of a JSON file's checksum: of its values, not of its layout."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write(file)`` on a temporary file beside ``path``, then move it into place.

    A reader never sees half a file, and a failed write leaves what stood at ``path`` as it was.

    Raises InputError if the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes private files
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> InputError:
    """What to say where ``path`` could not be written."""
    remedy = "free some space or choose another place" if error.errno in _FULL else "choose a writable place"
    return InputError(f"cannot write {path}: {error.strerror or error}; {remedy}")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically. What UTF-8 cannot hold, half of a name's bytes, becomes ``\\udc80``."""
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN is refused: no other reader accepts it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def digest(path: str | Path) -> str | None:
    """SHA-256 of a file's contents; None if it cannot be read."""
    found = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while part := file.read(2**20):
                found.update(part)
    except OSError:
        return None
    return found.hexdigest()


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` for a JSON file, with a checksum of them all."""
    return {**values, SEAL: _digest(values)}


def unsealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` of a JSON file without their checksum, if they have one. Raises ValueError if it is of others."""
    plain = {name: value for name, value in values.items() if name != SEAL}
    if SEAL in values and values[SEAL] != _digest(plain):
        raise ValueError(f"its {SEAL} is of other values")
    return plain


def _digest(values: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(values, allow_nan=False))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def read_text(path: Path, what: str) -> str:
    """The text of ``path``, with or without a byte order mark; InputError names ``what`` it should have been."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST_TEXT + 1)
        if len(content) <= LARGEST_TEXT:
            return content.decode("utf-8-sig")
        reason = f"it is larger than {LARGEST_TEXT >> 20} MiB"
    except FileNotFoundError as error:
        raise InputError(f"{what} {path} does not exist; check the path") from error
    except OSError as error:
        raise InputError(f"cannot read {what} {path}: {error.strerror or error}; check the path") from error
    except UnicodeDecodeError:
        reason = "it is not a text file"
    raise InputError(f"cannot read {what} {path}: {reason}; give text in UTF-8")


def parse_json(text: str) -> Any:
    """What ``text`` says in JSON.

    Raises ValueError, with a message for a person, for all else: also for NaN, for a name that stands twice in one
    object, and for values nested deeper than any of this package's.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_named_once)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if _is_nested(value, DEEPEST):
        raise ValueError("it is nested too deeply")
    return value


def _is_nested(value: Any, levels: int) -> bool:
    """Whether ``value`` has more than ``levels`` of lists and objects within each other."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_nested(each, levels - 1) for each in inner)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{shown(next(name for name in names if names.count(name) > 1))} stands there twice")
    return values


def is_there(path: Path, test: Callable[[Path], bool] = Path.exists) -> bool:
    """Whether ``test`` holds for ``path``. Raises InputError if that cannot be told."""
    try:
        return test(path)
    except OSError as error:
        raise InputError(f"cannot look into {path}: {error.strerror or error}; choose another place") from error


def require_absent(path: Path, *, force: bool = False) -> None:
    """Raise InputError if ``path`` already holds something that a write would replace."""
    if force or is_there(Path(path), _is_free):
        return
    raise InputError(f"{path} already exists; choose another place or pass --force to replace it")


def _is_free(path: Path) -> bool:
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def tensor_bytes(value: Any) -> bytes:
    """What ``torch.save`` writes of ``value``. Onto a full disk it would write with an error of its own making."""
    import torch  # heavy, and most files are text

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
