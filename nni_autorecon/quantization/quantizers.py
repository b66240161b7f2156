"""Fake quantizers as modules: of a weight per output channel, of an activation per tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import DivergenceError
from .fake_quantize import FakeQuantizeChannels, fake_quantize
from .ranges import affine_qparams, highest_code, minmax_range, range_estimator


class WeightQuantizer(nn.Module):
    """Parametrization of a weight [out, ...]: fake quantization to the range of each output channel.

    The range is taken anew at each forward. With min-max ranges the gradient passes unchanged, for nothing is clipped.
    (By half a step at most, where both ends of a range lie exactly midway between codes, as in -1 to 1.) With the
    others it is zero where a weight was clipped.

    ranges: one of ``RANGES``.  Raises ValueError for other names and unless 1 <= bits <= 8.
    """

    def __init__(self, bits: int, *, ranges: str = "minmax") -> None:
        super().__init__()
        self.bits = bits
        self.estimate = range_estimator(ranges)
        self.largest_code = highest_code(bits)

    def forward(self, weight: Tensor) -> Tensor:
        if self.estimate is minmax_range:
            return cast(Tensor, FakeQuantizeChannels.apply(weight, *self.qparams(weight), self.largest_code))
        if not weight.isfinite().all():
            raise DivergenceError("weights of the student are no longer finite; lower the learning rate")
        return torch.fake_quantize_per_channel_affine(weight, *self.qparams(weight), 0, 0, self.largest_code)

    def qparams(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each output channel, both [out]. weight: [out, ...]."""
        weight = weight.detach()
        if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
            weight = weight.permute(0, 2, 3, 1)  # as it lies in memory; otherwise flatten would copy it
        return affine_qparams(*self.estimate(weight.flatten(1), self.bits), self.bits)


class ActivationQuantizer(nn.Module):
    """Per-tensor asymmetric fake quantization; the gradient is zero where the input was clipped.

    While ``observing``, each forward first moves an exponential average of the batch's range. The buffers hold the
    raw averages, bias-corrected on reading only; in float64, so that constants come back unchanged. After
    :meth:`learn_range` the range has a factor that is trained.

    ranges: one of ``RANGES``.  Raises ValueError for other names and unless 1 <= bits <= 8.
    """

    averages: Tensor  # [2]: low, high
    observations: Tensor  # []
    log_factor: nn.Parameter | None  # []

    def __init__(self, bits: int, *, ranges: str = "minmax", decay: float = 0.9) -> None:
        super().__init__()
        self.bits = bits
        self.estimate = range_estimator(ranges)
        self.largest_code = highest_code(bits)
        self.decay = decay
        self.observing = False
        self._known: tuple[Tensor, int, tuple[Tensor, Tensor]] | None = None
        self.register_buffer("averages", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("observations", torch.zeros((), dtype=torch.int64))
        self.register_parameter("log_factor", None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": None}  # a copy's averages count their versions anew

    def learn_range(self) -> nn.Parameter:
        """Give the range, and so the scale, a factor to be trained, 1 at first; returns its logarithm, a scalar.

        The zero point stays. See :func:`fake_quantize`.
        """
        self.log_factor = nn.Parameter(torch.zeros((), device=self.averages.device))
        return self.log_factor

    def forward(self, activation: Tensor) -> Tensor:
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
        """Scale and zero point of the present range, both []. Raises RuntimeError before the first observation."""
        scale, zero_point = self._tracked()
        return (scale if self.log_factor is None else scale * self.log_factor.detach().exp()), zero_point

    def _tracked(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the range as tracked, computed anew only where the averages have changed."""
        now = self.averages, self.averages._version
        if self._known is None or self._known[0] is not now[0] or self._known[1] != now[1]:
            self._known = *now, affine_qparams(*self.range(), self.bits)
        return self._known[2]

    def set_range(self, low: float, high: float) -> None:
        """Make the range ``low`` to ``high``, as one observed batch with these extremes would. Raises ValueError unless
        both are finite and in order."""
        if not -math.inf < low <= high < math.inf:
            raise ValueError(f"a range from {low} to {high} cannot be quantized; give two finite numbers in order")
        self.averages.copy_((1 - self.decay) * self.averages.new_tensor([low, high]))
        self.observations.fill_(1)

    def range(self) -> tuple[Tensor, Tensor]:
        """The bias-corrected average low and high, as tracked. Raises RuntimeError before the first observation."""
        if (count := int(self.observations)) == 0:
            raise RuntimeError("an activation quantizer has no range yet; run batches within observe_ranges() first")
        low, high = (self.averages / (1 - self.decay**count)).float()
        return low, high


@contextmanager
def observe_ranges(network: nn.Module) -> Iterator[None]:
    """Within it every ActivationQuantizer of ``network`` tracks its range; outside, ranges never change."""
    before = {module: module.observing for module in network.modules() if isinstance(module, ActivationQuantizer)}
    try:
        for quantizer in before:
            quantizer.observing = True
        yield
    finally:
        for quantizer, observing in before.items():
            quantizer.observing = observing


def learn_ranges(network: nn.Module) -> list[nn.Parameter]:
    """Let every ActivationQuantizer of ``network`` learn its range; the logarithms of their factors."""
    return [module.learn_range() for module in network.modules() if isinstance(module, ActivationQuantizer)]
