"""The command line itself: former names, numbers that begin with a minus, exit codes, and threads."""

import errno
import re
import threading
from types import SimpleNamespace

import pytest
import torch

from nni_autorecon import files, load_student
from nni_autorecon.cli import main as cli
from nni_autorecon.cli.main import FORMER_NAMES
from nni_autorecon.config.flags import from_flags
from nni_autorecon.config.search import SearchConfig
from nni_autorecon.experiment import database, launch
from nni_autorecon.generator.genotype import Genotype, random_choices
from nni_autorecon.student import distillation_run
from nni_autorecon.teacher import loading, sources
from tests.helpers.command_line import SEARCH

FIRST, SECOND = "published:cifar10-resnet20", "published:cifar100-resnet20"
DISTILL = "distill --generator gdfq --batch-size 4 --epochs 1 --steps 2 --student-steps 1 --agreement-steps 1".split()


def refused(capsys, code, *argv):
    """Return the line with which a command ends with this code."""
    assert cli.main([str(argument) for argument in argv]) == code
    error = capsys.readouterr().err
    assert re.fullmatch(r"nni-autorecon: error: .*\n", error), error
    return error


@pytest.fixture
def trial(monkeypatch):
    """The finished search of an experiment "e", whose genotype says nothing of its loss."""
    genotype = Genotype(random_choices(1), width=7, details={"seed": 1})
    final = {"default": 0.25, "genotype": genotype.to_json(indent=None)}
    record = database.TrialRecord("t", "SUCCEEDED", final, {}, None)
    monkeypatch.setattr(database, "read_trials", lambda experiment: [record] if experiment == "e" else [])
    return genotype


# Names of commands


def test_a_genotype_is_written_though_it_says_nothing_of_its_loss(trial, tmp_path, capsys):
    assert cli.main(["best-genotype", "--experiment", "e", "-o", str(tmp_path / "g.json")]) == 0
    made, *rest = capsys.readouterr().out.splitlines()
    assert made == f"{tmp_path / 'g.json'}: genotype of trial t, L_r 0.2500"
    assert [line.partition(": ")[0] for line in rest] == ["next"]
    assert Genotype.load(tmp_path / "g.json") == trial


@pytest.mark.parametrize("former", FORMER_NAMES)
def test_a_former_name_does_the_same_and_says_the_new_one_once(former, trial, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        launch, "resume_experiment", lambda name, port, **_: launch.Started(name, str(port), True, False)
    )
    (tmp_path / "s.onnx").write_text("")
    rest = {
        "export": ["--experiment", "e", "--force"],
        "export-model": ["s.onnx"],
        "compare": [FIRST, SECOND],
        "resume": ["e", "--port", "5"],
    }[former]
    code = cli.main([FORMER_NAMES[former], *rest])
    now = capsys.readouterr()
    assert cli.main([former, *rest]) == code == (2 if former == "export-model" else 0)
    then = capsys.readouterr()
    assert then.out == now.out
    assert then.err == f"nni-autorecon: {former} is called {FORMER_NAMES[former]} now\n{now.err}"


def test_help_knows_the_new_names_alone(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    commands = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ")}
    assert commands >= set(FORMER_NAMES.values())
    assert not commands & set(FORMER_NAMES)


# Numbers


@pytest.mark.parametrize("text", ["-1,0,0", "-.5,1e-3", "-1", "-1e-3,-2,+3"])
def test_a_mean_below_0_reaches_the_settings(text):
    for words in (["--mean", text, "--seed", "3"], [f"--mean={text}", "--seed", "3"]):
        arguments = cli.build_parser().parse_args(["search", *words])
        config = from_flags(SearchConfig, arguments)
        assert (config.mean, config.seed) == (text, 3)


def test_a_number_is_judged_by_the_settings(tmp_path, capsys):
    assert "epochs = -3 is too small; the least is 1" in refused(capsys, 2, "search", "--epochs", "-3")
    assert "mean has 3 and std 3" in refused(capsys, 2, "search", "--mean", "-1,0,0", "--std", "1,1,1", "-o", tmp_path)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["search", "--mean", "-o", "run"])
    assert "expected at least one argument; see nni-autorecon search --help" in capsys.readouterr().err


# Exit codes


def test_a_full_disk_is_the_machines(tmp_path, monkeypatch, capsys):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "create_beside", full)
    error = refused(capsys, 3, "search", *SEARCH, "-o", tmp_path / "run")
    assert "No space left on device; free some space" in error


