"""Folding, equalization and absorption keep the function; ranges of paired channels become equal."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nni_autorecon.errors import InputError
from nni_autorecon.networks import digits_resnet, resnet20
from nni_autorecon.quantization.equalization import (
    Pair,
    absorb_high_biases,
    constant_response,
    equalization_pairs,
    equalize,
)
from nni_autorecon.quantization.folding import Normal, fold_batchnorms, folded
from nni_autorecon.quantization.tracing import trace

NETWORKS = {
    "digits_resnet": (digits_resnet, 1, 3),
    "resnet20": (resnet20, 3, 9),
    "resnet18": (partial(torchvision.models.resnet18, num_classes=5), 3, 8),
    "mobilenet_v2": (partial(torchvision.models.mobilenet_v2, num_classes=5, width_mult=0.25), 3, 1),
}


def random_network(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network with random BatchNorm parameters and statistics, in float64, and images for it."""
    torch.manual_seed(0)
    make, channels, _ = NETWORKS[name]
    network = make()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.double().eval(), torch.randn(2, channels, 32, 32, dtype=torch.float64)


def prepared(network: nn.Module) -> tuple[fx.GraphModule, list[Pair], dict[str, Normal]]:
    traced = trace(network, remedy="mend it")
    outputs = fold_batchnorms(traced)
    return traced, equalization_pairs(traced), outputs


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_and_equalization_keep_the_function(name):
    network, images = random_network(name)
    with torch.no_grad():
        expected = network(images)
        traced = trace(network, remedy="mend it")
        outputs = fold_batchnorms(traced)
        torch.testing.assert_close(traced(images), expected)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in traced.modules())
        assert outputs.keys() == {path for path, m in traced.named_modules() if isinstance(m, nn.Conv2d)}
        pairs = equalization_pairs(traced)
        before = {path: weight.clone() for path, weight in traced.named_parameters()}
        equalize(traced, pairs, outputs)
        torch.testing.assert_close(traced(images), expected)
    assert len(pairs) == NETWORKS[name][2]
    changed = {path for path, weight in traced.named_parameters() if not torch.equal(weight, before[path])}
    assert {f"{path}.weight" for pair in pairs for path in pair[:2]} <= changed
    assert "linear.weight" not in changed


class Standardized(nn.Conv2d):
    def forward(self, images):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(images, weight, self.bias)


@pytest.mark.parametrize("change", [nn.utils.parametrizations.weight_norm, None])
def test_weights_that_are_computed_are_folded_like_others(change):
    layer = Standardized(2, 3, 3) if change is None else change(nn.Conv2d(2, 3, 3))
    network = nn.Sequential(layer, nn.BatchNorm2d(3), nn.ReLU()).eval()
    nn.init.normal_(network[1].running_mean)
    traced, outputs = folded(network)
    images = torch.randn(3, 2, 5, 5)
    torch.testing.assert_close(traced(images), network(images))
    assert [*outputs] == ["0"]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in traced.modules())


