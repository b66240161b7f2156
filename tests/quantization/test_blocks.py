"""Blocks: together they are the network, each takes one tensor, and none holds two things that could be apart."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from nni_autorecon.networks import digits_resnet, resnet20
from nni_autorecon.quantization.blocks import blocks
from nni_autorecon.quantization.calls import QUANTIZED
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.quantizers import ActivationQuantizer, observe_ranges
from nni_autorecon.quantization.specification import PROTOCOLS, Quantization
from nni_autorecon.quantization.tracing import trace
from nni_autorecon.shapes import ImageShape
from tests.helpers.toys import IMAGE, toy_teacher


class Branches(nn.Module):
    """Two branches that meet, chunks of channels, and an input that is read again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1)
        self.shift = nn.Parameter(torch.ones(6, 1, 1))
        self.last = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.third(torch.relu(self.first(images)) + self.second(images)) + self.shift
        one, other = x.chunk(2, 1)
        return self.last((one * other.sigmoid()).mean((2, 3)) + images.mean((2, 3)))


NETWORKS = {
    "digits_resnet": (digits_resnet, (1, 16, 16), 5),
    "resnet20": (resnet20, (3, 16, 16), 11),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(width_mult=0.25), (3, 32, 32), None),
    "densenet": (lambda: torchvision.models.DenseNet(8, (2, 3, 2), 16), (3, 32, 32), None),
    "shufflenet": (torchvision.models.shufflenet_v2_x0_5, (3, 64, 64), None),
    "googlenet": (lambda: torchvision.models.googlenet(init_weights=False, aux_logits=False), (3, 64, 64), None),
    "branches": (Branches, (3, 8, 8), 2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_in_a_row_are_the_network(name: str) -> None:
    torch.manual_seed(0)
    make, image, count = NETWORKS[name]
    network = trace(make().eval(), remedy="mend it", image=ImageShape(*image))
    images = torch.randn(2, *image)
    parts = blocks(network)
    with torch.no_grad():
        expected, x = network(images), images
        for part in parts:
            x = part(x)
    assert torch.equal(x, expected)
    layers = [[id(m) for m in part.modules() if isinstance(m, QUANTIZED)] for part in parts]
    own = [id(module) for module in network.modules() if isinstance(module, QUANTIZED)]
    assert sorted(layer for part in layers for layer in part) == sorted(own)
    assert all(layers)
    assert count in (None, len(parts))
    assert name == "branches" or len(parts) > 4


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_quantizer_belongs_to_the_block_whose_output_it_quantizes(protocol: str) -> None:
    images = torch.randn(4, *IMAGE)
    student, _ = quantize_network(toy_teacher(), Quantization("w4a4", protocol=protocol))
    with torch.no_grad(), observe_ranges(student):
        expected = student(images)
    parts = blocks(student)  # type: ignore[arg-type]
    assert len(parts) == 3
    counts = [sum(isinstance(module, ActivationQuantizer) for module in part.modules()) for part in parts]
    assert counts == ([1, 1, 0] if protocol == "activations" else [2, 2, 0])  # the input and the mean are stored, too
    with torch.no_grad():
        x = images
        for part in parts:
            x = part(x)
    torch.testing.assert_close(x, student(images), rtol=0, atol=0)
    assert x.shape == expected.shape
