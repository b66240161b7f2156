"""Images are enlarged by nearest neighbour after, not before, the computation on single pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .. import accel


def repeats_last(mode: str, before: Sequence[int], after: Sequence[int]) -> bool:
    """Return True if an interpolation is to come last, because it repeats every pixel equally often.

    Such an interpolation changes neither batch statistics nor the results for single pixels, and there are fewer pixels
    before it.  before, after: height and width.
    """
    return accel.enabled and mode == "nearest" and all(b % a == 0 for a, b in zip(before, after, strict=True))


class UpsampledConv(nn.Conv2d):
    """A 3×3 convolution of padding 1, without bias, over x [N, C, h, w] enlarged to a size by nearest neighbour.

    At twice the size both steps are one transposed convolution with fewer than half the multiplications, because a
    pixel that is repeated spreads its 3×3 kernel over 4×4 pixels.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(channels, out, 3, padding=1, bias=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:  # type: ignore[override]
        """Return the convolution, [N, out, *size], of x [N, C, h, w] enlarged to ``size``."""
        if accel.enabled and size == (2 * x.shape[2], 2 * x.shape[3]):
            kernel = self.weight.transpose(0, 1).flip(2, 3)
            sums = F.avg_pool2d(kernel, 2, stride=1, padding=1, divisor_override=1)  # 2×2 sums, [C, out, 4, 4]
            return F.conv_transpose2d(x, sums, stride=2, padding=1)
        return super().forward(F.interpolate(x, size, mode="nearest"))
