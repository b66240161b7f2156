"""Residual networks: shapes, sizes known from the paper, and shortcuts in closed form."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from nni_autorecon.networks import (
    BasicBlock,
    CifarResNet,
    PadShortcut,
    Shortcut,
    digits_resnet,
    digits_student,
    resnet20,
)

SHORTCUTS: tuple[Shortcut, ...] = ("pad", "conv")


@pytest.mark.parametrize("shortcut", SHORTCUTS)
@pytest.mark.parametrize(("depths", "widths"), [((2,), (3,)), ((1, 2), (2, 5)), ((1, 1, 2, 1), (2, 3, 5, 7))])
def test_logits_of_any_image_size(depths: tuple[int, ...], widths: tuple[int, ...], shortcut: Shortcut) -> None:
    network = CifarResNet(depths, widths, in_channels=2, num_classes=7, shortcut=shortcut)
    assert network(torch.randn(3, 2, 11, 5)).shape == (3, 7)


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (digits_resnet(), 77_754),
        (digits_student(), 19_810),
        (resnet20(), 269_722),  # 0.27 M in He et al., table 6
        (resnet20(100), 269_722 + 90 * 65),
    ],
)
def test_number_of_parameters(network: CifarResNet, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


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


def test_conv_shortcut_only_where_the_shape_changes() -> None:
    network = CifarResNet((2, 2), (3, 5), shortcut="conv")
    shortcuts = [type(network.get_submodule(f"layer{s}.{b}.shortcut")) for s in (1, 2) for b in (0, 1)]
    assert shortcuts == [nn.Identity, nn.Identity, nn.Sequential, nn.Identity]


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_every_activation_is_a_module_of_its_own(shortcut: Shortcut) -> None:
    """A quantizer that hooks modules sees each activation, and no module stands for two of them."""
    network, runs = CifarResNet((1, 2), (2, 3), shortcut=shortcut), Counter[nn.Module]()
    relus = [module for module in network.modules() if isinstance(module, nn.ReLU)]
    for relu in relus:
        relu.register_forward_hook(lambda module, inputs, output: runs.update([module]))
    network(torch.randn(2, 3, 5, 7))
    assert runs == Counter(relus)
    assert len(relus) == 1 + 2 * 3


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
