"""Distillation: what each phase changes, what the generator is asked for, what is measured, what is refused."""

import copy
import json

import pytest
import torch

from nni_autorecon.config.distill import DistillConfig
from nni_autorecon.data.images import LabelledImages
from nni_autorecon.errors import DivergenceError, InputError
from nni_autorecon.losses.student import balance_loss
from nni_autorecon.networks import digits_resnet, digits_student
from nni_autorecon.shapes import ImageShape
from nni_autorecon.student.distillation import Distillation, student_for
from nni_autorecon.student.distillation_run import LOSSES, distill
from nni_autorecon.teacher.loading import Teacher
from tests.helpers.checkpoints import equal_states
from tests.helpers.toys import CLASSES, IMAGE, snapshot, toy_teacher

CONFIG = DistillConfig(
    student="tests.helpers.toys:toy_student",
    generator="gdfq",
    width=4,
    latent_dim=7,
    batch_size=6,
    epochs=3,
    steps=2,
    bns_weight=0.1,
    weight_lr=1e-3,
    student_lr=0.01,
    agreement_steps=2,
)
WEIGHTS = ("reconstruction_weight", "adversarial_weight", "balance_weight")


def _start(**settings):
    teacher = Teacher("toy", toy_teacher(), CLASSES, IMAGE, (0.0, 0.0), (1.0, 1.0))
    return Distillation.start(CONFIG.override(settings), teacher)


def _batch(distillation):
    return next(distillation.source.batches("distill", 0, 1))


def _changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def _statistics(names):
    return {name for name in names if "running" in name or "num_batches" in name}


def test_a_student_step_changes_the_student_alone():
    distillation = _start()
    teacher, generator, student = map(
        snapshot, (distillation.teacher.network, distillation.generator, distillation.student)
    )
    distillation._student_step(*_batch(distillation))
    assert _changed(distillation.student, student) == set(student)  # its own BatchNorm statistics as well
    changed = _changed(distillation.generator, generator)
    assert changed == _statistics(changed)  # which a generator, always in training mode, never uses
    assert all(parameter.grad is None for parameter in distillation.generator.parameters())
    assert not _changed(distillation.teacher.network, teacher)


def test_a_generator_step_changes_the_generator_alone():
    distillation = _start()
    distillation._student_step(*_batch(distillation))
    teacher, generator, student = map(
        snapshot, (distillation.teacher.network, distillation.generator, distillation.student)
    )
    gradients = [parameter.grad.clone() for parameter in distillation.student.parameters()]
    distillation._generator_step(*_batch(distillation))
    assert {name for name, _ in distillation.generator.named_parameters()} <= _changed(
        distillation.generator, generator
    )
    assert not _changed(distillation.student, student)
    assert all(map(torch.equal, gradients, (parameter.grad for parameter in distillation.student.parameters())))
    assert not _changed(distillation.teacher.network, teacher)
    assert all(parameter.grad is None for parameter in distillation.teacher.network.parameters())


def test_the_teacher_is_the_same_after_a_whole_run():
    distillation = _start()
    before = snapshot(distillation.teacher.network)
    distill(distillation, None)
    assert not _changed(distillation.teacher.network, before)


def test_the_student_follows_the_teacher_in_training_mode():
    distillation = _start()
    z, labels = _batch(distillation)
    with torch.no_grad():
        images = copy.deepcopy(distillation.generator)(z, labels)
        difference = distillation.teacher.network(images) - copy.deepcopy(distillation.student).train()(images)
    torch.testing.assert_close(distillation._student_step(z, labels), difference.abs().mean())
    assert distillation.student.training


