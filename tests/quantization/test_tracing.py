"""A traced network computes the same as the network, whatever its code does, or is refused in one line."""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchvision.ops import drop_block2d

from nni_autorecon.errors import InputError
from nni_autorecon.quantization.calls import called
from nni_autorecon.quantization.coverage import Coverage
from nni_autorecon.quantization.dfq import dfq
from nni_autorecon.quantization.folding import folded
from nni_autorecon.quantization.functional_layers import LAYERS
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.quantizers import observe_ranges
from nni_autorecon.quantization.specification import Quantization
from nni_autorecon.quantization.tracing import trace
from nni_autorecon.shapes import ImageShape
from tests.helpers.toys import relative_error

IMAGE = ImageShape(3, 9, 11)


class Net(nn.Module):
    """Two convolutions with norms, and between them a function that each test gives."""

    def __init__(self, between: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.bn1 = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.second, self.bn2 = nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)
        self.between = between
        for norm in (self.bn1, self.bn2):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.bn1(self.first(x)))
        x = F.relu(self.bn2(self.second(x)))
        return self.fc(x.mean((2, 3)))


def images(count: int = 4) -> Tensor:
    return torch.randn(count, *IMAGE, generator=torch.Generator().manual_seed(1))


def traced_like(network: nn.Module) -> fx.GraphModule:
    """The graph, which must compute what the network does, with gradients, and for other numbers of images."""
    network.eval()
    traced = trace(network, remedy="mend it", image=IMAGE)
    for count in (1, 4, 5):
        x = images(count).requires_grad_()
        y = images(count).requires_grad_()
        expected, found = network(x * 1), traced(y * 1)
        torch.testing.assert_close(found, expected)
        expected.square().sum().backward()
        found.square().sum().backward()
        torch.testing.assert_close(y.grad, x.grad)
    return traced


def kinds(traced: fx.GraphModule) -> list[str]:
    return [called(traced, node)[1] for node in traced.graph.nodes]


def entering(network: nn.Module, protocol: str) -> tuple[dict[str, int], Coverage]:
    """Return how many different values enter each layer of a student with 2 bits, and 3 at its input."""
    bits = {"input_bits": 3} if protocol == "integer" else {}
    quantization = Quantization("w8a2", protocol=protocol, **bits)
    student, coverage = quantize_network(network.eval(), quantization, image=IMAGE)
    seen: dict[str, int] = {}
    for name, module in student.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: seen.__setitem__(name, len(inputs[0].unique()))
            )
    with torch.no_grad(), observe_ranges(student):
        student(images())
    return seen, coverage


# ------------------------------------------------------------------------------------------------------------- hooks


def scaled_by_hook(network: nn.Module) -> nn.Module:
    network.register_forward_pre_hook(lambda _, inputs: ((inputs[0] - 0.3) / torch.tensor([0.5, 2, 1]).view(3, 1, 1),))
    return network


def clamped_layer(network: nn.Module) -> nn.Module:
    network.get_submodule("first").register_forward_hook(lambda _, inputs, output: output.clamp(-0.5, 0.5))
    return network


def shifted_norm(network: nn.Module) -> nn.Module:
    network.get_submodule("bn2").register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1,))
    return network


def scaled_logits(network: nn.Module) -> nn.Module:
    network.register_forward_hook(lambda _, inputs, output: 3 * output)
    return network


def patched_forward(network: nn.Module) -> nn.Module:
    network.forward = types.MethodType(lambda self, x: 2 * Net.forward(self, x) - 1, network)
    return network


def patched_layer(network: nn.Module) -> nn.Module:
    layer: Any = network.get_submodule("second")
    layer.forward = types.MethodType(lambda self, x: F.conv2d(x, 2 * self.weight), layer)
    return network


CHANGES = [scaled_by_hook, clamped_layer, shifted_norm, scaled_logits, patched_forward, patched_layer]


