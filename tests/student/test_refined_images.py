"""Refined images come nearer to the statistics of real ones, and are pixels of 8 bits."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import nni_autorecon as nar
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.config.distill import DistillConfig
from nni_autorecon.config.generator_spec import DRAWN
from nni_autorecon.errors import InputError
from nni_autorecon.losses.batchnorm import record_bn_statistics
from nni_autorecon.losses.reconstruction import bn_statistics_loss
from nni_autorecon.student import compression_run
from nni_autorecon.student.compression import Compression
from nni_autorecon.student.refined_images import from_pixels, refined, to_pixels
from tests.helpers.toys import IMAGE, snapshot, toy_teacher

MEAN, STD = (0.4, 0.5), (0.2, 0.25)
QUICK = {
    "generator": "random:0",
    "width": 2,
    "batch_size": 4,
    "epochs": 3,
    "warmup_epochs": 1,
    "steps": 1,
    "agreement_steps": 1,
}


@pytest.fixture
def teacher() -> nar.Teacher:
    torch.manual_seed(0)
    return nar.Teacher.of(toy_teacher(), IMAGE, mean=MEAN, std=STD)


def gap(teacher: nar.Teacher, images: torch.Tensor) -> float:
    with torch.no_grad(), record_bn_statistics(teacher.observed) as statistics:
        teacher.observed(images)
    return float(bn_statistics_loss(statistics, form="kl"))


def test_statistics_come_nearer_within_the_range_of_pixels(teacher: nar.Teacher) -> None:
    images, calls = torch.randn(40, *IMAGE), []
    weights = snapshot(teacher.network)
    made = refined(teacher, images, steps=20, on_step=lambda: calls.append(1))
    assert len(calls) == 40  # two batches
    assert gap(teacher, made) < 0.6 * gap(teacher, images)
    low, high = (torch.tensor(ends).view(-1, 1, 1) for ends in teacher.pixel_range)
    assert ((made >= low - 1e-5) & (made <= high + 1e-5)).all()
    assert all(torch.equal(value, weights[name]) for name, value in teacher.network.state_dict().items())


def test_images_are_pixels_and_come_back_bit_for_bit(teacher: nar.Teacher) -> None:
    made = refined(teacher, torch.randn(5, *IMAGE), steps=0)
    pixels = to_pixels(teacher, made)
    assert pixels.dtype == torch.uint8
    assert torch.equal(from_pixels(teacher, pixels), made)


def test_a_network_without_batchnorms_keeps_the_generators_images() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    network(torch.zeros(1, *IMAGE))
    teacher = nar.Teacher.of(network, IMAGE, mean=MEAN, std=STD, need_batchnorm=False)
    result = nar.compress(
        teacher,
        **QUICK,
        block_images=4,
        bns_weight=0.0,
        progress=False,
    )
    assert 0 <= result.agreement <= 1


def test_a_block_may_only_be_rounded() -> None:
    torch.manual_seed(0)
    teacher = nar.Teacher.of(toy_teacher(), IMAGE, mean=MEAN, std=STD)
    config = CompressConfig(
        **QUICK,
        block_images=16,
        block_steps=0,
        bits="w3a8",
    ).as_shared()
    compression = Compression.start(config, teacher)
    rows = [compression.run_epoch(epoch) for epoch in range(len(compression.phases))]
    errors = [(row["error_before"], row["block_error"]) for row in rows if row["phase"] == "block"]
    assert any(after < before for before, after in errors)
    assert all(after <= before for before, after in errors)


def test_refined_images_are_kept_in_a_snapshot() -> None:
    torch.manual_seed(0)
    teacher = nar.Teacher.of(toy_teacher(), IMAGE, mean=MEAN, std=STD)
    config = CompressConfig(
        **QUICK,
        block_images=10,
        refine_steps=2,
    ).as_shared()
    compression = Compression.start(config, teacher)
    for epoch in range(2):
        compression.metrics = compression.run_epoch(epoch)
    again = Compression.start(config, teacher, state=copy.deepcopy(compression.state()))
    assert again.blockwise is not None
    assert compression.blockwise is not None
    assert torch.equal(again.blockwise.fitted, compression.blockwise.fitted)


def large_teacher() -> nar.Teacher:
    """At this size GDFQ's generator would cost more than the network."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=4),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    return nar.Teacher.of(network, (2, 64, 64), mean=MEAN, std=STD)


