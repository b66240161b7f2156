from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from nni_autorecon.errors import DivergenceError, InputError
from nni_autorecon.quantization import (
    ActivationQuantizer,
    Coverage,
    WeightQuantizer,
    affine_qparams,
    observe_ranges,
    quantize_network,
)

BITS = range(1, 9)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def reference(x: Tensor, low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(clamp(round(x / s) + z, 0, n) - z) * s and its clip mask, in float64."""
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


def quantized(network: nn.Module, x: Tensor, bits: int = 8, *, allow_partial: bool = False) -> tuple[Tensor, Coverage]:
    """The output of the quantized network with the ranges of ``x``."""
    student, coverage = quantize_network(network, weight_bits=bits, activation_bits=bits, allow_partial=allow_partial)
    with torch.no_grad(), observe_ranges(student):
        return student(x), coverage


def quantizers(network: nn.Module) -> list[ActivationQuantizer]:
    return [module for module in network.modules() if isinstance(module, ActivationQuantizer)]


def relative_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).detach().norm() / expected.detach().norm())


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
    for use in (lambda: affine_qparams(torch.zeros(()), torch.ones(()), bits), lambda: WeightQuantizer(bits),
                lambda: ActivationQuantizer(bits)):  # fmt: skip
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
        assert max(relative_error(q, w) for q, w in zip(value, weight, strict=True)) < 0.01


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
    with pytest.raises(DivergenceError, match="weights"):
        WeightQuantizer(4)(torch.tensor([[0.0, bad], [0.0, 1.0]]))


# ----------------------------------------------------------------------------------------------- finding activations


class Net(nn.Module):
    """conv → ``activate`` → conv, the function given as a method's name, a function or a module."""

    def __init__(self, activate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 1)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activate(self.first(x)))


