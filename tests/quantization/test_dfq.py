"""DFQ as a whole: it runs on the usual networks, sets every range, and restores biased means."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from nni_autorecon.data.digits import digits_data
from nni_autorecon.data.images import accuracy
from nni_autorecon.errors import InputError
from nni_autorecon.networks import digits_resnet, resnet20
from nni_autorecon.quantization.dfq import correct_biases, dfq, set_ranges
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.moments import Moments
from nni_autorecon.quantization.quantizers import ActivationQuantizer, observe_ranges
from nni_autorecon.quantization.specification import Quantization
from nni_autorecon.quantization.tracing import trace
from nni_autorecon.shapes import ImageShape
from nni_autorecon.teacher.loading import Teacher
from tests.helpers.toys import CLASSES, IMAGE, snapshot, toy_teacher

NETWORKS = {
    "digits_resnet": (digits_resnet, ImageShape(1, 16, 16)),
    "resnet20": (resnet20, ImageShape(3, 16, 16)),
    "resnet18": (torchvision.models.resnet18, ImageShape(3, 32, 48)),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(width_mult=0.25), ImageShape(3, 64, 48)),
    "mobilenet_v3": (torchvision.models.mobilenet_v3_small, ImageShape(3, 64, 64)),
    "shufflenet": (torchvision.models.shufflenet_v2_x0_5, ImageShape(3, 64, 64)),
    "efficientnet": (torchvision.models.efficientnet_b0, ImageShape(3, 64, 64)),
    "regnet": (torchvision.models.regnet_x_400mf, ImageShape(3, 64, 48)),
    "densenet": (lambda: torchvision.models.DenseNet(8, (2, 3, 2), 16), ImageShape(3, 32, 48)),
}


def with_true_statistics(network: nn.Module, images: Tensor) -> nn.Module:
    """Random BatchNorm parameters, and the statistics that standardized images really have."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
    return with_statistics_of(network, images)


def with_statistics_of(network: nn.Module, images: Tensor) -> nn.Module:
    """The network with the statistics that its norms see for these images."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        network.train()(images)
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_eight_bits_without_data_are_hardly_worse_than_ranges_of_the_data(name):
    torch.manual_seed(0)
    make, image = NETWORKS[name]
    images = torch.randn(16, *image)
    network = with_true_statistics(make(), images)
    before = snapshot(network)
    student, coverage = dfq(network, image, Quantization("w8a8"))
    exact = trace(network, remedy="mend it", image=image)
    calibrated, _ = quantize_network(exact, Quantization("w8a8"))
    with torch.no_grad(), observe_ranges(calibrated):
        expected = exact(images)
        errors = [(quantized(images) - expected).norm() for quantized in (student, calibrated)]
    assert errors[0] < 1.5 * errors[1] < expected.norm()
    assert not student.training
    quantizers = [module for module in student.modules() if isinstance(module, ActivationQuantizer)]
    assert len(quantizers) == len(coverage.activations) == len([m for m in quantizers if m.observations == 1])
    assert not coverage.gaps
    assert snapshot(network).keys() == before.keys()
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


class Conditioned(nn.Module):
    """A gate of squeezed features, one of parameters, a norm of samples and a resized branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.last = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, CLASSES, 3)
        self.squeeze, self.norm, self.strength = nn.Conv2d(6, 6, 1), nn.GroupNorm(2, 6), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.bn(self.stem(x)))
        x = x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True))) * torch.sigmoid(self.strength).view(-1, 1, 1)
        x = F.gelu(self.norm(x + F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:])))
        return self.last(x).mean((2, 3))


@pytest.mark.parametrize("protocol", ["activations", "integer"])
def test_every_quantizer_gets_a_range_whatever_the_network_computes(protocol):
    torch.manual_seed(0)
    images = torch.randn(64, *IMAGE)
    network = with_true_statistics(Conditioned(), images)
    student, _ = dfq(network, IMAGE, Quantization("w8a8", protocol, allow_partial=True))
    quantizers = [module for module in student.modules() if isinstance(module, ActivationQuantizer)]
    assert len(quantizers) >= 4
    assert all(module.observations == 1 for module in quantizers)
    with torch.no_grad():
        expected, got = network(images), student(images)
    assert (got - expected).norm() < 0.1 * (expected - expected.mean(0)).norm()


def test_a_network_whose_activations_pass_six_keeps_its_function() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))
    with torch.no_grad():
        network[1].bias.fill_(8.0)
        network[1].weight.fill_(3.0)
    images = torch.randn(16, 3, 12, 12)
    network = with_statistics_of(network, images)
    student, _ = dfq(network, ImageShape(3, 12, 12), Quantization("w8a8"))
    with torch.no_grad():
        expected, got = network(images), student(images)
    assert (got - expected).norm() < 0.02 * expected.norm()


def test_the_digits_teacher_keeps_its_accuracy_at_six_bits(digits_teacher: Teacher) -> None:
    t = digits_teacher
    student, _ = dfq(t.network, t.image, Quantization("w6a6"))
    assert accuracy(student, digits_data("test"), mean=t.mean, std=t.std, device=t.device) > 0.97