def chain() -> nn.Sequential:
    """Convolution, depthwise, grouped and full, with a channel that nothing uses."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.ReLU(),
        nn.Conv2d(6, 9, 1, groups=3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(9, 5, 1, bias=False),
    )
    with torch.no_grad():
        layers[0].weight.mul_(torch.logspace(-2, 2, 6, dtype=torch.float64).view(6, 1, 1, 1))
        layers[7].weight[:, 2] = 0
    return layers.double().eval()


def test_paired_channels_have_equal_ranges():
    network, pairs, _ = prepared(chain())
    assert pairs == [Pair("0", "2", True), Pair("2", "4", True), Pair("4", "7", True)]
    weights = {path: network.get_parameter(f"{path}.weight") for path in "0247"}
    assert weights["0"].abs().amax() / weights["0"].abs().amax((1, 2, 3)).amin() > 100
    equalize(network, pairs, {}, tolerance=1e-12, rounds=1000)
    weights = {path: network.get_parameter(f"{path}.weight").detach() for path in "0247"}
    makes = {path: weight.abs().amax((1, 2, 3)) for path, weight in weights.items()}
    torch.testing.assert_close(makes["0"], weights["2"].abs().amax((1, 2, 3)))
    by_input = weights["4"].view(3, 3, 2).abs().amax(1).flatten()  # three groups of three outputs and two inputs
    torch.testing.assert_close(makes["2"], by_input)
    used = [channel for channel in range(9) if channel != 2]
    torch.testing.assert_close(makes["4"][used], weights["7"].abs().amax((0, 2, 3))[used])


class Padded(nn.Module):
    """Two convolutions with a padding and an activation of any kind between them."""

    def __init__(self, activation: nn.Module, value: float | None, mode: str = "constant") -> None:
        super().__init__()
        self.first, self.second, self.activation = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 5, 3), activation
        self.mode, self.value = mode, value

    def forward(self, images: Tensor) -> Tensor:
        return self.second(F.pad(self.activation(self.first(images)), (1, 0, 2, 1), self.mode, self.value))


@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.3), nn.PReLU(3), nn.ReLU()])
@pytest.mark.parametrize(("value", "mode"), [(0, "constant"), (None, "constant"), (None, "reflect")])
def test_layers_are_paired_across_padding_with_zeros_and_leaky_activations(activation, value, mode):
    torch.manual_seed(0)
    network, images = Padded(activation, value, mode).double().eval(), torch.randn(2, 2, 5, 7, dtype=torch.float64)
    traced, pairs, _ = prepared(network)
    assert pairs == [Pair("first", "second", isinstance(activation, nn.ReLU))]
    before = traced.get_parameter("first.weight").clone()
    with torch.no_grad():
        equalize(traced, pairs, {})
        torch.testing.assert_close(traced(images), network(images))
    assert not torch.allclose(traced.get_parameter("first.weight"), before)


@pytest.mark.parametrize(("activation", "value"), [(nn.ReLU(), 1.0), (nn.ELU(), 0.0), (nn.Hardswish(), None)])
def test_layers_are_not_paired_across_what_is_not_homogeneous(activation, value):
    assert prepared(Padded(activation, value).eval())[1] == []


def test_statistics_follow_the_scale():
    network, pairs, _ = prepared(chain())
    before = network.get_parameter("0.bias").detach()
    outputs = equalize(network, pairs, {"0": Normal(before, 2 * before.abs())})
    after = network.get_parameter("0.bias").detach()
    assert not torch.allclose(before, after)
    torch.testing.assert_close(outputs["0"].mean, after)
    torch.testing.assert_close(outputs["0"].std, 2 * after.abs())


def test_a_tensor_used_twice_a_layer_called_twice_and_a_curved_activation_make_no_pair():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Conv2d(2, 2, 1) for _ in range(4))
            self.e, self.f = nn.Conv2d(2, 2, 1), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            x = self.b(x) + x
            x = self.d(torch.sigmoid(self.c(self.c(x))))
            return self.f(self.e(torch.relu(x).relu_()).mean((2, 3)))

    assert equalization_pairs(trace(Network(), remedy="mend it")) == [Pair("d", "e", True)]


def test_batchnorms_that_cannot_be_folded_are_left_alone():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.shared, self.used = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)
            self.late, self.batch = nn.BatchNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False)
            self.a, self.b, self.c = (nn.Conv2d(2, 2, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.shared(self.a(self.shared(self.b(x))))
            y = self.conv(x)
            return self.batch(self.c(self.late(torch.relu(self.used(y) + y))))

    network = Network().double().eval()
    folded, images = trace(network, remedy="mend it"), torch.randn(3, 2, 5, 7, dtype=torch.float64)
    assert fold_batchnorms(folded) == {}
    torch.testing.assert_close(folded(images), network(images), rtol=0, atol=0)


def test_batchnorms_without_parameters_are_folded_too():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5, affine=False)
    network = nn.Sequential(nn.Conv2d(3, 5, 1), norm, nn.ReLU(), nn.Conv2d(5, 2, 1, bias=False))
    nn.init.normal_(norm.running_mean)
    network, images = network.double().eval(), torch.randn(7, 3, 2, 2, dtype=torch.float64)
    folded, pairs, outputs = prepared(network)
    assert pairs == [Pair("0", "3", True)]
    assert outputs["0"].mean.tolist() == [0] * 5
    assert outputs["0"].std.tolist() == [1] * 5
    outputs = equalize(folded, pairs, outputs)
    torch.testing.assert_close(folded(images), network(images))
    weights = [folded.get_parameter(f"{path}.weight").abs() for path in "03"]
    torch.testing.assert_close(weights[0].amax((1, 2, 3)), weights[1].amax((0, 2, 3)))


def test_a_batchnorm_after_a_linear_layer_is_left_alone():
    """It normalizes the second dimension, which need not be the layer's outputs."""
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()).double().eval()
    nn.init.uniform_(network[1].running_var, 0.5, 2.0)
    folded, _, outputs = prepared(network)
    images = torch.randn(3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(folded(images), network(images))
    assert not outputs


def test_absorption_moves_the_excess_and_keeps_the_function_where_values_exceed_it():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, groups=2, bias=False)).double()
    with torch.no_grad():
        network[0].bias.copy_(torch.tensor([9.0, 8.0, -9.0, 1.0]))
    traced, images = trace(network, remedy="mend it"), torch.rand(3, 2, 5, 7, dtype=torch.float64)
    expected, before = network(images).detach(), network[0].bias.detach().clone()
    outputs = {"0": Normal(before, torch.tensor([1.0, 2.0, 1.0, 3.0]).double())}
    outputs = absorb_high_biases(traced, equalization_pairs(traced), outputs)
    torch.testing.assert_close(traced(images).detach(), expected)
    excess = torch.tensor([6.0, 2.0, 0.0, 0.0]).double()
    torch.testing.assert_close(traced.get_parameter("0.bias").detach(), before - excess)
    torch.testing.assert_close(outputs["0"].mean, before - excess)


def test_constant_response_is_the_convolution_of_a_constant_image():
    torch.manual_seed(0)
    layer, constant = nn.Conv2d(6, 9, (3, 2), groups=3, bias=False), torch.randn(6)
    answer = layer(constant.view(1, 6, 1, 1).expand(1, 6, 3, 2)).flatten()
    torch.testing.assert_close(constant_response(layer.weight, constant), answer)


def test_a_network_that_branches_on_its_values_is_refused_in_one_line():
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(InputError, match=r"^Branching cannot be traced \(.*\); mend it$"):
        trace(Branching(), remedy="mend it")


def test_only_layers_can_be_equalized():
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    with pytest.raises(TypeError, match="Conv2d and BatchNorm2d cannot be equalized"):
        equalize(network, [Pair("0", "1", False)], {})