@pytest.mark.parametrize("student_steps", [1, 5])
def test_student_and_generator_take_turns_on_fresh_noise(student_steps, monkeypatch):
    distillation, turns = _start(student_steps=student_steps, steps=3), []
    train, attack = distillation._update_student, distillation._update_generator
    monkeypatch.setattr(distillation, "_update_student", lambda z, y: turns.append(("student", z)) or train(z, y))
    monkeypatch.setattr(distillation, "_update_generator", lambda z, y: turns.append(("generator", z)) or attack(z, y))
    distillation.run_epoch(0)
    assert [phase for phase, _ in turns] == 3 * (student_steps * ["student"] + ["generator"])
    assert len({z.sum().item() for _, z in turns}) == len(turns)


@pytest.mark.parametrize("present", WEIGHTS)
def test_the_generator_follows_the_terms_whose_weight_is_not_0(present):
    """Its gradient is exactly that of the one term that is left."""
    distillation = _start(**{name: 2.0 * (name == present) for name in WEIGHTS})
    distillation.generator.train()
    z, labels = _batch(distillation)
    alone, student = copy.deepcopy(distillation.generator), copy.deepcopy(distillation.student).eval()
    images = alone(z, labels)
    reconstruction = distillation.objective(images, labels)
    term = {
        "reconstruction_weight": reconstruction.total,
        "adversarial_weight": -(reconstruction.logits - student(images)).abs().mean(),
        "balance_weight": balance_loss(reconstruction.logits),
    }[present]
    (2 * term).backward()
    distillation._generator_step(z, labels)
    gradients = [(a.grad, b.grad) for a, b in zip(alone.parameters(), distillation.generator.parameters(), strict=True)]
    assert any(gradient.any() for gradient, _ in gradients)
    for expected, gradient in gradients:
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-9)


def test_a_run_is_reproducible_and_depends_on_its_seed():
    runs = [distill(_start(seed=seed), None) for seed in (1, 1, 2)]
    assert runs[0].loss == runs[1].loss
    assert runs[0].agreement == runs[1].agreement
    assert runs[0].loss != runs[2].loss


def test_every_generator_teaches_the_same_student():
    students = [_start(generator=generator, width=width).student for generator, width in (("gdfq", 4), ("random:0", 3))]
    assert all(map(torch.equal, students[0].state_dict().values(), students[1].state_dict().values()))


def test_the_student_learns_to_agree():
    distillation = _start(steps=30, student_lr=0.1, agreement_steps=20)
    before = distillation.agreement()
    rows = [distillation.run_epoch(epoch) for epoch in range(3)]
    assert rows[-1]["student_loss"] < 0.5 * rows[0]["student_loss"]
    assert rows[-1]["agreement"] > before + 0.2
    assert not any(module.training for module in distillation.student.modules())


def test_learning_rates_follow_their_schedules():
    distillation = _start(student_schedule="step", weight_schedule="cosine", weight_lr=1e-3, epochs=4, steps=1)
    rates = []
    for epoch in range(4):
        row = distillation.run_epoch(epoch)
        rates.append((row["student_lr"], distillation.generator_optimizer.param_groups[0]["lr"]))
    assert [student for student, _ in rates] == pytest.approx([0.01, 1e-3, 1e-4, 1e-5])
    assert [generator for _, generator in rates] == pytest.approx([1e-3, 8.536e-4, 5e-4, 1.464e-4], rel=1e-3)


def _data():
    torch.manual_seed(0)
    return LabelledImages(torch.randint(256, (9, *IMAGE), dtype=torch.uint8), torch.arange(9) % CLASSES)


def test_the_result_says_what_was_measured_and_when():
    rows = []
    distillation = _start()
    result = distill(distillation, _data(), teacher_accuracy=0.75, on_epoch=rows.append)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert result.agreement == rows[-1]["agreement"]
    assert result.loss == {name: rows[-1][name] for name in LOSSES}
    assert result.teacher_accuracy == 0.75
    assert result.accuracy * 9 == pytest.approx(round(result.accuracy * 9))
    assert result.teacher_parameters == sum(p.numel() for p in distillation.teacher.network.parameters())
    assert result.student_parameters == 38 + 4 + 19 * CLASSES
    json.dumps(result.to_dict(), allow_nan=False)
    assert result.metrics()["default"] == result.agreement
    assert f"student {result.accuracy:.2%}" in result.summary()


