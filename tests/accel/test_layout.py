"""Convolutions in channels_last: the same function, and left alone where the code would not stand it."""

import pytest
import torch
from torch import nn

from nni_autorecon.accel.memory import in_usual_layout, memory_format
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.config.distill import DistillConfig
from nni_autorecon.networks import resnet20
from nni_autorecon.shapes import ImageShape
from nni_autorecon.student.compression import Compression
from nni_autorecon.student.distillation import Distillation

IMAGE = ImageShape(3, 12, 10)


class Flattening(nn.Module):
    """Takes features for a row of memory, as many networks do; here only in ``mode``."""

    def __init__(self, mode=None):
        super().__init__()
        self.conv, self.fc, self.mode = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6 * 12 * 10, 5), mode

    def forward(self, x):
        x = self.conv(x)
        return self.fc(x.view(len(x), -1) if self.mode in (None, self.training) else x.flatten(1))


class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, 1, 1, 2))

    def forward(self, x):
        return x.mean((2, 3))


def _is_channels_last(network):
    weights = [p for p in network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert weights
    return all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_a_network_computes_the_same_in_either_layout():
    network, images = resnet20(num_classes=7).eval(), torch.randn(4, *IMAGE)
    before, state = network(images), torch.get_rng_state()
    assert memory_format(network, IMAGE, modes=(False, True)) == torch.channels_last
    assert torch.equal(network(images), before)  # not touched
    assert torch.equal(torch.get_rng_state(), state)
    network.to(memory_format=torch.channels_last)
    assert _is_channels_last(network)
    torch.testing.assert_close(network(images), before)
    in_usual_layout(network)
    assert not _is_channels_last(network)
    assert torch.equal(network(images), before)


@pytest.mark.parametrize(
    ("network", "modes", "usual"),
    [
        (Flattening(), (False,), True),
        (Flattening(), (True,), True),
        (Volume(), (False,), True),
        (Flattening(True), (False,), False),
        (Flattening(True), (False, True), True),
    ],
)
def test_a_network_that_depends_on_the_layout_is_told(network, modes, usual, caplog):
    with caplog.at_level("INFO"):
        found = memory_format(network, IMAGE, modes=modes)
    assert found == (torch.contiguous_format if usual else torch.channels_last)
    assert ("stays in the usual layout" in caplog.text) == usual


@pytest.mark.parametrize("method", ["gdfq", "dfq"])
def test_students_are_trained_in_channels_last(method, digits_teacher):
    settings = {"gdfq": {"generator": "gdfq"}, "dfq": {}}[method]
    config = CompressConfig(method=method, batch_size=2, agreement_steps=1).override(settings)
    compression = Compression.start(config, digits_teacher)
    assert _is_channels_last(compression.student)
    assert _is_channels_last(digits_teacher.observed)
    assert not _is_channels_last(digits_teacher.network)
    distillation = Distillation.start(DistillConfig(generator="gdfq", batch_size=2), digits_teacher)
    assert _is_channels_last(distillation.student)
