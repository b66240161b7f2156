"""Files of weights are read as data only; what is no such file is named."""

from __future__ import annotations

import argparse
import itertools
import re
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..errors import InputError

REMEDY = "give torch.save(network.state_dict(), FILE)"

_OTHERS = (
    (rb"version https://git-lfs", "only points to a file of git-lfs; fetch it with git lfs pull"),
    (rb"(?i)<(!doctype html|html|\?xml|!--)", "is a web page; download the file itself"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|Rar!|7z\xbc", "is compressed; unpack it and give the file within"),
    (rb"\x89HDF", f"is a file of HDF5, as Keras writes it; {REMEDY}"),
    (rb"\x93NUMPY", f"is an array of NumPy; {REMEDY}"),
    (rb"\x08.\x12.{0,30}(pytorch|onnx|keras|tf2onnx)|\x08.\x12\x00", f"is an ONNX model; {REMEDY}"),
    (rb"\s*[{\[]\s*[\"\]}\d\[{]", f"is JSON or another text; {REMEDY}"),
)
"""Files of other kinds begin so, and this is said of them."""


class _Unread:
    """A number of NumPy, as the best accuracy, or a path: it is no weight, so that its value is not asked for."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def _dictionary(*_: object) -> dict[object, object]:
    """Stand for a defaultdict, as a history of losses, which is read as a dictionary."""
    return {}


_NUMBERS = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_PATHS = [
    f"{module}.{kind}{system}Path"
    for module, kind, system in itertools.product(("pathlib", "pathlib._local"), ("", "Pure"), ("Posix", "Windows"))
]
_BESIDE_WEIGHTS: list[Any] = [
    *(argparse.Namespace, list, dict, int, float),
    (_dictionary, "collections.defaultdict"),
    *((_Unread, name) for name in (*_NUMBERS, *_PATHS)),
]
"""Training scripts save these beside the weights: their arguments and histories, and what is read without a value."""


def read_checkpoint(path: Path) -> object:
    """Return the content of ``path``, which may consist of tensors and plain containers only.

    Files of PyTorch and of safetensors are read, whatever their names end in.
    Raises InputError if the file is missing, damaged, something else, or could run code.
    """
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError as error:
        raise InputError(f"cannot read checkpoint {path}: {error.strerror or error}; check the path") from error
    try:
        if _is_safetensors(path, start):
            return safetensors.torch.load_file(path)
        _require_weights(path, start)
        with torch.serialization.safe_globals(_BESIDE_WEIGHTS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # damaged bytes can make the reader raise anything
        refused = re.search(r"(?i)unsupported (?:global: )?global (\S+)", str(error))
        fault = f"holds {refused[1]}, which could run code" if refused else "is damaged or no PyTorch checkpoint"
        raise InputError(f"checkpoint {path} {fault}; {REMEDY}") from error


def _is_safetensors(path: Path, start: bytes) -> bool:
    """Return True for a file that begins with the length of a JSON header and with that header."""
    length = int.from_bytes(start[:8], "little")
    return start[8:9] == b"{" and 8 + length <= path.stat().st_size


def _require_weights(path: Path, start: bytes) -> None:
    """Raise InputError for files that are known to be no weights, BadZipFile for an archive with a wrong checksum."""
    if not start:
        raise InputError(f"checkpoint {path} is empty; {REMEDY}")
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip() or start
    for pattern, fault in _OTHERS:
        if re.match(pattern, text, re.DOTALL):
            raise InputError(f"checkpoint {path} {fault}")
    if zipfile.is_zipfile(path):  # torch.load does not check the checksums
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                raise InputError(
                    f"checkpoint {path} is TorchScript; "
                    "give its weights, torch.save(torch.jit.load(FILE).state_dict(), FILE)"
                )
            if not any(name.endswith("data.pkl") for name in names):
                kind = "NumPy's archive of arrays" if all(name.endswith(".npy") for name in names) else "an archive"
                raise InputError(f"checkpoint {path} is {kind}; {REMEDY}")
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"{damaged} has another CRC-32")
