"""A network that has been read from a student's file, whatever its kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from ..quantization.integers import IntegerWeight
from .description import Description


@dataclass(frozen=True, eq=False)  # eq=False, because comparing tensors does not give one bool
class SavedNetwork:
    """A quantized network for inference, its description and the size of its file.

    In ``network`` a quantized weight is the plain tensor of its dequantized codes. It is in eval mode and takes no
    gradients. A student of protocol ``integer`` computes as integer runtimes do, to the last code.

    Example:
        >>> nar.compress("digits", method="dfq", bits="w8a8", progress=False).student.save("student.safetensors")
        >>> saved = nar.load_student("student.safetensors")
        >>> saved.network(torch.zeros(2, *saved.description.image)).shape
        torch.Size([2, 10])
    """

    network: nn.Module
    """It takes normalized images [N, C, H, W] and returns logits [N, K]."""
    description: Description
    """The size and normalization of its images, its classes, and how it was made."""
    float_bytes: int
    """The size of the teacher's floating-point parameters and buffers in float32."""
    file_bytes: int
    """The size of the whole file on disk."""
    weights: Mapping[str, IntegerWeight] = field(default_factory=dict)
    """Quantized weights by the name of the layer; empty for an ONNX file, whose runtime does not give them away."""
    simulated: nn.Module | None = None
    """The network as it was trained: it rounds to codes what it computes in floating point, by ``FixedQuantizer``s, and
    has the trained student's logits, bit for bit. None for a file of another kind."""

    @property
    def compression_ratio(self) -> float:
        """Return the teacher's size in float32 divided by the size of the whole file on disk."""
        return self.float_bytes / self.file_bytes

    def size(self) -> str:
        """Return the sizes and the compression ratio in one line for people."""
        if self.description.quantization is None:
            return f"{self.file_bytes / 1000:.1f} kB, in floating point"
        return (
            f"{self.file_bytes / 1000:.1f} kB, teacher in float32 {self.float_bytes / 1000:.1f} kB: "
            f"compression ratio {self.compression_ratio:.2f}"
        )
