"""Quantizers stand in certain places of a network, cover some values and leave out others."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from operator import methodcaller

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from nni_autorecon.errors import InputError
from nni_autorecon.quantization.coverage import Coverage
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.quantizers import in_floating_point, observe_ranges
from nni_autorecon.quantization.specification import Quantization
from nni_autorecon.shapes import ImageShape
from tests.helpers.toys import SmallResNet, quantizers, relative_error

BITS = range(1, 9)


def quantized(network: nn.Module, x: Tensor, bits: int = 8, *, allow_partial: bool = False) -> tuple[Tensor, Coverage]:
    """The output of the quantized network with the ranges of ``x``."""
    student, coverage = quantize_network(network, Quantization(f"w{bits}a{bits}", allow_partial=allow_partial))
    with torch.no_grad(), observe_ranges(student):
        return student(x), coverage


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
        return self.blocks(x).mean((2, 3))


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
    *(getattr(nn, name)() for name in "ReLU ReLU6 ELU CELU SELU GELU SiLU Mish Hardswish Sigmoid Hardsigmoid".split()),
    *(getattr(nn, name)() for name in "LogSigmoid Tanh Hardtanh Softplus Softsign Softshrink Hardshrink".split()),
    *(nn.Tanhshrink(), nn.RReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.1), nn.PReLU(5), nn.Threshold(0.1, 0.0)),
]
FUNCTIONS = {
    **{f"F.{name}": getattr(F, name) for name in "relu relu_ relu6 leaky_relu elu elu_ gelu silu mish".split()},
    **{f"F.{name}": getattr(F, name) for name in "hardswish sigmoid hardsigmoid tanh logsigmoid softplus".split()},
    **{f"F.{name}": getattr(F, name) for name in ("hardtanh", "hardtanh_")},
    "F.leaky_relu in place": lambda x: F.leaky_relu(x, 0.2, True),
    "F.threshold": lambda x: F.threshold(x, 0.0, 0.0),
    **{f"torch.{name}": getattr(torch, name) for name in ("relu", "relu_", "sigmoid", "tanh")},
    **{f".{name}": methodcaller(name) for name in ("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_")},
    "effect of .relu_": Effect(methodcaller("relu_")),
    "effect of F.relu_": Effect(F.relu_),
    "effect of F.relu": Effect(lambda x: F.relu(x, inplace=True)),
    "effect of nn.ReLU": Effect(nn.ReLU(inplace=True)),
}
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

    coarse, _ = quantize_network(network, Quantization("w8a2"))
    seen: list[Tensor] = []
    coarse.get_submodule("second").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad(), observe_ranges(coarse):
        coarse(x)
    assert len(seen[0].unique()) <= 4


@pytest.mark.parametrize("activate", [nn.ReLU(), F.relu, lambda x: x.relu_()], ids=["module", "function", "method"])
def test_every_call_within_blocks_has_a_quantizer_of_its_own(activate: Callable[[Tensor], Tensor]) -> None:
    student, coverage = quantize_network(Blocks(activate), Quantization("w4a4"))
    assert len(coverage.activations) == len({each.name for each in coverage.activations}) == 2
    assert len(quantizers(student)) == 2


def test_later_uses_of_what_was_changed_in_place_see_the_quantized_values() -> None:
    class PreActivation(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            before = y * 1  # taken before the activation: stays as it is
            out = F.relu_(y)
            return torch.stack([before, y, out])

    student, _ = quantize_network(PreActivation(F.relu), Quantization("w8a2"))
    with torch.no_grad(), observe_ranges(student):
        before, y, out = student(torch.randn(2, 3, 5, 5))
    assert torch.equal(y, out)
    assert len(out.unique()) == 4
    assert before.min() < 0
    assert len(before.unique()) > 4


def test_later_uses_of_what_was_not_changed_in_place_stay_as_they_are() -> None:
    class PreActivation(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            out = F.relu(y)
            return torch.stack([y * 1, out])

    student, _ = quantize_network(PreActivation(F.relu), Quantization("w8a2"))
    with torch.no_grad(), observe_ranges(student):
        y, out = student(torch.randn(2, 3, 5, 5))
    assert y.min() < 0
    assert (len(out.unique()), len(y.unique()) > 4) == (4, True)


def test_reused_module_has_one_range_per_call() -> None:
    class Reuse(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.activate(100 * self.activate(self.first(x))).mean((2, 3))

    student, _ = quantize_network(Reuse(nn.ReLU()), Quantization("w8a8"))
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
    with pytest.raises(InputError, match=r"^Branching cannot be traced \(control flow.*--allow-partial") as caught:
        quantize_network(Branching(), Quantization("w4a4"))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, fx.proxy.TraceError)


def test_untraceable_network_in_part() -> None:
    network, x = Branching().eval(), torch.randn(7, 3, 5, 5)
    student, coverage = quantize_network(network, Quantization("w8a8", allow_partial=True))
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


def hidden(x: Tensor) -> Tensor:
    return F.relu(x)


fx.wrap("hidden")


@pytest.mark.parametrize(
    ("network", "gap"),
    [
        (nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.ConvTranspose2d(5, 2, 3)), "2"),
        (nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Flatten(2), nn.LSTM(25, 2)), "3"),
        (Attention(), "attention"),
        (Net(lambda x: hidden(F.relu(x))), "hidden"),
        (Net(lambda x: torch.eye(3) @ F.relu(x)), "matmul"),
        (Net(lambda x: F.conv_transpose2d(F.relu(x), torch.ones(5, 5, 1, 1))), "conv_transpose2d"),
        (Blocks(lambda x: torch.eye(5) @ F.relu(x)), "matmul in blocks.1.0"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "the network"),
    ],
)
def test_what_cannot_be_quantized_is_refused_or_listed(network: nn.Module, gap: str) -> None:
    with pytest.raises(InputError, match=rf"cannot quantize {gap} .*--allow-partial"):
        quantize_network(network, Quantization("w4a4"))
    student, coverage = quantize_network(network, Quantization("w4a4", allow_partial=True))
    assert coverage.gaps[0].name == gap
    assert f"not quantized: {gap} (" in coverage.summary()
    with observe_ranges(student):
        student(torch.randn(2, 3, 5, 5))


def test_a_weight_that_is_no_parameter_is_refused() -> None:
    layer = nn.Conv2d(2, 3, 3)
    layer.v = nn.Parameter(layer.weight.data)
    del layer.weight
    layer.register_forward_pre_hook(lambda layer, inputs: setattr(layer, "weight", 2 * layer.v))
    with pytest.raises(InputError, match=r"^Sequential: the weight of 0 is no parameter of its own; make it one"):
        quantize_network(nn.Sequential(layer, nn.ReLU()), Quantization("w4a4"))


def test_the_count_of_further_parts_is_told() -> None:
    network = nn.Sequential(*(nn.ConvTranspose1d(3, 3, 1) for _ in range(3)), nn.ReLU())
    with pytest.raises(InputError, match=r"cannot quantize 0 .* and 3 more parts"):
        quantize_network(network, Quantization("w4a4"))


# ------------------------------------------------------------------------------------------------------ whole networks


def test_small_resnet_at_8_bits(small: nn.Module) -> None:
    x = torch.randn(7, 3, 8, 8)
    output, coverage = quantized(small, x)
    assert [each.name for each in coverage.weights] == [
        "stem.0",
        "blocks.0.conv1",
        "blocks.0.conv2",
        "blocks.2.conv1",
        "blocks.2.conv2",
        "blocks.2.shortcut",
        "fc",
    ]
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

    _, coverage = quantize_network(Sources(), Quantization("w4a4"))
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
        ("mobilenet_v2", 52, 35, {"network input": 1, "linear bottleneck": 7, "addition": 10, "adaptiveavgpool2d": 1}),
    ],
)
def test_torchvision(name: str, convolutions: int, activations: int, float_inputs: dict[str, int]) -> None:
    network, x = torchvision.models.get_model(name, weights=None).eval(), torch.randn(2, 3, 64, 64)
    output, coverage = quantized(network, x)
    kinds = [each.kind for each in coverage.weights]
    assert (kinds.count("Conv2d"), kinds.count("Linear")) == (convolutions, 1)
    assert len(coverage.activations) == activations
    reasons = [gap.reason for gap in coverage.float_inputs or ()]
    assert {reason: reasons.count(reason) for reason in reasons} == float_inputs
    assert relative_error(output, network(x)) < 0.05


@pytest.mark.parametrize("protocol", ["activations", "integer"])
@pytest.mark.parametrize(
    "cast",
    [
        lambda x: x.to(torch.float32),
        lambda x: x.to("cpu"),
        lambda x: x.cpu(),
        lambda x: x.float(),
        lambda x: x.double().float(),
        lambda x: x.half().float(),
    ],
)
def test_a_cast_is_no_operation(cast: Callable[[Tensor], Tensor], protocol: str) -> None:
    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = cast(F.relu(self.first(x)))
            return self.fc(F.relu(self.second(x)).mean((2, 3)))

    student, coverage = quantize_network(Moved(), Quantization("w4a4", protocol=protocol), image=ImageShape(2, 6, 6))
    assert [each.kind for each in coverage.activations if each.kind == "relu"] == ["relu", "relu"]
    assert len(coverage.activations) == (2 if protocol == "activations" else 4)  # the images and the mean
    with observe_ranges(student):
        student(torch.rand(2, 2, 6, 6))


@pytest.mark.parametrize(
    "mean",
    [
        lambda x: x.mean(3).mean(2),
        lambda x: x.mean(2).mean(2),
        lambda x: torch.mean(torch.mean(x, 2), dim=2),
        lambda x: x.mean(-1).mean(-1),
        lambda x: x.mean(-2).mean(-1),
        lambda x: x.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True).flatten(1),
    ],
)
def test_means_after_each_other_are_one(mean: Callable[[Tensor], Tensor]) -> None:
    class Averaged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, 4, 1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(mean(F.relu(self.conv(x))))

    network, images = Averaged(), torch.rand(5, 2, 6, 7)
    student, coverage = quantize_network(network, Quantization("w4a4", protocol="integer"), image=ImageShape(2, 6, 7))
    assert [each.kind for each in coverage.activations] == ["network input", "relu", "mean"]
    with in_floating_point(student):
        torch.testing.assert_close(student(images), network(images))


def test_what_asks_for_a_size_reads_no_values() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, 4, 1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            n, c, h, w = x.size()
            return self.fc(F.relu(x).view(n, c, h * w).mean(x.ndim - 2))

    _, coverage = quantize_network(Sized(), Quantization("w4a4", protocol="integer"), image=ImageShape(2, 6, 7))
    assert [each.kind for each in coverage.activations] == ["network input", "relu", "mean"]


def test_a_module_may_have_any_name_of_a_node() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_, self.fc = nn.Conv2d(2, 4, 1), nn.Linear(4, 3)

        def forward(self, train: Tensor) -> Tensor:
            return self.fc(F.relu(self.to_(train)).mean((2, 3)))

    student, coverage = quantize_network(Named(), Quantization("w4a4", protocol="integer"), image=ImageShape(2, 6, 6))
    assert coverage.activations[0].name == "train"
    assert not student.training


@pytest.mark.parametrize("last", [nn.Sigmoid(), nn.Softplus(), nn.ReLU(), nn.Tanh()])
@pytest.mark.parametrize("protocol", ["activations", "integer"])
def test_answers_are_not_quantized(last: nn.Module, protocol: str) -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 50), last)
    student, coverage = quantize_network(network, Quantization("w4a2", protocol=protocol), image=ImageShape(2, 6, 6))
    images = torch.randn(4, 2, 6, 6)
    with observe_ranges(student):
        answers = student(images)
    assert len(answers.unique()) > 50
    kinds = [each.kind for each in coverage.activations]
    assert kinds.count(type(last).__name__.lower()) == isinstance(last, nn.ReLU)


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


def test_subclass_of_conv2d_is_a_convolution() -> None:
    class Padded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(F.pad(x, (1, 0, 1, 0)), self.weight, self.bias)

    network = nn.Sequential(Padded(3, 5, 2), nn.ReLU(), nn.AvgPool2d(1))
    output, coverage = quantized(network, torch.randn(2, 3, 5, 5), bits=2)
    assert [each.kind for each in coverage.weights] == ["Conv2d"]
    assert len(output.unique()) <= 4


class OwnWeight(Net):
    def __init__(self) -> None:
        super().__init__(F.relu)
        self.weight = nn.Parameter(torch.randn(7, 2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(super().forward(x), self.weight)


def test_a_function_with_weights_is_a_layer() -> None:
    network, x = OwnWeight().eval(), torch.randn(2, 3, 5, 5)
    output, coverage = quantized(network, x)
    assert [each.name for each in coverage.weights] == ["first", "second", "functional_conv2d_0"]
    assert relative_error(output, network(x)) < 0.02


# ------------------------------------------------------------------------------------------------- the copy's behaviour


def test_original_is_untouched(small: nn.Module) -> None:
    next(small.parameters()).requires_grad_(False)
    before, modes = copy.deepcopy(small.state_dict()), [module.training for module in small.modules()]
    modules = dict(small.named_modules())
    for allow_partial, network in [(False, small), (True, branching := Branching())]:
        student, _ = quantize_network(network, Quantization("w2a2", allow_partial=allow_partial))
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
    student, _ = quantize_network(small.requires_grad_(False), Quantization("w4a4"))
    assert not any(module.training for module in student.modules())
    with observe_ranges(student):
        student(torch.randn(7, 3, 8, 8)).square().sum().backward()
    assert len(list(student.parameters())) == len(list(small.parameters()))
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in student.parameters())


def test_weights_follow_training(small: nn.Module) -> None:
    student, _ = quantize_network(small, Quantization("w2a8"))
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

    student, coverage = quantize_network(Shared(), Quantization("w4a4"))
    assert [each.name for each in coverage.weights] == ["conv", "tied"]
    conv, tied = student.get_submodule("conv"), student.get_submodule("tied")
    assert len(conv.parametrizations.weight) == len(tied.parametrizations.weight) == 1
    assert conv.parametrizations.weight.original is tied.parametrizations.weight.original
    assert [gap.name for gap in coverage.float_inputs or ()] == ["conv"]


def test_state_dict_round_trip_is_bit_identical(small: nn.Module) -> None:
    x = torch.randn(7, 3, 8, 8)
    student, _ = quantize_network(small, Quantization("w3a3"))
    with torch.no_grad(), observe_ranges(student):
        for _ in range(3):
            student(torch.randn(7, 3, 8, 8))
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    file = io.BytesIO()
    torch.save(student.state_dict(), file)
    file.seek(0)
    other, _ = quantize_network(SmallResNet(), Quantization("w3a3"))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), student(x))


def test_deepcopy_is_equal_and_independent(small: nn.Module) -> None:
    x = torch.randn(7, 3, 8, 8)
    student, _ = quantize_network(small, Quantization("w3a3"))
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
    _, coverage = quantize_network(small, Quantization("w4a3"))
    data = json.loads(json.dumps(coverage.to_dict()))
    assert data["weights"][0] == {"name": "stem.0", "kind": "Conv2d", "bits": 4, "shape": [5, 3, 3, 3]}
    assert data["activations"][0] == {"name": "stem_2", "kind": "relu", "bits": 3, "shape": None}
    assert data["float_inputs"][0] == {"name": "stem.0", "reason": "network input"}
    assert data["gaps"] == []
    assert coverage.summary().splitlines() == [
        "quantized weights: 6 Conv2d at 4 bits, 1 Linear at 4 bits",
        "quantized activations: 5 relu at 3 bits",
        "inputs left unquantized: 1 network input, 1 adaptiveavgpool2d",
    ]


class Functional(nn.Module):
    """Three linear layers, with an activation before the last that is given as a function."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 5), nn.Linear(5, 7), nn.Linear(7, 2)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.activation(self.second(torch.relu(self.first(x)))))


