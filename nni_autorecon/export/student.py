"""A student that has just been trained: ready to be saved and to be exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from .agreement import Agreement
from .description import Description
from .onnx import export_onnx
from .saved_network import SavedNetwork
from .student_file import network_of_bytes, save_network, student_bytes


@dataclass(frozen=True, eq=False)  # eq=False: networks do not compare to one bool
class Student:
    """A quantized student after its training: the network, with quantizers in it, and what its file says of it.

    Example:
        >>> student = nar.compress("digits", method="dfq", bits="w8a8", progress=False).student
        >>> student.save("student.safetensors")
        >>> student.description.quantization.bits
        'w8a8'
    """

    network: nn.Module
    """It takes normalized images [N, C, H, W] and returns logits [N, K]."""
    description: Description
    """The size and normalization of its images, its classes, and how it was made."""
    teacher: nn.Module
    """The network that it was made of, which gives the structure of what is exported."""

    def save(self, path: str | Path) -> None:
        """Write it as one safetensors file.

        Args:
            path: The file, which is replaced if it is there.

        Raises:
            InputError: If the file cannot be written.
            MachineError: If the disk is full.
        """
        save_network(path, self.network, self.description)

    def saved(self) -> SavedNetwork:
        """Return what its file would give back, on the CPU; one of protocol ``integer`` computes as onnxruntime does.

        Returns:
            The network for inference and the description of its images.

        Raises:
            InputError: If a weight is not finite.
        """
        return network_of_bytes(student_bytes(self.network, self.description), "the student", self.teacher)

    def to_onnx(self, path: str | Path, *, purpose: str | None = None, images: Tensor | None = None) -> Agreement:
        """Write it as ONNX, and return how well onnxruntime agrees with PyTorch.

        Args:
            path: The file, which is replaced if it is there.
            purpose: ``speed``, to be run in integers, the default with protocol ``integer``; or ``size``, with packed
                weights.
            images: Normalized images [N, C, H, W] on which both are compared, beside noise.

        Returns:
            The fractions of images on which both decide alike, and how far logits differ.

        Raises:
            InputError: If the extra ``onnx`` is missing, the purpose is unknown, the network has a part that ONNX
                lacks, or protocol ``activations`` is to be fast.
            MachineError: If the runtimes disagree, or the disk is full.
        """
        return export_onnx(self.saved(), path, purpose=purpose, images=images)
