"""Moments from BatchNorm parameters: closed forms, and their propagation through a graph, whatever is in it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn
from torch.nn import functional as F

from nni_autorecon.quantization.activation_moments import image_moments, input_means, input_moments
from nni_autorecon.quantization.folding import fold_batchnorms
from nni_autorecon.quantization.moments import Moments, clipped_normal_moments
from nni_autorecon.quantization.operators import ACTIVATIONS
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
    torch.testing.assert_close(x.var, full(0, 4, 16, 0, 0, 1, 4)[None])  # the two terms are one activation
    reach = 6 * full(0, 2, 4, 0, 0, 1, 2)
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


IMAGE = ImageShape(2, 3, 5)
BETA, GAMMA = (0.3, -1.2, 2.0), (1.0, 0.5, 1.5)


class Between(nn.Module):
    """A function between two layers; three normal channels with mean BETA and standard deviation GAMMA enter it."""

    def __init__(self, function: Callable[[Tensor], Tensor], last: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(2, 3, 1, bias=False), norm(full(*BETA), full(*GAMMA)), last
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.bn(self.conv(x))))


def after(function: Callable[[Tensor], Tensor], last: nn.Module | None = None) -> Moments:
    (x,) = entering(Between(function, last or nn.Conv2d(3, 1, 1)).double().eval(), IMAGE)["last"]
    return x


def normal_maps(count: int = 4000) -> Tensor:
    """Draw maps [count, 3, 3, 5] whose channels have mean BETA and standard deviation GAMMA."""
    noise = torch.randn(count, 3, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return full(*BETA).view(3, 1, 1) + full(*GAMMA).view(3, 1, 1) * noise


def sloped(slopes: int) -> nn.PReLU:
    layer = nn.PReLU(slopes)
    layer.weight.data = -torch.arange(1.0, slopes + 1) / 4
    return layer


PointwiseActivation = type("PointwiseActivation", (nn.Mish,), {"__module__": "torch.nn"})
"""A traced graph shows a hand-written activation as one module of a class with this name."""

CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        kind.__name__: kind()
        for kind in ACTIVATIONS
        if kind not in (nn.ReLU, nn.ReLU6, nn.PReLU, nn.Threshold, nn.GLU)  # RReLU is a LeakyReLU in eval mode
    },
    "PReLU": sloped(1),
    "PReLU of channels": sloped(3),
    "Threshold": nn.Threshold(0.5, -2.0),
    "PointwiseActivation": PointwiseActivation(),
    "silu in place": nn.SiLU(inplace=True),
    "function": F.hardswish,
    "approximate gelu": lambda x: F.gelu(x, approximate="tanh"),
    "method": lambda x: x.sigmoid(),
    "clamp": lambda x: x.clamp(-0.5, 1.0),
    "exp": torch.exp,
    "power": lambda x: x**3,
    "square": lambda x: x * x,
}


@pytest.mark.parametrize("name", CURVES)
def test_moments_behind_an_elementwise_function_are_its_integrals(name):
    function, got = CURVES[name], after(CURVES[name])
    t = torch.linspace(-6, 6, 200_001, dtype=torch.float64)
    weight = torch.exp(-t.square() / 2) / torch.exp(-t.square() / 2).sum()
    x = full(*BETA).view(3, 1, 1) + full(*GAMMA).view(3, 1, 1) * t.view(1, 1, -1)  # [3, 1, nodes]
    with torch.no_grad():
        curve = (function.double().eval() if isinstance(function, nn.Module) else function)(x[None].clone())[0, :, 0]
    mean = (weight * curve).sum(1)
    var = (weight * (curve - mean[:, None]).square()).sum(1)
    # a jump within a step of the quadrature is the worst case; what is smooth is exact
    tolerance = {"rtol": 0.06, "atol": 0.06} if "hrink" in name or "hresh" in name else {"rtol": 2e-3, "atol": 2e-3}
    torch.testing.assert_close(got.mean[0, :, 1, 2], mean, **tolerance)
    torch.testing.assert_close(got.var[0, :, 1, 2], var, **tolerance)
    torch.testing.assert_close(got.low[0, :, 2, 1], curve.amin(1), rtol=0.01, atol=0.02)
    torch.testing.assert_close(got.high[0, :, 2, 1], curve.amax(1), rtol=0.01, atol=0.02)


def test_a_generalized_mean_stays_within_the_range_of_its_input():
    """The range of the powers, to 1331, is of no account for their root."""
    got = after(lambda x: F.adaptive_avg_pool2d(x.clamp(min=1e-6).pow(3), 1).pow(1 / 3).expand(-1, -1, 3, 5))
    assert (got.low >= 0).all()
    torch.testing.assert_close(got.high[0, :, 0, 0], full(*BETA) + DEVIATIONS * full(*GAMMA))


def test_smooth_functions_are_followed_to_seven_digits():
    """E exp(X) = exp(beta + gamma² / 2), and the mean of a sine of X is exp(-gamma² / 2) sin(beta)."""
    beta, gamma = full(*BETA), full(0.3, 0.5, 0.7)
    x = Moments.normal(beta, gamma.square(), DEVIATIONS)
    torch.testing.assert_close(x.through(torch.exp).mean, torch.exp(beta + gamma.square() / 2), rtol=1e-7, atol=0)
    torch.testing.assert_close(
        x.through(torch.sin).mean, torch.exp(-gamma.square() / 2) * beta.sin(), rtol=1e-7, atol=0
    )


def test_the_minimum_of_silu_lies_inside_its_range():
    torch.testing.assert_close(after(nn.SiLU()).low[0, :, 0, 0], full(-0.2785, -0.2785, -0.2785), rtol=0, atol=2e-3)


def test_a_relu_behind_a_relu_changes_nothing():
    once, twice = after(F.relu), after(lambda x: F.relu6(F.relu(x) / 3))
    torch.testing.assert_close(twice.mean, once.mean / 3)
    torch.testing.assert_close(twice.var, once.var / 9)


class Scaled(nn.Module):
    """A learned scale and shift of each channel, in the other order than usual."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(full(2.0, -3.0, 0.5)), nn.Parameter(full(100.0, 0.0, -1.0))

    def forward(self, x: Tensor) -> Tensor:
        return 2 - (self.shift.view(3, 1, 1) + x * self.scale.view(3, 1, 1)) / 4


