"""Ctrl-C and SIGTERM at awkward moments: one line, a code that is not 0, within seconds, and only whole files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nni_autorecon import files
from nni_autorecon.cache import CACHE_VARIABLE
from nni_autorecon.cli import main as cli
from nni_autorecon.figures import curves as plots
from nni_autorecon.runs.records import SNAPSHOT
from nni_autorecon.teacher import digits
from nni_autorecon.teacher.loading import Teacher
from tests.helpers.command_line import heed_ctrl_c
from tests.helpers.interrupted_runs import STAGES, assert_whole, results_of

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}

INTERRUPTED_IMPORT = """
import os, sys
from nni_autorecon.cli import exits, main as cli


class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            print(name, flush=True)
            os.kill(os.getpid(), int(sys.argv[2]))


sys.meta_path.insert(0, Interrupt())
exits.leave(cli.main(sys.argv[3:]))
"""


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("stage", "module", "number"),
    [
        ("compress", "torch.fx", signal.SIGINT),
        ("compress", "torch.fx", signal.SIGTERM),
        pytest.param("search", "pandas", signal.SIGINT, marks=SLOW),
        pytest.param("search", "pytorch_lightning.trainer", signal.SIGTERM, marks=SLOW),
        pytest.param("distill", "matplotlib.figure", signal.SIGINT, marks=SLOW),
    ],
)
def test_a_signal_during_the_imports(stage: str, module: str, number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED_IMPORT, module, str(int(number)), *STAGES[stage], "-o", "run"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == f"{module}\n"  # it came as far as that
        _, error = process.communicate(timeout=4)
    assert (process.returncode, error.count("\n")) == (CODES[number], 1), error
    assert error.startswith("nni-autorecon: ")
    assert not list(tmp_path.iterdir())


def _signalling(number: int, before: Callable[..., Any], when: Callable[..., bool] = lambda *arguments: True) -> Any:
    """``before``, and a signal to this process as soon as it returns."""

    def call(*arguments: Any, **named: Any) -> Any:
        result = before(*arguments, **named)
        if when(*arguments):
            os.kill(os.getpid(), number)
        return result

    return call


def _stopped(argv: list[str], number: int, code: int, capsys: Any) -> None:
    capsys.readouterr()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert cli.main(argv) == code
    finally:
        signal.signal(signal.SIGINT, before)
    printed = capsys.readouterr()
    (error,) = (line for line in printed.err.splitlines() if not line.startswith("training the digits teacher, once"))
    assert error.startswith("nni-autorecon: ")
    assert printed.out == ""
    assert signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, None)


@pytest.mark.parametrize(
    ("moment", "stage", "number"),
    [
        ("snapshot", "search", signal.SIGINT),
        ("snapshot", "compress", signal.SIGTERM),
        ("figures", "distill", signal.SIGINT),
        ("figures", "search", signal.SIGTERM),
        ("results", "compress", signal.SIGINT),
        ("results", "distill", signal.SIGTERM),
    ],
)
def test_a_signal_while_something_is_written(
    moment: str,
    stage: str,
    number: int,
    digits_teacher: Teacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    """What is written is whole or absent, and the run goes on from its snapshot."""
    folder, argv = tmp_path / "run", [*STAGES[stage], "-o", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        if moment == "figures":
            patch.setattr(plots.Figure, "savefig", _signalling(number, plots.Figure.savefig))
        else:
            names = (SNAPSHOT,) if moment == "snapshot" else ("genotype.json", "result.json")
            when = lambda source, target: Path(target).name in names and len(rows(folder)) > 1  # noqa: E731
            patch.setattr(files.os, "replace", _signalling(number, os.replace, when))
        _stopped(argv, number, CODES[number], capsys)
    assert_whole(folder)
    assert (folder / SNAPSHOT).exists()
    monkeypatch.setattr(sys.modules[f"nni_autorecon.{MODULES[stage]}"], "_draw", lambda *arguments: None)
    assert cli.main([*argv, "--resume"]) == 0
    assert cli.main([*argv[:-1], str(tmp_path / "whole")]) == 0
    expected = results_of(tmp_path / "whole")
    assert {name: content for name, content in results_of(folder).items() if name in expected} == expected


MODULES = {"search": "nas.search", "compress": "student.compression_run", "distill": "student.distillation_run"}


def rows(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().splitlines()[1:]


@pytest.mark.parametrize(("number", "code"), CODES.items())
def test_a_signal_while_the_cache_is_read_or_made(
    number: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """It is not taken for a damaged file."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    argv = [*STAGES["search"], "-o", str(tmp_path / "run")]
    make = digits.digits_resnet
    with monkeypatch.context() as patch:
        patch.setattr(digits, "train_digits_teacher", _signalling(number, make))
        _stopped(argv, number, code, capsys)
        patch.setattr(digits, "train_digits_teacher", make)
        digits.load_digits_teacher()
        patch.setattr(digits, "train_digits_teacher", lambda: pytest.fail("it was taken for damaged"))
        patch.setattr(digits, "_checksum", _signalling(number, digits._checksum))
        _stopped(argv, number, code, capsys)
    assert not (tmp_path / "run").exists()
