"""A person's commands make whole runs on a toy, and say everything that is wrong in one line."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import nni_autorecon as nar
from nni_autorecon.cli import main as cli
from nni_autorecon.cli import stages
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.config.distill import DistillConfig
from nni_autorecon.config.search import SearchConfig
from nni_autorecon.config.stages import STAGES
from nni_autorecon.data.digits import digits_data
from nni_autorecon.errors import AutoReConError, InputError
from nni_autorecon.generator.genotype import Genotype, random_choices
from nni_autorecon.runs.snapshots import load_snapshot
from nni_autorecon.teacher.sources import architecture
from tests.helpers.command_line import SEARCH, heed_ctrl_c

COMPRESS = "--method gdfq --batch-size 4 --epochs 3 --steps 2 --warmup-epochs 1 --agreement-steps 1".split()
GDFQ = ["--generator", "gdfq", "--width", "4"]

DISTILL = "--batch-size 4 --epochs 2 --steps 2 --student-steps 2 --agreement-steps 1".split()


def _run(*argv):
    return cli.main([str(argument) for argument in argv])


def _rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def searched(digits_teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "run"
    assert _run("search", *SEARCH, "--seed", 3, "-o", folder) == 0
    return folder


def test_a_search_leaves_a_complete_folder(searched):
    assert {path.name for path in searched.iterdir()} == {
        "config.json",
        "metrics.csv",
        "result.json",
        "log.txt",
        "genotype.json",
        "probabilities.json",
        "loss.png",
        "probabilities.png",
        "genotype.png",
        "images.png",
    }
    resolved = json.loads((searched / "config.json").read_text())
    assert (resolved["command"], resolved["device"]) == ("search", "cpu")
    assert SearchConfig().override(resolved["config"]).seed == 3
    assert set(resolved["config"]) == set(SearchConfig().to_dict())
    assert {"nni", "torch", "python", "nni-autorecon"} <= set(resolved["versions"])
    assert [row["epoch"] for row in _rows(searched / "metrics.csv")] == ["1", "2"]
    genotype = Genotype.load(searched / "genotype.json")
    assert genotype.width == 2
    assert {"teacher", "image", "num_classes", "loss", "macs", "parameters", "seed", "config", "repaired_edges"} <= set(
        genotype.details
    )


def test_a_search_is_shown_on_a_page(searched, tmp_path, capsys):
    assert _run("report", searched, "-o", tmp_path / "found", "--html") == 0
    assert f"{tmp_path / 'found.html'}" in capsys.readouterr().out.splitlines()[0]
    assert {path.name for path in tmp_path.iterdir()} == {"found.md", "found.csv", "found.png", "found.html"}
    page = (tmp_path / "found.html").read_text()
    assert re.findall('section id="(.*?)"', page) == ["results", "curves", "generators", "images", "runs", "settings"]


def test_compress_takes_the_genotype(searched, tmp_path, capsys):
    folder = tmp_path / "run"
    assert _run("compress", "--genotype", searched / "genotype.json", "--bits", "w8a8", *COMPRESS, "-o", folder) == 0
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "metrics.csv",
        "result.json",
        "log.txt",
        "student.safetensors",
        "loss.png",
        "agreement.png",
        "images.png",
        "images.npz",
        "layers.png",
    }
    result = json.loads((folder / "result.json").read_text())
    assert result["latency"] is None
    assert result["teacher_accuracy"] >= 0.985
    assert result["file_bytes"] == (folder / "student.safetensors").stat().st_size
    assert result["generator"] == "searched"
    assert CompressConfig().override(json.loads((folder / "config.json").read_text())["config"]).width is None
    printed = capsys.readouterr().out
    assert f"trained {result['accuracy']:.2%}" in printed
    assert "quantized weights" in printed


@pytest.mark.parametrize("protocol", ["integer", "activations"])
def test_onnx_is_written_beside_the_student_and_timed(protocol, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    folder = tmp_path / "run"
    command = ("compress", "--generator", "random:0", "--bits", "w8a8", "--protocol", protocol, *COMPRESS)
    assert _run(*command, "--onnx", "-o", folder) == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["onnx_bytes"] == (folder / "student.onnx").stat().st_size
    assert result["latency"] > 0 < result["float_latency"]
    printed = capsys.readouterr().out
    assert f"{result['latency']:.2f} ms, in floating point {result['float_latency']:.2f} ms" in printed
    assert _run("report", folder, "-o", tmp_path / "report", "--html") == 0
    assert f"| random | {result['latency']:.2f}, n=1 |" in capsys.readouterr().out
    assert (tmp_path / "report-costs.png").exists()
    page = (tmp_path / "report.html").read_text()
    assert {"images", "layers", "curves"} <= set(re.findall('section id="(.*?)"', page))


def test_onnx_needs_a_folder():
    with pytest.raises(InputError, match="onnx writes student.onnx, but there is no folder for it; give folder"):
        nar.compress("digits", method="dfq", onnx=True, progress=False)


def test_distill_takes_the_genotype(searched, tmp_path, capsys):
    folder = tmp_path / "run"
    assert _run("distill", "--genotype", searched / "genotype.json", *DISTILL, "-o", folder) == 0
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "metrics.csv",
        "result.json",
        "log.txt",
        "student.pt",
        "loss.png",
        "agreement.png",
        "images.png",
    }
    result = json.loads((folder / "result.json").read_text())
    assert result["teacher_accuracy"] >= 0.985
    assert result["student_parameters"] < 0.3 * result["teacher_parameters"]
    resolved = json.loads((folder / "config.json").read_text())
    assert resolved["command"] == "distill"
    assert DistillConfig().override(resolved["config"]).genotype == str(searched / "genotype.json")
    student = architecture(result["student"], 10)
    student.load_state_dict(torch.load(folder / "student.pt", weights_only=True)["state_dict"])
    assert f"student {result['accuracy']:.2%}" in capsys.readouterr().out


def test_finished_work_is_not_overwritten(searched, capsys):
    before = (searched / "genotype.json").read_text()
    assert _run("search", *SEARCH, "--seed", 4, "-o", searched) == 2
    assert "already exists" in capsys.readouterr().err
    assert (searched / "genotype.json").read_text() == before


def test_force_replaces(tmp_path):
    Genotype(random_choices(0), width=2).save(tmp_path / "run" / "genotype.json")
    assert _run("search", *SEARCH, "-o", tmp_path / "run", "--force") == 0
    assert "loss" in Genotype.load(tmp_path / "run" / "genotype.json").details


def test_a_taken_port_is_one_line(tmp_path, capsys):
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        assert _run("start", "experiment.yml", "--port", port) == 2
    error = capsys.readouterr().err
    assert f"port {port} cannot be used for the web UI" in error
    assert "choose another with --port" in error
    assert error.count("\n") == 1


def test_force_does_not_replace_another_commands_results(searched, capsys):
    before = {path.name: path.read_bytes() for path in searched.iterdir()}
    arguments = ["--genotype", searched / "genotype.json", *COMPRESS, "-o", searched, "--force"]
    assert _run("compress", *arguments) == 2
    assert "holds results of search, not of compress; choose another folder" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in searched.iterdir()} == before


def test_a_trial_replaces_only_what_nni_gave_it(tmp_path):
    class Trial:
        output = tmp_path / "nni"

    theirs, mine = (cli.build_parser().parse_args(["search", *more]) for more in ([], ["-o", str(tmp_path / "mine")]))
    for name in ("nni", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text("earlier attempt")
    assert stages._place("search", theirs, Trial()) == {
        "folder": tmp_path / "nni",
        "mode": "trial",
        "tensorboard": False,
    }
    assert stages._place("search", mine, Trial()) == {"folder": tmp_path / "mine", "mode": "new", "tensorboard": False}


BLOCKWISE = "--method blockwise --block-images 8 --refine-steps 1 --block-steps 1 --batch-size 4 --agreement-steps 1"


@pytest.mark.parametrize("flags", [COMPRESS, BLOCKWISE.split()], ids=["gdfq", "blockwise"])
def test_a_compression_trial_reports_its_settings_with_its_result(flags, digits_teacher, tmp_path):
    """NNI's web UI shows a blank page where numbers of intermediate results are left out."""

    class Trial:
        output = tmp_path

        def __init__(self):
            self.parameters, self.curve, self.epochs = {"seed": 3, "width": 4, "generator": "gdfq"}, [], []
            self.require_manager = lambda: None

        def report_intermediate(self, metrics, sequence):
            self.curve.append(sequence)
            self.epochs.append(metrics["epoch"])

        def report_final(self, metrics):
            self.final = metrics

    trial = Trial()
    stages.run_compress(cli.build_parser().parse_args(["compress", *flags]), trial)
    written, result = (json.loads((tmp_path / name).read_text()) for name in ("config.json", "result.json"))
    assert json.loads(trial.final["config"]) == written["config"]
    assert written["config"]["seed"] == 3
    assert trial.final["default"] == result["agreement"]
    assert trial.curve == list(range(len(trial.curve))) != []
    rows = pd.read_csv(tmp_path / "metrics.csv")
    assert trial.epochs == rows["epoch"][rows["agreement"].notna()].to_list() != list(rows["epoch"])
    assert not (tmp_path / "snapshot.bin").exists()  # nothing is left to resume
    for name in ("accuracy", "teacher_accuracy", "ranges_only_accuracy", "generator_macs", "generator_parameters"):
        assert trial.final[name] == result[name]