UNKNOWN = {
    "maximum": lambda x: torch.maximum(x, x.new_zeros(())),
    "max": lambda x: torch.max(x, -0.5 * x),
    "square root": lambda x: torch.relu(x).mean(1, keepdim=True).expand(-1, 7).sqrt(),
    "norm": lambda x: F.normalize(torch.relu(x)).pow(3),
    "of a table": lambda x: F.local_response_norm(x.unsqueeze(-1), 3).squeeze(-1).exp(),
}


@pytest.mark.parametrize("protocol", ["activations", "integer"])
@pytest.mark.parametrize("operation", UNKNOWN.values(), ids=UNKNOWN)
def test_what_a_layer_reads_is_quantized_whatever_it_comes_from(
    operation: Callable[[Tensor], Tensor], protocol: str
) -> None:
    network, x = Functional(operation).eval(), torch.randn(50, 3)
    student, coverage = quantize_network(network, Quantization("w8a3", protocol=protocol))
    assert not coverage.gaps
    seen: list[Tensor] = []
    student.get_submodule("third").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad(), observe_ranges(student):
        student(x)
    assert len(seen[0].unique()) <= 8


class LearnedSwish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + (-self.beta * x).exp())


WRITTEN = {
    "swish": lambda x: x * torch.sigmoid(x),
    "swish of methods": lambda x: x.mul(x.sigmoid()),
    "quick gelu": lambda x: torch.sigmoid(1.702 * x) * x,
    "hard swish": lambda x: x * F.relu6(x + 3) / 6,
    "hard swish in place": lambda x: x * (x + 3).clamp_(0, 6).div_(6),
    "hard swish of hard sigmoid": lambda x: x * F.hardsigmoid(x),
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "mish by exp": lambda x: x * torch.tanh(torch.log(1 + torch.exp(x))),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "gelu by tanh": lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044715 * x.pow(3)))),
    "clamp": lambda x: x.clamp(min=0),
    "clip": lambda x: torch.clip(x, -1, 1),
    "absolute value": torch.abs,
    "squared relu": lambda x: torch.relu(x) ** 2,
    "leaky": lambda x: 0.9 * torch.relu(x) + 0.1 * x,
    "relu by comparison": lambda x: x * (x > 0),
    "relu by comparison and conversion": lambda x: (x > 0).float() * x,
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "learned swish": LearnedSwish(),
}


@pytest.mark.parametrize("protocol", ["activations", "integer"])
@pytest.mark.parametrize("activation", WRITTEN.values(), ids=WRITTEN)
def test_an_activation_that_is_written_out_is_one_activation(
    activation: Callable[[Tensor], Tensor], protocol: str
) -> None:
    network, x = Functional(activation).eval(), torch.randn(50, 3)
    student, coverage = quantize_network(network, Quantization("w8a8", protocol=protocol))
    kinds = [each.kind for each in coverage.activations]
    assert [kind for kind in kinds if "linear" not in kind][-2:] == ["relu", "pointwiseactivation"]
    assert ("linear" in kinds) == (protocol == "integer")  # an engine stores what enters a function that bends it
    with torch.no_grad(), observe_ranges(student):
        assert relative_error(student(x), network(x)) < 0.05
    coarse, _ = quantize_network(network, Quantization("w8a2", protocol=protocol))
    seen: list[Tensor] = []
    coarse.get_submodule("third").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad(), observe_ranges(coarse):
        coarse(x)
    assert len(seen[0].unique()) <= 4
