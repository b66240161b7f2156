"""A student's form for training against the student itself: values and gradients, in float64."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from nni_autorecon.networks import digits_resnet, resnet20
from nni_autorecon.quantization.folding import NormedConv, fused
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.quantizers import learn_ranges, observe_ranges
from nni_autorecon.student.features import with_features
from tests.helpers.toys import SmallResNet, quantizers


class Misleading(nn.Module):
    """A module called relu that is another; a BatchNorm without weights behind a bias; an own convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.fc = nn.LeakyReLU(0.3), nn.Linear(6, 4)
        self.first, self.second, self.third = nn.Conv2d(3, 6, 3), OwnConv(6, 6, 3, groups=2), nn.Conv2d(6, 6, 1)
        self.fourth, self.last = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.plain, self.own, self.twice = nn.BatchNorm2d(6, affine=False), nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x):
        x = self.relu(self.plain(self.first(x)))
        x = self.own(self.second(x)).relu_()
        x = self.third(x)
        x = self.twice(x) + x  # what enters the norm is used elsewhere, too
        x.add_(self.last(self.fourth(input=torch.relu(x))))  # so is what enters the ReLU, and changed
        return self.fc(F.relu(x.mean((2, 3)) * 2))


class OwnConv(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


NETWORKS = {
    "residual blocks": (SmallResNet, (3, 8, 8)),
    "digits": (digits_resnet, (1, 16, 16)),
    "ResNet-20": (resnet20, (3, 16, 16)),
    "misleading": (Misleading, (3, 9, 9)),
    "MobileNetV3": (lambda: torchvision.models.mobilenet_v3_small(num_classes=5), (3, 32, 32)),
}


def student_of(network, image, *, protocol="gdfq", learned=False, ranges="minmax"):
    """A quantized network in float64 with norms of some history, and images for it."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in module.parameters():
                nn.init.normal_(values)  # negative factors among them
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    student, _ = quantize_network(
        network, weight_bits=3, activation_bits=4, protocol=protocol, weight_ranges=ranges, activation_ranges=ranges,
        allow_partial=True,
    )  # fmt: skip
    images = torch.randn(4, *image, dtype=torch.float64)
    student.double()
    with torch.no_grad(), observe_ranges(student):
        student(images)
    if learned:
        for parameter in learn_ranges(student):
            nn.init.normal_(parameter, std=0.1)
    return student, images.requires_grad_()


def everything(network, student, images):
    """What ``network`` says, and the gradients for the images and for whatever ``student`` trains."""
    said = network(images)
    flat = torch.cat([part.flatten() for part in ((said,) if isinstance(said, torch.Tensor) else (said[0], *said[1]))])
    weights = torch.linspace(-1, 1, flat.numel(), dtype=torch.float64)
    return flat, *torch.autograd.grad((flat * weights).sum(), (images, *student.parameters()))


@pytest.mark.parametrize("options", [{}, {"protocol": "integer"}, {"learned": True}, {"ranges": "percentile"}])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_fused_student_has_the_values_and_gradients_of_the_plain_one(name, options):
    make, image = NETWORKS[name]
    student, images = student_of(make(), image, **options)
    for got, expected in zip(
        everything(fused(student), student, images), everything(student, student, images), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_so_have_its_features():
    student, images = student_of(SmallResNet(), (3, 8, 8))
    network = with_features(student)
    for got, expected in zip(
        everything(fused(network), student, images), everything(network, student, images), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def called_modules(network):
    return [type(network.get_submodule(node.target)) for node in network.graph.nodes if node.op == "call_module"]


def test_a_resnet_keeps_neither_norms_nor_relus_nor_another_copy_of_its_weights():
    student, _ = student_of(resnet20(), (3, 16, 16))
    before, twin = called_modules(student), fused(student)
    assert before.count(nn.BatchNorm2d) == called_modules(twin).count(NormedConv) == 19
    assert not {nn.BatchNorm2d, nn.ReLU, nn.Conv2d} & set(called_modules(twin))
    assert not [node for node in twin.graph.nodes if "relu" in str(node.target) and node.op != "call_module"]
    assert set(twin.parameters()) == set(student.parameters())
    assert called_modules(student) == before


def test_what_is_not_plain_stays_as_it_is_and_is_named(caplog):
    student, _ = student_of(Misleading(), (3, 9, 9))
    kept = called_modules(fused(student))
    assert kept.count(NormedConv) == 2
    assert kept.count(nn.BatchNorm2d) == 2
    assert nn.LeakyReLU in kept
    assert caplog.messages == ["1 layers (OwnConv) are not one with their BatchNorm in training, which is slower"]


def test_ranges_are_observed_behind_the_relu():
    student, images = student_of(SmallResNet(), (3, 8, 8))
    twin, before = fused(student), [quantizer.averages.clone() for quantizer in quantizers(student)]
    with torch.no_grad(), observe_ranges(twin):
        twin(3 * images)
    for quantizer, earlier in zip(quantizers(student), before, strict=True):
        assert quantizer.averages[0] == 0
        assert quantizer.averages[1] > earlier[1]


def test_a_network_without_a_graph_is_left_alone(caplog):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert fused(network) is network
    assert "none are fused" in caplog.text


def test_of_what_is_fused_nothing_is_said(caplog):
    fused(student_of(SmallResNet(), (3, 8, 8))[0])
    assert not caplog.messages
