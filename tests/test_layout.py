"""Convolutions in channels_last: the same function, and left alone where the code would not stand it."""

import pytest
import torch
from torch import nn

from nni_autorecon.layout import in_channels_last, in_usual_layout
from nni_autorecon.networks import resnet20
from nni_autorecon.topology import ImageShape

IMAGE = ImageShape(3, 12, 10)


class Flattening(nn.Module):
    """Takes 4×4 features for a row of memory, as many networks do."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6 * 12 * 10, 5)

    def forward(self, x):
        return self.fc(self.conv(x).view(len(x), -1))


def _is_channels_last(network):
    weight = next(m.weight for m in network.modules() if isinstance(m, nn.Conv2d))
    return weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("training", [False, True])
def test_a_network_computes_the_same(training):
    network, images = resnet20(num_classes=7), torch.randn(4, *IMAGE)
    before = network.eval()(images)
    assert in_channels_last(network.train(training), IMAGE) is network
    assert network.training == training
    assert _is_channels_last(network)
    torch.testing.assert_close(network.eval()(images), before)
    in_usual_layout(network)
    assert not _is_channels_last(network)
    assert torch.equal(network(images), before)


def test_a_network_that_depends_on_the_layout_is_left_alone(caplog):
    network, images = Flattening(), torch.randn(4, *IMAGE)
    before = network(images)
    with caplog.at_level("INFO"):
        in_channels_last(network, IMAGE)
    assert "Flattening stays in the usual layout" in caplog.text
    assert torch.equal(network(images), before)
