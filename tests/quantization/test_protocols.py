"""Protocol integer, bits of first and last layer, and where ranges come from."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional as F

from nni_autorecon.errors import InputError
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.quantizers import WeightQuantizer, observe_ranges
from nni_autorecon.quantization.specification import Bits, Quantization
from nni_autorecon.shapes import ImageShape
from tests.helpers.toys import quantizers, relative_error


def _stored(network: nn.Module, **settings: int) -> list[tuple[str, int]]:
    """Kind and bits of every quantized activation under protocol integer, in order."""
    _, coverage = quantize_network(network, Quantization("w4a3", protocol="integer", **settings))
    assert coverage.float_inputs == ()
    assert coverage.gaps == ()
    return [(each.kind, each.bits) for each in coverage.activations]


def test_integer_stores_what_is_not_merged_with_its_follower(small: nn.Module) -> None:
    identity, projected = ["relu", "conv2d", "relu"], ["relu", "conv2d", "conv2d", "relu"]
    kinds = ["network input", "relu", *identity, *projected, "adaptiveavgpool2d"]  # not the logits
    wide = ("network input", "conv2d")  # no layer reads these terms of a sum
    assert _stored(small) == [(kind, 8 if kind in wide else 3) for kind in kinds]


class LinearBottlenecks(nn.Module):
    """MobileNetV2's pattern: additions without an activation after them; one sum is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norm, self.fc = nn.BatchNorm2d(3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        total = x + self.norm(self.a(x))
        joined = torch.cat([self.b(total), F.relu6(self.c(total) * 2)], 1)
        return self.fc(joined.mean((2, 3)).view(x.size(0), -1)) + 1


def test_integer_quantizes_additions_concatenations_products_and_means() -> None:
    kinds = ["network input", "conv2d", "addition", "conv2d", "conv2d", "relu6", "concatenation", "mean"]
    bits = {"network input": 5, "mean": 7, "conv2d": 8, "concatenation": 8, "addition": 3, "relu6": 3}
    assert _stored(LinearBottlenecks(), input_bits=5, last_bits=7) == [
        (kind, bits[kind]) for kind in kinds
    ]  # and nothing from the last layer on; no layer reads what has 8 bits


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1", "googlenet"])
def test_integer_covers_whole_torchvision_networks(name: str) -> None:
    arguments = {"init_weights": False} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, num_classes=7, **arguments).eval()
    quantization = Quantization("w8a8", protocol="integer")
    student, coverage = quantize_network(network, quantization, image=ImageShape(3, 64, 64))
    assert not coverage.gaps
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), observe_ranges(student):
        got = student(images)
    assert got.isfinite().all()
    assert relative_error(got, network(images)) < 0.2


def test_every_input_of_a_layer_or_an_addition_lies_on_a_grid(small: nn.Module) -> None:
    student, _ = quantize_network(small, Quantization("w8a2", protocol="integer", input_bits=2))
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad(), observe_ranges(student):
        student(images)
    seen: dict[str, int] = {}

    class Interpreter(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            is_layer = node.op == "call_module" and isinstance(
                self.module.get_submodule(str(node.target)), (nn.Conv2d, nn.Linear)
            )
            if is_layer or "add" in node.name:
                values = max(self.env[source].unique().numel() for source in node.all_input_nodes)
                assert values <= (4 if is_layer else 256), node.name
                seen[node.name] = values
            return super().run_node(node)

    with torch.no_grad():
        Interpreter(student).run(images)
    assert len(seen) == 7 + 2  # layers and additions


class InPlace(nn.Module):
    """The activation is called for its effect; what comes after it sees its result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        F.relu_(x)
        return F.log_softmax(self.second(x).mean((2, 3)) * 10, 1)


def test_integer_stores_what_an_in_place_activation_leaves_and_no_logits() -> None:
    assert _stored(InPlace()) == [("network input", 8), ("relu", 3), ("conv2d", 8)]  # no engine has float maps


class Limited(nn.Module):
    """Two convolutions, whose results ``join`` puts together before a linear layer."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.fc, self.join = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.LazyLinear(5), join

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.join(self.a(x), self.b(x)).flatten(1))


