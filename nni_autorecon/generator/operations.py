"""The search space has these candidate operations (Table 1), and mixes them on an edge (eq. 8).

Every operation maps the :class:`Features` of a node and labels [N] to a tensor [N, C, *size]. Batch normalization uses
the statistics of the batch, in every mode.

A mixture may be a sum that is computed only at the node that it enters (:data:`~..accel.convolution.Summand`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from ..accel.convolution import Summand, activated_conv, waiting_sums
from ..accel.upsampling import repeats_last
from .topology import CONVOLUTIONS, IDENTITY, INTERPOLATIONS, NONE, NORMAL, Edge


class EdgeShape(NamedTuple):
    """The facts that an edge needs to build its operations."""

    width: int
    """The channels of both ends."""
    size: tuple[int, int]
    """The height and width of the target node."""
    num_classes: int


class Features:
    """The tensor x [N, C, h, w] of a node, with the results that all edges from it share; each is computed once."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._resized: dict[tuple[str, tuple[int, int]], Features] = {}

    @cached_property
    def normalized(self) -> Tensor:
        """Return x with zero mean and unit variance in every channel of this batch, before any affine map."""
        return F.batch_norm(self.x, None, None, training=True)

    def resized(self, mode: str, size: tuple[int, int]) -> Features:
        """Return the features interpolated to ``size``, by "nearest" or "bilinear"."""
        key = mode, size
        if key not in self._resized:
            align_corners = False if mode == "bilinear" else None
            self._resized[key] = Features(F.interpolate(self.x, size, mode=mode, align_corners=align_corners))
        return self._resized[key]


class ClassAffine(nn.Module):
    """The scale and shift of each class, which make a normalization class-conditional (de Vries et al., 2017)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_classes, 2 * channels)  # each row holds the scale, then the shift
        nn.init.ones_(self.table.weight[:, :channels])
        nn.init.zeros_(self.table.weight[:, channels:])

    def forward(self, labels: Tensor) -> Tensor:
        """Return scale and shift, [N, 2, C], for labels [N] or probabilities [N, K]."""
        return embedded(self.table, labels).unflatten(1, (2, -1))


def embedded(table: nn.Embedding, labels: Tensor) -> Tensor:
    """Return the rows [N, D] of ``table`` for labels [N], or their mixtures for probabilities [N, K]."""
    return table(labels) if labels.ndim == 1 else labels @ table.weight


class ConvOperation(nn.Module):
    """Class-conditional batch normalization, LeakyReLU(0.2), then a size-keeping convolution."""

    def __init__(self, width: int, kernel_size: int, dilation: int, affine: ClassAffine) -> None:
        super().__init__()
        self.affine = affine
        padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv2d(width, width, kernel_size, padding=padding, dilation=dilation)

    def forward(self, features: Features, labels: Tensor) -> Summand:
        """Return [N, C, h, w] for features [N, C, h, w] and labels [N], or probabilities [N, K]."""
        return activated_conv(features.normalized, self.affine, labels, self.conv)


class UpOperation(nn.Module):
    """Interpolation to the target's size, class-conditional batch normalization, LeakyReLU(0.2), 1×1 convolution."""

    def __init__(self, mode: str, shape: EdgeShape) -> None:
        super().__init__()
        self.mode, self.size = mode, shape.size
        self.affine = ClassAffine(shape.width, shape.num_classes)
        self.conv = nn.Conv2d(shape.width, shape.width, 1)

    def forward(self, features: Features, labels: Tensor) -> Summand:
        """Return [N, C, *size] for features [N, C, h, w] and labels [N], or probabilities [N, K]."""
        if not repeats_last(self.mode, features.x.shape[2:], self.size):
            features = features.resized(self.mode, self.size)
        return activated_conv(features.normalized, self.affine, labels, self.conv, size=self.size)


class Identity(nn.Module):
    """The operation that returns the features themselves."""

    def forward(self, features: Features, labels: Tensor) -> Tensor:
        """Return the tensor of the features, [N, C, h, w]."""
        return features.x


class NoConnection(nn.Module):
    """The operation that returns zeros of the target's size, without storage."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, features: Features, labels: Tensor) -> Tensor:
        """Return zeros [N, C, *size]."""
        return features.x.new_zeros(()).expand(*features.x.shape[:2], *self.size)


def make_operation(name: str, shape: EdgeShape, affine: ClassAffine | None = None) -> nn.Module:
    """Return the candidate called ``name``. Convolutions use the given affine map, or one of their own.

    Raises ValueError for an unknown name.
    """
    if name in CONVOLUTIONS:
        affine = affine or ClassAffine(shape.width, shape.num_classes)
        return ConvOperation(shape.width, *CONVOLUTIONS[name], affine)
    if name in INTERPOLATIONS:
        return UpOperation(name, shape)
    if name == IDENTITY:
        return Identity()
    if name == NONE:
        return NoConnection(shape.size)
    known = ", ".join((*CONVOLUTIONS, *INTERPOLATIONS, IDENTITY, NONE))
    raise ValueError(f"unknown operation {name!r}; known: {known}")


def make_candidates(edge: Edge, shape: EdgeShape) -> dict[str, nn.Module]:
    """Return all candidates of an edge by name; the convolutions of a normal edge share one affine map."""
    shared = ClassAffine(shape.width, shape.num_classes) if edge.kind == NORMAL else None
    return {name: make_operation(name, shape, shared) for name in edge.candidates}


def mixture(operations: Mapping[str, nn.Module], weights: Tensor, features: Features, labels: Tensor) -> Summand:
    """Return eq. 8, Σ_j m_j · O_j(x), for weights m [F] in the order of ``operations``. ``none`` adds nothing."""
    with waiting_sums():
        return sum(
            weight * operation(features, labels)
            for weight, (name, operation) in zip(weights, operations.items(), strict=True)
            if name != NONE
        )


def sampled_operation(
    operations: Mapping[str, nn.Module], weights: Tensor, features: Features, labels: Tensor
) -> Tensor:
    """Return eq. 8 for one-hot weights [F], at the cost of the operation that they name.

    Only the weight of this operation receives a gradient (GDAS: Dong & Yang, CVPR 2019).
    """
    index = int(weights.argmax())
    y = cast(Tensor, list(operations.values())[index](features, labels))
    return weights[index] * y if weights.requires_grad else y