@pytest.mark.parametrize("change", CHANGES)
def test_hooks_and_patched_forwards_are_part_of_the_graph(change: Callable[[nn.Module], nn.Module]) -> None:
    network = change(Net()).eval()
    traced = traced_like(network)
    torch.testing.assert_close(folded(network, image=IMAGE)[0](images()), network(images()))
    student, _ = quantize_network(traced, Quantization("w8a8"))
    with torch.no_grad(), observe_ranges(student):
        assert relative_error(student(images()), network(images())) < 0.05


def test_hooks_of_the_network_itself_stay() -> None:
    network = scaled_logits(clamped_layer(Net()))
    before = network.eval()(images())
    traced_like(network)
    assert torch.equal(network(images()), before)


def test_a_layer_with_a_hook_is_not_folded_across_it() -> None:
    traced, outputs = folded(clamped_layer(Net()).eval(), image=IMAGE)
    assert [*outputs] == ["second"]
    assert "batchnorm2d" in kinds(traced)


# ---------------------------------------------------------------------------------------------------------- in place


def add_as_statement(x: Tensor) -> Tensor:
    y = F.avg_pool2d(x, 3, 1, 1)
    y.add_(x)
    return y


def augmented(x: Tensor) -> Tensor:
    y = z = 2 * torch.tanh(x)
    y += x
    return F.relu(z)  # z is y


def items(x: Tensor) -> Tensor:
    y = 2 * torch.sigmoid(x)
    y[:, :2] = F.relu(x[:, 2:4])
    y[:, 5] += 1
    return y


def shift(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, :, 1:] = F.relu(x)[:, :, :-1]
    return out


def dropped_in_place(x: Tensor) -> Tensor:
    y = F.dropout(2 * x, training=False)
    z = y
    F.relu_(y)
    return z


def filled(x: Tensor) -> Tensor:
    return F.relu(x) + x.clone().fill_(0.5)


def masked(x: Tensor) -> Tensor:
    y = 2 * torch.tanh(x)
    y[y < 0] = 0.5
    y[y.abs() > 1] = 1
    return y


def masked_by_threshold(x: Tensor) -> Tensor:
    y = x + torch.tanh(x)
    return y.masked_fill_(torch.maximum(y, x) < 0.1, 0.25)


def parts(x: Tensor) -> Tensor:
    y = 2 * torch.tanh(x)
    y[:, :2].add_(x[:, 2:4])
    y[:, 1::2].clamp_(min=0)
    y[..., 2] -= x.select(2, 1)[..., :1]
    y.select(1, 3).mul_(2)
    y.narrow(2, 1, 2).neg_()
    return y


def views(x: Tensor) -> Tensor:
    y = 2 * torch.tanh(x)
    flat, turned = y.view(len(x), -1), y.permute(0, 2, 3, 1)
    flat.mul_(2)
    flat += 1
    turned[..., 1:3].sub_(flat.mean())
    F.relu_(y.transpose(1, 2).unsqueeze(1))
    return y + turned.permute(0, 3, 1, 2) + flat.view_as(x)


def part_alone(x: Tensor) -> Tensor:
    return torch.relu_((x + torch.tanh(x))[:, ::2]).repeat(1, 2, 1, 1)


IN_PLACE = [add_as_statement, augmented, items, shift, dropped_in_place, filled, masked, masked_by_threshold]
IN_PLACE += [parts, views, part_alone]


@pytest.mark.parametrize("between", IN_PLACE)
@pytest.mark.parametrize("protocol", ["activations", "integer"])
def test_operations_in_place_are_operations(between: Callable[[Tensor], Tensor], protocol: str) -> None:
    traced = traced_like(Net(between))
    assert not [node for node in traced.graph.nodes if node.op == "call_method" and str(node.target).endswith("_")]
    seen, coverage = entering(Net(between), protocol)
    listed = {gap.name for gap in coverage.float_inputs or ()}
    assert {name for name, count in seen.items() if count > (8 if name == "first" else 4)} <= listed
    assert protocol == "activations" or not listed


def test_a_sum_in_place_is_quantized_or_listed() -> None:
    seen, coverage = entering(Net(add_as_statement), "integer")
    assert seen["second"] <= 4
    assert not coverage.float_inputs
    _, coverage = entering(Net(add_as_statement), "activations")
    assert ("second", "addition") in [(gap.name, gap.reason) for gap in coverage.float_inputs or ()]


