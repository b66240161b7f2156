"""Mean, variance and range of every activation of a network follow from its BatchNorm parameters alone.

DFQ (Nagel et al., ICCV 2019, sections 4.2 and 5) assumes that the output of a BatchNorm is normally distributed in each
channel, with mean beta and standard deviation gamma. What then happens to it follows by a formula, by quadrature, or
from samples, in this order of preference.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..shapes import ImageShape
from .calls import BATCHNORMS, QUANTIZED, called
from .folding import Normal, batchnorm_output
from .moments import Moments
from .operators import ACTIVATIONS, CASTS
from .quantizers import ActivationQuantizer

CLIPS = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
"""Activation functions that clip to a range, by the name that :func:`.calls.called` gives them."""
DEVIATIONS = 6.0
"""The range of a normal distribution goes so many standard deviations to both sides."""
SAMPLES = 32
"""So many samples are sent through an operation for which there is no formula."""
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ADDITION, _SUBTRACTION, _PRODUCT = re.compile("i?add"), re.compile("i?sub|subtract"), re.compile("i?mul|multiply")
_AFFINE = re.compile(f"{_ADDITION.pattern}|{_SUBTRACTION.pattern}|{_PRODUCT.pattern}|rsub|neg|negative")
_DIVISION = re.compile("i?(true)?div|divide")
_ELEMENTWISE = re.compile(  # each element of the result comes from one element
    "|".join(activation.__name__.lower() for activation in ACTIVATIONS if activation is not nn.GLU)
    + f"|{_AFFINE.pattern}|{_DIVISION.pattern}|pointwiseactivation|abs|square|i?pow|r?sqrt|reciprocal|exp|expm1|log1?p?"
    "|erf|sin|cos|clip|clamp(min|max)?"
)
_ON_EACH = re.compile(  # these may be applied to means, variances and bounds just as to values
    r"identity|\w*dropout[123]?d?|stochasticdepth|(un)?flatten|reshape(as)?|view(as)?|permute|t|transpose"
    r"|move(axis|dim)|swap(axes|dims)|(un)?squeeze|expand(as)?|repeat(interleave)?|tile|roll|flip|size|dim|numel"
    rf"|contiguous|clone|detach|{CASTS.pattern}|(tensor)?split|chunk|unbind|(index)?select|narrow"
    r"|getitem|getattr|cat|concat(enate)?|stack|\w*pad([123]d)?|sum|mean|amax|amin|(adaptive)?(avg|max)pool[123]d"
    r"|interpolate|upsampl\w*|pixel(un)?shuffle|channelshuffle"
)


def image_moments(
    image: ImageShape,
    pixel_range: tuple[Sequence[float], Sequence[float]] | None,
    *,
    deviations: float = DEVIATIONS,
    device: torch.device | str = "cpu",
) -> Moments:
    """Return the moments of images that are standardized (mean 0, variance 1), as [1, C, H, W].

    pixel_range: the least and the largest value of each channel; None means ± ``deviations``.
    """
    mean = torch.zeros(1, *image, dtype=torch.float64, device=device)
    if pixel_range is None:
        return Moments.normal(mean, mean + 1, deviations)
    low, high = (mean + mean.new_tensor(ends).view(-1, 1, 1) for ends in pixel_range)
    return Moments(mean, mean + 1, low, high)


def input_means(network: fx.GraphModule, images: Moments) -> dict[str, Tensor]:
    """Return the mean of each channel, [C], that enters each Conv2d and Linear of a network in floating point, by path.

    images: the moments of one image [1, C, H, W].
    """
    inputs = input_moments(network, images, float_network=network, outputs={}, deviations=DEVIATIONS)
    return {
        path: torch.stack([channel_mean(network.get_submodule(path), x.mean) for x in moments]).mean(0)
        for path, moments in inputs.items()
    }


def channel_mean(layer: nn.Module, mean: Tensor) -> Tensor:
    """Average over all but the channels: [1, C, H, W] of a convolution, or [1, ..., C] of a linear layer, to [C]."""
    channels_last = mean.transpose(-3, -1) if isinstance(layer, nn.Conv2d) else mean
    return channels_last.reshape(-1, channels_last.shape[-1]).mean(0)


def input_moments(
    network: fx.GraphModule,
    images: Moments,
    *,
    float_network: nn.Module,
    outputs: Mapping[str, Normal],
    deviations: float,
) -> dict[str, list[Moments]]:
    """Return the moments that enter each Conv2d, Linear and ActivationQuantizer of ``network``.

    The result maps the path of a module to a list with the moments of each of its calls.

    images: the moments of one image [1, C, H, W].
    float_network: the network before quantization, with the same paths.
    outputs: the outputs of layers, by path, that are known because a BatchNorm was folded into the layer. Mean and
        variance of all other layers' outputs follow from those of their inputs, whose elements count as independent.
    deviations: the half-width of the range of a normal distribution, in standard deviations.

    Approximations are made: the terms of a sum and the factors of a product are independent, a sum and what enters an
    activation function are normal, and pooling leaves mean and variance as they are. Where there is no formula, as for
    softmax or LayerNorm, ``SAMPLES`` samples are sent through the operation.
    """
    propagation = _Propagation(network, float_network, outputs, deviations)
    with torch.no_grad():
        propagation.run(images)
    return dict(propagation.inputs)


Call = Callable[[Callable[[Moments], Tensor]], Any]
"""A call of an operation takes a function that makes a tensor of each activation."""


class _Propagation(fx.Interpreter):
    """An interpreter that runs a network on Moments instead of tensors."""

    def __init__(
        self, network: fx.GraphModule, float_network: nn.Module, outputs: Mapping[str, Normal], deviations: float
    ) -> None:
        super().__init__(network)
        self.float_network, self.outputs, self.deviations = float_network, outputs, deviations
        self.inputs: dict[str, list[Moments]] = defaultdict(list)
        example = next(network.parameters())
        self.dtype, self.device = example.dtype, example.device
        self.generator = torch.Generator().manual_seed(0)

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        operands: list[Any] = []
        fx.node.map_aggregate((args, kwargs), operands.append)  # this finds those within tuples, too
        module, kind = called(self.module, n)  # type: ignore[arg-type]
        known = [x for x in operands if isinstance(x, Moments)]
        if isinstance(module, (*QUANTIZED, ActivationQuantizer)):
            path, x = str(n.target), known[0] if known else Moments.constant(operands[0].double())
            self.inputs[path].append(x)
            is_layer = isinstance(module, QUANTIZED)
            return self._layer(path, self.float_network.get_submodule(path), x) if is_layer else x
        picks = kind in ("getitem", "getattr") and bool(args) and isinstance(args[0], tuple)  # one of several results
        if n.op in ("placeholder", "output") or not known or picks:
            return super().run_node(n)
        if isinstance(module, BATCHNORMS) and module.running_var is not None:
            return self._normal(batchnorm_output(module), known[0].mean.shape)
        if isinstance(module, nn.Module) and type(module) in _TRANSPOSED and len(operands) == 1:
            return self._layer(str(n.target), module, known[0])

        def call(value: Callable[[Moments], Tensor]) -> Any:
            given = fx.node.map_aggregate((args, kwargs), lambda x: value(x) if isinstance(x, Moments) else x)
            return getattr(self, n.op)(n.target, *given)

        return self._operation(kind.removesuffix("_"), operands, known, call)

    def _operation(self, kind: str, operands: list[Any], known: list[Moments], call: Call) -> Any:
        """Return what an operation that is no layer makes of the activations ``known`` among its ``operands``."""
        x = known[0]
        if kind in CLIPS:
            return x.clipped(*CLIPS[kind])
        if _ON_EACH.fullmatch(kind) and not (x.mean.ndim == 4 and _joins_channels(kind, operands)):
            return self._on_each(kind, call)
        if all(other is x for other in known):
            if _is_affine(kind, operands):
                return x.through_affine(lambda value: call(lambda _: value.clone()))
            if _ELEMENTWISE.fullmatch(kind):
                return x.through(lambda value: call(lambda _: value.to(self.dtype, copy=True)).double())
        elif len(known) == len(operands) == 2:
            if _ADDITION.fullmatch(kind):
                return x.plus(known[1], self.deviations)
            if _SUBTRACTION.fullmatch(kind):
                return x.plus(known[1].through_affine(torch.neg), self.deviations)
            if _PRODUCT.fullmatch(kind):
                return x.times(known[1])
        return self._sampled(known, call)

    def _layer(self, path: str, layer: nn.Module, x: Moments) -> Moments:
        """Return the moments of the output of a layer, computed with its floating-point weights."""
        own = {name: parameter.double() for name, parameter in layer.named_parameters()}
        if path in self.outputs:
            empty = {name: parameter.to("meta") for name, parameter in own.items()}
            return self._normal(self.outputs[path], functional_call(layer, empty, x.mean.to("meta")).shape)
        mean = functional_call(layer, own, x.mean)  # [1, out, H', W'] or [1, ..., out]
        squares = {name: own[name].square() if name == "weight" else torch.zeros_like(own[name]) for name in own}
        return Moments.normal(mean, functional_call(layer, squares, x.var), self.deviations)

    def _normal(self, channels: Normal, shape: torch.Size) -> Moments:
        """Spread the distributions of C channels over a shape [1, C, ...]."""
        mean, std = (value.to(self.device, torch.float64) for value in channels)
        spread = Moments.normal(mean, std.square(), self.deviations)  # [C]
        return spread.each(lambda part: part.view(-1, *[1] * (len(shape) - 2)).expand(shape))

    def _on_each(self, kind: str, call: Call) -> Any:
        """Call an operation with the means, the variances and both bounds, and put the results together.

        The operation may add constants, as padding does: they have no variance. A sum over elements of an activation
        takes them as equal to each other, just as a mean does.
        """
        results, structure = tree_flatten(call(lambda x: x.mean.to(self.dtype)))
        if not any(_is_real(result) for result in results):
            return tree_unflatten(results, structure)  # these are sizes, for example
        means, variances, lows, highs, zeros = (
            tree_flatten(call(value))[0]
            for value in (
                lambda x: x.mean,
                lambda x: x.var.sqrt() if kind == "sum" else x.var,
                lambda x: x.low,
                lambda x: x.high,
                lambda x: torch.zeros_like(x.mean),
            )
        )
        for index, mean in enumerate(means):
            if _is_real(mean):
                var = _finite(variances[index] - zeros[index]).clamp(min=0)
                var = var.square() if kind == "sum" else var
                results[index] = Moments(mean.double(), var, lows[index].double(), highs[index].double())
        return tree_unflatten(results, structure)

    def _sampled(self, known: list[Moments], call: Call) -> Any:
        """Return the moments of the results of ``SAMPLES`` samples, which come in pairs mirrored at the mean.

        So the mean of a linear operation is exact. The range is mean ± ``deviations`` standard deviations, because the
        ends of so few samples are much too narrow. If all results are of one sign, the range is, too: such operations,
        softmax or a norm, are bounded there. Whatever is no tensor of real numbers is that of the means.
        """
        results, structure = tree_flatten(call(lambda x: x.mean.to(self.dtype)))
        real = [index for index, result in enumerate(results) if _is_real(result)]
        pivots = [_finite(results[index]) for index in real]
        first, second = [torch.zeros_like(pivot) for pivot in pivots], [torch.zeros_like(pivot) for pivot in pivots]
        ends = [(pivot.min(), pivot.max()) for pivot in pivots]
        for draw in self._draws(known):
            leaves, _ = tree_flatten(call(draw))
            for place, index in enumerate(real):
                value = _finite(leaves[index])
                change = value - pivots[place]
                first[place], second[place] = first[place] + change, second[place] + change.square()
                low, high = ends[place]
                ends[place] = torch.minimum(low, value.min()), torch.maximum(high, value.max())
        for index, pivot, total, squares, (low, high) in zip(real, pivots, first, second, ends, strict=True):
            var = (squares - total.square() / SAMPLES).clamp(min=0) / (SAMPLES - 1)
            moments = Moments.normal(pivot + total / SAMPLES, var, self.deviations)
            bounds = (0.0 if low >= 0 else -math.inf), (0.0 if high <= 0 else math.inf)
            results[index] = Moments(moments.mean, var, moments.low.clamp(*bounds), moments.high.clamp(*bounds))
        return tree_unflatten(results, structure)

    def _draws(self, known: list[Moments]) -> Iterator[Callable[[Moments], Tensor]]:
        """Yield functions that return a sample of an activation of ``known``, within its range."""
        for _ in range(SAMPLES // 2):
            noise = {id(x): torch.randn(x.mean.shape, generator=self.generator).to(x.mean) for x in known}
            for sign in (1, -1):
                samples = {
                    id(x): (x.mean + sign * x.var.sqrt() * noise[id(x)]).clamp(x.low, x.high).to(self.dtype)
                    for x in known
                }
                yield lambda x, samples=samples: samples[id(x)]  # type: ignore[misc]


def _is_affine(kind: str, operands: list[Any]) -> bool:
    """Return True for an affine function of one activation, which may stand in several places."""
    places = [place for place, operand in enumerate(operands) if isinstance(operand, Moments)]
    if _DIVISION.fullmatch(kind):
        return places == [0] and len(operands) == 2
    return _AFFINE.fullmatch(kind) is not None and (len(places) == 1 or not _PRODUCT.fullmatch(kind))


def _joins_channels(kind: str, operands: list[Any]) -> bool:
    """Return True for a mean or a sum over the channels of maps [1, C, H, W], which are independent, unlike places."""
    return kind in ("mean", "sum") and any(type(dim) is int and dim in (1, -3) for dim in operands)  # True == 1


def _is_real(value: Any) -> bool:
    """Return True for a tensor of real numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def _finite(value: Tensor) -> Tensor:
    """Return ``value`` in float64; a mask's infinities become large numbers, with which a variance can be computed."""
    return value.double().nan_to_num(0.0, 1e30, -1e30)