SHORT = {
    "batch_size": 4,
    "epochs": 3,
    "warmup_epochs": 1,
    "steps": 1,
    "agreement_steps": 1,
    "block_images": 8,
    "refine_steps": 1,
    "block_steps": 1,
}


def test_where_nothing_is_said_images_are_refined_noise(teacher: nar.Teacher, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    compression = Compression.start(CompressConfig(), teacher)
    assert str(compression.config.generator_spec) == "noise"
    assert compression.lengths.refine_steps == 30
    assert "no generator is named: the images are smooth noise, which is refined" in caplog.text


@pytest.mark.parametrize("generator", ["noise", "gdfq"])
def test_losses_that_are_no_curves_are_not_drawn(
    generator: str, teacher: nar.Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, ...]] = []
    plot = compression_run.plot_loss_curves
    monkeypatch.setattr(
        compression_run,
        "plot_loss_curves",
        lambda *rows, series, **how: drawn.append(tuple(series)) or plot(*rows, series=series, **how),
    )
    settings = {**SHORT, "epochs": 14, "warmup_epochs": 4} if generator == "noise" else SHORT
    config = CompressConfig(**settings, generator=generator).as_shared()
    nar.compress(teacher, config=config, folder=tmp_path / "run", progress=False)
    images = () if generator == "noise" else ("loss", "class_loss", "bns_loss")
    assert drawn[0] == (*images, "block_error")


def test_a_large_network_is_shown_dead_leaves_that_are_not_refined(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    config = CompressConfig(**{**SHORT, "epochs": 14, "warmup_epochs": 4, "refine_steps": None}).as_shared()
    compression = Compression.start(config, large_teacher())
    assert str(compression.config.generator_spec) == "dead-leaves"
    assert compression.lengths.refine_steps == 0
    assert "the images are dead leaves" in caplog.text


def test_dead_leaves_are_refined_if_asked_for() -> None:
    config = CompressConfig(generator="dead-leaves", **{**SHORT, "epochs": 14, "warmup_epochs": 4}).as_shared()
    assert Compression.start(config, large_teacher()).lengths.refine_steps == 1


@pytest.mark.parametrize("settings", [{"generator": "gdfq"}, {"width": 2}, {"weight_lr": 0.01}])
def test_a_generator_that_a_person_says_something_of_is_taken(settings: dict[str, object]) -> None:
    result = nar.compress(large_teacher(), **settings, **{**SHORT, "epochs": 14, "warmup_epochs": 4}, progress=False)
    assert result.generator == "gdfq"


@pytest.mark.parametrize("drawn", DRAWN)
def test_drawn_images_go_with_blocks_alone_and_train_nothing(drawn: str) -> None:
    with pytest.raises(InputError, match="is for method blockwise alone"):
        CompressConfig(generator=drawn, method="gdfq").require_consistent()
    with pytest.raises(InputError, match=f"generator is {drawn}, so that weight_lr would do nothing"):
        CompressConfig(generator=drawn, weight_lr=0.1).require_consistent()
    with pytest.raises(InputError, match="so that mixed_share would do nothing; leave out losses qimera"):
        CompressConfig(generator=drawn, losses="qimera").require_consistent()
    with pytest.raises(InputError, match="is for method blockwise alone"):
        DistillConfig(generator=drawn).require_consistent()


@pytest.mark.parametrize("drawn", DRAWN)
def test_drawn_images_are_taken_up_in_any_epoch(drawn: str) -> None:
    config = CompressConfig(generator=drawn, **{**SHORT, "warmup_epochs": 4, "epochs": 14}).as_shared()
    whole = Compression.start(config, large_teacher())
    rows = [whole.run_epoch(epoch) for epoch in range(len(whole.phases))]
    for done in (3, 5, 6):
        part = Compression.start(config, large_teacher())
        for epoch in range(done):
            part.metrics = part.run_epoch(epoch)
        again = Compression.start(config, large_teacher(), state=copy.deepcopy(part.state()))
        assert [again.run_epoch(epoch) for epoch in range(done, len(rows))] == rows[done:]
