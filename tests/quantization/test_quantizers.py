"""Ranges, scales and zero points, and fake quantization against the written formula, in value and gradient."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from nni_autorecon import accel
from nni_autorecon.errors import DivergenceError
from nni_autorecon.quantization.fake_quantize import fake_quantize
from nni_autorecon.quantization.integers import FixedQuantizer
from nni_autorecon.quantization.quantizers import (
    ActivationQuantizer,
    BiasQuantizer,
    WeightQuantizer,
    container_factor,
    in_floating_point,
    learn_ranges,
    observe_ranges,
)
from nni_autorecon.quantization.ranges import (
    LEAST_RATIO,
    PERCENTILE,
    RANGES,
    SHRINKAGES,
    affine_qparams,
    minmax_range,
    mse_range,
    percentile_range,
    range_by_bits,
)

BITS = range(1, 9)


def reference(x: Tensor, low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return (clamp(round(x / s) + z, 0, n) - z) * s and its clip mask, in float64."""
    x, n = x.double(), 2**bits - 1
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    s = (high - low) / n
    z = torch.round(-low / s)
    code = torch.round(x / s) + z
    return (code.clamp(0, n) - z) * s, ((code >= 0) & (code <= n)).float()


def value_and_gradient(quantizer: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient is divided by the weights of a weighted sum, so that no two elements may be exchanged."""
    x = x.detach().requires_grad_()
    y = quantizer(x)
    weights = torch.arange(1.0, x.numel() + 1).view_as(x)
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    return y.detach(), gradient / weights


def activation_quantizer(bits: int, low: float, high: float) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(bits)
    with observe_ranges(quantizer):
        quantizer(torch.tensor([low, high]))
    return quantizer


# ------------------------------------------------------------------------------------------------- scale, zero point


def test_worked_example_of_the_docstring() -> None:
    scale, zero_point = affine_qparams(torch.tensor([-1.0, -4.0]), torch.tensor([2.0, -1.0]), 2)
    assert torch.equal(scale, torch.tensor([1.0, 4 / 3]))  # the second range is widened to -4 .. 0
    assert torch.equal(zero_point, torch.tensor([1, 3], dtype=torch.int32))


@pytest.mark.parametrize("bits", BITS)
def test_zero_and_tiny_ranges_have_a_finite_positive_scale(bits: int) -> None:
    scale, _ = affine_qparams(torch.tensor([0.0, 0.0, -1e-44]), torch.tensor([0.0, 1e-44, 1e-40]), bits)
    assert (scale > 0).all()
    assert (1 / scale).isfinite().all()
    assert torch.equal(WeightQuantizer(bits)(torch.zeros(2, 3)), torch.zeros(2, 3))


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_bits_out_of_range(bits: int) -> None:
    for use in (
        lambda: affine_qparams(torch.zeros(()), torch.ones(()), bits),
        lambda: WeightQuantizer(bits),
        lambda: ActivationQuantizer(bits),
    ):
        with pytest.raises(ValueError, match="choose 1 to 8"):
            use()


# ---------------------------------------------------------------------------------------------------- fake quantizers


@pytest.mark.parametrize("bits", BITS)
def test_weights_equal_the_formula_in_value_and_gradient(bits: int) -> None:
    weight = torch.randn(5, 3, 2, 7) * torch.tensor([0.1, 1, 3, 0.01, 20]).view(5, 1, 1, 1) + 0.02
    value, gradient = value_and_gradient(WeightQuantizer(bits), weight)
    channels = weight.flatten(1)
    expected, mask = reference(channels, channels.amin(1, keepdim=True), channels.amax(1, keepdim=True), bits)
    torch.testing.assert_close(value.flatten(1).double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(gradient.flatten(1), mask)
    assert mask.all()  # nothing lies outside the minimum and maximum


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("low", "high"), [(0.0, 2.3), (-0.71, 2.3), (-2.3, 0.31), (-2.3, -0.1), (1.0, 3.0)])
def test_activations_equal_the_formula_in_value_and_gradient(bits: int, low: float, high: float) -> None:
    quantizer = activation_quantizer(bits, low, high)
    x = torch.cat([torch.linspace(-4, 4, 1001), torch.tensor([low, high, 0.0])])
    value, gradient = value_and_gradient(quantizer, x)
    expected, mask = reference(x, torch.tensor(low), torch.tensor(high), bits)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(gradient, mask)
    assert set(mask.tolist()) == {0, 1}


def test_both_ends_of_the_range_and_half_a_step_beyond_pass_the_gradient() -> None:
    quantizer = activation_quantizer(2, -1.0, 2.0)  # scale 1, codes for -1, 0, 1, 2
    value, gradient = value_and_gradient(quantizer, torch.tensor([-9, -1.6, -1.4, -1, 0, 0.6, 2, 2.4, 2.6, 9]))
    assert value.tolist() == [-1, -1, -1, -1, 0, 1, 2, 2, 2, 2]
    assert gradient.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("ranges", RANGES)
def test_weights_have_the_same_values_in_either_layout(ranges: str) -> None:
    weight, quantizer = torch.randn(4, 3, 5, 6), WeightQuantizer(3, ranges=ranges)
    other = quantizer(weight.contiguous(memory_format=torch.channels_last))
    assert torch.equal(other, quantizer(weight))
    assert other.is_contiguous(memory_format=torch.channels_last)


def test_a_gradient_in_another_layout_is_brought_to_that_of_the_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "enabled", True)
    quantizer = activation_quantizer(4, -1.0, 2.0)
    x = (2 * torch.randn(2, 3, 4, 5)).contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn(2, 3, 4, 5)
    (got,) = torch.autograd.grad(quantizer(x), x, gradient)
    assert got.is_contiguous(memory_format=torch.channels_last)
    (expected,) = torch.autograd.grad(quantizer(x), x, gradient.contiguous(memory_format=torch.channels_last))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("low", "high"), [(0.0, 2.3), (-0.71, 2.3), (-2.3, -0.1)])
@pytest.mark.parametrize("factor", [1.0, 0.6, 1.7])
def test_a_learned_range_has_the_gradient_of_lsq(bits: int, low: float, high: float, factor: float) -> None:
    quantizer = activation_quantizer(bits, low, high)
    log_factor = quantizer.learn_range()
    with torch.no_grad():
        log_factor.fill_(math.log(factor))
    x = torch.linspace(-4, 4, 1003)
    value, gradient = value_and_gradient(quantizer, x)
    expected, mask = reference(x, factor * torch.tensor(low), factor * torch.tensor(high), bits)
    # But for a value midway between codes, which rounding may turn over.
    same = (value.double() - expected).abs() < 1e-5
    assert same.double().mean() > 0.995
    assert (gradient.isclose(mask, rtol=1e-5) | ~same).all()
    weights = torch.randn(len(x))
    (by_log,) = torch.autograd.grad((quantizer(x) * weights).sum(), log_factor)
    torch.testing.assert_close(by_log, ((value - gradient * x) * weights).sum(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bits", BITS)
def test_a_learned_range_has_the_same_gradient_off_the_cpu(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer, x, weights = activation_quantizer(bits, -0.7, 2.3), torch.randn(1000), torch.randn(1000)
    log_factor = quantizer.learn_range()
    by_log = []
    for compiling in (False, True):  # then it takes the way of other devices
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        by_log += torch.autograd.grad((quantizer(x) * weights).sum(), log_factor)
    torch.testing.assert_close(*by_log, rtol=1e-4, atol=1e-4)


def test_a_learned_range_is_used_as_it_is_stored() -> None:
    quantizer = activation_quantizer(4, -1.0, 2.0)
    with torch.no_grad():
        quantizer.learn_range().fill_(0.3)
        x = torch.randn(1000)
        expected = fake_quantize(x, *quantizer.qparams(), 15)
        assert torch.equal(quantizer(x), expected)
    torch.testing.assert_close(quantizer.qparams()[0], torch.tensor(math.exp(0.3) * 3 / 15))
    assert quantizer.range() == (-1, 2)


def test_a_range_that_is_ten_times_too_wide_is_learned_to_have_little_error() -> None:
    x = torch.randn(4096).relu()
    quantizer = activation_quantizer(2, 0.0, 10 * float(x.max()))
    optimizer = torch.optim.Adam(learn_ranges(quantizer), 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
    error = (quantizer(x) - x).square().mean()
    low, high = mse_range(x[None], 2)
    assert error < 1.05 * (activation_quantizer(2, float(low), float(high))(x) - x).square().mean()


@given(st.floats(-1000, 1000, width=32), st.floats(-1000, 1000, width=32))
def test_a_range_that_is_set_is_exact_and_counts_as_one_observation(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    quantizer = activation_quantizer(4, -5.0, 5.0)
    quantizer.set_range(low, high)
    assert quantizer.range() == (low, high)
    observed = activation_quantizer(4, low, high)
    with observe_ranges(quantizer), observe_ranges(observed):
        assert torch.equal(quantizer(torch.tensor([-3.0, 7.0])), observed(torch.tensor([-3.0, 7.0])))
    assert quantizer.range() == observed.range()


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_a_range_that_is_none_cannot_be_set(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="cannot be quantized; give two finite numbers in order"):
        ActivationQuantizer(4).set_range(low, high)


numbers = st.floats(-1000, 1000, width=32)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(numbers, min_size=11, max_size=11), min_size=3, max_size=3), st.sampled_from(BITS))
def test_few_values_per_channel_zero_among_them_and_none_far_off(rows: list[list[float]], bits: int) -> None:
    weight = F.pad(torch.tensor(rows), (0, 1))  # [3, 12], the last column is 0
    value = WeightQuantizer(bits)(weight)
    assert all(len(channel.unique()) <= 2**bits for channel in value)
    assert (value[:, -1] == 0).all()
    scale = (weight.amax(1) - weight.amin(1)) / (2**bits - 1)
    assert ((value - weight).abs() <= 1.001 * scale[:, None] + 1e-37).all()


@settings(max_examples=100, deadline=None)
@given(numbers, numbers, st.sampled_from(BITS))
def test_few_activation_values_zero_among_them(a: float, b: float, bits: int) -> None:
    quantizer = activation_quantizer(bits, min(a, b), max(a, b))
    assert len(quantizer(torch.linspace(-1500, 1500, 3001)).unique()) <= 2**bits
    assert quantizer(torch.zeros(2, 3)).abs().max() == 0


def test_every_code_is_used() -> None:
    ramp = torch.linspace(-1, 3, 5000)
    for bits in BITS:
        assert len(activation_quantizer(bits, -1.0, 3.0)(ramp).unique()) == 2**bits
        assert len(WeightQuantizer(bits)(ramp[None]).unique()) == 2**bits


def test_channels_are_the_output_channels() -> None:
    size = torch.tensor([1e-3, 1.0, 1e3, 1e-2, 10.0])
    for shape in [(5, 3, 2, 7), (5, 7)]:
        weight = torch.randn(shape) * size.view(5, *[1] * (len(shape) - 1))
        value = WeightQuantizer(8)(weight)
        assert max((q - w).norm() / w.norm() for q, w in zip(value, weight, strict=True)) < 0.01


# ------------------------------------------------------------------------------------------------------------- ranges


def test_average_of_a_constant_stays_exactly_that_constant() -> None:
    for constant in (1.0, 3.7, 1e-3):
        quantizer = ActivationQuantizer(4)
        x = torch.tensor([-constant, constant])
        for _ in range(30):
            with observe_ranges(quantizer):
                quantizer(x)
            low, high = quantizer.range()
            assert torch.equal(torch.stack([low, high]), x)


def test_average_follows_the_closed_form() -> None:
    highs = torch.rand(17) + 1
    lows = -torch.rand(17)
    quantizer = ActivationQuantizer(4)
    with observe_ranges(quantizer):
        for low, high in zip(lows, highs, strict=True):
            quantizer(torch.stack([low, high, torch.zeros(())]))
    weights = 0.9 ** torch.arange(16, -1, -1, dtype=torch.float64)
    expected = [(weights * values).sum() / weights.sum() for values in (lows, highs)]
    torch.testing.assert_close(quantizer.range(), tuple(value.float() for value in expected), rtol=1e-6, atol=0)
    raw = 0.1 * (weights * highs).sum()  # what is stored knows nothing of the correction
    assert float(quantizer.averages[1]) == pytest.approx(float(raw), rel=1e-9)


def test_ranges_move_within_the_context_only() -> None:
    quantizer = activation_quantizer(4, 0.0, 1.0)
    frozen = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.train()(torch.tensor([-5.0, 5.0]))
    assert all(torch.equal(frozen[name], value) for name, value in quantizer.state_dict().items())
    try:
        with observe_ranges(quantizer):
            quantizer(torch.tensor([-5.0, 5.0]))
            raise KeyError
    except KeyError:
        pass
    after = quantizer.range()
    assert after[1] > 1
    quantizer(torch.tensor([-9.0, 9.0]))
    assert quantizer.range() == after
    assert int(quantizer.observations) == 2


def test_nested_contexts_end_one_by_one() -> None:
    quantizer = ActivationQuantizer(4)
    with observe_ranges(quantizer):
        with observe_ranges(quantizer):
            pass
        assert quantizer.observing
    assert not quantizer.observing


def test_without_observations_there_is_no_output() -> None:
    with pytest.raises(RuntimeError, match="observe_ranges"):
        ActivationQuantizer(4)(torch.ones(3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_divergence(bad: float) -> None:
    quantizer = activation_quantizer(4, 0.0, 1.0)
    before = quantizer.range()
    with pytest.raises(DivergenceError, match="activations"), observe_ranges(quantizer):
        quantizer(torch.tensor([0.0, bad]))
    assert quantizer.range() == before
    weight = torch.tensor([[0.0, bad], [0.0, 1.0]])
    first, second = WeightQuantizer(4)(weight).isnan().any(1)
    assert first  # the loss will tell
    assert not second
    for ranges in ("percentile", "mse"):
        with pytest.raises(DivergenceError, match="weights"):
            WeightQuantizer(4, ranges=ranges)(weight)


# ---------------------------------------------------------------------------------------------------------- ranges


def test_percentile_leaves_out_a_thousandth_at_each_end() -> None:
    values = torch.stack([torch.arange(4000.0), torch.arange(4000.0).flip(0) * -2])
    low, high = percentile_range(values, 4)
    assert low.tolist() == pytest.approx([3.999, -7990.002])
    assert high.tolist() == pytest.approx([3995.001, -7.998])
    few = torch.randn(3, 27)
    for got, quantile in zip(percentile_range(few, 4), (1 - PERCENTILE, PERCENTILE), strict=True):
        torch.testing.assert_close(got, few.quantile(quantile, dim=1))


def test_mse_range_is_the_best_of_all_smaller_ranges() -> None:
    values = torch.cat([torch.randn(3, 5000), torch.full((3, 1), 20.0)], 1)  # an outlier in every row
    low, high, largest = values.amin(1), values.amax(1), values.abs().amax(1)
    for bits in (2, 4, 8):
        chosen = mse_range(values, bits)
        errors = []
        for fraction in SHRINKAGES:
            cut_off = low.maximum(-fraction * largest), high.minimum(fraction * largest)
            for ends in (cut_off, (fraction * low, fraction * high)):
                on_grid, _ = reference(values, ends[0][:, None], ends[1][:, None], bits)
                errors.append((on_grid - values).square().mean(1))
        best = torch.stack(errors).min(0).values
        on_grid, _ = reference(values, chosen[0][:, None], chosen[1][:, None], bits)
        torch.testing.assert_close((on_grid - values).square().mean(1), best, rtol=1e-4, atol=0)
    assert (mse_range(values, 2)[1] < 8).all()  # far below the outlier at 20
    assert torch.equal(mse_range(torch.zeros(2, 5), 4)[1], torch.zeros(2))


def test_mse_range_keeps_the_short_side_of_a_silu() -> None:
    values = torch.cat([torch.arange(-1, 7).repeat(500) / 4, torch.full((1,), 10.0)])  # of 8 codes, and an outlier
    low, high = mse_range(values[None], 3)
    assert low == -0.25  # in proportion to the high end it would have no code
    assert 1.4 <= high <= 1.6


def test_ranges_by_bits_are_those_of_the_least_error_below_8() -> None:
    values = torch.randn(2, 500)
    for bits, estimate in ((3, mse_range), (7, mse_range), (8, minmax_range)):
        for end, other in zip(range_by_bits(values, bits), estimate(values, bits), strict=True):
            assert torch.equal(end, other)


def test_mse_range_of_a_batch_is_about_that_of_all_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.linspace(0.2, 3, 49)  # at equal distances, values might be of a single one
    values = (torch.randn(32 * 256, 49).relu() * pixels).reshape(1, -1)
    sampled = mse_range(values, 3)[1]
    monkeypatch.setattr("nni_autorecon.quantization.ranges.LARGEST_SAMPLE", values.numel())
    step = (SHRINKAGES[0] - SHRINKAGES[1]) * values.max()
    assert abs(sampled - mse_range(values, 3)[1]) < 1.5 * step


def test_a_changed_range_is_seen_however_it_changed() -> None:
    quantizer, other, x = ActivationQuantizer(2), ActivationQuantizer(2), torch.tensor([0.9, 5.0])
    quantizer.set_range(0.0, 3.0)
    assert quantizer(x).tolist() == [1.0, 3.0]
    quantizer.set_range(0.0, 6.0)
    assert quantizer(x).tolist() == [0.0, 4.0]
    other.set_range(0.0, 3.0)
    quantizer.load_state_dict(other.state_dict())
    assert quantizer(x).tolist() == [1.0, 3.0]
    twin = copy.deepcopy(quantizer)
    twin.set_range(0.0, 6.0)
    assert (quantizer(x).tolist(), twin(x).tolist()) == ([1.0, 3.0], [0.0, 4.0])
    for _ in range(3):
        quantizer.set_range(0.0, 3.0)
        assert quantizer(x).tolist() == [1.0, 3.0]
        twin = copy.deepcopy(quantizer)
        twin.averages.mul_(2)
        assert twin(x).tolist() == [0.0, 4.0]
    with observe_ranges(quantizer):
        quantizer(torch.tensor([0.0, 600.0]))
    assert quantizer(x).tolist() == [0.0, 0.0]


def test_printed_quantizers_show_bits_and_ranges() -> None:
    activation = ActivationQuantizer(4, ranges="percentile")
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), activation, FixedQuantizer(7))
    parametrize.register_parametrization(network[0], "weight", WeightQuantizer(3, ranges="mse"))
    assert "WeightQuantizer(bits=3, ranges=mse, contained=False)" in repr(network)
    assert "ActivationQuantizer(bits=4, ranges=percentile, learned=False)" in repr(network)
    assert "FixedQuantizer(bits=7, ranges=fixed)" in repr(network)
    activation.learn_range()
    assert repr(activation) == "ActivationQuantizer(bits=4, ranges=percentile, learned=True)"


@pytest.mark.parametrize("bits", range(2, 9))
def test_contained_weights_fit_into_int8_and_cover_their_range(bits: int) -> None:
    weight = torch.cat([torch.randn(20, 30), torch.rand(1, 30), -torch.rand(1, 30), torch.zeros(1, 30)])
    quantizer = WeightQuantizer(bits, contained=True)
    scale, zero_point = quantizer.qparams(weight)
    steps = (quantizer(weight) / scale[:, None]).round()
    factor = container_factor(bits)
    assert -128 <= steps.min() * factor <= steps.max() * factor <= 127
    assert ((quantizer(weight) - weight).abs() <= scale[:, None] / 2 + 1e-6).all()
    assert zero_point.unique().numel() == 1 or bits < 7
    assert not quantizer(torch.zeros(2, 3)).any()


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("shape", [(40, 33), (40, 6, 3, 3), (40, 1, 3, 3), (40, 5, 1, 1), (40, 1)])
@pytest.mark.parametrize("bits", range(2, 9))
def test_two_products_of_contained_weights_stay_within_16_bits(
    bits: int, shape: tuple[int, ...], learned: bool
) -> None:
    """Processors without VNNI add the products of two columns with UINT8 in 16 bits, where onnxruntime saturates."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.5
    quantizer = WeightQuantizer(bits, contained=True)
    if learned:
        quantizer.learn_scale(weight).data.fill_(-0.5)  # training may shrink a scale
    scale, _ = quantizer.qparams(weight)
    rows = quantizer(weight).movedim(1, -1).flatten(1)  # height, width, input channel
    codes = (rows / scale[:, None]).round() * container_factor(bits)
    pairs = F.pad(codes, (0, rows.shape[1] % 2)).unflatten(1, (-1, 2)).sum(2)
    assert -(2**15) <= 255 * pairs.min() <= 255 * pairs.max() < 2**15
    if bits == 8 and not learned:
        assert ((rows - weight.movedim(1, -1).flatten(1)).abs() <= scale[:, None] * 0.501).all()  # none is cut off


def test_weights_of_8_bits_whose_pairs_are_small_use_all_codes() -> None:
    weight = torch.tensor([[1.0, -1.0, 0.5, 0.25], [1.0, 1.0, 0.5, 0.25]])
    scale, _ = WeightQuantizer(8, contained=True).qparams(weight)
    torch.testing.assert_close(scale, torch.tensor([1 / 127, 2 / 127]))


def test_a_channel_of_next_to_nothing_leaves_room_for_its_bias() -> None:
    """Its own range would give a step of 1e-12, and a bias of 3 would be no integer of 32 bits."""
    weight = torch.tensor([[0.5, -1.0], [1e-10, 0.0], [0.0, 0.0]])
    scale, _ = WeightQuantizer(8, contained=True).qparams(weight)
    torch.testing.assert_close(scale / scale.max(), torch.tensor([1.0, LEAST_RATIO, LEAST_RATIO]))


def _biased() -> tuple[nn.Linear, ActivationQuantizer]:
    layer, inputs = nn.Linear(2, 2), ActivationQuantizer(8)
    layer.weight.data, layer.bias.data = torch.tensor([[1.0, -1.0], [0.5, 0.25]]), torch.tensor([0.3, -0.7])
    parametrize.register_parametrization(layer, "weight", WeightQuantizer(4, contained=True))
    parametrize.register_parametrization(layer, "bias", BiasQuantizer(layer, inputs), unsafe=True)
    return layer, inputs


def test_a_bias_is_rounded_to_steps_of_input_times_weight_and_its_gradient_passes() -> None:
    layer, inputs = _biased()
    assert layer.bias.tolist() == pytest.approx([0.3, -0.7])  # there is no range of the input yet
    inputs.set_range(0.0, 2.55)
    step = 0.01 * torch.tensor([2 / 15, 0.5 / 15]) / 4
    torch.testing.assert_close(layer.bias, (torch.tensor([0.3, -0.7]) / step).round() * step)
    (layer.bias * torch.tensor([3.0, 5.0])).sum().backward()
    assert layer.parametrizations.bias.original.grad.tolist() == pytest.approx([3.0, 5.0])  # type: ignore[union-attr]
    with in_floating_point(layer):
        assert layer.bias.tolist() == pytest.approx([0.3, -0.7])


def test_a_copied_bias_follows_its_own_input() -> None:
    network = nn.ModuleList(_biased())
    twin = copy.deepcopy(network)
    twin[1].set_range(0.0, 2550.0)  # type: ignore[operator]
    assert network[0].bias.tolist() == pytest.approx([0.3, -0.7])  # type: ignore[operator, union-attr]
    assert twin[0].bias.tolist() != pytest.approx([0.3, -0.7], abs=1e-3)  # type: ignore[operator, union-attr]
