"""A person or a program sees one summary at the end, a next command that can be pasted, JSON, colours."""

from __future__ import annotations

import argparse
import json
import logging
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import nni_autorecon as nar
from nni_autorecon.cli import main as cli
from nni_autorecon.cli import next_steps, screen, stages
from nni_autorecon.config.flags import from_flags
from nni_autorecon.config.search import SearchConfig
from nni_autorecon.config.stages import STAGES
from nni_autorecon.errors import DivergenceError
from nni_autorecon.experiment import database
from nni_autorecon.files import SEAL
from nni_autorecon.generator.genotype import Genotype, random_choices
from nni_autorecon.nas import search
from nni_autorecon.runs.log_file import LogFile
from nni_autorecon.teacher.factories import network_of_factory
from nni_autorecon.version import __version__
from tests.helpers.command_line import SEARCH
from tests.helpers.interrupted_runs import STAGES as STAGE_RUNS

DFQ = ["compress", "--method", "dfq", "--bits", "w8a8"]
SMALL = "--width 2 --batch-size 4 --epochs 3 --steps 1 --warmup-epochs 1 --agreement-steps 1 --block-images 4".split()
DISTILL = "distill --width 2 --batch-size 4 --epochs 1 --steps 1 --student-steps 1 --agreement-steps 1".split()
MODELS = """
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)
    )
"""
OWN = shlex.split("--teacher 'my models.py:make' --checkpoint 'my weights.pt' --image-size 12 --mean -0.5,0 --std 1,1")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which every name has a space: of a person's network, of its weights, of the folder itself."""
    folder = tmp_path / "my work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "my models.py").write_text(MODELS)
    torch.save(network_of_factory("my models.py", "make", None, "make").state_dict(), "my weights.pt")
    return folder


def said(capsys: Any, *words: str) -> tuple[str, list[str], list[str]]:
    """Return what a command made, the lines that follow, and the words of the next command, without the program's."""
    assert cli.main([*words]) == 0, capsys.readouterr().err
    made, *lines = capsys.readouterr().out.splitlines()
    assert not any(line.startswith("next: ") for line in lines[:-1])
    last = lines[-1] if lines else ""
    return made, lines, words_of(last.removeprefix("next: ")) if last.startswith("next: ") else []


def words_of(line: str) -> list[str]:
    """The words of a pasted command, as the shell has them; ours can be parsed, and its settings go together."""
    command = line.partition(" && ")[2] or line
    program = screen.command_line()
    assert command.startswith(f"{program} ")
    words = shlex.split(command.removeprefix(program))
    arguments = cli.build_parser().parse_args(words)
    if words[0] in STAGES:
        from_flags(STAGES[words[0]].config, arguments).require_consistent()
    return words


@pytest.mark.usefixtures("digits_teacher", "place")
def test_each_command_names_the_next_until_there_is_a_report(capsys: Any) -> None:
    pytest.importorskip("onnxscript")
    made, _, then = said(capsys, "search", *SEARCH, "-o", "my search")
    assert made.startswith("my search/genotype.json: generator of ")
    assert then == ["compress", "--genotype", "my search/genotype.json"]
    made, lines, then = said(capsys, *then, *SMALL, "-o", "my student")
    assert made.startswith("my student/student.safetensors: w4a4 student, ")
    assert lines[0].startswith("test accuracy: teacher ")
    assert "result: my student/result.json" in lines
    assert then == ["to-onnx", "my student/student.safetensors"]
    made, lines, then = said(capsys, *then)
    assert made.startswith("my student/student.onnx: ")
    assert then == ["evaluate", "my student/student.onnx", "--latency"]
    made, lines, then = said(capsys, *then)
    assert made.startswith("my student/student.onnx: ")
    assert lines[0].startswith("test accuracy ")
    assert not then
    made, _, then = said(capsys, *DISTILL, "-o", "my copy")
    assert made.startswith("my copy/student.pt: student nni_autorecon.networks:digits_student, ")
    assert then == ["report", "my copy", "-o", "my copy-report"]
    assert said(capsys, *then)[0].startswith("my copy-report.md, ")


@pytest.mark.usefixtures("place")
def test_the_next_command_names_the_same_network(capsys: Any) -> None:
    pytest.importorskip("onnxscript")
    _, _, then = said(capsys, "search", *SEARCH, *OWN, "-o", "found")
    assert then == ["compress", *OWN, "--genotype", "found/genotype.json"]
    _, _, then = said(capsys, *DFQ, *OWN, "-o", "made")
    assert then == ["to-onnx", "made/student.safetensors", "--teacher", "my models.py:make"]
    _, _, then = said(capsys, *then)
    assert then == ["evaluate", "made/student.onnx", "--latency", "--teacher", "my models.py:make"]
    assert re.search("times as (fast|slow)$", said(capsys, *then)[1][0])


