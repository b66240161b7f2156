"""A student that has just been trained: ready to be saved and to be exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from .agreement import Agreement
from .description import Description
from .onnx import export_onnx
from .student_file import network_of_bytes, save_network, student_bytes


@dataclass(frozen=True, eq=False)  # eq=False: networks do not compare to one bool
class Student:
    """A quantized student after its training: the network, with quantizers in it, and what its file says of it."""

    network: nn.Module
    description: Description
    teacher: nn.Module
    """The network that it was made of, which gives the structure of what is exported."""

    def save(self, path: str | Path) -> None:
        """Write it as one safetensors file, replacing ``path``.

        Raises InputError if the file cannot be written, MachineError if the disk is full.
        """
        save_network(path, self.network, self.description)

    def to_onnx(self, path: str | Path, *, purpose: str | None = None, images: Tensor | None = None) -> Agreement:
        """Write it as ONNX, replacing ``path``, and return how well onnxruntime agrees with PyTorch.

        They are compared on ``images`` [N, C, H, W], if there are any, and on noise.

        purpose: ``speed``, to be run in integers, the default with protocol ``integer``; or ``size``, with packed
            weights.

        Raises InputError if the extra ``onnx`` is missing, the network has a part that ONNX lacks, or protocol
        ``activations`` is to be fast, and MachineError if the runtimes disagree.
        """
        content = student_bytes(self.network, self.description)
        saved = network_of_bytes(content, str(path), self.teacher)
        return export_onnx(saved, path, purpose=purpose, images=images)
