"""GDFQ's human-designed generators (Xu et al., 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..accel.convolution import LEAKY_SLOPE
from ..accel.memory import conv_layout
from ..accel.upsampling import UpsampledConv
from ..shapes import ImageShape
from .costs import gdfq_macs, gdfq_sizes
from .operations import ClassAffine, embedded

GDFQ_WIDTH = 128
LATENT_DIM = 100
GDFQ_EPS = 0.8  # the released code passes 0.8 where BatchNorm2d expects eps; it is part of the baseline


class GDFQGenerator(nn.Module):
    """GDFQ's human-designed generators (Xu et al., 2020), after ACGAN.

    They start from a quarter of the image's size and enlarge it twice by nearest neighbour, at widths ``width`` and
    ``width`` / 2. If ``conditional`` is false, the label enters by embedding(y) ⊙ z (their CIFAR generator). If it is
    true, the label enters by class-conditional normalization in all three places (their ImageNet generator).
    Convolutions before a BatchNorm have no bias, which would change no image.
    """

    def __init__(
        self,
        *,
        image: ImageShape,
        num_classes: int,
        width: int = GDFQ_WIDTH,
        latent_dim: int = LATENT_DIM,
        conditional: bool = False,
    ) -> None:
        super().__init__()
        self.image, self.num_classes, self.width, self.latent_dim = image, num_classes, width, latent_dim
        self.embedding = None if conditional else nn.Embedding(num_classes, latent_dim)
        self.sizes = gdfq_sizes(image)
        narrow = max(width // 2, 1)
        height0, width0 = self.sizes[0]
        self.stem = nn.Linear(latent_dim, width * height0 * width0)
        self.norms = nn.ModuleList(
            _GDFQNorm(features, num_classes if conditional else None, eps)
            for features, eps in ((width, 1e-5), (width, GDFQ_EPS), (narrow, GDFQ_EPS))
        )
        self.convs = nn.ModuleList(UpsampledConv(width, out) for out in (width, narrow))
        self.to_rgb = nn.Conv2d(narrow, image.channels, 3, padding=1)
        self.norm_out = nn.BatchNorm2d(image.channels, affine=False)
        self.to(memory_format=conv_layout())

    def macs(self) -> int:
        """Return the multiply-accumulates for one image."""
        return gdfq_macs(width=self.width, image=self.image, latent_dim=self.latent_dim)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return images [N, C, H, W] for latent vectors z [N, latent_dim] and labels [N], or probabilities [N, K]."""
        if self.embedding is not None:
            z = embedded(self.embedding, labels) * z
        x = self.stem(z).view(-1, self.width, *self.sizes[0]).contiguous(memory_format=conv_layout())
        x = self.norms[0](x, labels)
        for size, conv, norm in zip(self.sizes[1:], self.convs, list(self.norms)[1:], strict=True):
            x = F.leaky_relu_(norm(conv(x, size), labels), LEAKY_SLOPE)  # [N, C, *size]
        return self.norm_out(torch.tanh(self.to_rgb(x)))


class _GDFQNorm(nn.Module):
    """A BatchNorm with one affine map, or with one per class."""

    def __init__(self, channels: int, num_classes: int | None, eps: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=eps, affine=num_classes is None)
        self.affine = None if num_classes is None else ClassAffine(channels, num_classes)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Normalize x [N, C, h, w] with the affine map of the labels [N], or probabilities [N, K]."""
        if self.affine is None:
            return self.norm(x)
        scale, shift = self.affine(labels)[..., None, None].unbind(1)  # both [N, C, 1, 1]
        return torch.addcmul(shift, self.norm(x), scale)
