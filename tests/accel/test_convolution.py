"""Sums of searched convolutions that are merged, against the same sums one by one."""

import operator

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nni_autorecon import accel
from nni_autorecon.accel.convolution import ConvSum, activated_conv, summed, waiting_sums
from nni_autorecon.generator.operations import ClassAffine
from tests.helpers.calls import Called

CONVS = [[(1, 1)], [(3, 1)], [(5, 2)], [(5, 1), (5, 2)], [(3, 3)], [(5, 1), (1, 1), (3, 1), (3, 2), (5, 2)]]
"""Kernel size and dilation of each convolution."""
LABELS = torch.tensor([0, 3, 1, 6, 3])


def _random(*shape):
    return torch.randn(shape, dtype=torch.double, requires_grad=True)


def _affine(channels):
    affine = ClassAffine(channels, 7).double()
    nn.init.normal_(affine.table.weight)
    return affine


class Edges(nn.Module):
    """Several edges, [x, affine map, convolutions, weights], and the sum of all."""

    def __init__(self, convs, size, *, count=1, channels=(3, 4), weighted=True, layout=torch.contiguous_format):
        super().__init__()
        before, after = channels

        def conv(kernel_size, dilation):
            padding = dilation * (kernel_size - 1) // 2
            return nn.Conv2d(before, after, kernel_size, padding=padding, dilation=dilation, dtype=torch.double)

        self.layout = layout
        self.x = nn.ParameterList(_random(5, before, *size) for _ in range(count))
        self.weights = nn.ParameterList(_random(len(convs)) for _ in range(count)) if weighted else None
        self.affine = nn.ModuleList(_affine(before) for _ in range(count))
        self.convs = nn.ModuleList(nn.ModuleList(conv(*form) for form in convs) for _ in range(count))

    def edge(self, index):
        x = self.x[index].contiguous(memory_format=self.layout)
        terms = [activated_conv(x, self.affine[index], LABELS, conv) for conv in self.convs[index]]
        return sum(terms if self.weights is None else map(operator.mul, self.weights[index], terms))

    def forward(self):
        with waiting_sums():
            return summed(self.edge(index) for index in range(len(self.x)))


def _value_and_gradients(module):
    inputs = [parameter for parameter in module.parameters() if parameter.requires_grad]
    y = module()
    probe = torch.linspace(-1, 1, y.numel(), dtype=torch.double).view_as(y)
    return y, *torch.autograd.grad((y * probe).sum(), inputs)


@pytest.mark.parametrize("convs", CONVS)
@pytest.mark.parametrize("size", [(6, 12), (5, 8), (1, 1), (7, 3)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_values_and_gradients(both_ways, convs, size, layout, count, weighted):
    edges = Edges(convs, size, count=count, weighted=weighted, layout=layout)
    for merged, plain in zip(*both_ways(lambda: _value_and_gradients(edges)), strict=True):
        assert_close(merged, plain)


def test_gradcheck():
    edges = Edges([(3, 1), (3, 2)], (4, 2), count=2, channels=(2, 2))
    inputs = list(edges.parameters())
    names = [name for name, _ in edges.named_parameters()]

    def form(*values):
        return torch.func.functional_call(edges, dict(zip(names, values, strict=True)), ())

    assert torch.autograd.gradcheck(form, inputs)


def test_only_the_wanted_gradients_are_computed(both_ways):
    edges = Edges([(3, 1), (3, 2)], (4, 6), count=2)
    inputs = list(edges.parameters())
    assert len(inputs) == 14
    for wanted in inputs:
        for other in inputs:
            other.requires_grad_(other is wanted)
        (_, merged), (_, plain) = both_ways(lambda: _value_and_gradients(edges))
        assert_close(merged, plain)


def _calls(operation, function):
    with Called(operation) as called:
        function()
    return called.count


def test_a_node_has_a_convolution_for_each_dilation_and_form(both_ways):
    edges = Edges(CONVS[-1], (4, 6), count=3)
    assert both_ways(lambda: _calls(torch.ops.aten.convolution, edges)) == (2, 15)
    other = Edges([(1, 1)], (4, 6), count=2)

    def together():
        with waiting_sums():
            return summed([edges.edge(0), other.edge(0), edges.edge(1), other.edge(1)])

    assert both_ways(lambda: _calls(torch.ops.aten.convolution, together)) == (3, 12)
    assert_close(*both_ways(together))


def test_convolutions_that_share_an_affine_map_look_it_up_once(both_ways):
    edges = Edges(CONVS[-1], (4, 6), count=2)
    assert both_ways(lambda: _calls(torch.ops.aten.embedding, edges)) == (2, 10)


def test_edges_that_differ_in_size_or_channels_or_weights_are_apart(both_ways):
    a, b = Edges([(3, 1)], (4, 6)), Edges([(3, 1)], (4, 6), channels=(2, 4))
    c, d = Edges([(3, 1)], (4, 6), weighted=False), Edges([(1, 1)], (2, 3), channels=(3, 4))

    def together():
        with waiting_sums():
            small = activated_conv(d.x[0], d.affine[0], LABELS, d.convs[0][0], size=(4, 6))
            return summed([a.edge(0), b.edge(0), c.edge(0), small])

    assert_close(*both_ways(together))
    assert both_ways(lambda: _calls(torch.ops.aten.convolution, together)) == (4, 4)


def test_a_waiting_sum_can_be_added_and_multiplied(both_ways):
    edges, tensor, weight = Edges(CONVS[3], (4, 6), count=2), _random(5, 4, 4, 6), _random()

    def result(form):
        with waiting_sums():
            return summed([form(edges.edge(0), edges.edge(1))])

    for form in (
        lambda s, t: 0 + s,
        lambda s, t: s + tensor,
        lambda s, t: tensor + s,
        lambda s, t: weight * s,
        lambda s, t: weight * (s + tensor) + t,
        lambda s, t: (tensor + s) + (t + tensor),
        lambda s, t: weight * (weight * s + t),
        lambda s, t: sum([s, t, tensor, tensor]),
        lambda s, t: tensor,
    ):
        assert_close(*both_ways(lambda form=form: result(form)))


def test_nothing_else_can_be_done_with_it():
    edges = Edges([(1, 1)], (2, 3))
    with waiting_sums():
        total = edges.edge(0)
    assert isinstance(total, ConvSum)
    for function in (torch.relu, lambda s: torch.ones(1) - s, lambda s: s * 2, lambda s: s + 2):
        with pytest.raises(TypeError):
            function(total)


def test_nothing_waits_elsewhere_nor_when_nothing_is_accelerated(monkeypatch):
    edges = Edges([(1, 1)], (2, 3))
    with pytest.raises(KeyError), waiting_sums():
        raise KeyError
    assert isinstance(edges.edge(0), torch.Tensor)
    monkeypatch.setattr(accel, "enabled", False)
    with waiting_sums():
        assert isinstance(edges.edge(0), torch.Tensor)


@pytest.mark.parametrize("count", [1, 2])
def test_only_what_enters_the_affine_map_and_what_leaves_leaky_relu_is_kept(count):
    kept = {}
    edges = Edges(CONVS[-1], (16, 16), count=count)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.update({tensor.data_ptr(): tensor}), id):
        edges()
    large = [tensor for tensor in kept.values() if tensor.numel() >= edges.x[0].numel()]
    assert len(large) == 2
    assert any(torch.equal(tensor, torch.cat(list(edges.x), 1)) for tensor in large)