LIMITED = {
    "pooled": (lambda a, b: F.relu(F.max_pool2d(a, 2)), ["relu"]),
    "shuffled": (lambda a, b: F.relu6(F.channel_shuffle(a, 2).transpose(1, 2)), ["relu6"]),
    "gated": (lambda a, b: F.relu(a * b.sigmoid()), ["conv2d", "conv2d", "sigmoid", "relu"]),
    "joined": (lambda a, b: F.relu(torch.cat([a, b], 1)), ["conv2d", "conv2d", "relu"]),
    "averaged": (lambda a, b: F.hardtanh(F.avg_pool2d(a, 2)), ["conv2d", "hardtanh"]),
    "summed from 0": (lambda a, b: F.relu(sum([a, b])), ["conv2d", "conv2d", "relu"]),  # type: ignore[arg-type]
    "pooled and used": (lambda a, b: F.relu(F.max_pool2d(a, 1)) + a, ["conv2d", "relu", "addition"]),
}


@pytest.mark.parametrize(("join", "stored"), LIMITED.values(), ids=LIMITED)
def test_what_is_limited_is_stored_once(join: Callable[[Tensor, Tensor], Tensor], stored: list[str]) -> None:
    torch.manual_seed(0)
    network, x = Limited(join).eval(), torch.randn(8, 3, 6, 6)
    expected = network(x)
    student, coverage = quantize_network(network, Quantization("w8a8", protocol="integer"), image=ImageShape(3, 6, 6))
    assert [each.kind for each in coverage.activations] == ["network input", *stored]
    with torch.no_grad(), observe_ranges(student):
        assert relative_error(student(x), expected) < 0.03


def test_integer_leaves_sizes_alone() -> None:
    class Resized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 5, 3), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.interpolate(torch.relu(self.first(x)), size=(x.size(2) + 1, x.size(3) + 1))
            return self.second(x.mean((2, 3)))

    assert [kind for kind, _ in _stored(Resized())] == ["network input", "relu", "interpolate", "mean"]


