"""Dead leaves are images with the statistics of photographs."""

from __future__ import annotations

import pytest
import torch

from nni_autorecon.shapes import ImageShape
from nni_autorecon.student.drawn_images import dead_leaves
from nni_autorecon.student.noise import smooth_noise


def test_leaves_depend_on_the_seed_alone() -> None:
    image = ImageShape(3, 20, 30)
    leaves = dead_leaves(4, image, seed=2**40)
    assert leaves.shape == (4, *image)
    assert torch.equal(leaves, dead_leaves(4, image, seed=2**40))
    assert torch.equal(leaves[:2], dead_leaves(2, image, seed=2**40))
    assert not torch.equal(leaves, dead_leaves(4, image, seed=1))


@pytest.mark.parametrize("image", [ImageShape(1, 1, 1), ImageShape(2, 3, 40), ImageShape(4, 28, 28)])
def test_leaves_fit_any_image(image: ImageShape) -> None:
    leaves = dead_leaves(3, image, seed=0)
    assert leaves.shape == (3, *image)
    assert leaves.dtype == torch.float32
    assert leaves.isfinite().all()


def test_amplitudes_fall_with_the_frequency_as_those_of_photographs() -> None:
    """They fall as f^-1 (Field, 1987)."""
    size = 64
    spectrum = torch.fft.fft2(dead_leaves(24, ImageShape(3, size, size), seed=0)).abs().square().mean((0, 1)).sqrt()
    frequency = torch.hypot(*torch.meshgrid(torch.fft.fftfreq(size), torch.fft.fftfreq(size), indexing="ij"))
    rings = [(frequency >= low) & (frequency < 1.5 * low) for low in (0.05, 0.3)]
    near, far = ((float(frequency[ring].mean()), float(spectrum[ring].mean())) for ring in rings)
    slope = (torch.tensor(far[1] / near[1]).log() / torch.tensor(far[0] / near[0]).log()).item()
    assert -1.6 < slope < -0.9


def test_leaves_have_edges() -> None:
    """Most neighbours are alike and a few differ much: differences have heavy tails, which those of noise have not."""
    image = ImageShape(3, 64, 64)

    def kurtosis(images: torch.Tensor) -> float:
        differences = images.diff(dim=-1)
        return float((differences**4).mean() / (differences**2).mean() ** 2)

    assert kurtosis(dead_leaves(8, image, seed=0)) > 10
    assert kurtosis(smooth_noise(8, image, seed=0, least=1.0)) < 6