@pytest.mark.parametrize(
    ("flags", "last"),
    [
        ("", 2 * (3 + 1) + 2 + 16),  # epochs of training and validation steps, then the generator found
        ("--tournament 1 --tournament-steps 4", 2 * (3 + 1) + 2 * (4 + 1) + 2 + 16),
        ("--strategy random --candidate-steps 2", 3 * (2 + 1) + 2 + 16),
    ],
    ids=["autorecon", "tournament", "random"],
)
def test_a_search_trial_looks_for_its_manager_at_every_step(flags, last, digits_teacher, tmp_path):
    class Trial:
        output, parameters, looks = tmp_path, {}, 0

        def require_manager(self):
            self.looks += 1
            if self.looks == self.gone:
                raise AutoReConError("NNI's manager is gone")

        def report_intermediate(self, metrics, sequence):
            pass

    for Trial.gone in (2, last // 2, last):
        trial = Trial()
        with pytest.raises(AutoReConError, match="manager is gone"):
            stages.run_search(cli.build_parser().parse_args(["search", *SEARCH, *flags.split(), "--force"]), trial)
        assert trial.looks == trial.gone
        (tmp_path / "snapshot.bin").unlink(missing_ok=True)


def test_test_data_of_ones_own_are_measured(digits_teacher, tmp_path):
    data = digits_data("test")
    np.savez(tmp_path / "mine.npz", images=data.images[:40].numpy(), labels=data.labels[:40].numpy())
    arguments = [*COMPRESS, *GDFQ, "--test-data", tmp_path / "mine.npz", "-o", tmp_path / "run"]
    assert _run("compress", *arguments) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["accuracy"] * 40 == pytest.approx(round(result["accuracy"] * 40))


@pytest.mark.parametrize(
    ("stage", "number", "code"),
    [
        ("search", signal.SIGTERM, 143),
        ("compress", signal.SIGTERM, 143),
        ("distill", signal.SIGINT, 130),
    ],
)
def test_a_stopped_run_says_so_and_fails_within_4_seconds(stage, number, code, digits_teacher, tmp_path):
    flags = {"search": [*SEARCH], "compress": [*COMPRESS, *GDFQ], "distill": [*DISTILL, *GDFQ]}[stage]
    command = [
        sys.executable,
        "-m",
        "nni_autorecon",
        stage,
        *flags,
        "--epochs",
        "1000",
        "-o",
        str(tmp_path / "run"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c) as process:
        try:
            while not (tmp_path / "run" / "snapshot.bin").exists():
                assert process.poll() is None
                time.sleep(0.1)
            process.send_signal(number)
            error = process.communicate(timeout=4)[1]
        finally:
            process.kill()
    assert process.returncode == code
    *told, last = error.splitlines()
    assert last.startswith("nni-autorecon: ")
    assert all("% done after" in line for line in told)  # a slow machine tells how far it is
    assert load_snapshot(tmp_path / "run" / "snapshot.bin")["rows"]


def test_weights_may_be_inherited(digits_teacher, tmp_path):
    losses, longer = [], "--width 2 --batch-size 8 --epochs 2 --weight-steps 30 --weight-lr 0.02".split()
    for flag in ("--inherit-weights", "--no-inherit-weights"):
        assert _run("search", *SEARCH, *longer, flag, "-o", tmp_path / flag) == 0
        losses.append(Genotype.load(tmp_path / flag / "genotype.json").details["loss"]["loss"])
    assert losses[0] < losses[1]  # the supernet was trained for 60 steps, the fresh generator for 2


def test_a_network_without_batchnorm_needs_a_weight_of_0(tmp_path, capsys):
    code = "nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))"
    (tmp_path / "plain.py").write_text(f"from torch import nn\n\ndef make():\n    return {code}\n")
    layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    torch.save(layers.state_dict(), tmp_path / "plain.pt")
    teacher = ["--teacher", f"{tmp_path}/plain.py:make", "--checkpoint", tmp_path / "plain.pt", "--image-size", 13]
    assert _run("search", *SEARCH, *teacher, "-o", tmp_path / "refused") == 2
    assert "--bns-weight 0" in capsys.readouterr().err
    assert _run("search", *SEARCH, *teacher, "--bns-weight", 0, "-o", tmp_path / "search") == 0
    genotype = ["--genotype", tmp_path / "search" / "genotype.json"]
    assert _run("compress", *COMPRESS, *teacher, "--bns-weight", 0, *genotype, "-o", tmp_path / "compress") == 0
    assert json.loads((tmp_path / "compress" / "result.json").read_text())["accuracy"] is None


def test_a_run_that_diverges_fails_with_code_1(tmp_path, capsys):
    assert _run("search", *SEARCH, "--weight-lr", "1e30", "-o", tmp_path / "run") == 1
    printed = capsys.readouterr()
    assert "lower the learning rate" in printed.err
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert not (tmp_path / "run" / "genotype.json").exists()


@pytest.mark.parametrize("script", ["search", "compress", "distill"])
def test_a_trial_script_runs_outside_an_experiment(script, digits_teacher, tmp_path):
    flags = {"search": SEARCH, "compress": [*COMPRESS, *GDFQ], "distill": [*DISTILL, *GDFQ]}[script]
    done = subprocess.run(
        [sys.executable, f"trials/{script}.py", *flags, "-o", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.csv").exists()
    assert "Warning" not in done.stderr


def test_help_in_a_terminal_that_knows_ascii_alone():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "nni_autorecon", "search", "--help-all"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert "\\u03c4" in told  # the temperature's symbol


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_help_lists_what_most_people_set_and_help_all_every_setting(stage, capsys):
    listed = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit, match="0"):
            cli.main([stage.name, flag])
        told = capsys.readouterr().out
        shown = set(re.findall(r"^  --([\w-]+)", told, re.MULTILINE))
        listed[flag] = {name for name in stage.config().to_dict() if name.replace("_", "-") in shown}
        assert told.endswith("--help-all shows all settings.\n") == (flag == "--help")
    assert listed["--help"] == set(stage.config.GROUPS["what most people set"])
    assert listed["--help-all"] == set(stage.config().to_dict())


def test_runs_without_a_name_go_under_runs(digits_teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _run("search", *SEARCH) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "genotype.json").exists()
    assert os.listdir(tmp_path) == ["runs"]
