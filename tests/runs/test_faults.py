"""Full and read-only disks, clocks that jump, losses that are no numbers, memory that is not there."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, cycle
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from nni_autorecon import files
from nni_autorecon.cache import CACHE_VARIABLE
from nni_autorecon.cli import exits as endings
from nni_autorecon.cli import main as cli
from nni_autorecon.generator import training as reconstruction
from nni_autorecon.nas import search
from nni_autorecon.networks import digits_resnet
from nni_autorecon.runs import folder as runs
from nni_autorecon.runs.records import SNAPSHOT
from nni_autorecon.runs.snapshots import load_snapshot
from nni_autorecon.student import compression_run, distillation, distillation_run
from nni_autorecon.student import training as student_training
from nni_autorecon.teacher.digits import load_digits_teacher
from nni_autorecon.teacher.loading import Teacher
from tests.helpers.interrupted_runs import STAGES, assert_whole, results_of


def refused(argv: list[str], capsys: Any, *parts: str, code: int = 2) -> None:
    """The command fails with one line on stderr that has the parts, after those that tell what it does."""
    assert cli.main([str(each) for each in argv]) == code
    *told, error = capsys.readouterr().err.splitlines()
    assert error.startswith("nni-autorecon: error: ")
    assert not any("error" in line or "Traceback" in line for line in told)
    assert all(part in error for part in parts), error


@contextmanager
def limited(what: int, most: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system of its own on ``folder``; skips the test where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# Full disks


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        ("search", ["config.json", "snapshot.bin", "genotype.json"]),
        ("compress", ["metrics.csv", "student.safetensors", "images.png"]),
        ("distill", ["result.json", "student.pt"]),
    ],
)
def test_a_run_that_fills_the_disk_keeps_what_it_has(
    stage: str, names: list[str], digits_teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Whichever file is the first without space. With space again, the run ends as if there had always been."""
    argv = [*STAGES[stage], "--epochs", "4"]
    assert cli.main([*argv, "-o", str(tmp_path / "whole")]) == 0
    create = files.create_beside
    for name in names:
        folder = tmp_path / name
        capsys.readouterr()

        def on_a_full_disk(path: Path, name: str = name) -> tuple[int, Path]:
            full = 20_000 if name == "student.pt" else 20  # where PyTorch's own writer loses the reason
            resource.setrlimit(resource.RLIMIT_FSIZE, (full if path.name == name else 2**30, resource.RLIM_INFINITY))
            return create(path)

        with monkeypatch.context() as patch, limited(resource.RLIMIT_FSIZE, 2**30):
            patch.setattr(files, "create_beside", on_a_full_disk)
            refused(
                [*argv, "-o", folder], capsys, f"cannot write {folder / name}: File too large; free some space", code=3
            )
        assert not (folder / name).exists()
        assert_whole(folder)
        if (folder / SNAPSHOT).exists():
            assert cli.main([*argv, "-o", str(folder), "--resume"]) == 0
            assert results_of(folder) == results_of(tmp_path / "whole")


@pytest.mark.parametrize("kilobytes", [4, 40, 120, 200])
def test_a_file_system_without_space(kilobytes: int, digits_teacher: Teacher, tmp_path: Path, capsys: Any) -> None:
    with mounted(tmp_path, f"size={kilobytes}k"):
        parts = ("cannot write", "No space left on device; free some space or choose another place")
        refused([*STAGES["compress"], "-o", tmp_path / "run"], capsys, *parts, code=3)
        assert_whole(tmp_path / "run")


def test_what_stood_there_stays_when_the_disk_is_full(digits_teacher: Teacher, tmp_path: Path, capsys: Any) -> None:
    run, student = tmp_path / "run", tmp_path / "run" / "student.safetensors"
    assert cli.main([*STAGES["compress"], "-o", str(run)]) == 0
    for argv, earlier in (
        (["show", "published:cifar10-resnet20", "-o", tmp_path / "g.png"], tmp_path / "g.png"),
        (["report", run, "-o", tmp_path / "t"], tmp_path / "t.md"),
        (["to-onnx", student], student.with_suffix(".onnx")),
    ):
        earlier.write_text("mine")
        capsys.readouterr()
        with limited(resource.RLIMIT_FSIZE, 100):
            refused([*argv, "--force"], capsys, f"cannot write {earlier}", "free some space", code=3)
        assert earlier.read_text() == "mine"
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".lock"]


