"""The real thing: ``nnictl create``, trials, export while it runs and after it was stopped, compression."""

import csv
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
import yaml

from nni_autorecon.files import CACHE_VARIABLE
from nni_autorecon.genotype import Genotype

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
TOOLS = Path(sys.executable).parent
FLAGS = "--width 2 --latent-dim 5 --batch-size 4 --epochs 2 --weight-steps 2 --architecture-steps 1 --final-steps 2"
SECONDS = 240


def _tool(environment, name, *arguments):
    return subprocess.run(
        [TOOLS / name, *map(str, arguments)], env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _get(port, what):
    return requests.get(f"http://127.0.0.1:{port}/api/v1/nni/{what}", timeout=10).json()


@pytest.fixture(scope="module")
def environment(digits_teacher, tmp_path_factory):
    """A home of its own for NNI's records; the teacher's cache is the session's."""
    home = tmp_path_factory.mktemp("home")
    path = f"{TOOLS}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "HOME": str(home), "PATH": path, CACHE_VARIABLE: os.environ[CACHE_VARIABLE]}


@pytest.fixture(scope="module")
def experiment(environment, tmp_path_factory):
    """(id, port) of a finished experiment of experiment.yml's kind: one trial good, one with a bad setting."""
    folder = tmp_path_factory.mktemp("experiment")
    settings = yaml.safe_load((ROOT / "experiment.yml").read_text())
    del settings["searchSpaceFile"]
    settings |= {
        "trialCommand": f"{settings['trialCommand']} {FLAGS}",
        "searchSpace": {"width": {"_type": "choice", "_value": [2, 0]}},
        "trialCodeDirectory": str(ROOT),
        "maxTrialNumber": 2,
    }
    (folder / "toy.yml").write_text(yaml.safe_dump(settings))
    port = _free_port()
    created = _tool(environment, "nnictl", "create", "--config", folder / "toy.yml", "--port", port)
    assert created.returncode == 0, created.stdout + created.stderr
    assert f"http://127.0.0.1:{port}" in created.stdout
    identifier = _get(port, "experiment")["id"]
    try:
        deadline = time.time() + SECONDS
        while _get(port, "check-status")["status"] not in ("DONE", "ERROR"):
            assert time.time() < deadline, _get(port, "trial-jobs")
            time.sleep(1)
        yield identifier, port
    finally:
        _tool(environment, "nnictl", "stop", identifier)


def _trials(port):
    """{width: trial} of the experiment."""
    return {json.loads(job["hyperParameters"][0])["parameters"]["width"]: job for job in _get(port, "trial-jobs")}


def test_the_good_trial_succeeds_and_the_bad_one_fails(experiment):
    _, port = experiment
    trials = _trials(port)
    assert _get(port, "check-status")["status"] == "DONE"
    assert (trials[2]["status"], trials[0]["status"]) == ("SUCCEEDED", "FAILED")
    log = Path(trials[0]["logPath"], "trial.stderr").read_text()
    assert log == "nni-autorecon: error: tuner: width = 0 is too small; the least is 1\n"
    assert Path(trials[2]["logPath"], "trial.stderr").read_text() == ""


def test_the_web_ui_gets_a_curve_with_its_parts(experiment):
    _, port = experiment
    trial = _trials(port)[2]["trialJobId"]
    metrics = _get(port, f"metric-data/{trial}")
    curve = [json.loads(json.loads(m["data"])) for m in metrics if m["type"] == "PERIODICAL"]
    assert [m["sequence"] for m in metrics if m["type"] == "PERIODICAL"] == [0, 1]
    for point in curve:
        assert {"default", "class_loss", "bns_loss", "temperature", "confidence", "expected_macs"} <= set(point)
        assert point["default"] == pytest.approx(point["class_loss"] + 100 * point["bns_loss"], rel=1e-5)


def test_the_trial_leaves_its_folder_in_nnis(experiment):
    folder = Path(_trials(experiment[1])[2]["logPath"])
    assert {"config.json", "metrics.csv", "genotype.json", "loss.png"} <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "config.json").read_text())["config"]["width"] == 2


def test_nnictl_alone_exports_the_genotype(experiment, environment, tmp_path):
    identifier, _ = experiment
    _tool(environment, "nnictl", "experiment", "export", identifier, "-t", "csv", "-f", tmp_path / "x.csv")
    with (tmp_path / "x.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["genotype"]]
    assert len(rows) == 1
    assert Genotype.from_json(rows[0]["genotype"]).width == 2


def test_export_and_compress_before_and_after_the_stop(experiment, environment, tmp_path):
    identifier, port = experiment
    best = Genotype.load(Path(_trials(port)[2]["logPath"]) / "genotype.json")
    for name in ("running.json", "stopped.json"):
        done = _tool(environment, "nni-autorecon", "export", "--experiment", identifier, "-o", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert Genotype.load(tmp_path / name) == best
        _tool(environment, "nnictl", "stop", identifier)
    again = _tool(environment, "nni-autorecon", "export", "--experiment", identifier, "-o", tmp_path / "running.json")
    assert again.returncode == 2
    assert "already exists" in again.stderr
    compressed = _tool(
        environment, "nni-autorecon", "compress", "--genotype", tmp_path / "stopped.json", "-o", tmp_path / "run",
        *"--batch-size 4 --epochs 3 --steps 2 --warmup-epochs 1 --agreement-steps 1".split(),
    )  # fmt: skip
    assert compressed.returncode == 0, compressed.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["bits"] == "w4a4"
