"""What is divided by, and what enters a root or a logarithm, stays in floating point."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nni_autorecon.quantization.dfq import dfq
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.quantizers import ActivationQuantizer, observe_ranges
from nni_autorecon.quantization.specification import Quantization
from nni_autorecon.quantization.tracing import trace
from nni_autorecon.shapes import ImageShape

IMAGE = ImageShape(3, 9, 9)


class Between(nn.Module):
    """A function between two convolutions; some maps are 25 times as small as others."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3)
        self.fc = nn.Linear(5, 4)
        self.function = function
        self.norm.weight.data[2:] = 0.04

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(self.norm(self.first(x)))
        return self.fc(torch.relu(self.second(x)).mean((2, 3)))


def simam(x: Tensor) -> Tensor:
    squares = (x - x.mean((2, 3), keepdim=True)).pow(2)
    spread = squares.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1)
    return x * torch.sigmoid(squares / (4 * (spread + 1e-9)) + 0.5)


class GeM(nn.Module):
    """A generalized mean, whose exponent is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return (x.clamp(min=1e-6).pow(self.p).mean((2, 3), keepdim=True)).pow(1 / self.p) + x


DIVIDING: dict[str, Callable[[Tensor], Tensor]] = {
    "SimAM": simam,
    "generalized mean": GeM(),
    "softplus": lambda x: x / F.softplus(-x.abs().amax(1, keepdim=True) - 8),
    "standard deviation": lambda x: x / (x.square().mean((2, 3), keepdim=True) + 1e-9).sqrt(),
    "reciprocal": lambda x: x * (x.square().mean((2, 3), keepdim=True) + 1e-9).rsqrt().clamp(max=1e4),
    "logarithm": lambda x: x + (x.abs().mean((2, 3), keepdim=True) + 1e-9).log(),
    "also added": lambda x: (y := x.square().mean((2, 3), keepdim=True) + 1e-9) + x / y.sqrt(),
    "also added, before a term": lambda x: (y := x.square().mean((2, 3), keepdim=True)) + x / (y + 1e-9).sqrt(),
}


@pytest.mark.parametrize("protocol", ["activations", "integer"])
@pytest.mark.parametrize("function", DIVIDING.values(), ids=DIVIDING)
def test_a_small_divisor_is_not_rounded_to_0(function: Callable[[Tensor], Tensor], protocol: str) -> None:
    network, images = Between(function).eval(), torch.randn(8, 3, 9, 9)
    student, coverage = quantize_network(network, Quantization("w8a8", protocol=protocol), image=IMAGE)
    assert not coverage.gaps
    assert "divisor" in [each.reason for each in coverage.float_inputs or ()]
    with torch.no_grad(), observe_ranges(student):
        student(images)
    logits = student(images)
    logits.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)
    with torch.no_grad():
        expected = network(images)
    assert (logits - expected).norm() < 0.3 * expected.norm()


def test_what_is_of_other_use_is_quantized_for_that_use() -> None:
    student, _ = quantize_network(Between(DIVIDING["also added"]), Quantization("w8a8", protocol="integer"))
    (root,) = (node for node in student.graph.nodes if node.target == "sqrt")
    source = root.all_input_nodes[0]
    readers = [student.get_submodule(user.target) for user in source.users if user.op == "call_module"]
    assert [type(reader) for reader in readers] == [ActivationQuantizer]


@pytest.mark.parametrize("silu", [lambda x: x / (1 + (-x).exp()), lambda x: x / (1 + x.abs())])
def test_an_activation_that_divides_reads_what_is_quantized(silu: Callable[[Tensor], Tensor]) -> None:
    _, coverage = quantize_network(Between(silu), Quantization("w8a8", protocol="integer"))
    assert coverage.float_inputs == ()
    assert "conv2d" in [each.kind for each in coverage.activations]


def test_dfq_follows_a_divisor() -> None:
    network, images = Between(simam).eval(), torch.randn(8, 3, 9, 9)
    student, _ = dfq(trace(network, remedy="", image=IMAGE), IMAGE, Quantization("w8a8", protocol="integer"))
    with torch.no_grad():
        expected, found = network(images), student(images)
    assert (found - expected).norm() < 0.2 * expected.norm()
