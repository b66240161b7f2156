"""The fused affine map, LeakyReLU and convolution against the expression it stands for."""

import pytest
import torch
from torch.testing import assert_close

from nni_autorecon.convolution import activated_conv, plain_activated_conv

KERNELS = [{1: 1}, {1: 3}, {2: 5}, {1: 5, 2: 5}, {3: 3}]


def _arguments(kernels, size, *, channels=(3, 4)):
    torch.manual_seed(0)
    before, after = channels

    def random(*shape):
        return torch.randn(*shape, dtype=torch.double, requires_grad=True)

    x, affine, bias = random(5, before, *size), (random(5, before), random(5, before)), random(after)
    return x, affine, bias, {d: random(after, before, k, k) for d, k in kernels.items()}


def _flat(x, affine, bias, kernels):
    return [x, *affine, bias, *kernels.values()]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("size", [(6, 12), (5, 8), (1, 1), (7, 3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients(kernels, size, memory_format):
    x, *rest = _arguments(kernels, size)
    inputs = _flat(x, *rest)
    plain, fused = (
        form(x.contiguous(memory_format=memory_format), *rest) for form in (plain_activated_conv, activated_conv)
    )
    assert_close(fused, plain)
    probe = torch.randn_like(plain)
    expected, got = (torch.autograd.grad((y * probe).sum(), inputs) for y in (plain, fused))
    for one, other in zip(expected, got, strict=True):
        assert_close(one, other)


def test_gradcheck():
    x, affine, bias, kernels = _arguments({1: 3, 2: 3}, (4, 2), channels=(2, 2))

    def form(x, scale, shift, bias, *kernels):
        return activated_conv(x, (scale, shift), bias, dict(zip((1, 2), kernels, strict=True)))

    assert torch.autograd.gradcheck(form, _flat(x, affine, bias, kernels))


@pytest.mark.parametrize("index", range(6))
def test_only_the_wanted_gradients_are_computed(index):
    arguments = _arguments({1: 3, 2: 3}, (4, 6))
    inputs = _flat(*arguments)
    for other in inputs:
        other.requires_grad_(other is inputs[index])
    results = [
        torch.autograd.grad(f(*arguments).square().sum(), inputs[index]) for f in (plain_activated_conv, activated_conv)
    ]
    assert_close(*results)


def test_nothing_but_its_arguments_is_kept():
    """No activation: x belongs to all edges of a node."""
    kept = []
    arguments = _arguments({1: 5, 2: 5}, (6, 6))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda t: t):
        activated_conv(*arguments)
    assert set(kept) <= {tensor.data_ptr() for tensor in _flat(*arguments)}
