"""Fake quantizers as modules: weights are quantized per output channel, activations per tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import DivergenceError
from .fake_quantize import FakeQuantizeChannels, FakeQuantizeLearnedChannels, fake_quantize, round_through
from .ranges import affine_qparams, contained_qparams, highest_code, minmax_range, pair_scale, range_estimator

LARGEST_BIAS = 2**30
"""Biases are integers of 32 bits, and sums of products are to be added to them."""


class WeightQuantizer(nn.Module):
    """A parametrization that fake-quantizes a weight [out, ...] to the range of each output channel.

    The range is taken anew at each forward pass. With min-max ranges the gradient passes unchanged, because nothing is
    clipped by more than half a step. (That much is clipped where both ends of a range lie exactly midway between codes,
    as in -1 to 1.) With the other estimators the gradient is zero where a weight was clipped.

    After :meth:`learn_scale` scale and zero point stay as they are but for a factor of each channel, which is trained.

    ranges: a key of ``ranges.RANGES``; contained: take ``ranges.contained_qparams``, for weights held in INT8, and at 8
    bits a scale of at least ``ranges.pair_scale``.
    Raises ValueError for other names and unless 1 <= bits <= 8. The forward pass raises DivergenceError if a weight is
    not finite and the ranges are not min-max.
    """

    scale: Tensor | None  # [out]: None unless the scale is learned
    zero_point: Tensor | None  # [out]
    log_factor: nn.Parameter | None  # [out]

    def __init__(self, bits: int, *, ranges: str = "minmax", contained: bool = False) -> None:
        super().__init__()
        self.bits = bits
        self.ranges = ranges
        self.estimate = range_estimator(ranges)
        self.contained = contained
        self.largest_code = highest_code(bits)
        self.bypassed = False
        self.register_buffer("scale", None)
        self.register_buffer("zero_point", None)
        self.register_parameter("log_factor", None)

    def extra_repr(self) -> str:
        ranges = self.ranges if self.log_factor is None else "learned"
        return f"bits={self.bits}, ranges={ranges}, contained={self.contained}"

    def learn_scale(self, weight: Tensor) -> nn.Parameter:
        """Take scale and zero point from ``weight`` [out, ...], once and for all; multiply the scale by a factor.

        Returns the factor's logarithm, [out], 0 at first, to be trained. Its gradient is that of LSQ, as for
        activations.
        """
        self.scale, self.zero_point = self.qparams(weight)
        self.log_factor = nn.Parameter(torch.zeros_like(self.scale))
        return self.log_factor

    def forward(self, weight: Tensor) -> Tensor:
        if self.bypassed:
            return weight
        if self.log_factor is not None:
            learned = FakeQuantizeLearnedChannels.apply
            return cast(Tensor, learned(weight, self.log_factor, *self.qparams(weight), self.largest_code))
        if self.estimate is minmax_range:
            return cast(Tensor, FakeQuantizeChannels.apply(weight, *self.qparams(weight), self.largest_code))
        if not weight.isfinite().all():
            raise DivergenceError("weights of the student are no longer finite; lower the learning rate")
        return torch.fake_quantize_per_channel_affine(weight, *self.qparams(weight), 0, 0, self.largest_code)

    def qparams(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of each output channel, both [out]. weight: [out, ...]."""
        weight = weight.detach()
        if self.scale is not None and self.zero_point is not None and self.log_factor is not None:
            scale, zero_point = self.scale * self.log_factor.detach().exp(), self.zero_point
        else:
            rows = weight
            if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
                rows = weight.permute(0, 2, 3, 1)  # the order in memory, which flatten does not have to copy
            qparams = contained_qparams if self.contained else affine_qparams
            scale, zero_point = qparams(*self.estimate(rows.flatten(1), self.bits), self.bits)
        if self.contained and self.bits == 8:
            scale = scale.maximum(pair_scale(weight))
        return scale, zero_point


