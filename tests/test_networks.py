"""Residual networks: shapes, sizes known from the paper, and shortcuts in closed form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn

from nni_autorecon.networks import (
    BasicBlock,
    Bottleneck,
    CifarResNet,
    PadShortcut,
    Shortcut,
    digits_resnet,
    digits_student,
    mobilenetv2,
    resnet18,
    resnet20,
    resnet32,
    resnet34,
    resnet44,
    resnet50,
    resnet56,
)
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.specification import Quantization

SHORTCUTS: tuple[Shortcut, ...] = ("pad", "conv")


@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize(("depths", "widths"), [((2,), (3,)), ((1, 2), (2, 5)), ((1, 1, 2, 1), (2, 3, 5, 7))])
def test_logits_of_any_image_size(depths: tuple[int, ...], widths: tuple[int, ...], shortcut: Shortcut) -> None:
    network = CifarResNet(depths, widths, in_channels=2, num_classes=7, shortcut=shortcut)
    assert network(torch.randn(3, 2, 11, 5)).shape == (3, 7)


@pytest.mark.parametrize(
    ("factory", "parameters"),
    [
        (digits_resnet, 77_754),
        (digits_student, 19_810),
        (resnet20, 269_722),  # 0.27 M in He et al., table 6
        (resnet32, 464_154),  # 0.46 M
        (resnet44, 658_586),  # 0.66 M
        (resnet56, 853_018),  # 0.85 M
        (resnet18, 11_173_962),  # 11.17 M, 21.28 M and 23.52 M in the literature on CIFAR-10
        (resnet34, 21_282_122),
        (resnet50, 23_520_842),
        (mobilenetv2, 2_236_682),  # torchvision's for ImageNet with 10 classes: strides have no parameters
    ],
)
def test_number_of_parameters(factory: Callable[[], nn.Module], parameters: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in factory().parameters()) == parameters


@pytest.mark.parametrize(
    ("factory", "features"),
    [
        *((factory, 64) for factory in (resnet20, resnet32, resnet44, resnet56)),
        *((resnet18, 512), (resnet34, 512), (resnet50, 2048), (mobilenetv2, 1280)),
    ],
)
def test_number_of_classes(factory: Callable[[int], nn.Module], features: int) -> None:
    """One more weight for every feature and a bias; 32×32 images."""
    with torch.device("meta"):
        few, more = factory(2), factory(7)
        sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in (few, more)]
        assert sizes[1] - sizes[0] == 5 * (features + 1)
        assert more.eval()(torch.empty(3, 3, 32, 32)).shape == (3, 7)


@pytest.mark.parametrize(
    ("factory", "smallest"), [(resnet56, (64, 8, 8)), (resnet18, (512, 4, 4)), (resnet50, (2048, 4, 4))]
)
def test_stem_keeps_the_size_of_small_images(
    factory: Callable[[], CifarResNet], smallest: tuple[int, int, int]
) -> None:
    with torch.device("meta"):
        network, shapes = factory(), []
        for name in ("conv1", network.stages[-1]):
            network.get_submodule(name).register_forward_hook(
                lambda module, inputs, output: shapes.append(output.shape)
            )
        network(torch.empty(2, 3, 32, 32))
    assert shapes == [(2, network.conv1.out_channels, 32, 32), (2, *smallest)]


def test_mobilenetv2_reduces_32_pixels_to_4() -> None:
    with torch.device("meta"):
        network = mobilenetv2()
        assert network.get_submodule("features.0")(torch.empty(2, 3, 32, 32)).shape == (2, 32, 32, 32)
        assert network.get_submodule("features")(torch.empty(2, 3, 32, 32)).shape == (2, 1280, 4, 4)


@pytest.mark.parametrize("factory", [digits_student, resnet32, resnet18, resnet50, mobilenetv2])
def test_quantizes_completely(factory: Callable[[], nn.Module]) -> None:
    """Every convolution and linear layer, and a quantizer for each call of an activation."""
    network = factory()
    coverage = quantize_network(network, Quantization("w4a5"))[1]
    count = Counter(type(module) for module in network.modules())
    assert not coverage.gaps
    assert len(coverage.weights) == count[nn.Conv2d] + count[nn.Linear]
    assert len(coverage.activations) == count[nn.ReLU] + count[nn.ReLU6] > 1


def test_resnet20_has_20_layers_under_the_names_of_the_public_checkpoints() -> None:
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]
    weights = {"conv1", "linear", *(f"{block}.conv{number}" for block in blocks for number in (1, 2))}
    norms = {"bn1", *(f"{block}.bn{number}" for block in blocks for number in (1, 2))}
    assert len(weights) == 20
    assert {name.rpartition(".")[0] for name in resnet20().state_dict()} == weights | norms


def test_every_stage_but_the_first_halves_the_image() -> None:
    network, sizes = CifarResNet((2, 1, 1), (2, 3, 5)), []
    for name in network.stages:
        network.get_submodule(name).register_forward_hook(lambda module, inputs, output: sizes.append(output.shape))
    network(torch.randn(2, 3, 7, 12))
    assert sizes == [(2, 2, 7, 12), (2, 3, 4, 6), (2, 5, 2, 3)]


@pytest.mark.parametrize("out_channels", [3, 6, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_pad_shortcut_subsamples_and_pads_with_zero_channels(out_channels: int, stride: int) -> None:
    x = torch.randn(2, 3, 5, 7)
    y = PadShortcut(3, out_channels, stride=stride)(x)
    before = (out_channels - 3) // 2
    kept = torch.arange(before, before + 3)
    assert torch.equal(y[:, kept], x[:, :, ::stride, ::stride])
    assert y.shape[1] == out_channels
    assert y.count_nonzero() == y[:, kept].count_nonzero()


def test_block_without_residual_is_the_rectified_input() -> None:
    block = BasicBlock(3, 3, stride=1, shortcut="conv")
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 3, 5, 7)
    assert torch.equal(block(x), x.relu())


def test_bottleneck_without_residual_is_the_rectified_input() -> None:
    block = Bottleneck(12, 3, stride=1, shortcut="conv")
    nn.init.zeros_(block.bn3.weight)
    x = torch.randn(2, 12, 5, 7)
    assert torch.equal(block(x), x.relu())


def test_conv_shortcut_only_where_the_shape_changes() -> None:
    network = CifarResNet((2, 2), (3, 5), shortcut="conv")
    shortcuts = [type(network.get_submodule(f"layer{s}.{b}.shortcut")) for s in (1, 2) for b in (0, 1)]
    assert shortcuts == [nn.Identity, nn.Identity, nn.Sequential, nn.Identity]


@pytest.mark.parametrize(("block", "activations"), [(BasicBlock, 2), (Bottleneck, 3)])
def test_every_activation_is_a_module_of_its_own(block: type[BasicBlock | Bottleneck], activations: int) -> None:
    """A quantizer that hooks modules sees each activation, and no module stands for two of them."""
    network, runs = CifarResNet((1, 2), (2, 3), block=block), Counter[nn.Module]()
    relus = [module for module in network.modules() if isinstance(module, nn.ReLU)]
    for relu in relus:
        relu.register_forward_hook(lambda module, inputs, output: runs.update([module]))
    network(torch.randn(2, 3, 5, 7))
    assert runs == Counter(relus)
    assert len(relus) == 1 + activations * 3


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_traces_symbolically(shortcut: Shortcut) -> None:
    network, images = CifarResNet((1, 2), (2, 3), shortcut=shortcut).eval(), torch.randn(2, 3, 5, 7)
    assert torch.equal(torch.fx.symbolic_trace(network)(images), network(images))


@pytest.mark.parametrize(
    ("depths", "widths", "shortcut", "message"),
    [
        ((1, 1), (2, 3, 5), "conv", "2 depths and 3 widths"),
        ((), (), "conv", "0 depths"),
        ((1, 1), (2, 3), "zero", "choose 'pad' or 'conv'"),
        ((1, 1), (5, 3), "pad", "cannot pad 5 channels to 3"),
    ],
)
def test_wrong_arguments(depths: tuple[int, ...], widths: tuple[int, ...], shortcut: Shortcut, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CifarResNet(depths, widths, shortcut=shortcut)