class Blocks(nn.Module):
    def __init__(self, activate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(3, 5, 1), nn.Sequential(Inner(activate), Inner(activate)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Inner(nn.Module):
    def __init__(self, activate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(x)


class Effect(nn.Module):
    """Call a function for its effect alone."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        self.function(x)
        return x


MODULES = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.1), nn.PReLU(5), nn.ELU(), nn.CELU(), nn.SELU(),
    nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Sigmoid(), nn.Hardsigmoid(), nn.LogSigmoid(), nn.Tanh(),
    nn.Hardtanh(), nn.Softplus(), nn.Softsign(), nn.Softshrink(), nn.Hardshrink(), nn.Tanhshrink(),
    nn.Threshold(0.1, 0.0), nn.RReLU(),
]  # fmt: skip
FUNCTIONS = {
    "F.relu": F.relu, "F.relu_": F.relu_, "torch.relu": torch.relu, "torch.relu_": torch.relu_, "F.relu6": F.relu6,
    "F.leaky_relu": F.leaky_relu, "F.leaky_relu in place": lambda x: F.leaky_relu(x, 0.2, True), "F.elu": F.elu,
    "F.elu_": F.elu_, "F.gelu": F.gelu, "F.silu": F.silu, "F.mish": F.mish, "F.hardswish": F.hardswish,
    "F.sigmoid": F.sigmoid, "torch.sigmoid": torch.sigmoid, "F.hardsigmoid": F.hardsigmoid, "F.tanh": F.tanh,
    "torch.tanh": torch.tanh, "F.logsigmoid": F.logsigmoid, "F.softplus": F.softplus, "F.hardtanh": F.hardtanh,
    "F.hardtanh_": F.hardtanh_, "F.threshold": lambda x: F.threshold(x, 0.0, 0.0),
    ".relu": lambda x: x.relu(), ".relu_": lambda x: x.relu_(), ".sigmoid": lambda x: x.sigmoid(),
    ".sigmoid_": lambda x: x.sigmoid_(), ".tanh": lambda x: x.tanh(), ".tanh_": lambda x: x.tanh_(),
    "effect of .relu_": Effect(lambda x: x.relu_()), "effect of F.relu_": Effect(F.relu_),
    "effect of F.relu": Effect(lambda x: F.relu(x, inplace=True)), "effect of nn.ReLU": Effect(nn.ReLU(inplace=True)),
}  # fmt: skip
FORMS = [pytest.param(module, id=str(module)) for module in MODULES] + [
    pytest.param(function, id=name) for name, function in FUNCTIONS.items()
]


@pytest.mark.parametrize("activate", FORMS)
def test_activation_is_found_in_every_form(activate: Callable[[Tensor], Tensor]) -> None:
    network, x = Net(activate).eval(), torch.randn(7, 3, 5, 5)
    output, coverage = quantized(network, x)
    assert len(coverage.activations) == 1
    assert [gap.name for gap in coverage.float_inputs or ()] == ["first"]  # so "second" reads quantized values
    assert coverage.gaps == ()
    assert relative_error(output, network(x)) < 0.02

    coarse, _ = quantize_network(network, weight_bits=8, activation_bits=1)
    seen: list[Tensor] = []
    coarse.get_submodule("second").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad(), observe_ranges(coarse):
        coarse(x)
    assert len(seen[0].unique()) <= 2


@pytest.mark.parametrize("activate", [nn.ReLU(), F.relu, lambda x: x.relu_()], ids=["module", "function", "method"])
def test_every_call_within_blocks_has_a_quantizer_of_its_own(activate: Callable[[Tensor], Tensor]) -> None:
    student, coverage = quantize_network(Blocks(activate), weight_bits=4, activation_bits=4)
    assert len(coverage.activations) == len({each.name for each in coverage.activations}) == 2
    assert len(quantizers(student)) == 2


def test_later_uses_of_what_was_changed_in_place_see_the_quantized_values() -> None:
    class PreActivation(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            before = y * 1  # taken before the activation: stays as it is
            out = F.relu_(y)
            return torch.stack([before, y, out])

    student, _ = quantize_network(PreActivation(F.relu), weight_bits=8, activation_bits=1)
    with torch.no_grad(), observe_ranges(student):
        before, y, out = student(torch.randn(2, 3, 5, 5))
    assert torch.equal(y, out)
    assert len(out.unique()) == 2
    assert before.min() < 0
    assert len(before.unique()) > 2


def test_later_uses_of_what_was_not_changed_in_place_stay_as_they_are() -> None:
    class PreActivation(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            out = F.relu(y)
            return torch.stack([y * 1, out])

    student, _ = quantize_network(PreActivation(F.relu), weight_bits=8, activation_bits=1)
    with torch.no_grad(), observe_ranges(student):
        y, out = student(torch.randn(2, 3, 5, 5))
    assert y.min() < 0
    assert (len(out.unique()), len(y.unique()) > 2) == (2, True)


def test_reused_module_has_one_range_per_call() -> None:
    class Reuse(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.activate(100 * self.activate(self.first(x)))

    student, _ = quantize_network(Reuse(nn.ReLU()), weight_bits=8, activation_bits=8)
    with torch.no_grad(), observe_ranges(student):
        student(torch.randn(7, 3, 5, 5))
    small, large = (float(quantizer.range()[1]) for quantizer in quantizers(student))
    assert large == pytest.approx(100 * small, rel=0.01)


# ------------------------------------------------------------------------------------------------- what stays behind


class Branching(nn.Module):
    """Cannot be traced: the values decide. One activation is a module (under two names), one is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 5, 3), nn.Linear(5, 2)
        self.blocks = nn.ModuleList([nn.ReLU(), nn.Sequential(nn.Tanh())])
        self.again = self.blocks[0]

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.blocks[0](self.conv(x)))
        if x.mean() > 1e6:
            x = -x
        return self.fc(F.relu(self.blocks[1](x)).mean((2, 3)))


def test_untraceable_network_is_refused_in_one_line() -> None:
    with pytest.raises(
        InputError, match=r"^Branching: cannot quantize forward .*control flow.*--allow-partial"
    ) as caught:
        quantize_network(Branching(), weight_bits=4, activation_bits=4)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, fx.proxy.TraceError)


def test_untraceable_network_in_part() -> None:
    network, x = Branching().eval(), torch.randn(7, 3, 5, 5)
    student, coverage = quantize_network(network, weight_bits=8, activation_bits=8, allow_partial=True)
    assert [(each.name, each.kind) for each in coverage.activations] == [("blocks.0", "relu"), ("blocks.1.0", "tanh")]
    assert [each.name for each in coverage.weights] == ["conv", "fc"]
    assert coverage.float_inputs is None
    assert [gap.name for gap in coverage.gaps] == ["forward"]
    with torch.no_grad(), observe_ranges(student):
        assert relative_error(student(x), network(x)) < 0.02
    assert [int(quantizer.observations) for quantizer in quantizers(student)] == [2, 1]
    assert student.blocks[0] is student.again