def test_a_folder_that_may_not_be_written_is_the_persons(tmp_path, monkeypatch, capsys):
    def denied(path):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "create_beside", denied)
    assert "choose a writable place" in refused(capsys, 2, "search", *SEARCH, "-o", tmp_path / "run")


@pytest.mark.parametrize("command", [["search", "--device", "cuda"], ["evaluate", "s.pt", "--device", "cuda"]])
def test_a_gpu_that_is_missing_is_the_machines(command, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "PyTorch sees no GPU here; choose --device cpu" in refused(capsys, 3, *command)
    assert not list(tmp_path.iterdir())


def test_a_download_that_fails_is_the_machines(tmp_path, monkeypatch, capsys):
    def offline(name, **arguments):
        raise OSError("no route\nto host")

    library = sources.Library(["net"], offline, lambda *arguments: sources.Expected())
    monkeypatch.setitem(sources.LIBRARIES, "timm", lambda: library)
    error = refused(capsys, 3, "compress", "--generator", "gdfq", "--teacher", "timm:net", "-o", tmp_path / "run")
    assert "cannot download the weights of timm:net: no route to host; give a file with --checkpoint" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [["show", "no.json"], ["search", "--epochs", "x"], ["evaluate", "no.pt"]])
def test_what_the_person_can_mend_is_2(command, capsys):
    refused(capsys, 2, *command)


# Runs


def test_a_command_runs_in_any_thread(digits_teacher, tmp_path, capsys):
    """Python allows no handlers of signals there; errors are one line all the same."""
    codes = []
    for argv in (["search", *SEARCH, "-o", str(tmp_path / "run")], ["show", "no.json"], ["diff", FIRST, SECOND]):
        thread = threading.Thread(target=lambda argv=argv: codes.append(cli.main(argv)))
        thread.start()
        thread.join()
    assert codes == [0, 2, 0], capsys.readouterr().err
    assert (tmp_path / "run" / "genotype.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--generator", "searched"], "generator searched needs a genotype; give --genotype"),
        (["--generator", "gdfq", "--genotype", "g.json"], "has no use for a genotype"),
        (
            "--generator gdfq --reconstruction-weight 0 --adversarial-weight 0 --balance-weight 0".split(),
            "nothing to learn",
        ),
    ],
)
def test_a_contradiction_is_refused_before_a_teacher_is_loaded(flags, message, tmp_path, monkeypatch, capsys):
    def load(*arguments, **settings):
        pytest.fail("a teacher is loaded")

    monkeypatch.setattr(loading, "find_network", load)
    assert message in refused(capsys, 2, "distill", *flags, "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_distilled_student_is_measured_from_its_file(digits_teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distillation_run, "_draw", lambda *arguments: None)
    assert cli.main([*DISTILL, "-o", str(tmp_path)]) == 0
    accuracy = re.search(r"student (\d+\.\d+%)$", capsys.readouterr().out, re.MULTILINE)[1]
    for flags in ([], ["--device", "cpu"], ["--test-data", "digits"]):
        assert cli.main(["evaluate", str(tmp_path / "student.pt"), *flags]) == 0
        assert f"test accuracy {accuracy} on" in capsys.readouterr().out
    assert cli.main(["evaluate", str(tmp_path / "student.pt"), "--latency"]) == 0
    assert re.search(r"latency .*, in floating point .* times as (fast|slow)$", capsys.readouterr().out, re.MULTILINE)
    loaded = load_student(tmp_path / "student.pt").network.state_dict()
    stored = torch.load(tmp_path / "student.pt", weights_only=True)["state_dict"]
    assert all(torch.equal(loaded[name], value) for name, value in stored.items())
    assert "was not written by distill" in refused(capsys, 2, "evaluate", _weights(tmp_path))


def _weights(folder):
    torch.save({"weight": torch.zeros(2)}, folder / "other.pt")
    return folder / "other.pt"


def test_an_onnx_file_is_for_the_cpu(tmp_path, monkeypatch, capsys):
    from nni_autorecon import api

    monkeypatch.setattr(api, "load_student", lambda path, teacher: SimpleNamespace())
    monkeypatch.setattr("nni_autorecon.teacher.device.resolve_device", lambda name: torch.device("cuda"))
    error = refused(capsys, 2, "evaluate", tmp_path / "s.onnx", "--device", "cuda")
    assert "measured in onnxruntime, on the CPU; leave out --device" in error
