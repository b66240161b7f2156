"""Steps on a GPU: recorded ones do what those that are called do, and none of them makes the CPU wait."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from nni_autorecon.accel.convolution import summed
from nni_autorecon.accel.cuda_graphs import Recorded
from nni_autorecon.accel.optimizers import adam, learning_rate, set_learning_rate, sgd
from nni_autorecon.cli.main import main
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.config.distill import DistillConfig
from nni_autorecon.config.search import SearchConfig
from nni_autorecon.generator.genotype import random_choices
from nni_autorecon.generator.latent import LatentSource
from nni_autorecon.generator.operations import (
    EdgeShape,
    Features,
    make_candidates,
    mixture,
)
from nni_autorecon.generator.searched import derived_generator
from nni_autorecon.generator.topology import EDGES, NORMAL
from nni_autorecon.generator.training import generator_step
from nni_autorecon.losses.reconstruction import reconstruction_loss
from nni_autorecon.nas.autorecon import AutoReConStrategy
from nni_autorecon.nas.engine import run_strategy
from nni_autorecon.nas.opponent import Opponent
from nni_autorecon.networks import digits_resnet
from nni_autorecon.quantization.quantizers import observe_ranges
from nni_autorecon.runs.folder import RunFolder
from nni_autorecon.runs.snapshots import load_snapshot, save_snapshot
from nni_autorecon.shapes import ImageShape
from nni_autorecon.student.compression import Compression
from nni_autorecon.student.distillation import Distillation
from nni_autorecon.student.images import GeneratorImages
from nni_autorecon.teacher.loading import Teacher

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = torch.device("cuda")


@pytest.fixture
def no_waiting():
    """A function after whose call every wait for the GPU is an error."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch):
    """Convolutions in float32: with fewer bits the order of a sum says more."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def _teacher(device=DEVICE):
    torch.manual_seed(0)
    network = digits_resnet().eval().requires_grad_(False).to(device)
    return Teacher("digits", network, 10, ImageShape(1, 16, 16), (0.0,), (1.0,))


def _recorded(monkeypatch, recorded):
    """Say if steps are recorded from here on."""
    monkeypatch.setattr("nni_autorecon.accel.cuda_graphs.WARM_UP", 2 if recorded else 10**9)


def test_an_iteration_of_compression_makes_nobody_wait(no_waiting):
    compression = Compression.start(CompressConfig(generator="gdfq", batch_size=8), _teacher())
    assert isinstance(compression.images, GeneratorImages)
    batches = compression.images.batches(0, 8, learning_rate=1e-3)
    images, labels, loss = next(batches)
    with torch.no_grad(), observe_ranges(compression.student):
        compression.student(images)
    for _ in range(4):
        images, labels, loss = next(batches)
        compression._train_student(images, labels, loss.logits)
    assert compression._train_student._graph is not None
    no_waiting()
    for _ in range(2):
        images, labels, loss = next(batches)
        loss = compression._train_student(images, labels, loss.logits)
    torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


def test_a_mixture_and_a_generator_make_nobody_wait(no_waiting):
    edge = next(edge for edge in EDGES if edge.kind == NORMAL)
    operations = nn.ModuleDict(make_candidates(edge, EdgeShape(4, (8, 8), 10))).to(DEVICE)
    teacher = _teacher()
    generator = derived_generator(random_choices(0), image=teacher.image, num_classes=10, width=4, latent_dim=7).to(
        DEVICE
    )
    source = LatentSource(8, 7, 10, 0, DEVICE)
    objective = partial(reconstruction_loss, teacher.observed, bns_weight=0.1)
    optimizer = adam(generator.parameters(), 1e-3)
    weights = torch.rand(len(operations), device=DEVICE, requires_grad=True)
    x = torch.randn(8, 4, 8, 8, device=DEVICE)
    for step, (z, labels) in enumerate(source.batches("search", 0, 3)):
        if step == 1:  # the first step prepares the libraries
            no_waiting()
        mixed = mixture(dict(operations.items()), weights, Features(x), labels)
        summed([mixed]).square().mean().backward()
        generator_step(generator, objective, optimizer, z, labels)
    torch.cuda.set_sync_debug_mode("default")
    assert weights.grad.isfinite().all()


@pytest.mark.parametrize(
    "make", [lambda w: adam([w], 0.1, betas=(0.5, 0.9)), lambda w: sgd([w], 0.1, momentum=0.9, weight_decay=0.01)]
)
def test_a_recorded_step_sees_new_inputs_rates_and_weights(make):
    def trained(wrap):
        weight = nn.Parameter(torch.ones(4, device=DEVICE))
        optimizer = make(weight)

        def update(x):
            optimizer.zero_grad()
            loss = (weight * x).square().sum()
            loss.backward()
            optimizer.step()
            return loss.detach(), (weight.detach().clone(),)

        step, results = wrap(update), []
        for index in range(8):
            set_learning_rate(optimizer, 0.1 / (1 + index))
            results.append(step(torch.arange(4, device=DEVICE) + float(index)))
        return results, learning_rate(optimizer), step

    recorded, rate, step = trained(partial(Recorded, what="a step"))
    called, _, _ = trained(lambda update: update)
    assert step._graph is not None
    assert rate == pytest.approx(0.1 / 8)
    for (loss, (weight,)), (known_loss, (known_weight,)) in zip(recorded, called, strict=True):
        torch.testing.assert_close(loss, known_loss)
        torch.testing.assert_close(weight, known_weight)


@pytest.mark.parametrize(
    ("wait", "why"),
    [(lambda x: x.sum().item(), "the CPU waits"), (lambda x: torch.cuda.synchronize(), "captur")],
    ids=["item", "synchronize"],
)
def test_a_step_that_waits_is_called(wait, why, caplog):
    def step(x):
        wait(x)
        return 2 * x

    recorded = Recorded(step, "this step")
    for index in range(6):
        assert recorded(torch.full((2,), float(index), device=DEVICE)).tolist() == [2.0 * index] * 2
    assert recorded._graph is None
    assert torch.rand(3, device=DEVICE).isfinite().all()  # random numbers are as they were
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("this step is not recorded")
    assert why in caplog.messages[0]


def test_a_step_recorded_again_sees_what_is_no_tensor():
    factor = 1
    step = Recorded(lambda x: factor * x, "a step", depends_on=lambda: factor > 2)
    x = torch.ones(1, device=DEVICE)
    assert [step(x).item() for _ in range(4)] == [1.0] * 4
    factor = 2
    assert step(x).item() == 1.0
    factor = 3
    assert [step(x).item() for _ in range(4)] == [3.0] * 4
    assert step._graph is not None
    assert [step(torch.ones(2, device=DEVICE)).tolist() for _ in range(4)] == [[3.0] * 2] * 4
    step.forget()
    assert step(torch.ones(2, device=DEVICE)).tolist() == [3.0] * 2


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"range_lr": 0.01, "activation_ranges": "percentile"},
        {"losses": "hast"},
        {"losses": "adadfq"},
        {"losses": "ait"},
        {"losses": "qimera"},
        {"losses": "synq", "student_clip": 1.0},
        {"weight_ranges": "mse"},
        {"generator_updates": "warmup"},
        {"generator": "random:0", "width": 4},
        {"method": "zeroq-kd", "generator": None, "width": None, "image_count": 8, "image_steps": 3},
    ],
    ids=str,
)
def test_compression_recorded_and_called(monkeypatch, settings):
    values = {
        "method": "gdfq",
        "generator": "gdfq",
        "width": 8,
        "batch_size": 8,
        "epochs": 4,
        "warmup_epochs": 1,
        "steps": 6,
        "agreement_steps": 1,
        "student_lr": 1e-3,
        **settings,
    }
    config, rows = CompressConfig().override(values), []
    for recorded in (True, False):
        _recorded(monkeypatch, recorded)
        compression = Compression.start(config, _teacher())
        rows.append([compression.run_epoch(epoch) for epoch in range(len(compression.phases))])
        assert (compression._train_student._graph is not None) == (recorded and settings != {"weight_ranges": "mse"})
    for row, known in zip(*rows, strict=True):
        for name in ("loss", "student_loss"):
            if name in known:
                assert row[name] == pytest.approx(known[name], rel=0.05, abs=1e-4)


@pytest.mark.parametrize("steps", [2, 5])
def test_compression_goes_on_where_it_stood(steps, tmp_path):
    config = CompressConfig(
        method="gdfq",
        generator="gdfq",
        width=8,
        batch_size=8,
        epochs=6,
        warmup_epochs=1,
        steps=steps,
        agreement_steps=1,
        student_schedule="cosine",
    )
    compression = Compression.start(config, _teacher())
    for epoch in range(4):
        compression.run_epoch(epoch)
    save_snapshot(tmp_path / "snapshot", compression.state())
    resumed = Compression.start(config, _teacher(), state=load_snapshot(tmp_path / "snapshot"))
    for epoch in (4, 5):
        row, known = resumed.run_epoch(epoch), compression.run_epoch(epoch)
        assert row["student_loss"] == pytest.approx(known["student_loss"], rel=0.02)
        assert row["loss"] == pytest.approx(known["loss"], rel=0.02)


@pytest.mark.parametrize("devices", [(DEVICE, torch.device("cpu")), (torch.device("cpu"), DEVICE)], ids=str)
def test_compression_goes_on_elsewhere(devices, tmp_path):
    config = CompressConfig(
        method="gdfq",
        generator="gdfq",
        width=8,
        batch_size=8,
        epochs=6,
        warmup_epochs=1,
        steps=5,
        agreement_steps=1,
        range_lr=0.01,
    )
    here, there = devices
    compression = Compression.start(config, _teacher(here))
    for epoch in range(4):
        compression.run_epoch(epoch)
    save_snapshot(tmp_path / "snapshot", compression.state())
    resumed = Compression.start(config, _teacher(there), state=load_snapshot(tmp_path / "snapshot"))
    for epoch in (4, 5):
        assert math.isfinite(resumed.run_epoch(epoch)["student_loss"])
    assert (resumed._train_student._graph is not None) == (there.type == "cuda")


def test_distillation_recorded_and_called(monkeypatch):
    config, rows = DistillConfig(generator="gdfq", width=8, batch_size=8, epochs=2, steps=4), []
    for recorded in (True, False):
        _recorded(monkeypatch, recorded)
        distillation = Distillation.start(config, _teacher())
        rows.append([distillation.run_epoch(epoch) for epoch in range(2)])
        assert (distillation._update_student._graph is not None) == recorded
    for row, known in zip(*rows, strict=True):
        for name in ("loss", "student_loss", "adversarial_loss"):
            assert row[name] == pytest.approx(known[name], rel=0.1)


@pytest.mark.parametrize("settings", [{}, {"sampling": "hard"}, {"adaptability_weight": 1.0}, {"mac_penalty": 0.1}])
def test_search_recorded_and_called(monkeypatch, tmp_path, settings):
    config = SearchConfig(
        width=4,
        latent_dim=7,
        batch_size=8,
        epochs=3,
        weight_steps=5,
        architecture_steps=5,
        validation_steps=1,
        **settings,
    )
    teacher, found, recordings, record = _teacher(), [], [], Recorded._record
    monkeypatch.setattr(Recorded, "_record", lambda step, *x: recordings.append(step.what) or record(step, *x))
    for recorded in (True, False):
        _recorded(monkeypatch, recorded)
        run = RunFolder(tmp_path / str(recorded))
        objective = partial(reconstruction_loss, teacher.observed, bns_weight=1.0)
        source = LatentSource(8, 7, 10, 0, DEVICE)
        opponent = Opponent(config, teacher) if config.adaptability_weight else None
        rows = []
        strategy = AutoReConStrategy(config, opponent=opponent, on_epoch=rows.append)
        torch.manual_seed(0)
        run_strategy(strategy, config, teacher, objective, source, run)
        alpha = torch.cat([edge.alpha.detach() for edge in strategy.oneshot_module.mixed_edges()])
        found.append((rows, alpha.cpu()))
        if recorded:  # a hard sample waits for the index of its operation
            assert all(step._recordable == (config.sampling == "soft") for step in strategy.oneshot_module._steps)
    if config.sampling == "soft":  # with the game twice, before the opponent plays and when it does
        assert sorted(recordings) == sorted(["the update of W", "the update of α"] * (2 if opponent else 1))
    (rows, alpha), (known_rows, known_alpha) = found
    for row, known in zip(rows, known_rows, strict=True):
        assert row["train_loss"] == pytest.approx(known["train_loss"], rel=0.05)
        assert row["temperature"] == known["temperature"]
    assert torch.nn.functional.cosine_similarity(alpha, known_alpha, dim=0) > 0.9


def _cli(*arguments):
    assert not main([*map(str, arguments), "--device", "cuda"])


def test_the_command_line(tmp_path, capsys):
    """A search, students of its generator, and one of another architecture."""
    tiny = ["--batch-size", 8, "--width", 4]
    steps = ["--epochs", 3, "--weight-steps", 4, "--architecture-steps", 4, "--final-steps", 6]
    _cli("search", *tiny, *steps, "--output", tmp_path / "search")
    genotype = tmp_path / "search" / "genotype.json"
    _cli(
        "compress",
        *tiny,
        "--method",
        "gdfq",
        "--genotype",
        genotype,
        "--epochs",
        6,
        "--steps",
        5,
        "--output",
        tmp_path / "student",
    )
    _cli("distill", *tiny, "--genotype", genotype, "--epochs", 2, "--steps", 4, "--output", tmp_path / "distilled")
    for method in ("dfq", "zeroq", "dfc"):
        settings = ["--method", method, "--image-steps", 4, "--epochs", 6, "--steps", 4]
        settings += [] if method == "dfq" else ["--image-count", 8]
        _cli("compress", "--batch-size", 8, *settings, "--output", tmp_path / method)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("student", "distilled", "dfq")]
    assert all(0 <= result["accuracy"] <= 1 for result in results)
    assert "cuda:0" in capsys.readouterr().out


def test_latent_vectors_are_those_of_the_device():
    source = LatentSource(8, 7, 10, 0, DEVICE)
    for (z, labels), (again, labels_again) in zip(
        source.batches("search", 1, 2), replace(source).batches("search", 1, 2), strict=True
    ):
        torch.testing.assert_close(z, again)
        torch.testing.assert_close(labels, labels_again)
