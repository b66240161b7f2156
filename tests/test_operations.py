"""Candidate operations and the two forms of their mixture."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from nni_autorecon.operations import (
    ConditionalBatchNorm2d,
    EdgeShape,
    fused_mixture,
    make_candidates,
    make_operation,
    mixture,
    sampled_operation,
)
from nni_autorecon.topology import CANDIDATES, CROSS, EDGES, NORMAL

NORMAL_EDGE = next(edge for edge in EDGES if edge.kind == NORMAL)
CROSS_EDGE = next(edge for edge in EDGES if edge.kind == CROSS)


def _inputs(height, width, channels=3, batch=5, classes=7):
    torch.manual_seed(0)
    return torch.randn(batch, channels, height, width, dtype=torch.double), torch.randint(classes, (batch,))


@pytest.mark.parametrize("name", CANDIDATES[NORMAL])
def test_normal_operations_keep_the_shape(name):
    x, labels = _inputs(5, 2)
    operation = make_operation(name, EdgeShape(3, (5, 2), 7)).double()
    assert operation(x, labels).shape == x.shape


@pytest.mark.parametrize("name", CANDIDATES[CROSS])
@pytest.mark.parametrize("size", [(10, 4), (9, 3)])
def test_cross_operations_reach_the_target_size(name, size):
    x, labels = _inputs(5, 2)
    operation = make_operation(name, EdgeShape(3, size, 7)).double()
    assert operation(x, labels).shape == (5, 3, *size)


@pytest.mark.parametrize("size", [(8, 12), (4, 4), (9, 12), (4, 6)])
def test_projecting_before_repeating_pixels_is_the_same_in_values_and_gradients(size):
    torch.manual_seed(0)
    operation = make_operation("nearest", EdgeShape(3, size, 5)).double()
    x, labels = torch.randn(6, 3, 4, 6, dtype=torch.float64, requires_grad=True), torch.arange(6) % 5
    before = torch.nn.functional.interpolate(x, size, mode="nearest")
    plain, fast = operation.conv(operation.preactivation(before, labels)), operation(x, labels)
    torch.testing.assert_close(fast, plain)
    weights, inputs = torch.randn_like(plain), (x, *operation.parameters())
    for got, expected in zip(
        torch.autograd.grad((fast * weights).sum(), inputs), torch.autograd.grad((plain * weights).sum(), inputs),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(got, expected)


def test_identity_is_bare_and_none_is_zero():
    x, labels = _inputs(5, 2)
    shape = EdgeShape(3, (5, 2), 7)
    assert make_operation("identity", shape)(x, labels) is x
    assert not make_operation("none", shape)(x, labels).any()
    assert not list(make_operation("none", shape).parameters())


def test_an_unknown_operation_is_named():
    with pytest.raises(ValueError, match="'conv_7x7'"):
        make_operation("conv_7x7", EdgeShape(3, (5, 2), 7))


def test_conditional_norm_scales_and_shifts_by_class():
    x, labels = _inputs(5, 2)
    norm = ConditionalBatchNorm2d(3, 7).double()
    torch.nn.init.normal_(norm.scale.weight)
    torch.nn.init.normal_(norm.shift.weight)
    y = norm(x, labels)
    standard = F.batch_norm(x, None, None, training=True)
    for n, label in enumerate(labels):
        expected = standard[n] * norm.scale.weight[label, :, None, None] + norm.shift.weight[label, :, None, None]
        assert_close(y[n], expected)


def test_a_dilated_convolution_sees_every_second_pixel():
    shape = EdgeShape(1, (9, 9), 2)
    operation = make_operation("dil_conv_5x5", shape).double()
    x = torch.randn(2, 1, 9, 9, dtype=torch.double, requires_grad=True)
    operation.conv(x)[0, 0, 4, 4].backward()
    touched = x.grad[0, 0].nonzero().tolist()
    assert touched == [[row, column] for row in (0, 2, 4, 6, 8) for column in (0, 2, 4, 6, 8)]


@pytest.mark.parametrize("weights", ["random", "one-hot"])
def test_fused_mixture_is_the_mixture_in_values_and_gradients(weights):
    x, labels = _inputs(7, 5)
    operations = {k: op.double() for k, op in make_candidates(NORMAL_EDGE, EdgeShape(3, (7, 5), 7)).items()}
    m = torch.rand(7, dtype=torch.double) if weights == "random" else torch.eye(7, dtype=torch.double)[3]
    parameters = list(torch.nn.ModuleDict(operations).parameters())
    results = []
    for mix in (mixture, fused_mixture):
        x_, m_ = x.clone().requires_grad_(), m.clone().requires_grad_()
        y = mix(operations, m_, x_, labels)
        probe = torch.linspace(-1, 1, y.numel(), dtype=torch.double).view_as(y)
        results.append((y, *torch.autograd.grad((y * probe).sum(), [x_, m_, *parameters], allow_unused=True)))
    for plain, fused in zip(*results, strict=True):
        if plain is None:  # none's weight reaches no output
            assert fused is None
        else:
            assert_close(plain, fused, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("edge", [NORMAL_EDGE, CROSS_EDGE])
def test_a_sampled_operation_is_the_mixture_with_one_hot_weights(edge):
    x, labels = _inputs(4, 6)
    operations = torch.nn.ModuleDict(make_candidates(edge, EdgeShape(3, (4, 6), 7))).double()
    for index in range(len(edge.candidates)):
        weights = torch.zeros(len(edge.candidates), dtype=torch.double)
        weights[index] = 1.0
        weights.requires_grad_()
        results = [form(dict(operations.items()), weights, x, labels) for form in (mixture, sampled_operation)]
        assert_close(*results)
        plain, sampled = (torch.autograd.grad(result.square().sum(), weights)[0] for result in results)
        assert_close(sampled[index], plain[index])
        assert sampled.count_nonzero() <= 1
        assert sampled_operation(dict(operations.items()), weights.detach(), x, labels).equal(results[1])


def test_mixture_of_a_cross_edge_is_the_weighted_sum():
    x, labels = _inputs(5, 2)
    operations = {k: op.double() for k, op in make_candidates(CROSS_EDGE, EdgeShape(3, (10, 4), 7)).items()}
    m = torch.tensor([0.2, 0.5, 0.3], dtype=torch.double)
    expected = 0.2 * operations["nearest"](x, labels) + 0.5 * operations["bilinear"](x, labels)
    assert_close(mixture(operations, m, x, labels), expected)


def test_the_mixture_passes_gradcheck():
    x, labels = _inputs(3, 2, channels=2, batch=3)
    operations = {k: op.double() for k, op in make_candidates(NORMAL_EDGE, EdgeShape(2, (3, 2), 7)).items()}
    m = torch.rand(7, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, m: fused_mixture(operations, m, x, labels), (x.requires_grad_(), m))
