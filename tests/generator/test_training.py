"""Training and measuring a generator of fixed architecture."""

import pytest
import torch

from nni_autorecon.config.search import SearchConfig
from nni_autorecon.errors import DivergenceError
from nni_autorecon.generator import training as reconstruction
from nni_autorecon.generator.genotype import random_choices
from nni_autorecon.generator.searched import derived_generator
from nni_autorecon.generator.training import (
    evaluate_generator,
    generator_step,
    images_per_class,
    measure_generator,
    train_generator,
    weight_optimizer,
)
from nni_autorecon.losses.reconstruction import MeanLoss
from tests.helpers.toys import CLASSES, GENERATOR, IMAGE, snapshot, toy_objective, toy_source, toy_teacher

CONFIG = SearchConfig(final_steps=30, weight_lr=0.01)


def _generator():
    torch.manual_seed(0)
    return derived_generator(random_choices(1), **GENERATOR)


def test_a_step_returns_what_was_before_the_update():
    generator, objective = _generator(), toy_objective()
    z, labels = next(toy_source().batches("search", 0, 1))
    before = generator(z, labels).detach()
    images, loss = generator_step(generator, objective, weight_optimizer(generator.parameters(), CONFIG), z, labels)
    torch.testing.assert_close(images, before)
    assert loss.total.item() == pytest.approx(objective(before, labels).total.item())
    assert not images.requires_grad
    assert not any(part.requires_grad for part in loss)
    assert not torch.allclose(generator(z, labels), before)


def test_training_lowers_the_loss_and_spares_the_teacher():
    teacher = toy_teacher()
    before = snapshot(teacher)
    generator, objective, source = _generator(), toy_objective(teacher), toy_source()
    untrained = measure_generator(generator, objective, source, stream="final-validation", steps=16)
    steps = []
    loss = evaluate_generator(generator, objective, source, CONFIG, on_step=lambda: steps.append(1))
    assert loss["loss"] < untrained["loss"]
    assert loss["loss"] == pytest.approx(loss["class_loss"] + 0.1 * loss["bns_loss"])
    assert len(steps) == 30
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_the_learning_rate_follows_its_schedule(monkeypatch):
    rates = []

    def step(generator, objective, optimizer, z, labels):
        rates.append(optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(reconstruction, "generator_step", step)
    for schedule in ("constant", "cosine"):
        config = SearchConfig(weight_lr=0.01, weight_schedule=schedule)
        train_generator(_generator(), toy_objective(), toy_source(), config, stream="final", steps=4)
    half = 0.5**0.5 / 2
    assert rates == pytest.approx([0.01] * 4 + [0.01, 0.01 * (0.5 + half), 0.005, 0.01 * (0.5 - half)])


def test_the_same_seed_gives_the_same_figure():
    first, second, other = (
        evaluate_generator(_generator(), toy_objective(), toy_source(seed), CONFIG) for seed in (1, 1, 2)
    )
    assert first == second != other


def test_means_are_means_and_nan_is_named():
    generator, objective = _generator(), toy_objective()
    losses = [objective(generator(z, labels), labels) for z, labels in toy_source().batches("search", 0, 3)]
    mean = MeanLoss()
    for loss in losses:
        mean.add(loss)
    assert mean.result("L_r")["loss"] == pytest.approx(sum(loss.total.item() for loss in losses) / 3)
    mean.add(losses[0]._replace(total=torch.tensor(float("inf"))))
    with pytest.raises(DivergenceError, match="L_r became inf; lower the learning rate"):
        mean.result("L_r")


def test_pictures_show_every_class():
    images, labels = images_per_class(_generator(), toy_source(), count=3)
    assert images.shape == (3 * CLASSES, *IMAGE)
    assert labels.tolist() == [label for label in range(CLASSES) for _ in range(3)]