class ActivationQuantizer(nn.Module):
    """Per-tensor asymmetric fake quantization of an activation; the gradient is zero where the input was clipped.

    While ``observing`` is True, each forward pass first moves an exponential average of the batches' ranges. The
    buffers hold the raw averages, and only a reader corrects their bias. They are float64, so that the average of a
    constant is exactly that constant. After :meth:`learn_range` the range has a factor that is trained.

    ranges: a key of ``ranges.RANGES``; decay: the share of an average that stays when a batch is observed.
    Raises ValueError for other names and unless 1 <= bits <= 8. The forward pass raises DivergenceError if it observes
    a value that is not finite, and RuntimeError if no range has been observed or set.
    """

    averages: Tensor  # [2]: low and high
    observations: Tensor  # []: the number of batches observed
    log_factor: nn.Parameter | None  # []: None unless the range is learned

    def __init__(self, bits: int, *, ranges: str = "minmax", decay: float = 0.9) -> None:
        super().__init__()
        self.bits = bits
        self.ranges = ranges
        self.estimate = range_estimator(ranges)
        self.largest_code = highest_code(bits)
        self.decay = decay
        self.observing = self.bypassed = False
        self._known: tuple[Tensor, int, tuple[Tensor, Tensor]] | None = None
        self.register_buffer("averages", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("observations", torch.zeros((), dtype=torch.int64))
        self.register_parameter("log_factor", None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": None}  # a copied tensor counts its versions from 0 again

    def extra_repr(self) -> str:
        return f"bits={self.bits}, ranges={self.ranges}, learned={self.log_factor is not None}"

    def learn_range(self) -> nn.Parameter:
        """Multiply the range, and so the scale, by a factor to be trained; return its logarithm, a scalar.

        The factor is 1 at first. The zero point stays. The gradient is that of :func:`.fake_quantize.fake_quantize`.
        """
        self.log_factor = nn.Parameter(torch.zeros((), device=self.averages.device))
        return self.log_factor

    def forward(self, activation: Tensor) -> Tensor:
        if self.bypassed:
            return activation
        if self.observing:
            values = activation.detach().flatten()[None]  # [1, n]
            if not torch.stack(values.aminmax()).isfinite().all():
                raise DivergenceError("activations of the student are no longer finite; lower the learning rate")
            self.averages.lerp_(torch.cat(self.estimate(values, self.bits)).double(), 1 - self.decay)
            self.observations += 1
        if torch.is_grad_enabled():
            return fake_quantize(activation, *self._tracked(), self.largest_code, self.log_factor)
        return fake_quantize(activation, *self.qparams(), self.largest_code)

    def qparams(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of the present range, both [], with the learned factor if there is one.

        Raises RuntimeError before the first observation.
        """
        scale, zero_point = self._tracked()
        return (scale if self.log_factor is None else scale * self.log_factor.detach().exp()), zero_point

    def _tracked(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of the tracked range; compute them anew only if the averages have changed."""
        if self._known is None or not self._is_as_known():
            self._known = self.averages, self.averages._version, affine_qparams(*self.range(), self.bits)
        return self._known[2]

    def _is_as_known(self) -> bool:
        """Return True if the averages have not changed since scale and zero point were computed."""
        known = self._known
        return known is not None and known[0] is self.averages and known[1] == self.averages._version

    @property
    def has_range(self) -> bool:
        """Return True once a range has been observed or set; it is known without a look at the device, if it can be."""
        return self._is_as_known() or bool(self.observations)

    def set_range(self, low: float, high: float) -> None:
        """Set the range to ``low`` .. ``high``, as if one batch with this range had been observed.

        Raises ValueError unless both are finite and ``low`` <= ``high``.
        """
        if not -math.inf < low <= high < math.inf:
            raise ValueError(f"a range from {low} to {high} cannot be quantized; give two finite numbers in order")
        self.averages.copy_((1 - self.decay) * self.averages.new_tensor([low, high]))
        self.observations.fill_(1)

    def forget_range(self) -> None:
        """Forget all that was observed or set."""
        self.averages.zero_()
        self.observations.zero_()

    def range(self) -> tuple[Tensor, Tensor]:
        """Return the bias-corrected average low and high, both [], without a learned factor.

        Raises RuntimeError before the first observation.
        """
        if (count := int(self.observations)) == 0:
            raise RuntimeError("an activation quantizer has no range yet; run batches within observe_ranges() first")
        low, high = (self.averages / (1 - self.decay**count)).float()
        return low, high


class BiasQuantizer(nn.Module):
    """A parametrization that rounds a bias [out] to the integers that an integer engine adds to its sums of products.

    Their scale is that of the layer's input times that of its weight, over :func:`container_factor`. The gradient is
    the straight-through one. Before the input has a range the bias is what it is.

    layer: a layer whose weight carries a ``WeightQuantizer``; inputs: the quantizer of its input.
    """

    def __init__(self, layer: nn.Module, inputs: ActivationQuantizer) -> None:
        super().__init__()
        self._parts = layer, inputs  # a tuple, so that they do not count as parts of this module
        self.bypassed = False

    def forward(self, bias: Tensor) -> Tensor:
        layer, inputs = self._parts
        if self.bypassed or not inputs.has_range:
            return bias
        parametrization: Any = layer.parametrizations
        (quantizer,) = parametrization.weight
        weight_scale, _ = quantizer.qparams(parametrization.weight.original)
        scale = bias_scale(inputs.qparams()[0], weight_scale, quantizer.bits)
        return round_through(bias / scale).clamp(-LARGEST_BIAS, LARGEST_BIAS) * scale


def container_factor(bits: int) -> int:
    """Return the factor by which codes less their zero point are spread in the integers of 8 bits that hold them.

    It is the largest power of 2 that leaves them below 64, or 1: then no sum of two products with UINT8 exceeds the 16
    bits in which processors with AVX2 alone add them. (For weights of 8 bits ``ranges.pair_scale`` sees to that.) The
    finer steps are of use to biases.
    """
    return int(2 ** max(6 - bits, 0))


def bias_scale(input_scale: Tensor, weight_scale: Tensor, bits: int) -> Tensor:
    """Return the step of a bias in integers, [out]. input_scale: []; weight_scale: [out]; bits: those of the weight."""
    return input_scale * (weight_scale / container_factor(bits))


@contextmanager
def observe_ranges(network: nn.Module) -> Iterator[None]:
    """Let every ActivationQuantizer of ``network`` track its range within the block; outside, no range changes."""
    before = {module: module.observing for module in network.modules() if isinstance(module, ActivationQuantizer)}
    try:
        for quantizer in before:
            quantizer.observing = True
        yield
    finally:
        for quantizer, observing in before.items():
            quantizer.observing = observing


@contextmanager
def in_floating_point(network: nn.Module) -> Iterator[None]:
    """Let every quantizer of ``network`` pass its input on unchanged within the block."""
    quantizers = [m for m in network.modules() if isinstance(m, (WeightQuantizer, BiasQuantizer, ActivationQuantizer))]
    try:
        for quantizer in quantizers:
            quantizer.bypassed = True
        yield
    finally:
        for quantizer in quantizers:
            quantizer.bypassed = False


@contextmanager
def quantized_alone(quantizer: WeightQuantizer, bits: int) -> Iterator[None]:
    """Let one quantizer of a network :func:`in_floating_point` quantize within the block, to ``bits`` bits.

    Raises ValueError unless 1 <= bits <= 8.
    """
    before = quantizer.bits, quantizer.largest_code
    quantizer.bits, quantizer.largest_code, quantizer.bypassed = bits, highest_code(bits), False
    try:
        yield
    finally:
        quantizer.bits, quantizer.largest_code = before
        quantizer.bypassed = True


def learn_ranges(network: nn.Module) -> list[nn.Parameter]:
    """Let every ActivationQuantizer of ``network`` learn its range; return the logarithms of their factors."""
    return [module.learn_range() for module in network.modules() if isinstance(module, ActivationQuantizer)]
