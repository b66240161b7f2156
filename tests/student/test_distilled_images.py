"""Images trained against a teacher: better than noise, reproducible, and without a trace left behind."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nni_autorecon.errors import DivergenceError
from nni_autorecon.losses.reconstruction import reconstruction_loss, zeroq_loss
from nni_autorecon.student.distilled_images import DistilledImages, distil_images
from tests.helpers.toys import CLASSES, IMAGE, snapshot, toy_teacher

SETTINGS = {"count": 7, "batch_size": 3, "steps": 20, "learning_rate": 0.5, "patience": 3}


def zeroq(seed: int = 0, **settings: int | float) -> DistilledImages:
    teacher = toy_teacher()
    return distil_images(
        lambda images, labels: zeroq_loss(teacher, images), IMAGE, seed=seed, **{**SETTINGS, **settings}
    )


def test_zeroq_images_come_closer_to_the_statistics():
    teacher = toy_teacher()
    for parameter in teacher.parameters():
        parameter.requires_grad_(True)
    before, calls, sizes = snapshot(teacher), [], []

    def loss(images: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is None
        sizes.append(len(images))
        return zeroq_loss(teacher, images)

    result = distil_images(loss, IMAGE, seed=0, on_step=lambda: calls.append(1), **SETTINGS)
    assert result.images.shape == (7, *IMAGE)
    assert not result.images.requires_grad
    assert result.labels is None
    noise = torch.randn(7, *IMAGE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        at_first, at_last = (
            sum(float(zeroq_loss(teacher, batch)) for batch in images.split(3)) for images in (noise, result.images)
        )
    assert at_last < 0.3 * at_first
    assert len(calls) == 60
    assert sizes == [3] * 40 + [1] * 20
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_images_for_drawn_labels_are_of_these_classes():
    teacher = toy_teacher()

    def loss(images: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return reconstruction_loss(teacher, images, labels, bns_weight=0.0).total

    result = distil_images(loss, IMAGE, seed=0, num_classes=CLASSES, **{**SETTINGS, "count": 20, "batch_size": 10})
    assert result.labels is not None
    assert result.labels.shape == (20,)
    assert set(result.labels.tolist()) == set(range(CLASSES))
    of_labels = F.cross_entropy(teacher(result.images), result.labels)
    noise = torch.randn(20, *IMAGE, generator=torch.Generator().manual_seed(0))
    assert of_labels < F.cross_entropy(teacher(noise), result.labels)
    assert of_labels < F.cross_entropy(teacher(result.images), result.labels.roll(1))


def test_the_seed_alone_decides():
    first, second, other = (zeroq(seed, steps=2) for seed in (1, 1, 2))
    assert torch.equal(first.images, second.images)
    assert not torch.allclose(first.images, other.images)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    distil_images(lambda images, labels: images.square().mean(), IMAGE, seed=1, num_classes=3, **SETTINGS)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_learning_rate_falls_on_a_plateau():
    moves = []

    def flat(images: Tensor, labels: Tensor | None) -> Tensor:
        moves.append(images.detach().clone())
        return (images - images.detach()).sum()  # always 0, with gradient 1

    distil_images(flat, IMAGE, seed=0, **{**SETTINGS, "count": 1, "steps": 9})
    sizes = [float((after - before).abs().mean()) for before, after in itertools.pairwise(moves)]
    assert sizes == pytest.approx([0.5] * 5 + [0.05] * 3, rel=1e-3)


def test_divergence_and_useless_settings_are_named():
    calls = []
    with pytest.raises(DivergenceError, match="the loss of the distilled images became nan; lower the learning rate"):
        distil_images(
            lambda images, labels: images.sum() * float("nan"),
            IMAGE,
            seed=0,
            on_step=lambda: calls.append(1),
            **SETTINGS,
        )
    assert not calls
    for name in ("count", "batch_size", "steps"):
        with pytest.raises(ValueError, match="must all be at least 1"):
            zeroq(**{name: 0})