def test_a_value_whose_part_was_changed_is_not_used_any_more() -> None:
    def between(x: Tensor) -> Tensor:
        y = torch.tanh(x)
        y.diagonal(0, 2, 3).relu_()
        return y

    with pytest.raises(InputError, match="tanh is used after a part of it was changed in place"):
        trace(Net(between), remedy="mend it", image=IMAGE)


# ----------------------------------------------------------------------------------------------- sizes and other code


def filtered(x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(x)
    return torch.fft.irfft2(spectrum * spectrum.abs().sigmoid() + 1, s=x.shape[-2:])


def largest_unpooled(x: Tensor) -> Tensor:
    values, indices = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(values, indices.clamp(min=0) + 0, 2, output_size=x.shape[-2:])


@pytest.mark.parametrize("between", [filtered, largest_unpooled])
@pytest.mark.parametrize("protocol", ["activations", "integer"])
def test_masks_indices_and_complex_numbers_stay(between: Callable[[Tensor], Tensor], protocol: str) -> None:
    seen, coverage = entering(Net(between), protocol)
    assert seen["second"] <= 4 or "second" in {gap.name for gap in coverage.float_inputs or ()}


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * (s * (1 + x * (1 - s)))


def same_padding(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    down, right = (max((math.ceil(size / 2) - 1) * 2 + 3 - size, 0) for size in (height, width))
    return F.relu(F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2)))


def by_size(x: Tensor) -> Tensor:
    if x.shape[2] < 100 and x.dim() == 4:
        x = F.relu(x)
    for part in x.chunk(2, dim=1):
        x = x + part.mean(dim=1, keepdim=True)
    return x


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return F.relu(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, -1, h, w))


def asking_for_a_tensor(x: Tensor) -> Tensor:
    return F.relu(x) if isinstance(x, torch.Tensor) and not isinstance(x, (list, tuple)) else x


def asking_for_the_class(x: Tensor) -> Tensor:
    return F.relu(x) if type(x) is torch.Tensor else x


