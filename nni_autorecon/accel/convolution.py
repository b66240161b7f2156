"""Searched convolutions are summed in as few convolutions as possible.

Convolution is linear in its kernel: Σ_j m_j · conv_j(a) is the convolution with Σ_j m_j · kernel_j, if smaller kernels
are padded with zeros. The five convolutions of a normal edge become two, one for each dilation. The convolutions of
several edges into a node become one, over the channels of all edges.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import add
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import accel

LEAKY_SLOPE = 0.2
_sums_wait = False


@contextmanager
def waiting_sums() -> Iterator[None]:
    """Let :func:`activated_conv` wait inside the block, so that :func:`summed` can compute several as one."""
    global _sums_wait
    before, _sums_wait = _sums_wait, accel.enabled
    try:
        yield
    finally:
        _sums_wait = before


def activated_conv(
    x: Tensor, affine: nn.Module, labels: Tensor, conv: nn.Conv2d, *, size: tuple[int, int] | None = None
) -> Summand:
    """Return conv(leaky_relu(scale · x + shift)), [N, C', h, w], enlarged to ``size`` by nearest neighbour.

    x: [N, C, h, w].  ``affine`` maps ``labels`` to scale and shift, [N, 2, C].  ``conv`` has a bias, a square kernel
    and a padding that keeps the size.  Inside :func:`waiting_sums` the result is a :class:`ConvSum`.
    """
    if accel.enabled:
        total = ConvSum((_Term(x, affine, labels, conv, size or (x.shape[2], x.shape[3])),))
        return total if _sums_wait else total.computed()
    scale, shift = _pixels(affine(labels)).unbind(1)  # [N, C, 1, 1]
    return _at_size(conv(F.leaky_relu(scale * x + shift, LEAKY_SLOPE)), size or x.shape[2:])


def summed(parts: Iterable[Summand]) -> Tensor:
    """Return the sum of all parts as a tensor, [N, C', h, w]; parts that wait are computed now."""
    total = reduce(add, parts)
    return total if isinstance(total, Tensor) else total.computed()


class _Term(NamedTuple):
    x: Tensor
    affine: nn.Module
    labels: Tensor
    conv: nn.Conv2d
    size: tuple[int, int]
    weight: Tensor | None = None
    """This factor is a scalar tensor, []; None stands for 1."""

    @property
    def edge(self) -> tuple[Any, ...]:
        """Return a key that terms share if the same tensor enters their convolutions."""
        return id(self.x), id(self.affine), id(self.labels), self.size, self.weight is None


class ConvSum:
    """A tensor that is not computed yet: the sum of weighted convolutions and of a tensor ``rest``.

    It can be multiplied by a scalar tensor from the left. It can be added to others of its kind, to tensors and to 0.
    """

    __slots__ = ("rest", "terms")

    def __init__(self, terms: tuple[_Term, ...], rest: Tensor | None = None) -> None:
        self.terms, self.rest = terms, rest

    def __rmul__(self, weight: Tensor) -> ConvSum:
        terms = [_Term(*term[:5], weight if term.weight is None else weight * term.weight) for term in self.terms]
        return ConvSum(tuple(terms), None if self.rest is None else weight * self.rest)

    def __add__(self, other: Summand | int) -> ConvSum:
        if isinstance(other, int):
            return self if other == 0 else NotImplemented  # sum() begins with 0
        terms, rest = (other.terms, other.rest) if isinstance(other, ConvSum) else ((), other)
        if self.rest is not None:
            rest = self.rest if rest is None else self.rest + rest
        return ConvSum(self.terms + terms, rest)

    __radd__ = __add__

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle + and · with a tensor on the left; without this method Python takes ten times as long to ask us."""
        if function is Tensor.mul:
            return args[1].__rmul__(args[0])
        return args[1].__radd__(args[0]) if function is Tensor.add else NotImplemented

    def computed(self) -> Tensor:
        """Compute the tensor, [N, C', *size]."""
        edges: dict[tuple[Any, ...], list[_Term]] = defaultdict(list)
        for term in self.terms:
            edges[term.edge].append(term)
        alike: dict[tuple[Any, ...], list[list[_Term]]] = defaultdict(list)
        for edge in edges.values():
            alike[_form(edge)].append(edge)
        tensors = [] if self.rest is None else [self.rest]
        return reduce(
            torch.add, tensors + [_at_size(_one_conv(several), several[0][0].size) for several in alike.values()]
        )


Summand = Tensor | ConvSum
"""A part of a node's sum may wait to be computed until :func:`summed` has all parts."""


def _form(edge: Sequence[_Term]) -> tuple[Any, ...]:
    """Return a key that edges share if one convolution can sum them."""
    convs = [(term.conv.kernel_size, term.conv.dilation, term.conv.out_channels) for term in edge]
    return edge[0].x.shape, edge[0].size, edge[0].weight is None, *convs


def _one_conv(edges: Sequence[Sequence[_Term]]) -> Tensor:
    """Sum all terms of edges of the same form, by one convolution of all their channels for each dilation."""
    firsts = [edge[0] for edge in edges]
    x = _joined([term.x for term in firsts], 1)  # [N, T·C, h, w]
    scale, shift = _pixels(_joined([term.affine(term.labels) for term in firsts], 2)).unbind(1)
    a = F.leaky_relu_(torch.addcmul(shift, x, scale), LEAKY_SLOPE)
    kernels, bias = _merged(edges)
    (dilation, kernel), *others = kernels.items()
    y = _conv(a, kernel, bias, dilation)
    for dilation, kernel in others:
        y = y + _conv(a, kernel, None, dilation)
    return y


def _merged(edges: Sequence[Sequence[_Term]]) -> tuple[dict[int, Tensor], Tensor]:
    """Return one kernel for each dilation, [C', T·C, k, k], and one bias [C'] for all terms."""
    by_conv = list(zip(*edges, strict=True))  # J × T
    biases = [cast(Tensor, term.conv.bias) for terms in by_conv for term in terms]  # J·T times [C']
    kernels = [_joined([term.conv.weight for term in terms], 1) for terms in by_conv]
    if edges[0][0].weight is None:
        bias = reduce(torch.add, biases)
    else:
        weights = torch.stack([cast(Tensor, term.weight) for terms in by_conv for term in terms])  # [J·T]
        bias = weights @ torch.stack(biases)
        channels = edges[0][0].x.shape[1]
        factors = weights.view(len(by_conv), -1, 1).expand(-1, -1, channels).reshape(len(by_conv), -1, 1, 1)
        kernels = [kernel * factor for kernel, factor in zip(kernels, factors.unbind(), strict=True)]  # [T·C, 1, 1]
    by_dilation: dict[int, list[Tensor]] = defaultdict(list)
    for (term, *_), kernel in zip(by_conv, kernels, strict=True):
        by_dilation[term.conv.dilation[0]].append(kernel)
    return {dilation: _padded_sum(several) for dilation, several in by_dilation.items()}, bias


def _padded_sum(kernels: Sequence[Tensor]) -> Tensor:
    """Return the sum of kernels [C', C, k, k], with k of the largest of them."""
    largest = max(kernel.shape[-1] for kernel in kernels)
    margins = [(largest - kernel.shape[-1]) // 2 for kernel in kernels]
    return reduce(
        torch.add, (F.pad(kernel, [m] * 4) if m else kernel for kernel, m in zip(kernels, margins, strict=True))
    )


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _pixels(values: Tensor) -> Tensor:
    """Return values [..., C] as [..., C, 1, 1]."""
    return values.view(*values.shape, 1, 1)


def _at_size(y: Tensor, size: Sequence[int]) -> Tensor:
    return y if y.shape[2:] == size else F.interpolate(y, list(size), mode="nearest")


def _conv(a: Tensor, kernel: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Convolve a [N, C, h, w] with the kernel [C', C, k, k]; the result keeps h and w."""
    if dilation > 1 and a.device.type == "cpu" and a.shape[2] % dilation == 0 == a.shape[3] % dilation:
        return cast(Tensor, _ConvOfGrids.apply(a, kernel, bias, dilation))
    return F.conv2d(a, kernel, bias, padding=dilation * (kernel.shape[-1] - 1) // 2, dilation=dilation)


class _ConvOfGrids(torch.autograd.Function):
    """A dilated convolution whose gradient is fast on a CPU; PyTorch's own gradient of such a kernel is slow there.

    The pixels of an image form dilation² grids that do not touch one another. On each grid the kernel is a plain one.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, kernel: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
        ctx.save_for_backward(a, kernel)
        ctx.dilation = dilation
        return F.conv2d(a, kernel, bias, padding=dilation * (kernel.shape[-1] - 1) // 2, dilation=dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        a, kernel = ctx.saved_tensors
        of_a, of_kernel, of_bias, _ = ctx.needs_input_grad
        da = dkernel = None
        if of_a:
            da = _gradients(dy, a, kernel, ctx.dilation, [True, False, False])[0]
        if of_kernel:
            grids = _grids(dy, ctx.dilation), _grids(a, ctx.dilation)
            dkernel = _gradients(*grids, kernel, 1, [False, True, False])[1]
        return da, dkernel, dy.sum((0, 2, 3)) if of_bias else None, None


def _gradients(dy: Tensor, a: Tensor, kernel: Tensor, dilation: int, wanted: list[bool]) -> tuple[Tensor, ...]:
    """Return the gradients of a convolution for a, kernel and bias, as far as they are wanted."""
    padding = [dilation * (kernel.shape[-1] - 1) // 2] * 2
    return torch.ops.aten.convolution_backward(
        dy, a, kernel, None, [1, 1], padding, [dilation] * 2, False, [0, 0], 1, wanted
    )


def _grids(x: Tensor, step: int) -> Tensor:
    """Return x [N, C, h, w] as grids [step²·N, C, h / step, w / step], each of which has every ``step``-th pixel."""
    n, c, h, w = x.shape
    grids = x.view(n, c, h // step, step, w // step, step).permute(3, 5, 0, 2, 4, 1)
    return grids.reshape(-1, h // step, w // step, c).permute(0, 3, 1, 2)
