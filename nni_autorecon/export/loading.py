"""A student is loaded from its file, whatever its kind."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..errors import InputError
from .distilled_file import load_distilled
from .onnx_runtime import load_onnx
from .saved_network import SavedNetwork
from .student_file import load_network


def load_student(path: str | Path, *, teacher: str | nn.Module | None = None) -> SavedNetwork:
    """Load a student from its file: ``.safetensors`` and ``.onnx`` of a compression, ``.pt`` of a distillation.

    Args:
        path: The file.
        teacher: The source of its structure, if it is not the one in the file: a name as ``load_teacher`` takes it, or
            the network itself. A file may not run the person's own code, so that such code must be named.

    Returns:
        The network on the CPU in eval mode, and the description in its file.

    Raises:
        InputError: If the file is missing, damaged or of another kind, or does not fit the structure.

    Example:
        >>> import nni_autorecon as nar
        >>> result = nar.compress("digits", method="dfq", bits="w8a8", progress=False)
        >>> result.student.save("student.safetensors")
        >>> nar.load_student("student.safetensors").description.num_classes
        10
    """
    kind = Path(path).suffix
    if kind == ".onnx":
        if teacher is not None:
            raise InputError("an ONNX file holds its own structure; leave out --teacher")
        return load_onnx(path)
    if kind in (".pt", ".pth"):
        if isinstance(teacher, nn.Module):
            raise InputError(f"{path} is of a distillation; name its student as module-or-file.py:factory")
        return load_distilled(path, structure=teacher)
    return load_network(path, teacher=teacher)
