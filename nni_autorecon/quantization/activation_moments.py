"""Mean, variance and range of every activation of a network follow from its BatchNorm parameters alone.

DFQ (Nagel et al., ICCV 2019, sections 4.2 and 5) assumes that the output of a BatchNorm is normally distributed in each
channel, with mean beta and standard deviation gamma. An activation function turns it into a clipped normal.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from ..errors import InputError
from .calls import BATCHNORMS, QUANTIZED, called
from .folding import Normal, batchnorm_output
from .quantizers import ActivationQuantizer

CLIPS = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
"""Activation functions that clip to a range, by the name that :func:`.calls.called` gives them."""


_ON_EACH = re.compile(  # these may be applied to means, variances and bounds just as to values
    r"identity|\w*dropout[123]?d?|stochasticdepth|(un)?flatten|reshape|view|permute|transpose|(un)?squeeze|expand|size"
    r"|contiguous|clone|detach|chunk|split|getitem|getattr|cat|pad|zeropad2d|mean|(adaptive)?(avg|max)pool2d"
)


def clipped_normal_moments(mean: Tensor, var: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return mean and variance of min(max(X, low), high) for X ~ N(mean, var) (Nagel et al., appendix C).

    Let t be (X - mean) / std clipped to a .. b, and phi and Phi the standard normal density and distribution:

        E[t]  = a Phi(a) + b Phi(-b) + phi(a) - phi(b)
        E[t²] = a² Phi(a) + b² Phi(-b) + Phi(b) - Phi(a) + a phi(a) - b phi(b)

    mean, var: tensors of any one shape; both results have that shape.
    """
    std = var.sqrt()
    scale = std.clamp(min=torch.finfo(std.dtype).tiny)
    a, b = ((bound - mean).div(scale).clamp(-40, 40) for bound in (low, high))  # Phi(-40) is 0 even in float64

    def density(x: Tensor) -> Tensor:
        return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    below, above = torch.special.ndtr(a), torch.special.ndtr(-b)
    first = a * below + b * above + density(a) - density(b)
    second = a * a * below + b * b * above + (1 - above - below) + a * density(a) - b * density(b)
    return (mean + std * first).clamp(low, high), var * (second - first * first).clamp(min=0)


@dataclass(frozen=True)
class Moments:
    """Mean and variance of each element of an activation [1, ...] over the data, and a range that holds its values."""

    mean: Tensor
    var: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def normal(cls, mean: Tensor, var: Tensor, deviations: float) -> Moments:
        """Return moments with the range mean ± ``deviations`` standard deviations. mean, var: [1, ...]."""
        reach = deviations * var.sqrt()
        return cls(mean, var, mean - reach, mean + reach)

    def clipped(self, low: float, high: float) -> Moments:
        """Return the moments of the activation clipped to ``low`` .. ``high``, as if it were normal."""
        mean, var = clipped_normal_moments(self.mean, self.var, low, high)
        return Moments(mean, var, self.low.clamp(low, high), self.high.clamp(low, high))

    def plus(self, other: Moments, deviations: float) -> Moments:
        """Return the moments of the sum of two independent activations.

        The range is mean ± ``deviations`` standard deviations, but no wider than the sum of the two ranges.
        """
        total = Moments.normal(self.mean + other.mean, self.var + other.var, deviations)
        low, high = self.low + other.low, self.high + other.high
        return Moments(total.mean, total.var, torch.maximum(total.low, low), torch.minimum(total.high, high))


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

    Three approximations are made: the terms of an addition are independent, a sum is normal, and pooling leaves mean
    and variance as they are. Raises InputError at any operation but layers, addition, pooling, reshaping, padding,
    concatenation, BatchNorm, ReLU and ReLU6.
    """
    propagation = _Propagation(network, float_network, outputs, deviations)
    with torch.no_grad():
        propagation.run(images)
    return dict(propagation.inputs)


class _Propagation(fx.Interpreter):
    """An interpreter that runs a network on Moments instead of tensors."""

    def __init__(
        self, network: fx.GraphModule, float_network: nn.Module, outputs: Mapping[str, Normal], deviations: float
    ) -> None:
        super().__init__(network)
        self.extra_traceback = False  # a traceback would become part of the message of an InputError
        self.float_network, self.outputs, self.deviations = float_network, outputs, deviations
        self.inputs: dict[str, list[Moments]] = defaultdict(list)

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        operands: list[Any] = []
        fx.node.map_aggregate((args, kwargs), operands.append)  # this finds those within tuples, too
        if n.op in ("placeholder", "get_attr", "output") or not any(isinstance(x, Moments) for x in operands):
            return super().run_node(n)
        module, kind = called(self.module, n)  # type: ignore[arg-type]
        kind, path, x = kind.removesuffix("_"), str(n.target), operands[0]
        if isinstance(module, (*QUANTIZED, ActivationQuantizer)):
            self.inputs[path].append(x)
            return self._layer(path, x) if isinstance(module, QUANTIZED) else x
        if isinstance(module, BATCHNORMS):
            return self._normal(batchnorm_output(module), like=x.mean)
        if kind in CLIPS:
            return x.clipped(*CLIPS[kind])
        if kind in ("add", "iadd") and all(isinstance(arg, Moments) for arg in args) and not kwargs:
            return args[0].plus(args[1], self.deviations)
        if _ON_EACH.fullmatch(kind):
            return self._on_each(n, args, kwargs)
        raise InputError(f"DFQ cannot follow statistics through {n.name} ({kind}); choose a method that uses images")

    def _layer(self, path: str, x: Moments) -> Moments:
        """Return the moments of the output of a Conv2d or Linear, computed with its floating-point weights."""
        layer = self.float_network.get_submodule(path)
        weight = layer.get_parameter("weight").double()
        zeros = weight.new_zeros(len(weight))
        bias = zeros if layer.bias is None else layer.get_parameter("bias").double()
        mean = functional_call(layer, {"weight": weight, "bias": bias}, x.mean)  # [1, out, H', W'] or [1, ..., out]
        if path in self.outputs:
            return self._normal(self.outputs[path], like=mean)
        var = functional_call(layer, {"weight": weight.square(), "bias": zeros}, x.var)
        return Moments.normal(mean, var, self.deviations)

    def _normal(self, channels: Normal, *, like: Tensor) -> Moments:
        """Spread the distributions of C channels over the shape of ``like``, [1, C, ...]."""
        mean, std = (
            value.to(like).view(-1, *[1] * (like.ndim - 2)).expand_as(like) for value in (channels.mean, channels.std)
        )
        return Moments.normal(mean, std.square(), self.deviations)

    def _on_each(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Call the node with the means, with the variances, and with both bounds, and put the results together."""

        def call(field: str) -> Any:
            one = fx.node.map_aggregate((args, kwargs), lambda x: getattr(x, field) if isinstance(x, Moments) else x)
            return getattr(self, node.op)(node.target, *one)

        results = [call(field.name) for field in fields(Moments)]
        if isinstance(results[0], Tensor):
            return Moments(*results)
        if isinstance(results[0], (tuple, list)) and all(isinstance(part, Tensor) for part in results[0]):
            return tuple(Moments(*parts) for parts in zip(*results, strict=True))
        return results[0]  # a size is the same for all four
