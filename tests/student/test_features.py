"""Features of student and teacher: closed forms of their gap, and the places that are compared."""

import pytest
import torch
from torch import nn

from nni_autorecon.errors import InputError
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.quantizers import observe_ranges
from nni_autorecon.quantization.specification import Quantization
from nni_autorecon.student.features import feature_alignment_loss, with_features
from tests.helpers.toys import SmallResNet, toy_teacher


def test_features_that_differ_in_length_alone_are_aligned():
    student, teacher = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 7, 7)
    assert feature_alignment_loss([student, teacher], [3 * student, 0.1 * teacher]).item() == pytest.approx(
        0, abs=1e-12
    )


def test_features_without_pixels_are_aligned_as_they_are():
    student, teacher = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 3.0]])
    expected = ((0.5**0.5) ** 2 + (0.5**0.5 - 1) ** 2) / 2
    assert feature_alignment_loss([student], [teacher]).item() == pytest.approx(expected)


def test_the_gap_between_channels_that_are_alone_is_two_over_their_number():
    student, teacher = torch.zeros(2, 5, 3, 3), torch.zeros(2, 5, 3, 3)
    student[:, 1], teacher[:, 2] = 4.0, -7.0
    assert feature_alignment_loss([student], [teacher]).item() == pytest.approx(2 / 5)


@pytest.mark.parametrize("protocol", ["activations", "integer"])
def test_student_and_teacher_show_the_same_places(protocol):
    torch.manual_seed(0)
    teacher = SmallResNet().eval()
    student, _ = quantize_network(teacher, Quantization("w8a8", protocol=protocol))
    images = torch.randn(4, 3, 9, 7)
    with torch.no_grad(), observe_ranges(student):
        student(images)
    seen, quantized = with_features(teacher)(images), with_features(student)(images)
    assert [tuple(f.shape) for f in seen[1]] == [(4, 5, 9, 7), (4, 7, 4, 3)]
    block = teacher.blocks[0](teacher.stem(images))
    assert torch.equal(seen[0], teacher(images))
    assert torch.equal(seen[1][0], block)
    assert torch.equal(quantized[0], student(images))
    for theirs, ours in zip(seen[1], quantized[1], strict=True):
        assert len(ours.unique()) <= 2**8
        assert 0 < (ours - theirs).abs().max() < 0.1 * theirs.abs().max()


def test_the_features_of_a_student_reach_its_weights():
    student, _ = quantize_network(SmallResNet(), Quantization("w4a4"))
    with torch.no_grad(), observe_ranges(student):
        student(torch.randn(4, 3, 9, 7))
    with_features(student)(torch.randn(4, 3, 9, 7))[1][0].sum().backward()
    assert student.get_parameter("stem.0.parametrizations.weight.original").grad.abs().sum() > 0


def test_a_network_without_residual_blocks_shows_its_activations():
    assert len(with_features(toy_teacher())(torch.randn(2, 2, 9, 11))[1]) == 2


def test_a_network_with_neither_has_nothing_to_show():
    with pytest.raises(InputError, match=r"Sequential has neither residual blocks nor .*; feature_weight needs that"):
        with_features(nn.Sequential(nn.Flatten(), nn.Linear(6, 3)))