class Attention(Net):
    def __init__(self) -> None:
        super().__init__(F.relu)
        self.attention = nn.MultiheadAttention(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x).flatten(2).permute(2, 0, 1)
        return self.attention(x, x, x)[0]


class OwnWeight(Net):
    def __init__(self) -> None:
        super().__init__(F.relu)
        self.weight = nn.Parameter(torch.randn(7, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(super().forward(x), self.weight)


def hidden(x: Tensor) -> Tensor:
    return F.relu(x)


fx.wrap("hidden")


@pytest.mark.parametrize(
    ("network", "gap"),
    [
        (nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.ConvTranspose2d(5, 2, 3)), "2"),
        (nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Flatten(2), nn.Conv1d(5, 2, 3)), "3"),
        (nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Flatten(2), nn.LSTM(25, 2)), "3"),
        (Attention(), "attention"),
        (OwnWeight(), "conv2d"),
        (Net(lambda x: hidden(F.relu(x))), "hidden"),
        (Net(lambda x: F.relu(x) @ x), "matmul"),
        (Net(lambda x: F.relu(x).matmul(x)), "matmul"),
        (Net(torch.abs), "second"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "the network"),
    ],
)
def test_what_cannot_be_quantized_is_refused_or_listed(network: nn.Module, gap: str) -> None:
    with pytest.raises(InputError, match=rf"cannot quantize {gap} .*--allow-partial"):
        quantize_network(network, weight_bits=4, activation_bits=4)
    student, coverage = quantize_network(network, weight_bits=4, activation_bits=4, allow_partial=True)
    assert coverage.gaps[0].name == gap
    assert f"not quantized: {gap} (" in coverage.summary()
    with observe_ranges(student):
        student(torch.randn(2, 3, 5, 5))


def test_the_count_of_further_parts_is_told() -> None:
    network = nn.Sequential(nn.Conv1d(3, 5, 1), nn.ReLU(), nn.ConvTranspose1d(5, 2, 3), nn.Conv1d(2, 2, 1))
    with pytest.raises(InputError, match=r"cannot quantize 0 .* and 3 more parts"):
        quantize_network(network, weight_bits=4, activation_bits=4)


# ------------------------------------------------------------------------------------------------------ whole networks