@pytest.mark.usefixtures("digits_teacher", "place")
@pytest.mark.parametrize("onnx", [True, False])
def test_a_student_that_is_onnx_already_or_cannot_be_is_reported(
    onnx: bool, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if onnx:
        pytest.importorskip("onnxscript")
    else:
        monkeypatch.setattr(next_steps, "find_spec", lambda name: None)
    _, _, then = said(capsys, *DFQ, *(["--onnx"] if onnx else []), "-o", "my student")
    assert then == ["report", "my student", "-o", "my student-report"]


@pytest.mark.usefixtures("digits_teacher", "place")
def test_a_new_folder_is_where_the_search_starts(capsys: Any) -> None:
    made, lines, then = said(capsys, "new", "my network")
    assert made.startswith("my network: experiment.yml, ")
    assert lines[-1].startswith("next: cd 'my network' && ")
    assert then == ["start", "experiment.yml"]


@pytest.mark.parametrize("there", [True, False])
def test_the_best_genotype_compresses_its_network_if_it_is_here(
    there: bool, place: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = "my models.py:make" if there else "elsewhere/models.py:make"
    config = SearchConfig(teacher=spec, checkpoint="my weights.pt", bns_weight=0.0, seed=2)
    genotype = Genotype(random_choices(1), details={"config": config.to_dict()})
    final = {"default": 0.25, "genotype": genotype.to_json(indent=None)}
    monkeypatch.setattr(database, "read_trials", lambda _: [database.TrialRecord("t", "SUCCEEDED", final, {}, None)])
    _, _, then = said(capsys, "best-genotype", "--experiment", "e")
    network = ["--teacher", spec, "--checkpoint", "my weights.pt", "--bns-weight", "0"]
    assert then == (["compress", *network, "--genotype", "best-genotype.json"] if there else [])


def test_the_program_is_this_python_where_the_shell_does_not_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen.shutil, "which", lambda name: f"/bin/{name}")
    assert screen.command_line("show", "a b") == "nni-autorecon show 'a b'"
    monkeypatch.setattr(screen.shutil, "which", lambda name: None)
    assert shlex.split(screen.command_line("show")) == [sys.executable, "-m", "nni_autorecon", "show"]


@pytest.mark.usefixtures("digits_teacher")
@pytest.mark.parametrize("stage", ["search", "compress"])
def test_a_trial_has_no_next_command(stage: str, tmp_path: Path, capsys: Any) -> None:
    class Trial:
        output, parameters, require_manager = tmp_path, {}, staticmethod(lambda: None)

        def report_intermediate(self, metrics: Any, sequence: int) -> None:
            pass

        def report_final(self, metrics: Any) -> None:
            self.final = metrics

    flags = {"search": ["search", *SEARCH], "compress": DFQ}[stage]
    stages.RUNS[stage](cli.build_parser().parse_args(flags), Trial())
    assert f"result: {tmp_path / 'result.json'}\n" in (printed := capsys.readouterr().out)
    assert "next: " not in printed


def in_json(capsys: Any, *words: str) -> dict[str, Any]:
    """The object that a command prints with --json, and nothing else on stdout; its next command can be parsed."""
    assert cli.main([*words, "--json"]) == 0, capsys.readouterr().err
    value = json.loads(capsys.readouterr().out)
    if value["next"]:
        words_of(value["next"])
    return value


@pytest.mark.usefixtures("digits_teacher")
def test_json_is_what_the_files_say(place: Path, capsys: Any) -> None:
    pytest.importorskip("onnxscript")

    def result(folder: str) -> dict[str, Any]:
        values = json.loads((place / folder / "result.json").read_text())
        return {name: value for name, value in values.items() if name != SEAL}

    for words, file in (
        (["search", *SEARCH], "genotype.json"),
        (DISTILL, "student.pt"),
        (DFQ, "student.safetensors"),
    ):
        found = in_json(capsys, *words, "-o", words[0])
        assert found == {"file": f"{words[0]}/{file}", **result(words[0]), "next": found["next"]}
        assert found["next"]
    small = in_json(capsys, "to-onnx", "compress/student.safetensors")
    measured = in_json(capsys, "evaluate", "compress/student.onnx", "--latency")
    assert small["file"] == measured["file"] == "compress/student.onnx"
    assert small["file_bytes"] == measured["file_bytes"] == (place / "compress" / "student.onnx").stat().st_size
    assert (small["latency"] > 0, small["agreement"]["decisions"] > 0.9) == (True, True)
    assert (measured["accuracy"] > 0.9, measured["images"], measured["float_latency"] > 0) == (True, 445, True)
    reported = in_json(capsys, "report", "compress", "-o", "table")
    assert {Path(file).exists() for file in reported["files"]} == {True}
    assert [run["accuracy"] for run in reported["runs"]] == [pytest.approx(result("compress")["accuracy"])]
    made = in_json(capsys, "new", "mine")
    assert {Path(file).exists() for file in made["files"]} == {True}


def test_json_alone_is_on_stdout_though_a_network_prints(place: Path, capsys: Any) -> None:
    (place / "my models.py").write_text(MODELS + "\nprint('at import')\n")
    assert cli.main([*DFQ, *OWN, "-o", "run", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["file"] == "run/student.safetensors"
    assert "at import" in printed.err
    assert cli.main([*DFQ, *OWN, "-o", "run", "--json"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, "already exists" in printed.err) == ("", True)


@pytest.mark.usefixtures("digits_teacher", "place")
def test_quiet_shows_the_result_and_warnings_alone(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    note = ["--test-data", "digits"]  # whose teacher's accuracy is a message
    assert cli.main([*DFQ, *note, "-o", "loud"]) == 0
    loud = capsys.readouterr()
    assert "compress: 100%" in loud.err
    assert "test images" in loud.err
    assert cli.main([*DFQ, *note, "-o", "quiet", "--quiet"]) == 0
    quiet = capsys.readouterr()
    assert quiet.err == ""
    assert quiet.out.replace("quiet", "loud") == loud.out.partition("next: ")[0]
    with screen.as_asked(argparse.Namespace(quiet=True)):
        logging.getLogger("nni_autorecon.any").warning("beware")
    assert capsys.readouterr().err == "beware\n"
    logging.getLogger("nni_autorecon.any").info("by the way")
    assert capsys.readouterr().err == "by the way\n"


@pytest.mark.parametrize(("terminal", "variable", "styled"), [(True, "", True), (True, "1", False), (False, "", False)])
def test_errors_are_red_and_results_bold_in_a_terminal_alone(
    terminal: bool, variable: str, styled: bool, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", variable)
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: terminal)
    screen.conclude("made", ["good"], values={})
    cli.main(["show", "no.json"])
    with pytest.raises(SystemExit, match="2"):
        cli.main(["show"])
    printed = capsys.readouterr()
    assert printed.out == ("\033[1mmade\033[0m\ngood\n" if styled else "made\ngood\n")
    for line in printed.err.splitlines():
        assert line.startswith("\033[31mnni-autorecon" if styled else "nni-autorecon")
        assert line.endswith("\033[0m") == styled


@pytest.mark.usefixtures("digits_teacher", "place")
def test_a_run_keeps_what_it_printed_in_plain_lines(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    command = [*DFQ, "--test-data", "digits", "--quiet", "-o", "my run"]
    assert cli.main(command) == 0
    head, message, made, *rest = Path("my run/log.txt").read_text().splitlines()
    date, clock, began = head.split(" ", 2)
    assert re.fullmatch(r"\d+-\d\d-\d\d \d\d:\d\d:\d\d", f"{date} {clock}")
    assert began == f"nni-autorecon {__version__}: {shlex.join(command)}"
    assert message.startswith("teacher digits: ")
    assert capsys.readouterr().out == "\n".join([f"\033[1m{made}\033[0m", *rest[:-1], ""])
    assert rest[-1].startswith("next: ")
    assert cli.main([*command, "--force"]) == 0
    assert Path("my run/log.txt").read_text().count(f" nni-autorecon {__version__}: ") == 1


@pytest.mark.usefixtures("digits_teacher")
def test_a_run_that_is_resumed_writes_after_what_it_had_printed(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    command = [*STAGE_RUNS["search"], "-o", str(folder)]

    def diverge(*_: Any, **__: Any) -> None:
        raise DivergenceError("it diverged")

    with monkeypatch.context() as patch:
        patch.setattr(search, "evaluate_generator", diverge)
        assert cli.main(command) == 1
    first = (folder / "log.txt").read_text()
    assert first.endswith("nni-autorecon: error: it diverged\n")
    assert cli.main(command) == 2  # the folder is taken; this is not that run's to say
    assert (folder / "log.txt").read_text() == first
    assert cli.main([*command, "--resume"]) == 0
    then = (folder / "log.txt").read_text()
    assert then.startswith(first)
    assert then.count(f" nni-autorecon {__version__}: ") == 2
    assert capsys.readouterr().out in then


@pytest.mark.usefixtures("digits_teacher")
def test_runs_from_python_and_trials_have_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nar.compress("digits", method="dfq", bits="w8a8", folder=tmp_path / "mine", progress=False)
    monkeypatch.setenv("NNI_PLATFORM", "local")
    monkeypatch.setattr(stages, "run_stage", lambda stage, arguments: stages.RUNS[stage](arguments, None))
    assert stages.run_as_trial("compress", [*DFQ[1:], "-o", str(tmp_path / "trial")]) == 0
    for name in ("mine", "trial"):
        assert (tmp_path / name / "result.json").exists()
        assert not (tmp_path / name / "log.txt").exists()


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    log = LogFile()
    log.open("command")
    log.begin(tmp_path / "no folder")
    log.add("a line")
    (tmp_path / "no folder").mkdir()
    log.add("another")
    assert (tmp_path / "no folder" / "log.txt").read_text() == "another\n"
    log.close()
    log.add("late")
    assert (tmp_path / "no folder" / "log.txt").read_text() == "another\n"
