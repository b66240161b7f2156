"""Files are written whole or not at all, and errors in reading them take one line."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError, MachineError, shown

LARGEST_TEXT = 2**20
"""Bytes that a text file may have at most; settings, genotypes and records of runs are far smaller."""
DEEPEST = 32
"""Levels of lists and objects that JSON may have at most."""
SEAL = "sha256"
"""A JSON file holds its checksum under this name; it covers the values, not the layout."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The system reports one of these errors when there is no space."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write(file)`` on a temporary file beside ``path``, then move that file into place.

    A reader never sees half a file, and a failed write leaves an earlier file at ``path`` as it was. The file gets the
    permissions that the process's umask gives new files. Missing folders are made.

    Raises InputError if the folder cannot be written, MachineError if the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = create_beside(path)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def create_beside(path: Path) -> tuple[int, Path]:
    """Create an empty file with a random name beside ``path``; return a descriptor for writing, and the file's path.

    ``tempfile.mkstemp`` would make the file private, and the umask can only be read by changing it, which other threads
    would notice. Here the kernel applies the umask. Raises OSError if the file cannot be created.
    """
    while True:
        temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
        with suppress(FileExistsError):
            return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), temporary


def unwritable(path: Path, error: OSError) -> InputError | MachineError:
    """Return the error that tells a person that ``path`` could not be written."""
    fault = f"cannot write {path}: {error.strerror or error}"
    if error.errno in _FULL:
        return MachineError(f"{fault}; free some space or choose another place")
    return InputError(f"{fault}; choose a writable place")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, as :func:`write_atomically` does.

    Bytes of a file name that are not UTF-8 cannot be encoded, and become escapes such as ``\\udc80``.
    """
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, as :func:`write_atomically` does.

    Raises ValueError for NaN and infinity, which other readers do not accept.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def digest(path: str | Path) -> str | None:
    """Return the SHA-256 of a file's contents, or None if it cannot be read."""
    found = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while part := file.read(2**20):
                found.update(part)
    except OSError:
        return None
    return found.hexdigest()


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` with a checksum of them all added, for a JSON file."""
    return {**values, SEAL: _digest(values)}


def unsealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a JSON file without their checksum, if they have one.

    Raises ValueError if the checksum belongs to other values.
    """
    plain = {name: value for name, value in values.items() if name != SEAL}
    if SEAL in values and values[SEAL] != _digest(plain):
        raise ValueError(f"its {SEAL} is of other values")
    return plain


def _digest(values: Mapping[str, Any]) -> str:
    as_read = json.loads(json.dumps(values, allow_nan=False))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def read_text(path: Path, what: str) -> str:
    """Return the text of ``path``, without a byte order mark.

    Raises InputError, which calls the file ``what``, if it is missing, unreadable, larger than ``LARGEST_TEXT`` or not
    UTF-8.
    """
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
    """Return the value of ``text``, which is JSON.

    Raises ValueError, with a message for a person, if it is not JSON. NaN and infinity, a name that stands twice in one
    object, and values nested deeper than ``DEEPEST`` are errors, too.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_named_once)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if _is_nested(value, DEEPEST):
        raise ValueError("it is nested too deeply")
    return value


def _is_nested(value: Any, levels: int) -> bool:
    """Return True if ``value`` has more than ``levels`` levels of lists and objects within each other."""
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
    """Return ``test(path)``. Raises InputError if the system does not allow to look there."""
    try:
        return test(path)
    except OSError as error:
        raise InputError(f"cannot look into {path}: {error.strerror or error}; choose another place") from error


def require_absent(path: Path, *, force: bool = False) -> None:
    """Raise InputError if ``path`` already holds something that a write would replace, unless ``force`` is True.

    An empty folder holds nothing.
    """
    if force or is_there(Path(path), _is_free):
        return
    raise InputError(f"{path} already exists; choose another place or pass --force to replace it")


def _is_free(path: Path) -> bool:
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def tensor_bytes(value: Any) -> bytes:
    """Return the bytes that ``torch.save`` writes of ``value``; on a full disk, torch.save hides the system's error."""
    import torch  # slow to import, and most files are text

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