class Residual(nn.Module):
    """A block of a CIFAR ResNet with functional activations, and a projected shortcut if the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class SmallResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(Residual(5, 5), nn.MaxPool2d(2), Residual(5, 7))
        self.dropout, self.fc = nn.Dropout(), nn.Linear(7, 11)

    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        if scale is not None:  # a default that tracing must keep
            x = self.missing(x)
        x = self.blocks(self.stem(x))
        return self.fc(self.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1)))


@pytest.fixture
def small() -> nn.Module:
    """A network with BatchNorm statistics and affine parameters that are not 0 and 1; in training mode."""
    network = SmallResNet()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) / 5
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return network.train()


def test_small_resnet_at_8_bits(small: nn.Module) -> None:
    x = torch.randn(7, 3, 8, 8)
    output, coverage = quantized(small, x)
    assert [each.name for each in coverage.weights] == [
        "stem.0", "blocks.0.conv1", "blocks.0.conv2", "blocks.2.conv1", "blocks.2.conv2", "blocks.2.shortcut", "fc",
    ]  # fmt: skip
    assert (coverage.weights[5].kind, coverage.weights[5].shape, coverage.weights[5].bits) == (
        "Conv2d",
        (7, 5, 1, 1),
        8,
    )
    assert [each.kind for each in coverage.activations] == ["relu"] * 5
    assert [(gap.name, gap.reason) for gap in coverage.float_inputs or ()] == [
        ("stem.0", "network input"),
        ("fc", "adaptiveavgpool2d"),
    ]
    assert relative_error(output, small.eval()(x)) < 0.02


def test_where_float_inputs_come_from() -> None:
    class Sources(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.e, self.f = (nn.Conv2d(3, 3, 1) for _ in range(5))
            self.d = nn.Conv2d(6, 3, 1)
            self.bn, self.pool = nn.BatchNorm2d(3), nn.AvgPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(self.bn(self.a(x)))
            z = F.relu(y)
            w = self.c(y + z) + self.d(torch.cat([z, z], 1))
            return self.e(F.dropout(F.max_pool2d(z, 1), training=False)) + self.f(self.pool(w))

    _, coverage = quantize_network(Sources(), weight_bits=4, activation_bits=4)
    assert {gap.name: gap.reason for gap in coverage.float_inputs or ()} == {
        "a": "network input",
        "b": "linear bottleneck",
        "c": "addition",
        "d": "concatenation",
        "f": "avgpool2d",
    }


@pytest.mark.parametrize(
    ("name", "convolutions", "activations", "float_inputs"),
    [
        ("resnet18", 20, 17, {"network input": 1, "adaptiveavgpool2d": 1}),
        ("mobilenet_v2", 52, 35,
         {"network input": 1, "linear bottleneck": 7, "addition": 10, "adaptiveavgpool2d": 1}),
    ],
)  # fmt: skip
def test_torchvision(name: str, convolutions: int, activations: int, float_inputs: dict[str, int]) -> None:
    network, x = torchvision.models.get_model(name, weights=None).eval(), torch.randn(2, 3, 64, 64)
    output, coverage = quantized(network, x)
    kinds = [each.kind for each in coverage.weights]
    assert (kinds.count("Conv2d"), kinds.count("Linear")) == (convolutions, 1)
    assert len(coverage.activations) == activations
    reasons = [gap.reason for gap in coverage.float_inputs or ()]
    assert {reason: reasons.count(reason) for reason in reasons} == float_inputs
    assert relative_error(output, network(x)) < 0.05


def test_the_branch_of_evaluation_is_traced() -> None:
    class Noisy(Net):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise NotImplementedError
            return F.dropout(super().forward(x), 0.9, self.training)

    network, x = Noisy(F.relu).train(), torch.randn(2, 3, 5, 5)
    output, _ = quantized(network, x)
    assert relative_error(output, network.eval()(x)) < 0.02


def test_the_first_argument_stays_an_argument_even_with_a_default() -> None:
    class Keyword(Net):
        def forward(self, images: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
            if images is None or labels is not None:
                raise NotImplementedError
            return super().forward(images)

    network, x = Keyword(F.relu).eval(), torch.randn(2, 3, 5, 5)
    output, _ = quantized(network, x)
    assert relative_error(output, network(x)) < 0.02


def test_subclass_of_conv2d_is_quantized_whole() -> None:
    class Padded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(F.pad(x, (1, 0, 1, 0)), self.weight, self.bias)

    network = nn.Sequential(Padded(3, 5, 2), nn.ReLU())
    output, coverage = quantized(network, torch.randn(2, 3, 5, 5), bits=2)
    assert [each.kind for each in coverage.weights] == ["Padded"]
    assert len(output.unique()) <= 4


# ------------------------------------------------------------------------------------------------- the copy's behaviour


def test_original_is_untouched(small: nn.Module) -> None:
    next(small.parameters()).requires_grad_(False)
    before, modes = copy.deepcopy(small.state_dict()), [module.training for module in small.modules()]
    modules = dict(small.named_modules())
    for allow_partial, network in [(False, small), (True, branching := Branching())]:
        student, _ = quantize_network(network, weight_bits=2, activation_bits=2, allow_partial=allow_partial)
        with observe_ranges(student):
            student(torch.randn(2, 3, 8, 8)).sum().backward()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(1)
    assert all(torch.equal(before[name], value) for name, value in small.state_dict().items())
    assert before.keys() == small.state_dict().keys()
    assert modes == [module.training for module in small.modules()]
    assert modules == dict(small.named_modules())
    assert [parameter.requires_grad for parameter in small.parameters()].count(False) == 1
    assert all(parameter.grad is None for parameter in small.parameters())
    assert not any(parametrize.is_parametrized(module) for module in [*small.modules(), *branching.modules()])
    assert not quantizers(branching)


def test_copy_is_in_eval_mode_and_trainable(small: nn.Module) -> None:
    student, _ = quantize_network(small.requires_grad_(False), weight_bits=4, activation_bits=4)
    assert not any(module.training for module in student.modules())
    with observe_ranges(student):
        student(torch.randn(7, 3, 8, 8)).square().sum().backward()
    assert len(list(student.parameters())) == len(list(small.parameters()))
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in student.parameters())


def test_weights_follow_training(small: nn.Module) -> None:
    student, _ = quantize_network(small, weight_bits=2, activation_bits=8)
    fc = student.get_submodule("fc")
    with torch.no_grad():
        fc.parametrizations.weight.original.copy_(torch.linspace(5, 9, 77).view(11, 7))
    assert all(len(channel.unique()) <= 4 for channel in fc.weight)
    assert float(fc.weight.detach().max()) == pytest.approx(9)


def test_shared_layers_are_quantized_once() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.alias = self.conv
            self.tied = nn.Conv2d(3, 3, 1)
            self.tied.weight = self.conv.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.tied(F.relu(self.alias(F.relu(self.conv(x)))))

    student, coverage = quantize_network(Shared(), weight_bits=4, activation_bits=4)
    assert [each.name for each in coverage.weights] == ["conv", "tied"]
    conv, tied = student.get_submodule("conv"), student.get_submodule("tied")
    assert len(conv.parametrizations.weight) == len(tied.parametrizations.weight) == 1
    assert conv.parametrizations.weight.original is tied.parametrizations.weight.original
    assert [gap.name for gap in coverage.float_inputs or ()] == ["conv"]


def test_state_dict_round_trip_is_bit_identical(small: nn.Module) -> None:
    x = torch.randn(7, 3, 8, 8)
    student, _ = quantize_network(small, weight_bits=3, activation_bits=3)
    with torch.no_grad(), observe_ranges(student):
        for _ in range(3):
            student(torch.randn(7, 3, 8, 8))
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    file = io.BytesIO()
    torch.save(student.state_dict(), file)
    file.seek(0)
    other, _ = quantize_network(SmallResNet(), weight_bits=3, activation_bits=3)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), student(x))


def test_deepcopy_is_equal_and_independent(small: nn.Module) -> None:
    x = torch.randn(7, 3, 8, 8)
    student, _ = quantize_network(small, weight_bits=3, activation_bits=3)
    with torch.no_grad(), observe_ranges(student):
        student(x)
    twin = copy.deepcopy(student)
    expected = student(x)
    assert torch.equal(twin(x), expected)
    with torch.no_grad(), observe_ranges(twin):
        twin(10 * x)
        for parameter in twin.parameters():
            parameter.mul_(2)
    assert torch.equal(student(x), expected)
    assert not torch.equal(twin(x), expected)


def test_coverage_as_json_and_text(small: nn.Module) -> None:
    _, coverage = quantize_network(small, weight_bits=4, activation_bits=3)
    data = json.loads(json.dumps(coverage.to_dict()))
    assert data["weights"][0] == {"name": "stem.0", "kind": "Conv2d", "bits": 4, "shape": [5, 3, 3, 3]}
    assert data["activations"][0] == {"name": "stem_2", "kind": "relu", "bits": 3, "shape": None}
    assert data["float_inputs"][0] == {"name": "stem.0", "reason": "network input"}
    assert data["gaps"] == []
    assert coverage.summary().splitlines() == [
        "quantized weights: 6 Conv2d at 4 bits, 1 Linear at 4 bits",
        "quantized activations: 5 relu at 3 bits",
        "inputs of Conv2d and Linear left unquantized: 1 network input, 1 adaptiveavgpool2d",
    ]


@pytest.mark.parametrize(
    "activation",
    [lambda x: x.clamp(min=0), lambda x: torch.maximum(x, x.new_zeros(())), lambda x: x * F.relu6(x + 3) / 6],
)
def test_an_activation_in_disguise_is_refused(activation):
    class Disguised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(3, 5), nn.Linear(5, 7), nn.Linear(7, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.third(activation(self.second(torch.relu(self.first(x)))))

    with pytest.raises(InputError, match="third .its input comes from .* may be an activation in disguise"):
        quantize_network(Disguised(), weight_bits=4, activation_bits=4)
