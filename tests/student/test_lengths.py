"""The parts of method blockwise have lengths, and a machine has a pace with them."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import nni_autorecon as nar
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.errors import InputError
from nni_autorecon.quantization.quantizers import WeightQuantizer
from nni_autorecon.student.compression import Compression
from nni_autorecon.student.drawn_images import DrawnImages
from nni_autorecon.student.images import GeneratorImages
from nni_autorecon.student.lengths import Lengths
from nni_autorecon.student.making import make_student
from nni_autorecon.student.pace import Pace
from tests.helpers.toys import IMAGE, snapshot, toy_teacher

CONFIG = CompressConfig(generator="gdfq", width=4)


def test_lengths_are_those_that_suit_small_networks() -> None:
    assert Lengths.of(CONFIG, macs=40_000_000, generator_macs=100_000_000) == Lengths(50, 1024, 30, 450)


def test_lengths_of_a_costly_network_keep_to_budgets() -> None:
    macs = 2_000_000_000
    found = Lengths.of(CONFIG, macs=macs, generator_macs=macs)
    assert 3 * CONFIG.warmup_epochs * CONFIG.batch_size * found.steps * 2 * macs <= 6e12
    assert 3 * CONFIG.block_batch_size * found.block_steps * macs <= 1e13
    assert found.block_images == 96


def test_lengths_that_are_asked_for_stand() -> None:
    asked = CONFIG.override({"steps": 30, "block_images": 500, "block_steps": 0})
    assert Lengths.of(asked, macs=10**11, generator_macs=10**11) == Lengths(30, 500, 30, 0)


@pytest.mark.parametrize(("macs", "updates"), [(10**7, 450), (10**9, 30), (10**11, 1)])
def test_few_images_teach_blocks_little(macs: int, updates: int) -> None:
    found = Lengths.of(CONFIG, macs=macs, generator_macs=0)
    assert found.block_steps == updates
    assert (found.block_images < 1024) == (macs >= 10**9)
    asked = CONFIG.override({"block_steps": 7})
    assert Lengths.of(asked, macs=macs, generator_macs=0).block_steps == 7


def test_many_images_that_are_asked_for_teach_more() -> None:
    asked = CONFIG.override({"bits": "w4a8", "block_images": 1024})
    assert Lengths.of(asked, macs=10**9, generator_macs=0).block_steps == 104


def test_a_run_that_is_to_be_short_is_short() -> None:
    asked = CONFIG.override({"steps": 3, "epochs": 7})  # two epochs are left for the blocks
    assert Lengths.of(asked, macs=10**7, generator_macs=10**7) == Lengths(3, 192, 3, 6)


def test_a_method_that_trains_the_whole_student_is_not_shortened() -> None:
    assert Lengths.of(CONFIG.override({"method": "gdfq"}), macs=10**11, generator_macs=0).steps == 50


PACE = Pace(warm_up=0.001, refining=0.0002, learning=0.002)


def needed(config: CompressConfig, lengths: Lengths) -> float:
    return PACE.whole(config, lengths, held_out=100)


@pytest.mark.parametrize("minutes", [0.1, 0.5, 1, 30])
def test_lengths_fill_the_time_there_is(minutes: float, caplog: pytest.LogCaptureFixture) -> None:
    config = CONFIG.override({"minutes": minutes})
    with caplog.at_level(logging.INFO):
        found = Lengths(50, 1024, 30, 450).within(config, 60 * minutes, lambda lengths: needed(config, lengths))
    assert 0.9 * minutes < needed(config, found) / 60 <= minutes
    assert 96 <= found.block_images <= 1024
    assert found.refine_steps == 30
    assert caplog.messages == [
        f"{minutes:g} minutes allow epochs of {found.steps} batches, and blocks of {found.block_images} images and "
        f"{found.block_steps} updates"
    ]


@pytest.mark.parametrize("minutes", [30, 600])
def test_time_is_for_more_images_where_they_are_few(minutes: int) -> None:
    config = CONFIG.override({"minutes": minutes})
    found = Lengths(50, 288, 0, 30).within(config, 60 * minutes, lambda lengths: needed(config, lengths))
    assert found == Lengths(178, 1024, 0, 30)


def test_what_would_suit_the_network_is_not_said_where_time_decides(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Lengths.of(CONFIG.override({"minutes": 1}), macs=10**9, generator_macs=0)
        assert not caplog.messages
        Lengths.of(CONFIG, macs=10**9, generator_macs=0)
    assert caplog.messages[0].startswith("an image costs 1000 million multiply-accumulates")


def test_lengths_that_are_asked_for_stand_whatever_the_time() -> None:
    config = CONFIG.override({"minutes": 1, "block_images": 500, "block_steps": 7})
    found = Lengths(50, 500, 30, 7).within(config, 60, lambda lengths: needed(config, lengths))
    assert found == Lengths(found.steps, 500, 30, 7)
    config = CONFIG.override({"minutes": 1, "steps": 3})  # of which the updates of a block follow
    found = Lengths(3, 1024, 30, 27).within(config, 60, lambda lengths: needed(config, lengths))
    assert found == Lengths(3, found.block_images, 30, 27)


def test_too_little_time_is_said(caplog: pytest.LogCaptureFixture) -> None:
    config = CONFIG.override({"minutes": 0.01})
    found = Lengths(50, 1024, 30, 450).within(config, 0.6, lambda lengths: needed(config, lengths))
    assert found == Lengths(1, 96, 30, 1)
    assert (
        caplog.messages[-1] == f"they need about {needed(config, found) / 60:.3g} minutes, for nothing can be shorter"
    )


def test_minutes_are_for_blockwise_alone() -> None:
    with pytest.raises(InputError, match="leave out minutes"):
        CONFIG.override({"method": "gdfq", "minutes": 1}).require_consistent()


def drawn_images(teacher: nar.Teacher) -> DrawnImages:
    return DrawnImages.start(CompressConfig(generator="dead-leaves", bns_weight=0.0), teacher)


@pytest.mark.parametrize("norms", [True, False])
def test_a_pace_is_measured_and_leaves_no_trace(norms: bool) -> None:
    network = toy_teacher()
    if not norms:
        network = nn.Sequential(*(layer for layer in network if not isinstance(layer, nn.BatchNorm2d)))
    teacher = nar.Teacher.of(network, IMAGE, need_batchnorm=norms)
    student, _ = make_student(CONFIG, teacher, CONFIG.quantization)
    source = GeneratorImages.start(CONFIG.override({"bns_weight": float(norms), "batch_size": 4}), teacher)
    before, random = (snapshot(student), snapshot(source.generator)), torch.get_rng_state()
    pace = Pace.measure(teacher, student, source)
    assert min(pace.warm_up, pace.refining, pace.learning) > 0
    for module, state in zip((student, source.generator), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert source.state()["optimizer"]["state"] == {}
    assert torch.equal(torch.get_rng_state(), random)
    drawn = Pace.measure(teacher, student, drawn_images(teacher))
    assert drawn.warm_up == 0
    assert drawn.drawing > 0
    lengths = Lengths(50, 100, 0, 30)
    assert drawn.making(lengths, images=200) == pytest.approx(200 * (drawn.drawing + drawn.refining / 3))


def never(values: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    raise AssertionError("nothing needs this range")


def test_a_pace_estimates_no_ranges_of_weights() -> None:
    teacher = nar.Teacher.of(toy_teacher(), IMAGE)
    student, _ = make_student(CONFIG, teacher, CONFIG.quantization)
    quantizers = [module for module in student.modules() if isinstance(module, WeightQuantizer)]
    for quantizer in quantizers:
        quantizer.estimate = never
    Pace.measure(teacher, student, drawn_images(teacher))
    assert quantizers
    assert all(quantizer.estimate is never for quantizer in quantizers)


def test_a_run_goes_on_with_the_lengths_that_it_began_with() -> None:
    teacher = nar.Teacher.of(toy_teacher(), IMAGE)
    config = CONFIG.override({"batch_size": 4, "agreement_steps": 1, "minutes": 0.001})
    begun = Compression.start(config, teacher)
    resumed = Compression.start(config.override({"minutes": 10}), teacher, state=begun.state())
    assert resumed.lengths == begun.lengths
    assert (
        begun.lengths.block_images < Compression.start(config.override({"minutes": 10}), teacher).lengths.block_images
    )


def test_a_block_has_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that takes two of five seconds for a few images is foreseen to have two fifths of all blocks' time."""
    compression = Compression.start(CONFIG, nar.Teacher.of(toy_teacher(), IMAGE))
    blockwise, pace = compression.blockwise, Pace(warm_up=0.0, refining=0.0, learning=1.0)
    assert blockwise is not None
    seconds = [2.0, *[3.0 / (blockwise.count - 1)] * (blockwise.count - 1)]
    monkeypatch.setattr(blockwise.reconstruction, "block_seconds", lambda images: seconds)
    _, blocks = blockwise.seconds(pace)
    assert blocks[0] == pytest.approx(0.4 * sum(blocks))
    assert sum(blocks) == pytest.approx(pace.blocks(CONFIG, compression.lengths))