def test_ranges_are_beta_and_six_gamma_of_the_widest_channel():
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 2))
    with torch.no_grad():
        network[1].bias.copy_(torch.tensor([0.5, -1.0, 0.0]))
        network[1].weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
    student, _ = dfq(network, ImageShape(2, 3, 5), Quantization("w4a4"))
    assert student.get_submodule("activation_quantizers._2").range() == (0, 11)
    student, _ = dfq(network, ImageShape(2, 3, 5), Quantization("w4a4"), deviations=2.0)
    assert student.get_submodule("activation_quantizers._2").range() == (0, 3)


def test_ranges_follow_equalization_and_absorption():
    network = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, eps=0), nn.ReLU(), nn.Conv2d(2, 3, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[8.0, 1.0], [2.0, 0.5]]).view(2, 2, 1, 1))
        network[1].bias.copy_(torch.tensor([1.0, 5.0]))
        network[3].weight.copy_(torch.tensor([[2.0, -8.0], [1.0, 0.0], [0.0, 0.0]]).view(3, 2, 1, 1))
    student, _ = dfq(network, ImageShape(2, 3, 5), Quantization("w4a4"))
    # s = sqrt(8 / 2), sqrt(2 / 8): gamma 0.5 and 2, beta 0.5 and 10, of which 10 - 3 · 2 are absorbed
    assert student.get_submodule("activation_quantizers._2").range() == (0, 6 + 6 * 2)


def test_a_quantizer_gets_the_widest_range_of_all_its_calls():
    quantizer = nn.Sequential(ActivationQuantizer(4))
    bounds = [(torch.tensor([-1.0, 0.5]), torch.tensor([2.0, 3.0])), (torch.tensor([0.0]), torch.tensor([5.0]))]
    set_ranges(quantizer, {"0": [Moments(low, low, low, high) for low, high in bounds]})
    assert quantizer[0].range() == (-1, 5)


class Shift(nn.Module):
    """A quantizer that is deliberately biased."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.3


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 4, (1, 1), groups=2), nn.Conv2d(6, 4, 1, bias=False), nn.Linear(6, 4)])
def test_bias_correction_restores_the_mean_output_of_a_biased_layer(layer):
    torch.manual_seed(0)
    shape = (9, 6, 3, 5) if isinstance(layer, nn.Conv2d) else (9, 6)
    x, dims = torch.randn(shape) + 2, (0, 2, 3) if isinstance(layer, nn.Conv2d) else (0,)
    exact, biased = nn.Sequential(layer), nn.Sequential(copy.deepcopy(layer))
    parametrize.register_parametrization(biased[0], "weight", Shift())
    expected = exact(x).mean(dims)
    assert (biased(x).mean(dims) - expected).abs().min() > 1
    mean = x.mean(0, keepdim=True)
    correct_biases(biased, exact, {"0": [Moments(mean, mean, mean, mean)]})
    torch.testing.assert_close(biased(x).mean(dims), expected)


def test_bias_correction_brings_the_mean_logits_of_a_two_bit_student_closer(monkeypatch):
    torch.manual_seed(0)
    images = torch.randn(500, *IMAGE)
    teacher = with_true_statistics(toy_teacher(), images)
    distances = []
    for correct in (correct_biases, lambda *arguments: None):
        monkeypatch.setattr("nni_autorecon.quantization.dfq.correct_biases", correct)
        student, _ = dfq(teacher, IMAGE, Quantization("w2a8"))
        with torch.no_grad():
            distances.append(float((student(images) - teacher(images)).mean(0).norm()))
    assert distances[0] < 0.5 * distances[1]


def test_what_does_not_fit_is_refused_in_one_line():
    plain = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(189, CLASSES))
    with pytest.raises(InputError, match="^Sequential has no BatchNorm to take ranges from; choose another method"):
        dfq(plain, IMAGE, Quantization("w4a4"))
    disguised = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.ConvTranspose2d(3, 5, 3))
    with pytest.raises(InputError, match="--allow-partial"):
        dfq(disguised, IMAGE, Quantization("w4a4"))


def test_the_images_range_is_that_of_pixels_where_it_is_known(digits_teacher):
    """Black and white are the least and the largest value there is; ± 6 deviations waste most codes."""
    quantization = Quantization("w8a8", "integer", input_bits=2)
    for pixels, expected in ((None, (-6.0, 6.0)), (digits_teacher.pixel_range, (-0.3049 / 0.3183, 0.6951 / 0.3183))):
        student, _ = dfq(digits_teacher.network, digits_teacher.image, quantization, pixel_range=pixels)
        first = next(module for module in student.modules() if isinstance(module, ActivationQuantizer))
        assert torch.stack(first.range()).tolist() == pytest.approx(expected, rel=1e-4)


def test_a_network_that_is_not_traced_twice_is_refused(monkeypatch):
    monkeypatch.setattr("nni_autorecon.quantization.dfq.quantize_network", lambda network, _: (nn.Linear(2, 3), None))
    with pytest.raises(InputError, match="CifarResNet cannot be traced twice; choose a method"):
        dfq(digits_resnet(), ImageShape(1, 16, 16), Quantization("w4a4"))