def test_a_full_disk_below_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr("nni_autorecon.teacher.digits.train_digits_teacher", digits_resnet)
    with limited(resource.RLIMIT_FSIZE, 1000):
        refused([*STAGES["search"], "-o", tmp_path / "run"], capsys, "free some space", CACHE_VARIABLE, code=3)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} <= {".lock"}
    assert not (tmp_path / "run").exists()


# Read-only places


def test_a_read_only_disk(
    digits_teacher: Teacher, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, disk = tmp_path / "run", tmp_path / "disk"
    disk.mkdir()
    assert cli.main([*STAGES["compress"], "-o", str(run)]) == 0
    capsys.readouterr()
    with mounted(disk, "ro"):
        for argv in (
            *([*arguments, "-o", disk / "run"] for arguments in STAGES.values()),
            [*STAGES["search"], "-o", disk],
            ["show", "published:cifar10-resnet20", "-o", disk / "g.png"],
            ["report", run, "-o", disk / "t"],
            ["to-onnx", run / "student.safetensors", "-o", disk / "s.onnx"],
        ):
            refused(argv, capsys, f"cannot write {disk}", "Read-only file system; choose a writable place")
        monkeypatch.setenv(CACHE_VARIABLE, str(disk / "cache"))
        refused([*STAGES["search"], "-o", tmp_path / "other"], capsys, f"set {CACHE_VARIABLE} to a writable folder")
    assert not (tmp_path / "other").exists()


# Clocks


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_that_jumps_changes_nothing(
    hours: int, digits_teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody asks for the time of the day but TensorBoard's events."""
    pytest.importorskip("tensorboard")
    argv = [*STAGES["compress"], "--tensorboard"]
    assert cli.main([*argv, "-o", str(tmp_path / "whole")]) == 0
    jumps = count(1)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours * next(jumps))
    assert cli.main([*argv, "-o", str(tmp_path / "run")]) == 0
    assert next(jumps) > 1  # somebody asked
    assert results_of(tmp_path / "run") == results_of(tmp_path / "whole")
    assert 0 < json.loads((tmp_path / "run" / "result.json").read_text())["seconds"] < 600


def test_runs_of_one_second_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "20210819-143000")
    folders = []
    for _ in range(3):
        folders.append(runs.new_folder("search", tmp_path))
        folders[-1].mkdir(parents=True)
    assert len(set(folders)) == 3


# Losses that are no numbers


class Poison:
    """Stands in for the function that computes a loss, and spoils the result of one call."""

    def __init__(self, compute: Callable[..., Any], call: int) -> None:
        self.compute, self.left = compute, call

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        loss = self.compute(*arguments, **named)
        self.left -= 1
        if self.left:
            return loss
        return loss._replace(total=loss.total * math.nan) if isinstance(loss, tuple) else loss * math.nan


LOSSES = [
    ("search", reconstruction, "reconstruction_loss"),
    ("compress", reconstruction, "reconstruction_loss"),
    ("compress", student_training, "compression_loss"),
    ("distill", reconstruction, "reconstruction_loss"),
    ("distill", distillation, "l1_loss"),
]


