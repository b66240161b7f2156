"""What a loaded student of protocol ``integer`` computes is computed again in Python's integers and fractions."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from nni_autorecon.quantization.integer_arithmetic import _fused, with_integer_arithmetic
from nni_autorecon.quantization.integers import FixedQuantizer, IntegerWeight
from nni_autorecon.quantization.operators import averaged_axes, pooled_windows


def quantizer(scale: float, zero_point: int, bits: int = 8) -> FixedQuantizer:
    made = FixedQuantizer(bits)
    made.scale.fill_(scale)
    made.zero_point.fill_(zero_point)
    return made.eval()


class Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return isinstance(module, FixedQuantizer) or super().is_leaf_module(module, path)


def traced(network: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(network.eval(), Tracer().trace(network))


class Layered(nn.Module):
    """Quantized images go into a convolution and a ReLU, whose result is quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.given, self.conv, self.result = quantizer(0.04, 100), nn.Conv2d(200, 3, 1), quantizer(0.11, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.result(F.relu(self.conv(self.given(x))))


class Halves(nn.Module):
    """Two quantized values are joined by a function, whose result is quantized."""

    def __init__(self, joined: str, scales: tuple[float, float, float]) -> None:
        super().__init__()
        self.one, self.other, self.result = (quantizer(s, z) for s, z in zip(scales, (3, 128, 11), strict=True))
        self.joined = joined

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.one(x[:, :2]), self.other(x[:, 2:])
        return self.result(one + other if self.joined == "sum" else one * other)


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.given, self.result = quantizer(0.5, 0), quantizer(0.5, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.result(self.given(x).mean((2, 3)))


def codes(values: Tensor, of: FixedQuantizer) -> np.ndarray:
    return (values / of.scale).round().int().numpy()


def test_sums_of_products_are_those_of_integers(tmp_path: Path) -> None:
    network = Layered()
    weight = IntegerWeight(
        torch.randint(0, 256, (3, 200, 1, 1)).byte(), torch.tensor([0.01, 0.02, 0.03]), torch.full((3,), 120).byte(), 8
    )
    network.conv.weight = nn.Parameter(weight.values())
    scale = network.given.scale * weight.scale
    network.conv.bias = nn.Parameter(torch.tensor([500, -3, 77]) * scale)
    form = with_integer_arithmetic(traced(network), {"conv": weight})
    images = 3 * torch.randn(4, 200, 5, 5)
    with torch.no_grad():
        found = codes(form(images), network.result)
        given = codes(network.given(images), network.given)
    steps = weight.codes.long().numpy()[:, :, 0, 0] - 120
    sums = np.einsum("oc,nchw->nohw", steps, given.astype(np.int64)) + np.array([500, -3, 77])[:, None, None]
    ratio = (scale / network.result.scale).numpy()[:, None, None]
    expected = np.clip(np.rint(sums.astype(np.float32) * ratio), 0, 255 - 7)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("joined", ["sum", "product"])
def test_two_values_are_joined_as_fractions_are(joined: str) -> None:
    """But for what lies so near to the middle between two codes that float32 decides."""
    network = Halves(joined, (0.03, 0.05, 0.08))
    form = with_integer_arithmetic(traced(network), {})
    images = 2 * torch.randn(20, 4)
    found = codes(form(images), network.result)
    one, other = codes(network.one(images[:, :2]), network.one), codes(network.other(images[:, 2:]), network.other)
    scales = [Fraction(float(each.scale)) for each in (network.one, network.other, network.result)]
    for a, b, c in zip(one.ravel().tolist(), other.ravel().tolist(), found.ravel().tolist(), strict=True):
        exact = a * scales[0] + b * scales[1] if joined == "sum" else a * scales[0] * b * scales[1]
        step = exact / scales[2]
        assert abs(min(max(step, -11), 244) - c) <= Fraction(1, 2) + Fraction(1, 10**4)


def test_a_multiplication_and_an_addition_are_rounded_once() -> None:
    factors = 0.1 + torch.rand(200, generator=torch.Generator().manual_seed(0))
    values, terms = torch.arange(256.0), torch.linspace(-40, 90, 256)
    rounded_twice = 0
    for factor in factors:
        found = _fused(factor, values, terms).tolist()
        for a, b, c in zip(values.tolist(), terms.tolist(), found, strict=True):
            assert c == np.float32(float(Fraction(float(factor)) * Fraction(a) + Fraction(b)))
        rounded_twice += int((factor * values + terms != torch.tensor(found)).sum())
    assert rounded_twice > 1000


def test_the_network_stays_and_shares_its_layers() -> None:
    network = traced(Layered())
    images, code = torch.randn(2, 200, 3, 3), network.code
    before = network(images)
    form = with_integer_arithmetic(network, {})
    assert form.conv is network.conv
    assert network.code == code
    assert torch.equal(network(images), before)
    assert not form.training


class Means(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.part = nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(2)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [
            *(x.mean((2, 3)), x.mean(dim=[-1, -2], keepdim=True), x.mean(axis=(2, 3), keepdims=True), torch.mean(x, 1)),
            *(x.mean(), self.pool(x), F.adaptive_avg_pool2d(x, (1, 1)), F.adaptive_avg_pool2d(input=x, output_size=1)),
            self.part(x),
        ]


def test_means_are_found_in_every_form() -> None:
    means = traced(Means())
    found = [averaged_axes(means, node) for node in means.graph.nodes if node.op not in ("placeholder", "output")]
    assert found == [
        *(((2, 3), False), ((-1, -2), True), ((2, 3), True), ((1,), False)),
        *(None, ((-2, -1), True), ((-2, -1), True), ((-2, -1), True)),
        None,
    ]


class Pools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain, self.padded = nn.AvgPool2d(2), nn.AvgPool2d((3, 2), (2, 1), padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [
            *(self.plain(x), self.padded(x), F.avg_pool2d(x, 3, 1), F.avg_pool2d(x, (2, 3), ceil_mode=True)),
            F.avg_pool2d(input=x, kernel_size=2, stride=None, count_include_pad=False),
        ]


def test_average_poolings_without_padding_are_found_in_every_form() -> None:
    pools = traced(Pools())
    found = [pooled_windows(pools, node) for node in pools.graph.nodes if node.op not in ("placeholder", "output")]
    assert found == [(2, 2), None, (3, 1), None, (2, 2)]


class OfItsSize(nn.Module):
    """The window is as large as the map, whatever its size."""

    def __init__(self) -> None:
        super().__init__()
        self.given, self.result = quantizer(0.5, 0), quantizer(0.5, 0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.given(x)
        return self.result(F.avg_pool2d(x, x.size()[2:]))


@pytest.mark.parametrize("network", [Mean, OfItsSize])
def test_a_mean_midway_between_two_codes_has_the_even_one(network: type[nn.Module]) -> None:
    form = with_integer_arithmetic(traced(network()), {})
    images = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4]]).view(4, 1, 1, 2) * 0.5
    assert (form(images) / 0.5).flatten().tolist() == [0, 2, 2, 4]
