"""Convolutions of enlarged images, without enlarging them first."""

import pytest
import torch
from torch.testing import assert_close

from nni_autorecon.accel.upsampling import UpsampledConv, repeats_last
from nni_autorecon.generator.operations import EdgeShape, Features, make_operation


@pytest.mark.parametrize(("before", "size"), [((3, 4), (6, 8)), ((1, 1), (2, 2)), ((3, 4), (6, 7)), ((2, 2), (6, 6))])
def test_the_convolution_of_an_upsampled_image_in_values_and_gradients(both_ways, before, size):
    conv, x = UpsampledConv(3, 5).double(), torch.randn(2, 3, *before, dtype=torch.double, requires_grad=True)

    def results():
        y = conv(x, size)
        return y, *torch.autograd.grad((y * torch.randn_like(y)).sum(), (x, conv.weight))

    for fast, plain in zip(*both_ways(results), strict=True):
        assert_close(fast, plain)


@pytest.mark.parametrize("size", [(8, 12), (4, 4), (9, 12), (4, 6)])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_projecting_before_repeating_pixels_is_the_same_in_values_and_gradients(both_ways, mode, size):
    operation = make_operation(mode, EdgeShape(3, size, 5)).double()
    torch.nn.init.normal_(operation.affine.table.weight)
    x, labels = torch.randn(6, 3, 4, 6, dtype=torch.double, requires_grad=True), torch.arange(6) % 5

    def results():
        y = operation(Features(x), labels)
        return y, *torch.autograd.grad((y * torch.randn_like(y)).sum(), (x, *operation.parameters()))

    for fast, plain in zip(*both_ways(results), strict=True):
        assert_close(fast, plain)


def test_pixels_are_repeated_last_where_all_are_repeated_equally_often(both_ways):
    assert both_ways(lambda: repeats_last("nearest", (4, 6), (8, 6))) == (True, False)
    assert both_ways(lambda: repeats_last("nearest", (4, 6), (9, 6))) == (False, False)
    assert both_ways(lambda: repeats_last("bilinear", (4, 6), (8, 12))) == (False, False)