def test_integer_merges_what_can_be_folded_only() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten())
    assert _stored(network) == [("network input", 8), ("conv2d", 8), ("relu", 3), ("conv2d", 8)]


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_integer_stores_what_is_padded_with_another_constant_than_0(value: float) -> None:
    """Its values need not be among the codes of what is padded; with zeros they are."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(3, 3, 3) for _ in range(3))
            self.pad = nn.ConstantPad2d(1, value)

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(self.pad(F.relu(self.first(x))))
            return self.third(F.pad(F.relu(x), (1, 1, 1, 1), value=value)).mean((2, 3))

    kinds = [kind for kind, _ in _stored(Padded())]
    assert kinds == (
        ["network input", "relu", "constantpad2d", "relu", "pad", "conv2d"]
        if value
        else ["network input", "relu", "relu", "conv2d"]
    )
    _, coverage = quantize_network(Padded(), Quantization("w4a4"))
    assert not coverage.gaps


def test_integer_needs_a_traceable_network() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.act = nn.Linear(3, 2), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.fc(x)) if x.sum() > 0 else self.fc(x)

    with pytest.raises(InputError, match=r"Branch cannot be traced .*; change that code, or .* --protocol activations"):
        quantize_network(Branch(), Quantization("w4a4", protocol="integer", allow_partial=True))


def test_first_and_last_layer_have_their_own_bits(small: nn.Module) -> None:
    _, coverage = quantize_network(small, Quantization("w3a4", first_bits=8, last_bits=6))
    assert (coverage.weights[0].bits, coverage.weights[-1].bits) == (8, 6)
    assert {weight.bits for weight in coverage.weights[1:-1]} == {3}
    assert {activation.bits for activation in coverage.activations} == {4}  # the last layer reads none


def test_one_of_several_results_is_a_gap() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.rnn, self.fc = nn.Conv2d(3, 3, 1), nn.GRU(3, 2), nn.Linear(2, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.rnn(torch.relu(self.conv(x)).mean((2, 3)))[0])

    with pytest.raises(InputError, match=r"fc \(its input comes from gru in floating point\)"):
        quantize_network(Odd(), Quantization("w8a8", protocol="integer"))


class NonLocal(nn.Module):
    """Attention over places (Wang et al., CVPR 2018), its products written by ``multiply``."""

    def __init__(self, multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.qkv, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 12, 1), nn.Linear(4, 5)
        self.multiply = multiply

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        q, k, v = self.qkv(x).flatten(2).chunk(3, 1)  # [N, C, L]
        weights = self.multiply(q.transpose(1, 2), k).softmax(-1)
        return self.fc(torch.relu(self.multiply(v, weights.mT)).mean(-1))


MULTIPLY = {
    "bmm": torch.bmm,
    "operator": lambda a, b: a @ b,
    "method": lambda a, b: a.matmul(b),
    "einsum": lambda a, b: torch.einsum("nij,njk->nik", a, b),
}


@pytest.mark.parametrize("protocol", ["activations", "integer"])
@pytest.mark.parametrize("multiply", MULTIPLY.values(), ids=MULTIPLY)
def test_products_of_activations_are_quantized_or_listed(
    multiply: Callable[[Tensor, Tensor], Tensor], protocol: str
) -> None:
    torch.manual_seed(0)
    network, x = NonLocal(multiply).eval(), torch.randn(8, 3, 5, 6)
    student, coverage = quantize_network(network, Quantization("w8a8", protocol=protocol), image=ImageShape(3, 5, 6))
    assert not coverage.gaps
    kinds = [each.kind for each in coverage.activations]
    assert "softmax" in kinds
    with torch.no_grad(), observe_ranges(student):
        assert relative_error(student(x), network(x)) < 0.05
    listed = {gap.name for gap in coverage.float_inputs or ()}
    products = {node.name for node in student.graph.nodes if node.name.startswith(("bmm", "matmul", "einsum"))}
    assert len(products) == 2
    assert products <= listed if protocol == "activations" else not listed


def test_attention_is_its_two_products() -> None:
    class Attention(NonLocal):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(torch.relu(self.stem(x))).flatten(2).mT.chunk(3, -1)  # [N, L, C]
            return self.fc(torch.relu(F.scaled_dot_product_attention(q, k, v)).mean(1))

    torch.manual_seed(0)
    network, x = Attention(torch.bmm).eval(), torch.randn(8, 3, 5, 6)
    image = ImageShape(3, 5, 6)
    student, coverage = quantize_network(network, Quantization("w8a8", protocol="integer"), image=image)
    kinds = [each.kind for each in coverage.activations]
    assert kinds[kinds.index("matmul") :] == ["matmul", "mul", "softmax", "relu", "mean"]
    with torch.no_grad(), observe_ranges(student):
        assert relative_error(student(x), network(x)) < 0.05


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="protocol 'full' is unknown; choose one of activations, integer"):
        Quantization("w8a8", protocol="full")
    with pytest.raises(InputError, match="ranges 'widest' are unknown; choose one of minmax, percentile, mse"):
        Quantization("w8a8", weight_ranges="widest")
    with pytest.raises(InputError, match="leave out input_bits"):
        Quantization("w8a8", input_bits=4)


@pytest.mark.parametrize("bits", ["w1a4", "w4a9", "4", "w4a4 ", "W4A4", 4, None])
def test_bits_are_from_2_to_8(bits: object) -> None:
    with pytest.raises(InputError, match="write them as w4a8, with 2 to 8 bits each"):
        Bits(bits)


def test_bits_and_quantization_come_back_from_json() -> None:
    quantization = Quantization("w2a7", "integer", input_bits=3, last_bits=8, allow_partial=True)
    assert (quantization.bits.weights, quantization.bits.activations) == (2, 7)
    assert Quantization.from_dict(json.loads(json.dumps(quantization.to_dict()))) == quantization
    assert Quantization.from_dict({"weight_bits": 2, "activation_bits": 7, "protocol": "gdfq"}) == Quantization("w2a7")
    assert copy.deepcopy(quantization.bits) == Bits("w2a7")
    with pytest.raises(ValueError, match="choose one of minmax, percentile, mse"):
        WeightQuantizer(4, ranges="max")


@pytest.mark.parametrize("ranges", ["percentile", "mse"])
def test_ranges_reach_weights_and_activations(ranges: str, small: nn.Module) -> None:
    images = torch.randn(4, 3, 16, 16)
    scales = []
    for name in ("minmax", ranges):
        student, _ = quantize_network(small, Quantization("w2a2", weight_ranges=name, activation_ranges=name))
        with torch.no_grad(), observe_ranges(student):
            student(images)
        scales.append(float(quantizers(student)[0].qparams()[0]))
        weight = next(module for module in student.modules() if isinstance(module, WeightQuantizer))
        scales.append(float(weight.qparams(torch.randn(1, 5000, generator=torch.Generator().manual_seed(0)))[0]))
    assert scales[2] < scales[0]
    assert scales[3] < scales[1]
