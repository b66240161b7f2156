"""A network whose hooks and functions know it by an outer variable is copied with them."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

from nni_autorecon.teacher.hooks import let_hooks_be_copied
from nni_autorecon.teacher.loading import Teacher
from tests.helpers.toys import CLASSES, IMAGE


class Tapped(nn.Module):
    """It keeps a feature map by a hook within ``__init__``, and joins it to the last one."""

    def __init__(self) -> None:
        super().__init__()
        conv, later = (nn.Conv2d(channels, 8, 3, stride=2, padding=1, bias=False) for channels in (IMAGE[0], 8))
        self.body = nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), later, nn.BatchNorm2d(8), nn.ReLU())
        self.head, self.features, lock = nn.Linear(16, CLASSES), {}, threading.Lock()

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            with lock:  # it cannot be copied, and is no part of the network
                self.features["early"] = output

        self.body[2].register_forward_hook(keep)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(torch.cat([self.features["early"].mean((2, 3)), x.mean((2, 3))], 1))


@pytest.mark.parametrize("used", [False, True])
def test_features_are_kept_in_the_copy(used: bool) -> None:
    network, images = Tapped().eval(), torch.rand(5, *IMAGE)
    if used:
        with torch.no_grad():
            network(images[:2])
    kept = dict(network.features)
    teacher = Teacher.of(network, IMAGE)
    answer = teacher.network(images)
    assert network.features.keys() == kept.keys()
    assert all(network.features[name] is value for name, value in kept.items())
    torch.testing.assert_close(answer, network(images))
    torch.testing.assert_close(teacher.graph(images), answer)


def test_copies_of_copies_know_themselves() -> None:
    network = Tapped().eval()
    let_hooks_be_copied(network)
    first = copy.deepcopy(network)
    second = copy.deepcopy(first)
    second(torch.rand(3, *IMAGE))
    assert (network.features, first.features) == ({}, {})
    assert second.features["early"].shape[0] == 3


@pytest.mark.parametrize("kind", ["forward", "attribute"])
def test_functions_set_on_a_network_know_its_copy(kind: str) -> None:
    network = nn.Sequential(
        nn.Conv2d(IMAGE[0], 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(CLASSES)
    )
    images = torch.rand(5, *IMAGE)
    network.eval()(images)
    if kind == "forward":
        network.forward = lambda x: network[4](network[3](network[2](network[1](network[0](x)))))
    else:
        network[2].extra = lambda x: network[1](x)
        network[2].forward = lambda x: torch.relu(network[2].extra(x))
    teacher = Teacher.of(network, IMAGE)
    expected = network(images)
    torch.testing.assert_close(teacher.network(images), expected)
    torch.testing.assert_close(teacher.graph(images), expected)
    with torch.no_grad():
        network[1].running_mean += 1
    assert not torch.allclose(network(images), expected)
    torch.testing.assert_close(teacher.network(images), expected)