def with_zeros(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    zeros = torch.autograd.Variable(torch.zeros(n, 2, h, w, dtype=x.dtype))
    return F.relu(torch.cat([x, zeros], 1)[:, :c] + torch.linspace(-1, 1, w).expand(n, c, h, w))


def copied_in_place(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y.copy_(F.relu(x))
    return x - y


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def scripted_swish(x: Tensor) -> Tensor:
    return torch.jit.script(swish)(x)


CODE = {
    "same padding": same_padding,
    "branches by size": by_size,
    "channel shuffle": shuffled,
    "autograd function": Doubled.apply,
    "asks for a tensor": asking_for_a_tensor,
    "zeros for each image": with_zeros,
    "copy": copied_in_place,
    "TorchScript function": scripted_swish,
    "transposed": lambda x: F.relu(x.mT.matmul(x).mean((1, 2), True)) * x,
    "largest of channels": lambda x: x * torch.max(x, 1, keepdim=True)[0].sigmoid(),
    "larger of two": lambda x: torch.max(*(x - 0.1).split_with_sizes([3, 3], 1)).repeat(1, 2, 1, 1),
    "a constant of sizes": lambda x: F.relu(x) * torch.tensor([x.shape[0], x.shape[1]]).prod(),
    "sizes by NumPy": lambda x: F.relu(x).view(-1, np.prod(x.shape[1:])).view(x.shape),
    "length": lambda x: F.relu(x).view(len(x), -1).view(x.shape),
    "number of values": lambda x: F.relu(x).view(x.shape.numel() // 63, 63).view(x.shape) / len(x.shape),
    "whole number": lambda x: F.relu(x).view(int(x.shape[0]), int(63 * 6.0)).view(x.shape) / float(len(x)),
    "for training": lambda x: drop_block2d(F.relu(x), 0.1, 3, training=False) + 1,
    "asserts": lambda x: F.relu(x) if not torch._assert(x.ndim == 4, "four dimensions") else x,
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("between", CODE.values(), ids=CODE)
def test_code_that_asks_for_sizes_is_followed(between: Callable[[Tensor], Tensor]) -> None:
    traced_like(Net(between))


UNREGISTERED = nn.Conv2d(6, 6, 1)
REFUSED = {
    "values": (lambda x: F.relu(x) if x.mean() > 5 else x, r"control flow by values .* in test_tracing.py:\d+"),
    "number of images": (lambda x: F.relu(x) if x.shape[0] > 2 else x, "control flow"),
    "each image": (lambda x: torch.stack([F.relu(each) for each in x]), r"a loop over images in test_tracing.py:\d+"),
    "each number": (lambda x: torch.stack([x[i] for i in range(len(x))]), r"needs a number, as in range\(\) in .*:\d+"),
    "autocast": (torch.autocast("cpu")(F.relu), "of bfloat16 by autocast"),
    "number of Python": (lambda x: x / complex(x.shape[0]), r"Python needs a number.* in test_tracing.py:\d+"),
    "whole number of values": (lambda x: x[:, : int(x.mean())], r"Python needs a number.* in test_tracing.py:\d+"),
    "layer of no one": (lambda x: UNREGISTERED(x), "calls a Conv2d that is none of its modules"),
    "item": (lambda x: x * x.abs().max().item() if x.max().item() else x, "control flow"),
}


@pytest.mark.parametrize(("between", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_followed_is_one_line(between: Callable[[Tensor], Tensor], reason: str) -> None:
    with pytest.raises(InputError, match=f"Net cannot be traced .*{reason}.*; mend it") as caught:
        trace(Net(between), remedy="mend it", image=IMAGE)
    assert "\n" not in str(caught.value)


def test_sizes_without_a_shape_of_images_are_calls() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.ones(x.shape[0], 3) * (x.size(2) - x.shape[3] / 2))

    network, images = Sized(), torch.rand(4, 5, 7, 9)
    torch.testing.assert_close(trace(network, remedy="mend it")(images), network(images))


@pytest.mark.parametrize(
    ("between", "additions"), [(lambda x: F.relu(sum([x, x])), 1), (lambda x: F.relu(x) * ((x > 0) + 0), 1)]
)
def test_a_sum_from_0_adds_nothing_to_real_numbers(between: Callable[[Tensor], Tensor], additions: int) -> None:
    traced = traced_like(Net(between))
    graphs = [module.graph for module in traced.modules() if isinstance(module, fx.GraphModule)]
    assert sum(called(traced, node)[1] == "add" for graph in graphs for node in graph.nodes) == additions


def test_a_graph_that_computes_something_else_is_refused_by_the_layer() -> None:
    with pytest.raises(InputError, match="Net computes something else when it is traced, from second on"):
        trace(Net(asking_for_the_class), remedy="mend it", image=IMAGE)


# ------------------------------------------------------------------------------------------------ subclasses of layers


class PresetNorm(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=0.01, momentum=0.03)


class NormAndActivation(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=0.01)
        self.drop, self.act = nn.Identity(), nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class NormByFunction(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return F.leaky_relu(x, 0.1)


class SamePadding(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        extra = [max((math.ceil(size / 2) - 1) * 2 + 3 - size, 0) for size in x.size()[-2:]]
        x = F.pad(x, (0, extra[1], 0, extra[0]))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class StandardWeights(nn.Conv2d):
    def __init__(self, *sizes: int, **settings: Any) -> None:
        super().__init__(*sizes, **settings)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, self.gain * (self.weight - mean) / (std + 1e-5), self.bias)


def with_layers(*, conv: nn.Module | None = None, norm: nn.Module | None = None) -> nn.Module:
    network = Net(F.relu if norm is None or isinstance(norm, PresetNorm) else nn.Identity())
    if conv is not None:
        network.first = conv
    if norm is not None:
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 2)
        network.bn1 = norm
    return network.eval()


SUBCLASSES = {
    "preset": lambda: with_layers(norm=PresetNorm(6)),
    "with activation": lambda: with_layers(norm=NormAndActivation(6)),
    "by function": lambda: with_layers(norm=NormByFunction(6)),
    "same padding": lambda: with_layers(conv=SamePadding(3, 6, 3, stride=2)),
    "standard weights": lambda: with_layers(conv=StandardWeights(3, 6, 3)),
    "weight norm": lambda: with_layers(conv=nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3))),
    "both": lambda: with_layers(conv=SamePadding(3, 6, 3, stride=2), norm=NormAndActivation(6)),
}


@pytest.mark.parametrize("make", SUBCLASSES.values(), ids=SUBCLASSES)
def test_subclasses_of_layers_are_the_layers(make: Callable[[], nn.Module]) -> None:
    traced = traced_like(make())
    assert type(traced.get_submodule("first")) is nn.Conv2d
    assert kinds(traced).count("batchnorm2d") == 2
    network = make()
    with_folded, outputs = folded(network, image=IMAGE)
    assert [*outputs] == ["first", "second"]
    torch.testing.assert_close(with_folded(images()), network(images()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", SUBCLASSES.values(), ids=SUBCLASSES)
@pytest.mark.parametrize("protocol", ["activations", "integer"])
def test_students_of_subclasses_have_norms_merged(make: Callable[[], nn.Module], protocol: str) -> None:
    seen, coverage = entering(make(), protocol)
    assert seen["second"] <= 4
    assert "batchnorm2d" not in [each.kind for each in coverage.activations]


def test_weight_norm_of_the_network_itself_stays() -> None:
    network = SUBCLASSES["weight norm"]()
    before = network(images())
    traced_like(network)
    assert torch.equal(network(images()), before)
    assert hasattr(network.first, "parametrizations")


def test_a_subclass_that_is_called_twice_is_one_layer() -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.bn1(self.first(x))
            return self.fc(self.bn2(self.second(self.bn1(x))).mean((2, 3)))

    network = Twice()
    network.bn1 = NormAndActivation(6)
    traced = traced_like(network)
    assert kinds(traced).count("silu") == 2


def pruned(layer: nn.Module) -> nn.Module:
    return nn.utils.prune.random_unstructured(layer, "weight", 0.5)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("change", [nn.utils.weight_norm, nn.utils.spectral_norm, pruned])
def test_a_weight_that_a_hook_computes_is_a_weight(change: Callable[[nn.Module], nn.Module]) -> None:
    network = with_layers(conv=change(nn.Conv2d(3, 6, 3)))
    traced = traced_like(network)
    assert [name for name, _ in traced.get_submodule("first").named_parameters()] == ["bias", "weight"]
    copy.deepcopy(traced).load_state_dict(traced.state_dict())
    assert not isinstance(network.first.weight, nn.Parameter)


# -------------------------------------------------------------------------------------------- functions with weights


class Reweighted(Net):
    """A network whose function ``head`` has weights of its own, ``own``, beside a linear layer's."""

    def __init__(self, head: Callable[[Reweighted, Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.own = head, nn.Parameter(torch.randn(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self, F.relu(self.bn1(self.first(x))).mean((2, 3))[:, :4])


class LowRank(nn.Linear):
    """A linear layer with an update of low rank (Hu et al., ICLR 2022)."""

    def __init__(self) -> None:
        super().__init__(4, 5)
        self.a, self.b, self.scale = (nn.Parameter(torch.randn(*size)) for size in ((2, 4), (5, 2), (5,)))

    def forward(self, x: Tensor) -> Tensor:
        return (F.linear(x, self.weight, self.bias) + x @ self.a.t() @ self.b.t()) * self.scale


HEADS: dict[str, tuple[Callable[[Any, Tensor], Tensor], int]] = {
    "matmul": (lambda net, x: torch.matmul(x, net.own.t()), 1),
    "operator": (lambda net, x: x @ net.own.T, 1),
    "addmm": (lambda net, x: torch.addmm(net.own[:, 0], x, net.own.t(), alpha=0.5), 1),
    "einsum": (lambda net, x: torch.einsum("nc, kc -> nk", x, net.own), 1),
    "einsum, transposed": (lambda net, x: torch.einsum("...c,ck->...k", x, net.own.t()), 1),
    "cosine": (lambda net, x: 16 * F.linear(F.normalize(x), F.normalize(net.own)), 1),
    "low rank": (lambda net, x: net.low(x), 3),
}


@pytest.mark.parametrize(("head", "linear"), HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("protocol", ["activations", "integer"])
def test_a_product_with_weights_is_a_layer(head: Callable[[Any, Tensor], Tensor], linear: int, protocol: str) -> None:
    network = Reweighted(head)
    network.low = LowRank()
    traced = traced_like(network)
    assert kinds(traced).count("linear") == linear
    assert not [name for name, _ in traced.named_parameters() if name == "own"]  # it went into the weight
    student, coverage = quantize_network(network, Quantization("w8a8", protocol=protocol), image=IMAGE)
    assert not coverage.gaps
    with torch.no_grad(), observe_ranges(student):
        assert relative_error(student(images()), network(images())) < 0.1


def test_a_sum_over_channels_is_a_convolution() -> None:
    traced = traced_like(Net(lambda x: torch.einsum("nchw,dc->ndhw", x, torch.eye(6) + 0.1)))
    assert kinds(traced).count("conv2d") == 3


@pytest.mark.parametrize(
    "equation", ["nchw,wd->nchd", "nchw,hd->ncdw", "nchw,cd->nhwd", "nchw,cd->ndwh", "nchw,cw->nchw", "nchw,...c->nchw"]
)
def test_other_sums_with_weights_stay(equation: str) -> None:
    """The first is a linear layer for each row of the image."""
    x, weight = images()[:, :, :6, :6], torch.rand(6, 6)
    layer = LAYERS[torch.einsum](equation, x, weight)
    assert (layer is not None) == equation.endswith("nchd")


def test_parts_of_a_sequence_and_new_layers_without_weights_are_followed() -> None:
    class Sliced(Net):
        def forward(self, x: Tensor) -> Tensor:
            layers = nn.Sequential(self.first, self.bn1, nn.ReLU(inplace=True), self.second)
            before = layers[:2](x)
            after = layers[2:](before)  # which changes ``before``
            return self.fc(nn.AdaptiveAvgPool2d(1)(nn.Hardtanh()(after + before[:, :4])).flatten(1))

    traced = traced_like(Sliced())
    assert [kinds(traced).count(kind) for kind in ("conv2d", "relu", "hardtanh", "linear")] == [2, 1, 1, 1]


def test_arguments_by_name_are_arguments() -> None:
    class Named(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(input=self.bn1(input=self.first(input=x)), inplace=True)
            x = torch.cat(tensors=[x, torch.add(input=x, other=F.max_pool2d(input=x, kernel_size=1))], dim=1)
            x = F.conv2d(input=x[:, 3:9], weight=self.second.weight)
            x = F.batch_norm(input=x, running_mean=self.bn2.running_mean, running_var=self.bn2.running_var)
            return F.linear(input=torch.mean(input=F.silu(input=x), dim=(2, 3)), weight=self.fc.weight)

    traced = traced_like(Named())
    assert not [node for node in traced.graph.nodes if {"input", "tensors"} & node.kwargs.keys()]
    assert [kinds(traced).count(kind) for kind in ("conv2d", "batchnorm2d", "linear")] == [2, 2, 1]
    student, coverage = quantize_network(Named(), Quantization("w8a8"), image=IMAGE)
    assert not coverage.gaps
    with torch.no_grad(), observe_ranges(student):
        assert relative_error(student(images()), traced(images())) < 0.1


def test_a_weight_that_is_made_for_the_images_is_a_weight() -> None:
    kernel = [[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]
    traced = traced_like(Net(lambda x: F.conv2d(x, x.new_tensor(kernel).expand(6, 1, 3, 3) / 16, groups=6)))
    assert kinds(traced).count("conv2d") == 3
    for of_images in (torch.mean, lambda x: torch.relu(x.mean() - 100)):  # the second is 0 for all that is likely
        network = Net(
            lambda x, f=of_images: F.conv2d(x, torch.ones_like(x[:1, :, :3, :3]).view(6, 1, 3, 3) * f(x), groups=6)
        )
        assert not [name for name, _ in traced_like(network).named_modules() if name.startswith("functional")]


class Scaled(nn.Linear):
    """A layer with a forward of its own that no class of torch.nn does."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 2) @ torch.eye(self.out_features)


def test_functions_with_weights_are_layers_within_a_sequential_network() -> None:
    """It goes through its modules while it is traced."""
    torch.manual_seed(0)
    traced = traced_like(nn.Sequential(nn.Flatten(), Scaled(297, 6), nn.Sequential(nn.ReLU(), Scaled(6, 5))))
    assert kinds(traced).count("linear") == 4


class ChannelAttention(Net):
    """A convolution over the means of channels (ECA-Net, Wang et al., CVPR 2020), the same in two places."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.over_channels = nn.Conv1d(1, 1, 3, padding=1, **settings)

    def weighted(self, x: Tensor) -> Tensor:
        return x * self.over_channels(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1).sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.weighted(self.bn1(self.first(x))))
        return self.fc(self.weighted(F.relu(self.bn2(self.second(x)))).mean((2, 3)))


@pytest.mark.parametrize("settings", [{"bias": False}, {}, {"padding_mode": "circular"}], ids=str)
@pytest.mark.parametrize("protocol", ["activations", "integer"])
def test_a_convolution_over_channels_is_a_convolution(settings: dict[str, Any], protocol: str) -> None:
    network = ChannelAttention(**settings)
    assert "over_channels" in dict(traced_like(network).named_modules())
    seen, coverage = entering(network, protocol)
    assert not coverage.gaps
    assert "over_channels" in [weight.name for weight in coverage.weights]
    assert {name for name, count in seen.items() if count > (8 if name == "first" else 4)} <= {
        gap.name for gap in coverage.float_inputs or ()
    }
    with torch.no_grad():
        assert dfq(network, IMAGE, Quantization("w8a8", protocol=protocol))[0](images()).isfinite().all()


# ------------------------------------------------------------------------------------------------ images and pointwise


class Prepared(Net):
    """The images are changed before the first layer."""

    def __init__(self, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.prepare = prepare

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.prepare(x))


PREPARE = {
    "standardize": lambda x: (x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / 0.5,
    "flip": lambda x: x.flip(1),
    "clamp": lambda x: x.clamp(-1, 1),
    "repeat": lambda x: x[:, :1].repeat(1, 3, 1, 1),
    "stack": lambda x: torch.stack([x[:, 0], x[:, 2], x[:, 1]], 1),
}


@pytest.mark.parametrize("prepare", PREPARE.values(), ids=PREPARE)
def test_what_is_done_to_the_images_is_no_activation(prepare: Callable[[Tensor], Tensor]) -> None:
    traced_like(Prepared(prepare))
    seen, coverage = entering(Prepared(prepare), "integer")
    assert 4 < seen["first"] <= 8
    assert (coverage.activations[0].kind, coverage.activations[0].bits) == ("network input", 3)
    _, coverage = entering(Prepared(prepare), "activations")
    assert next((gap.name, gap.reason) for gap in coverage.float_inputs or ()) == ("first", "network input")


def test_a_statistic_is_no_activation() -> None:
    def layer_norm(x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return F.relu(centred / (centred.pow(2).mean(1, keepdim=True) + 1e-5).sqrt())

    assert "pointwiseactivation" not in kinds(traced_like(Net(layer_norm)))


def test_an_activation_of_several_calls_shares_nothing_with_its_surroundings() -> None:
    def between(x: Tensor) -> Tensor:
        gate = torch.sigmoid(x)
        return x * gate + gate.mean((2, 3), keepdim=True)

    traced = traced_like(Net(between))
    assert "pointwiseactivation" not in kinds(traced)  # the gate has another use
