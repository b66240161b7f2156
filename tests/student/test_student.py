"""The students of both stages share schedules, agreement, and the data they are measured on."""

import numpy as np
import pytest
import torch
from torch import nn

from nni_autorecon.config.common import SCHEDULES
from nni_autorecon.config.distill import DistillConfig
from nni_autorecon.data.images import LabelledImages
from nni_autorecon.student.agreement import Decisions, decisions, disturbed
from nni_autorecon.student.results import evaluation_data


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1, 1, 1, 1]), ("cosine", [1, 0.8535, 0.5, 0.1464]), ("step", [1, 0.1, 0.01, 1e-3])],
)
def test_student_schedules(schedule, expected):
    assert [SCHEDULES[schedule](progress) for progress in (0, 0.25, 0.5, 0.75)] == pytest.approx(expected, abs=1e-4)


def test_disturbed_images_are_shifted_joined_mixed_and_noisy():
    torch.manual_seed(0)
    images = torch.randn(5, 2, 9, 18)
    shifted, joined, mixed, noisy = disturbed(images)
    assert torch.equal(shifted[:, :, 1:, :-2], images[:, :, :-1, 2:])
    assert torch.equal(joined[1, :, :, :9], images[1, :, :, :9])
    assert torch.equal(joined[1, :, :, 9:], images[0, :, :, 9:])
    torch.testing.assert_close(mixed[2], (images[2] + images[1]) / 2)
    assert 0.8 < float((noisy - images).std() / images.std()) < 1.2
    assert torch.equal(noisy, disturbed(images)[3])


def test_agreement_is_the_fraction_of_equal_decisions():
    teacher, student = nn.Flatten(), nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False))
    nn.init.eye_(student[1].weight)
    images = torch.randn(97, 3, 1, 1)
    assert decisions(student, teacher, iter([images, 2 * images])).agreement == 1
    with torch.no_grad():
        student[1].weight[2] = -100 * student[1].weight[2]  # it now decides for class 2 where that logit is negative
    all_images = torch.cat(disturbed(images))
    expected = (student(all_images).argmax(1) == all_images.flatten(1).argmax(1)).float().mean().item()
    assert 0 < expected < 1
    assert decisions(student, teacher, iter([images, images])).agreement == pytest.approx(expected)


def test_agreement_beyond_chance():
    teacher = torch.tensor([2, 2, 2, 2, 2, 2, 0, 1])
    assert Decisions(teacher, teacher).kappa == 1
    ruined = Decisions(torch.full_like(teacher, 2), teacher)
    assert ruined.agreement == 0.75
    assert ruined.kappa == 0
    useful = Decisions(torch.tensor([2, 2, 2, 0, 1, 1, 0, 1]), teacher)
    assert useful.agreement < ruined.agreement
    assert useful.kappa == pytest.approx((5 / 8 - 23 / 64) / (1 - 23 / 64))
    assert Decisions(teacher[:6], teacher[:6]).kappa == 1  # of one class alone


def test_a_student_is_measured_on_what_was_given_or_on_the_digits_or_not(tmp_path, digits_teacher):
    np.savez(tmp_path / "mine.npz", images=np.zeros((3, 1, 16, 16), np.uint8), labels=np.arange(3))
    given = evaluation_data(DistillConfig(test_data=str(tmp_path / "mine.npz")), digits_teacher)
    assert isinstance(given, LabelledImages)
    assert len(given) == 3
    digits = evaluation_data(DistillConfig(), digits_teacher)
    assert isinstance(digits, LabelledImages)
    assert len(digits) == 445
    assert evaluation_data(DistillConfig(teacher="torchvision:resnet18"), digits_teacher) is None