def test_scalars_and_parameters_scale_and_shift_exactly():
    x, scale, shift = after(Scaled()), full(2.0, -3.0, 0.5), full(100.0, 0.0, -1.0)
    beta, gamma = full(*BETA), full(*GAMMA)
    mean, reach = 2 - (shift + beta * scale) / 4, DEVIATIONS * gamma * scale.abs() / 4
    torch.testing.assert_close(x.mean[0, :, 1, 2], mean)
    torch.testing.assert_close(x.var[0, :, 1, 2], (gamma * scale / 4).square())
    torch.testing.assert_close(x.low[0, :, 1, 2], mean - reach)
    torch.testing.assert_close(x.high[0, :, 1, 2], mean + reach)


class Gated(nn.Module):
    """A gate [1, C, 1, 1] that comes from another image than the maps it weighs, so that the two are independent."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.squeeze(F.adaptive_avg_pool2d(x, 1)))


def test_a_gate_is_an_independent_factor():
    torch.manual_seed(0)
    gated = Gated()
    got = after(gated)
    x, others = normal_maps(), normal_maps().flip(0)[:, :, :1, :1]  # pooling leaves the variance as it is
    with torch.no_grad():
        product = x * torch.sigmoid(gated.squeeze(others))
    torch.testing.assert_close(got.mean[0, :, 1, 2], product.mean((0, 2, 3)), rtol=0.02, atol=0.02)
    torch.testing.assert_close(got.var[0, :, 1, 2], product.var((0, 2, 3)), rtol=0.05, atol=0.02)
    assert (got.low.amin((0, 2, 3)) >= full(*BETA) - 6 * full(*GAMMA)).all()
    assert (got.high.amax((0, 2, 3)) <= full(*BETA) + 6 * full(*GAMMA)).all()


def test_products_have_the_variance_and_the_corners_of_their_factors():
    a, b = Moments(full(2.0), full(9.0), full(-1.0), full(4.0)), Moments(full(-1.0), full(4.0), full(-5.0), full(3.0))
    product = a.times(b)
    assert [float(value) for value in (product.mean, product.var)] == [-2, 9 * 4 + 9 * 1 + 4 * 4]
    assert (product.low.item(), product.high.item()) == (4 * -5, 4 * 3)


def test_a_difference_adds_the_variances():
    x = after(lambda x: x - x.flip(1))
    assert x.mean[0, :, 1, 2].tolist() == pytest.approx([-1.7, 0, 1.7])
    torch.testing.assert_close(x.var[0, :, 1, 2], full(3.25, 0.5, 3.25))
    torch.testing.assert_close(x.high - x.low, 12 * x.var.sqrt())


SAMPLED: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(1),
    "GroupNorm": nn.GroupNorm(1, 3),
    "LayerNorm": nn.LayerNorm((3, 3, 5)),
    "InstanceNorm": nn.InstanceNorm2d(3),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "masked softmax": lambda x: x.masked_fill(torch.arange(5) > 2, float("-inf")).softmax(3),
    "einsum": lambda x: torch.einsum("nchw,ncvw->nchv", x, x)[..., :3],
    "norm": lambda x: F.normalize(x, dim=1),
    "where": lambda x: torch.where(torch.arange(5) > 2, x, x.square()),
    "maximum": lambda x: torch.maximum(x, x.roll(1, dims=2)),
    "GLU": nn.GLU(3),
    "largest": lambda x: x.max(dim=1, keepdim=True)[0].expand(-1, 3, -1, -1),
    "division": lambda x: x / (1 + x.roll(1, dims=2).abs()),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_what_has_no_formula_is_followed_by_samples(name):
    function = SAMPLED[name]
    if name == "GLU":
        function = nn.Sequential(nn.ReflectionPad2d((0, 1, 0, 0)), function)  # an even width
    got, x = after(function), normal_maps()
    with torch.no_grad():
        expected = (function.double() if isinstance(function, nn.Module) else function)(x)
    torch.testing.assert_close(got.mean.mean((0, 2, 3)), expected.mean((0, 2, 3)), rtol=0.1, atol=0.1)
    torch.testing.assert_close(got.var.mean((0, 2, 3)), expected.var(0).mean((1, 2)), rtol=0.35, atol=0.02)
    assert got.low.min() <= expected.quantile(0.001)
    assert got.high.max() >= expected.quantile(0.999)
    assert torch.stack([got.low, got.high]).isfinite().all()


def test_what_is_never_negative_has_no_negative_range():
    assert after(lambda x: x.softmax(1)).low.min() == 0
    assert after(lambda x: -x.norm(dim=1, keepdim=True).expand(-1, 3, -1, -1)).high.max() == 0


def test_samples_leave_the_generator_of_random_numbers_alone_and_are_always_the_same():
    network = Between(nn.Softmax(1), nn.Conv2d(3, 1, 1)).double().eval()
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(entering(network, IMAGE)["last"][0])
        after_run = torch.rand(1)
        assert torch.equal(after_run, torch.rand(1, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(results[0].mean, results[1].mean)
    assert not torch.equal(results[0].mean[..., 0], results[0].mean[..., 1])


def test_a_batchnorm_without_statistics_takes_those_of_the_samples():
    x = after(nn.BatchNorm2d(3, track_running_stats=False))
    torch.testing.assert_close(x.mean.mean((0, 2, 3)), full(0, 0, 0), rtol=0, atol=1e-6)
    torch.testing.assert_close(x.var.mean((0, 2, 3)), full(1, 1, 1), rtol=0, atol=0.1)


def test_a_transposed_convolution_is_followed_as_a_layer():
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(3, 4, 2, stride=2)
    x = after(layer, nn.Conv2d(4, 1, 1))
    weight = layer.weight.detach()  # [3, 4, 2, 2]
    expected = (full(*BETA).view(3, 1, 1, 1) * weight).sum(0) + layer.bias.detach().view(4, 1, 1)
    torch.testing.assert_close(x.mean[0, :, 2:4, 4:6], expected)
    torch.testing.assert_close(x.var[0, :, :2, 8:], (full(*GAMMA).view(3, 1, 1, 1) * weight).square().sum(0))


def test_constants_that_padding_and_concatenation_add_do_not_vary():
    class Bordered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.full((1, 1, 3, 5), 4.0))

        def forward(self, x: Tensor) -> Tensor:
            return F.pad(torch.cat([x, self.token.expand(x.shape[0], -1, -1, -1)], dim=1), (1, 0), value=-7.0)

    x = after(Bordered(), nn.Conv2d(4, 1, 1))
    torch.testing.assert_close(x.mean[0, :, 1, 1], full(*BETA, 4))
    torch.testing.assert_close(x.var[0, :, 1, 1], full(1, 0.25, 2.25, 0))
    assert x.var[..., 0].abs().max() == 0
    assert x.low[0, 3, 1].tolist() == x.high[0, 3, 1].tolist() == [-7, 4, 4, 4, 4, 4]


def test_points_at_which_a_function_is_not_finite_are_left_out():
    x = Moments(full(4.0), full(1.0), full(0.0), full(9.0)).through(torch.rsqrt)  # 1 / sqrt(0) at its low end
    assert x.mean.item() == pytest.approx(integrate.quad(lambda v: v**-0.5 * stats.norm(4).pdf(v), 0, 9)[0], abs=2e-3)
    assert x.low.item() == pytest.approx(1 / 3)
    assert 1 < x.high.item() < 5


def test_a_mean_over_channels_is_one_of_independent_values_and_a_mean_over_places_is_not():
    places, channels = (after(lambda x, dim=dim: x.mean(dim, keepdim=True).expand(x.shape)) for dim in ((2, 3), 1))
    torch.testing.assert_close(places.var[0, :, 0, 0], full(*GAMMA).square())
    torch.testing.assert_close(channels.var.mean(), full(*GAMMA).square().sum() / 9, rtol=0.3, atol=0)
    torch.testing.assert_close(channels.mean.mean(), full(*BETA).mean())


def test_one_of_several_results_is_picked_by_its_name():
    x = after(lambda x: x.expand(-1, 3, 3, 5).max(dim=1, keepdim=True).values.expand(-1, 3, 3, 5))
    assert x.mean.min() > 1.9


def test_a_sum_over_a_map_has_the_range_of_so_many_equal_values():
    x = after(lambda x: x.sum((2, 3), keepdim=True))
    torch.testing.assert_close(x.mean.flatten(), 15 * full(*BETA))
    torch.testing.assert_close(x.var.sqrt().flatten(), 15 * full(*GAMMA))
    torch.testing.assert_close(x.high.flatten(), 15 * (full(*BETA) + 6 * full(*GAMMA)))


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_upsampling_and_shuffling_keep_constant_maps(mode):
    def there_and_back(x: Tensor) -> Tensor:
        spread = F.pixel_shuffle(x.repeat_interleave(4, dim=1), 2)  # [1, 3, 6, 10]
        return F.interpolate(spread, scale_factor=3, mode=mode).roll(1, dims=2)

    x = after(there_and_back)
    assert x.mean.shape == (1, 3, 18, 30)
    torch.testing.assert_close(x.mean, full(*BETA).view(1, 3, 1, 1).expand(1, 3, 18, 30))
    torch.testing.assert_close(x.var, full(*GAMMA).square().view(1, 3, 1, 1).expand(1, 3, 18, 30))
    torch.testing.assert_close(x.high - x.mean, 6 * x.var.sqrt())


def test_a_layer_that_sees_a_constant_is_told_so():
    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.embed = nn.Parameter(full(1.0, -1.0)), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.embed(self.place).view(1, -1, 1, 1)

    network = Between(Conditioned(), nn.Conv2d(3, 1, 1)).double().eval()
    moments = entering(network, IMAGE)
    assert moments["function.embed"][0].mean.tolist() == [1, -1]
    expected = full(*BETA) + network.function.embed(full(1.0, -1.0)).detach()
    torch.testing.assert_close(moments["last"][0].mean[0, :, 2, 0], expected)
    torch.testing.assert_close(moments["last"][0].var[0, :, 2, 0], full(*GAMMA).square())


def test_a_float32_network_that_asks_for_its_type_is_followed_in_that_type():
    def typed(x: Tensor) -> Tensor:
        return (x.flatten(2) @ torch.eye(15, dtype=x.dtype)).view(x.shape).to(x.dtype)

    (x,) = entering(Between(typed, nn.Conv2d(3, 1, 1)).eval(), IMAGE)["last"]
    torch.testing.assert_close(x.mean[0, :, 1, 1], full(*BETA), rtol=1e-5, atol=1e-5)  # mirrored samples: exact


def test_means_of_inputs_follow_from_the_norm_before() -> None:
    """The mean of max(X, 0) with X ~ N(b, g²) is b Phi(b / g) + g phi(b / g)."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(72, 5)
    ).eval()
    nn.init.uniform_(network[1].weight, 0.5, 2)
    nn.init.normal_(network[1].bias)
    means = input_means(trace(network, remedy=""), image_moments(ImageShape(3, 8, 8), None))
    assert list(means) == ["0", "3", "5"]
    torch.testing.assert_close(means["0"], torch.zeros(3, dtype=torch.float64))
    normal, (b, g) = torch.distributions.Normal(0.0, 1.0), (network[1].bias.double(), network[1].weight.double())
    torch.testing.assert_close(means["3"], b * normal.cdf(b / g) + g * normal.log_prob(b / g).exp())