def test_without_test_data_nothing_is_claimed():
    result = distill(_start(), None)
    assert (result.teacher_accuracy, result.accuracy) == (None, None)
    assert "accuracy" not in result.metrics()
    assert "accuracy" not in result.summary()


def test_real_images_never_reach_training():
    students = []
    for data in (_data(), None):
        distillation = _start()
        distill(distillation, data)
        students.append(snapshot(distillation.student))
    assert all(torch.equal(students[0][name], students[1][name]) for name in students[0])


@pytest.mark.parametrize(
    ("settings", "what"),
    [({"student_lr": 1e30, "adversarial_weight": 0.0}, "the student's loss"), ({"weight_lr": 1e38}, "L1|L_r|student")],
)
def test_nan_stops_the_run_with_one_line(settings, what):
    with pytest.raises(DivergenceError, match=rf"({what}).* in epoch \d became (nan|inf); lower") as caught:
        distill(_start(**settings), None)
    assert "\n" not in str(caught.value)


STUDENTS = """
import warnings
import torch
from torch import nn

def net(channels, classes):
    return nn.Sequential(nn.Conv2d(channels, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))

class Pair(nn.Conv2d):
    def forward(self, images):
        return super().forward(images), images

class Pairs(nn.Sequential):
    def forward(self, images):
        logits = super().forward(images)
        return (logits, logits) if self.training else logits

def normed():  # cannot be copied
    network = net(2, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(network[3])
    return network
def pairs(): return Pairs(*net(2, 5))
def channels(): return net(3, 5)
def classes(): return net(2, 7)
def pair(): return Pair(2, 3, 3)
def frozen(): return net(2, 5).requires_grad_(False)
def number(): return 3
def in_place(): return nn.Sequential(nn.LeakyReLU(inplace=True), *net(2, 5))
"""


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("channels", "fails on 2×9×11 images, which the teacher takes: RuntimeError"),
        ("classes", "returns shape [2, 7] for two images; it must return logits [2, 5]"),
        ("pair", "returns a tuple for two images;"),
        ("pairs", "returns a tuple for two images in training;"),
        ("frozen", "has no parameter to train"),
        ("number", "returned int; it must return an nn.Module"),
        ("in_place", "changes its images in place, and others use them, too; change a copy"),
        ("none", "has no function or class 'none'"),
    ],
)
def test_a_student_that_does_not_fit_is_one_line(factory, message, tmp_path):
    (tmp_path / "mine.py").write_text(STUDENTS)
    with pytest.raises(InputError) as caught:
        _start(student=f"{tmp_path}/mine.py:{factory}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_looking_at_a_student_changes_nothing(tmp_path):
    (tmp_path / "mine.py").write_text(STUDENTS)
    student = student_for(_start().teacher, f"{tmp_path}/mine.py:normed")
    assert not student.training
    teacher = Teacher("digits", digits_resnet().eval(), 10, ImageShape(1, 16, 16), (0.0,), (1.0,))
    torch.manual_seed(3)
    student, random = student_for(teacher, "nni_autorecon.networks:digits_student"), torch.rand(1)
    torch.manual_seed(3)
    assert equal_states(student, digits_student())
    assert torch.equal(random, torch.rand(1))


@pytest.mark.parametrize("student", ["nosuchmodule:net", "none.py:net", "net"])
def test_a_student_that_cannot_be_found_is_one_line(student):
    with pytest.raises(InputError, match="no module nosuchmodule|none.py does not exist|not understood"):
        _start(student=student)


def test_the_generator_needs_an_objective():
    with pytest.raises(InputError, match="nothing to learn"):
        _start(**dict.fromkeys(WEIGHTS, 0.0))