@pytest.mark.parametrize(("stage", "module", "name"), LOSSES)
def test_a_loss_that_is_no_number_ends_the_run_and_is_not_kept(
    stage: str,
    module: Any,
    name: str,
    digits_teacher: Teacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    """Whichever call it is: what is kept is from before, and goes on from there to the end of an untroubled run."""
    argv = STAGES[stage]
    for draw in (search, compression_run, distillation_run):
        monkeypatch.setattr(draw, "_draw", lambda *arguments: None)
    assert cli.main([*argv, "-o", str(tmp_path / "whole")]) == 0
    original = getattr(module, name)
    for call in (1, 5, 18):  # the last is in the final training of a search
        folder = tmp_path / f"call-{call}"
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(module, name, poison := Poison(original, call))
            code = cli.main([*argv, "-o", str(folder)])
        if poison.left > 0 and call > 1:
            break  # there are fewer calls
        printed = capsys.readouterr()
        assert (code, printed.out, printed.err.count("\n")) == (1, "", 1)
        assert "; lower the learning rate" in printed.err
        assert not {"genotype.json", "result.json", "student.safetensors", "student.pt"} & {
            path.name for path in folder.iterdir()
        }
        if (folder / SNAPSHOT).exists():
            assert pd.read_csv(folder / "metrics.csv").filter(like="loss").iloc[:, :3].notna().all(axis=None)
            assert cli.main([*argv, "-o", str(folder), "--resume"]) == 0
            assert results_of(folder) == results_of(tmp_path / "whole")


@pytest.mark.parametrize("stage", ["compress", "distill"])
def test_weights_that_are_no_numbers_are_not_kept(
    stage: str, digits_teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The last update of an epoch has no loss after it that would tell."""
    argv, updates = [*STAGES[stage], "-o", tmp_path / "run"], count(1)
    step = torch.optim.Adam.step  # the generator's

    def spoil(optimizer: torch.optim.Adam, *arguments: Any) -> Any:
        done = step(optimizer, *arguments)
        if next(updates) == 4:  # the second of the second epoch
            optimizer.param_groups[0]["params"][0].data.fill_(math.nan)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", spoil)
        refused(argv, capsys, "the generator's weights became nan; lower the learning rate", code=1)
    rows = load_snapshot(tmp_path / "run" / SNAPSHOT)["rows"]  # type: ignore[index]
    assert len(rows) == 1
    assert cli.main([*map(str, argv), "--resume"]) == 0


def test_a_run_that_diverges_again_says_so_again(digits_teacher: Teacher, tmp_path: Path, capsys: Any) -> None:
    argv = [*STAGES["search"], "--weight-lr", "1e30", "-o", tmp_path / "run"]
    refused(argv, capsys, "lower the learning rate", code=1)
    refused([*argv, "--resume"], capsys, "lower the learning rate", code=1)


# Memory


def test_more_memory_than_there_is(digits_teacher: Teacher, tmp_path: Path, capsys: Any) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with limited(resource.RLIMIT_AS, used + 2**30):
        for stage, flag, number in (
            ("search", "--width", "40000"),
            ("compress", "--width", "40000"),
            ("compress", "--batch-size", "100000000"),
            ("distill", "--batch-size", "100000000"),
        ):
            argv = [*STAGES[stage], flag, number, "-o", tmp_path / f"{stage}{flag}"]
            refused(argv, capsys, "out of memory; lower --batch-size, --width", code=1)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    ],
)
@pytest.mark.parametrize("stage", STAGES)
def test_no_memory_left_within_a_run(
    stage: str, error: Exception, digits_teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(*arguments: Any, **named: Any) -> Any:
        raise error

    monkeypatch.setattr(reconstruction, "reconstruction_loss", fail)
    refused([*STAGES[stage], "-o", tmp_path / "run"], capsys, "out of memory; lower --batch-size, --width", code=1)


def test_another_error_is_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        endings.report_errors(fail)


# Caches


def test_flipped_bits_of_the_cache_are_noticed(
    digits_teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is trained again where bits matter, with a line in the log; it never has other weights."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr("nni_autorecon.teacher.digits.train_digits_teacher", lambda: digits_teacher.network)
    load_digits_teacher()
    (path,) = tmp_path.glob("*.pt")
    whole, expected = path.read_bytes(), digits_teacher.network.state_dict()
    noticed = 0
    for position, bit in zip(range(11, len(whole), len(whole) // 24), cycle(range(8)), strict=False):
        content = bytearray(whole)
        content[position] ^= 1 << bit
        path.write_bytes(content)
        caplog.clear()
        got = load_digits_teacher().state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in got.items())
        noticed += any("is damaged; training" in record.message for record in caplog.records)
    assert noticed > 12
