"""Moments from BatchNorm parameters: closed forms, the propagation through a graph, and what it refuses."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn
from torch.nn import functional as F

from nni_autorecon.errors import InputError
from nni_autorecon.quantization.activation_moments import (
    Moments,
    clipped_normal_moments,
    input_moments,
)
from nni_autorecon.quantization.folding import fold_batchnorms
from nni_autorecon.quantization.tracing import trace
from nni_autorecon.shapes import ImageShape

DEVIATIONS = 6.0


def full(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def entering(network: nn.Module, image: ImageShape) -> dict[str, list[Moments]]:
    folded = trace(network, remedy="mend it", image=image)
    outputs = fold_batchnorms(folded)
    mean = torch.zeros(1, *image, dtype=torch.float64)
    images = Moments.normal(mean, mean + 1, DEVIATIONS)
    return input_moments(folded, images, float_network=folded, outputs=outputs, deviations=DEVIATIONS)


def norm(beta: Tensor, gamma: Tensor) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(len(beta), eps=0)
    layer.load_state_dict({**layer.state_dict(), "bias": beta, "weight": gamma})
    return layer


@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (0.0, 6.0), (-1.0, 0.5)])
@pytest.mark.parametrize(("mean", "std"), [(0.3, 1.7), (-2.0, 0.4), (5.8, 2.0)])
def test_moments_of_a_clipped_normal_against_numerical_integration(mean, std, low, high):
    def expectation(power: int) -> float:
        edges = sorted({mean - 12 * std, mean + 12 * std, max(low, mean - 12 * std), min(high, mean + 12 * std)})
        density = stats.norm(mean, std).pdf
        parts = [
            integrate.quad(lambda x: np.clip(x, low, high) ** power * density(x), *ends, epsabs=1e-12)[0]
            for ends in itertools.pairwise(edges)
        ]
        return sum(parts)

    got_mean, got_var = clipped_normal_moments(full(mean), full(std**2), low, high)
    assert got_mean.item() == pytest.approx(expectation(1), rel=1e-7, abs=1e-9)
    assert got_var.item() == pytest.approx(expectation(2) - expectation(1) ** 2, rel=1e-6, abs=1e-9)


def test_channels_that_are_constant_or_far_from_the_clip():
    mean, var = clipped_normal_moments(full(2, -2, 0, 50, -50, 0.1), full(0, 0, 0, 1, 1, 1e-40), 0.0, math.inf)
    torch.testing.assert_close(mean, full(2, 0, 0, 50, 0, 0.1))
    torch.testing.assert_close(var, full(0, 0, 0, 1, 0, 0), rtol=1e-9, atol=1e-30)


def test_means_are_those_of_gaussian_images_through_a_network():
    torch.manual_seed(0)
    first, last = nn.Conv2d(2, 3, 3, bias=False), nn.Conv2d(3, 5, (2, 1))
    bn = norm(full(0.5, -1.0, 0.1), full(1.0, -2.0, 0.3))
    bn.running_var.copy_(first.weight.detach().square().sum((1, 2, 3)))  # of what standard normal images give
    network = nn.Sequential(first, bn, nn.ReLU(), last, nn.Flatten(), nn.Linear(5 * 2 * 3, 7)).double().eval()
    moments = entering(network, ImageShape(2, 5, 5))
    assert {path: len(calls) for path, calls in moments.items()} == {"0": 1, "3": 1, "5": 1}
    x = torch.randn(20000, 2, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        relu, flat = network[:3](x), network[:5](x)
    torch.testing.assert_close(moments["3"][0].mean.mean((0, 2, 3)), relu.mean((0, 2, 3)), rtol=0.02, atol=0.01)
    torch.testing.assert_close(moments["3"][0].var.mean((0, 2, 3)), relu.var((0, 2, 3)), rtol=0.05, atol=0.01)
    torch.testing.assert_close(moments["5"][0].mean, flat.mean(0, keepdim=True), rtol=0.02, atol=0.02)


def test_a_layer_without_batchnorm_passes_on_mean_and_variance_of_what_is_independent():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 1, 1)).double()
    (x,) = entering(network, ImageShape(2, 5, 7))["1"]
    weight, bias = network[0].weight.detach(), network[0].bias.detach()
    torch.testing.assert_close(x.mean[0, :, 2, 3], bias)
    torch.testing.assert_close(x.var[0, :, 2, 3], weight.square().sum((1, 2, 3)))
    torch.testing.assert_close(x.var[0, :, 0, 0], weight[:, :, 1:, 1:].square().sum((1, 2, 3)))  # beside the padding
    torch.testing.assert_close(x.high, x.mean + 6 * x.var.sqrt())


def test_ranges_are_beta_and_six_gamma_clipped_by_the_activation():
    network = nn.Sequential(nn.Conv2d(2, 3, 1), norm(full(0.5, -1.0, 9.0), full(1.0, -2.0, 0.5)), nn.ReLU6())
    moments = entering(nn.Sequential(*network, nn.Conv2d(3, 1, 1)).eval(), ImageShape(2, 3, 5))
    (x,) = moments["3"]
    assert x.low[0, :, 0, 0].tolist() == [0, 0, 6]
    assert x.high[0, :, 0, 0].tolist() == [6, 6, 6]
    (image,) = moments["0"]
    assert (image.low.min(), image.high.max()) == (-6, 6)


def test_shortcuts_padding_slices_pooling_and_chunks_keep_channels_apart():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(2, 2, 1), norm(full(3.0, -1.0), full(1.0, 2.0))
            self.linear = nn.Linear(7, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn(self.conv(x))
            padded = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))  # mean 0, 3, -1, 0; variance 0, 1, 4, 0
            first, second = padded.chunk(2, dim=1)
            total = torch.cat([padded + padded, first, second[:, :1]], dim=1)
            return self.linear(F.adaptive_avg_pool2d(total, 1).view(total.size(0), -1))

    (x,) = entering(Network().eval(), ImageShape(2, 5, 7))["linear"]
    torch.testing.assert_close(x.mean, full(0, 6, -2, 0, 0, 3, -1)[None])
    torch.testing.assert_close(x.var, full(0, 2, 8, 0, 0, 1, 4)[None])
    reach = 6 * full(0, 2, 8, 0, 0, 1, 4).sqrt()
    torch.testing.assert_close(x.high, (full(0, 6, -2, 0, 0, 3, -1) + reach)[None])


def test_a_sum_stays_within_the_sum_of_its_ranges():
    x = Moments.normal(full(0.0), full(1.0), DEVIATIONS).clipped(0.0, math.inf)
    total = x.plus(x, DEVIATIONS)
    assert total.low.item() == 0
    assert total.high.item() == pytest.approx(2 * x.mean.item() + 6 * math.sqrt(2 * x.var.item()))
    assert total.high.item() < 12


def test_a_batchnorm_that_could_not_be_folded_tells_its_own_output():
    preactivation = nn.Sequential(norm(full(0.5, -1.0), full(1.0, 2.0)), nn.Conv2d(2, 3, 1), nn.ReLU())
    (x,) = entering(preactivation.eval(), ImageShape(2, 3, 5))["1"]
    assert x.mean[0, :, 1, 2].tolist() == [0.5, -1.0]
    assert x.var[0, :, 1, 2].tolist() == [1.0, 4.0]


def test_what_cannot_be_followed_is_named():
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.SiLU(), nn.Conv2d(3, 1, 1))
    with pytest.raises(
        InputError, match=r"^DFQ cannot follow statistics through _2 \(silu\); choose a method that uses images$"
    ):
        entering(network.eval(), ImageShape(2, 3, 5))
