"""The fused affine map, LeakyReLU and convolution against the expression it stands for."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nni_autorecon.accel.convolution import ConvTerm, activated_conv
from tests.helpers.toys import plain_activated_conv

CONVS = [[(1, 1)], [(3, 1)], [(5, 2)], [(5, 1), (5, 2)], [(3, 3)], [(1, 1), (3, 1), (5, 1), (3, 2), (5, 2)]]
"""Kernel size and dilation of each convolution."""
FORMS = (plain_activated_conv, activated_conv)


def _terms(convs, size, *, count=1, channels=(3, 4), weighted=False):
    torch.manual_seed(0)
    before, after = channels

    def random(*shape):
        return torch.randn(*shape, dtype=torch.double, requires_grad=True)

    def conv(kernel_size, dilation):
        padding = dilation * (kernel_size - 1) // 2
        return nn.Conv2d(before, after, kernel_size, padding=padding, dilation=dilation, dtype=torch.double)

    return [
        ConvTerm(
            random(5, before, *size), random(5, 2, before), [conv(*form) for form in convs],
            random(len(convs)) if weighted else None,
        )
        for _ in range(count)
    ]  # fmt: skip


def _flat(terms):
    tensors = [[x, affine, *(p for conv in convs for p in conv.parameters()), m] for x, affine, convs, m in terms]
    return [tensor for of_term in tensors for tensor in of_term if tensor is not None]


@pytest.mark.parametrize("convs", CONVS)
@pytest.mark.parametrize("size", [(6, 12), (5, 8), (1, 1), (7, 3)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_values_and_gradients(convs, size, memory_format, count, weighted):
    terms = _terms(convs, size, count=count, weighted=weighted)
    inputs = _flat(terms)
    terms = [term._replace(x=term.x.contiguous(memory_format=memory_format)) for term in terms]
    plain, fused = (form(*terms) for form in FORMS)
    assert_close(fused, plain)
    probe = torch.randn_like(plain)
    expected, got = (torch.autograd.grad((y * probe).sum(), inputs) for y in (plain, fused))
    for one, other in zip(expected, got, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("after", [1, 3, 5, 6])  # to 5 channels a 3×3 kernel is applied row by row
@pytest.mark.parametrize("size", [(6, 12), (1, 1), (2, 1)])
def test_few_and_many_channels(after, size):
    terms = _terms([(3, 1)], size, channels=(3, after))
    plain, fused = (form(*terms) for form in FORMS)
    assert_close(fused, plain)
    probe = torch.randn_like(plain)
    expected, got = (torch.autograd.grad((y * probe).sum(), _flat(terms)) for y in (plain, fused))
    for one, other in zip(expected, got, strict=True):
        assert_close(one, other)


def test_gradcheck():
    terms = _terms([(3, 1), (3, 2)], (4, 2), count=2, channels=(2, 2), weighted=True)

    def form(*inputs):
        pairs = [inputs[i : i + 3] for i in (0, 3)]
        return activated_conv(
            *(term._replace(x=x, affine=affine, weights=m) for term, (x, affine, m) in zip(terms, pairs, strict=True))
        )

    assert torch.autograd.gradcheck(form, [t for x, affine, _, m in terms for t in (x, affine, m)])


@pytest.mark.parametrize("index", range(14))
def test_only_the_wanted_gradients_are_computed(index):
    terms = _terms([(3, 1), (3, 2)], (4, 6), count=2, weighted=True)
    inputs = _flat(terms)
    assert len(inputs) == 14
    for other in inputs:
        other.requires_grad_(other is inputs[index])
    assert_close(*(torch.autograd.grad(form(*terms).square().sum(), inputs[index]) for form in FORMS))


@pytest.mark.parametrize("count", [1, 2])
def test_no_activation_is_kept(count):
    """Scale, shift and kernels are small; of what is large there is but the input, x itself or all x joined."""
    kept = []
    terms = _terms([(5, 1), (5, 2)], (16, 16), count=count)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda t: t):
        activated_conv(*terms)
    (large,) = (tensor for tensor in kept if tensor.numel() >= terms[0].x.numel())
    assert torch.equal(large, torch.cat([term.x for term in terms], 1))
    assert (large.data_ptr() == terms[0].x.data_ptr()) == (count == 1)
