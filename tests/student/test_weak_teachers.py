"""The teacher's accuracy comes first, and a run whose teacher guesses stops before anything is trained."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest

import nni_autorecon as nar
from nni_autorecon.cli.main import main
from nni_autorecon.data.digits import digits_data
from nni_autorecon.errors import InputError
from nni_autorecon.student.results import chance_limit

COMPRESSION = {
    "method": "gdfq",
    "generator": "random:0",
    "epochs": 3,
    "warmup_epochs": 1,
    "range_epochs": 1,
    "width": 3,
}
DISTILLATION = {"generator": "random:0", "epochs": 1, "student_steps": 1, "width": 3}
ACCURACY = r"teacher digits: 99\.\d\d % of 445 test images"  # it is trained, a little differently by each PyTorch
STEPS = {"steps": 1, "agreement_steps": 1, "batch_size": 4, "progress": False}


@pytest.fixture
def swapped(tmp_path):
    """The digits' test images with the classes in another order, as if the labels were another data set's."""
    data = digits_data("test")
    path = tmp_path / "swapped.npz"
    np.savez(path, images=data.images.numpy(), labels=(data.labels.numpy() + 1) % 10)
    return str(path)


@pytest.mark.parametrize(
    "stage", [(nar.compress, COMPRESSION), (nar.distill, DISTILLATION)], ids=["compress", "distill"]
)
def test_a_teacher_that_guesses_is_refused_before_training(tmp_path, swapped, stage):
    run, settings = stage
    epochs = []
    where = {"test_data": swapped, "folder": tmp_path / "run", "on_epoch": epochs.append}
    with pytest.raises(
        InputError, match=r"digits decides right on 0\.\d+% of 445 test images, .*10\.00%; check --mean"
    ):
        run("digits", **settings, **STEPS, **where)
    assert not epochs
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_weak_teacher_may_be_allowed(swapped):
    result = nar.compress("digits", **COMPRESSION, **STEPS, test_data=swapped, allow_weak_teacher=True)
    assert result.teacher_accuracy < 0.1


def test_the_accuracy_is_logged_before_the_first_epoch(caplog):
    caplog.set_level(logging.INFO, "nni_autorecon")
    seen = []
    nar.compress(
        "digits", **COMPRESSION, **STEPS, test_data="digits", on_epoch=lambda row: seen.append(list(caplog.messages))
    )
    assert re.fullmatch(ACCURACY, "\n".join(seen[0]))


def test_the_command_prints_the_accuracy_first(tmp_path, capfd):
    flags = (
        "--test-data digits --method gdfq --generator random:0 --epochs 3 --warmup-epochs 1 --range-epochs 1 --width 3"
    )
    flags += " --steps 1 --agreement-steps 1"
    assert main(["compress", *flags.split(), "--batch-size", "4", "-o", str(tmp_path / "run")]) == 0
    assert re.fullmatch(ACCURACY, capfd.readouterr().err.splitlines()[0])


@pytest.mark.parametrize(
    ("classes", "images", "limit"),
    [(10, 10_000, 0.19), (2, 10_000, 0.55), (1000, 50_000, 0.1009), (10, 20, 0.3012), (2, 4, 0.95), (100, 10, 0.109)],
)
def test_the_limit_of_guessing(classes, images, limit):
    assert chance_limit(classes, images) == pytest.approx(limit, abs=1e-3)
    assert 1 / classes < chance_limit(classes, images) < 1
