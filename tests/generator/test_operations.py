"""Candidate operations and their mixture."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from nni_autorecon.accel.convolution import summed
from nni_autorecon.generator.operations import (
    ClassAffine,
    EdgeShape,
    Features,
    embedded,
    make_candidates,
    make_operation,
    mixture,
    sampled_operation,
)
from nni_autorecon.generator.topology import CANDIDATES, CROSS, EDGES, NORMAL

NORMAL_EDGE = next(edge for edge in EDGES if edge.kind == NORMAL)
CROSS_EDGE = next(edge for edge in EDGES if edge.kind == CROSS)


def _inputs(height, width, channels=3, batch=5, classes=7):
    torch.manual_seed(0)
    return torch.randn(batch, channels, height, width, dtype=torch.double), torch.randint(classes, (batch,))


@pytest.mark.parametrize("name", CANDIDATES[NORMAL])
def test_normal_operations_keep_the_shape(name):
    x, labels = _inputs(5, 2)
    operation = make_operation(name, EdgeShape(3, (5, 2), 7)).double()
    assert operation(Features(x), labels).shape == x.shape


@pytest.mark.parametrize("name", CANDIDATES[CROSS])
@pytest.mark.parametrize("size", [(10, 4), (9, 3)])
def test_cross_operations_reach_the_target_size(name, size):
    x, labels = _inputs(5, 2)
    operation = make_operation(name, EdgeShape(3, size, 7)).double()
    assert operation(Features(x), labels).shape == (5, 3, *size)


def test_identity_is_bare_and_none_is_zero():
    x, labels = _inputs(5, 2)
    shape = EdgeShape(3, (5, 2), 7)
    assert make_operation("identity", shape)(Features(x), labels) is x
    assert not make_operation("none", shape)(Features(x), labels).any()
    assert not list(make_operation("none", shape).parameters())


def test_an_unknown_operation_is_named():
    with pytest.raises(ValueError, match="'conv_7x7'"):
        make_operation("conv_7x7", EdgeShape(3, (5, 2), 7))


def test_features_are_normalized_and_then_scaled_and_shifted_by_class():
    x, labels = _inputs(5, 2)
    operation = make_operation("conv_1x1", EdgeShape(3, (5, 2), 7)).double()
    torch.nn.init.normal_(operation.affine.table.weight)
    standard = F.batch_norm(x, None, None, training=True)
    for n, label in enumerate(labels):
        scale, shift = operation.affine.table.weight[label].split(3)
        expected = operation.conv(F.leaky_relu(standard[n] * scale[:, None, None] + shift[:, None, None], 0.2))
        assert_close(operation(Features(x), labels)[n], expected)


def test_a_fresh_affine_map_changes_nothing():
    scale, shift = ClassAffine(3, 7)(torch.arange(7)).unbind(1)
    assert scale.shape == shift.shape == (7, 3)
    assert scale.eq(1).all()
    assert shift.eq(0).all()


def test_what_edges_share_is_computed_once():
    features = Features(_inputs(5, 2)[0])
    assert features.normalized is features.normalized
    assert features.resized("bilinear", (10, 4)) is features.resized("bilinear", (10, 4))
    assert features.resized("bilinear", (10, 4)) is not features.resized("nearest", (10, 4))


def test_a_dilated_convolution_sees_every_second_pixel():
    shape = EdgeShape(1, (9, 9), 2)
    operation = make_operation("dil_conv_5x5", shape)
    features = Features(torch.zeros(2, 1, 9, 9))
    features.normalized = torch.randn(2, 1, 9, 9, requires_grad=True)
    operation(features, torch.zeros(2, dtype=torch.long))[0, 0, 4, 4].backward()
    touched = features.normalized.grad[0, 0].nonzero().tolist()
    assert touched == [[row, column] for row in (0, 2, 4, 6, 8) for column in (0, 2, 4, 6, 8)]


@pytest.mark.parametrize("edge", [NORMAL_EDGE, CROSS_EDGE])
def test_a_sampled_operation_is_the_mixture_with_one_hot_weights(edge):
    x, labels = _inputs(4, 6)
    operations = torch.nn.ModuleDict(make_candidates(edge, EdgeShape(3, (4, 6), 7))).double()
    for index in range(len(edge.candidates)):
        weights = torch.zeros(len(edge.candidates), dtype=torch.double)
        weights[index] = 1.0
        weights.requires_grad_()
        results = [
            summed([form(dict(operations.items()), weights, Features(x), labels)])
            for form in (mixture, sampled_operation)
        ]
        assert_close(*results)
        plain, sampled = (torch.autograd.grad(result.square().sum(), weights)[0] for result in results)
        assert_close(sampled[index], plain[index])
        assert sampled.count_nonzero() <= 1
        assert sampled_operation(dict(operations.items()), weights.detach(), Features(x), labels).equal(results[1])


def test_mixture_of_a_cross_edge_is_the_weighted_sum():
    x, labels = _inputs(5, 2)
    operations = {k: op.double() for k, op in make_candidates(CROSS_EDGE, EdgeShape(3, (10, 4), 7)).items()}
    m = torch.tensor([0.2, 0.5, 0.3], dtype=torch.double)
    expected = 0.2 * operations["nearest"](Features(x), labels) + 0.5 * operations["bilinear"](Features(x), labels)
    assert_close(summed([mixture(operations, m, Features(x), labels)]), expected)


def test_a_mixed_label_is_the_mixture_of_what_its_classes_have():
    table = nn.Embedding(7, 4)
    assert_close(embedded(table, F.one_hot(torch.arange(7), 7).float()), embedded(table, torch.arange(7)))
    half = torch.zeros(1, 7)
    half[0, [2, 5]] = torch.tensor([0.25, 0.75])
    assert_close(embedded(table, half)[0], 0.25 * table.weight[2] + 0.75 * table.weight[5])
