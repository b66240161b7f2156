"""Images that cost nothing, and how many a measurement may take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nni_autorecon as nar
from nni_autorecon.quantization.dfq import dfq
from nni_autorecon.quantization.specification import Quantization
from nni_autorecon.shapes import ImageShape
from nni_autorecon.student.agreement import BUDGET, LEAST, decisions, images_within_budget
from nni_autorecon.student.noise import STEEPEST, smooth_noise
from nni_autorecon.teacher.costs import macs
from nni_autorecon.teacher.loading import Teacher


def test_noise_is_standardized_and_depends_on_the_seed_alone() -> None:
    image = ImageShape(3, 24, 17)
    noise = smooth_noise(50, image, seed=1)
    assert noise.shape == (50, *image)
    torch.testing.assert_close(noise.std((2, 3), correction=0), torch.ones(50, 3), rtol=1e-3, atol=1e-3)
    assert torch.equal(noise, smooth_noise(50, image, seed=1))
    assert not torch.equal(noise, smooth_noise(50, image, seed=2))
    assert smooth_noise(2, ImageShape(1, 1, 1), seed=0).isfinite().all()


def test_amplitudes_fall_with_the_frequency_up_to_the_steepest() -> None:
    """The last image's spectrum has a slope of -2 in logarithms, the first one's none."""
    noise = smooth_noise(2, ImageShape(64, 64, 64), seed=0)
    amplitudes = torch.fft.rfft2(noise - noise.mean((2, 3), keepdim=True)).abs().square().mean(1).sqrt()  # [2, 64, 33]
    low, high = amplitudes[:, 0, 2], amplitudes[:, 0, 16]
    slopes = (high / low).log2() / 3  # three octaves
    torch.testing.assert_close(slopes, torch.tensor([0.0, -STEEPEST]), rtol=0, atol=0.2)


def test_macs_are_those_of_convolutions_and_products() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, groups=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 5)).eval()
    assert macs(network, ImageShape(3, 8, 8)) == 3 * 8 * 9 * 36 + 8 * 36 * 5


@pytest.mark.parametrize(("cost", "count"), [(1, 256), (10**12, LEAST), (int(BUDGET / 800), 100)])
def test_a_measurement_keeps_to_its_budget(cost: int, count: int, digits_teacher: Teacher) -> None:
    teacher = Teacher("t", digits_teacher.network, 10, digits_teacher.image, (0.0,), (1.0,))
    teacher.__dict__["macs"] = cost
    assert images_within_budget(teacher, 256, copies=4) == count


def test_noise_tells_good_students_from_ruined_ones(digits_teacher: Teacher) -> None:
    images = smooth_noise(256, digits_teacher.image, seed=0)
    found = []
    for bits in ("w8a8", "w4a4", "w2a2"):
        student, _ = dfq(digits_teacher.graph, digits_teacher.image, Quantization(bits))  # type: ignore[arg-type]
        found.append(decisions(student, digits_teacher.network, [images], disturbs=False).agreement)
    assert found[0] > 0.97 > found[1] > 0.8 > found[2]


def test_method_dfq_distils_no_image() -> None:
    steps: list[int] = []
    result = nar.compress("digits", method="dfq", bits="w8a8", progress=False, on_step=lambda: steps.append(1))
    assert not steps
    assert result.agreement > 0.97
    assert "of images of smooth noise" in result.summary()
