"""The real thing: ``nnictl create``, trials, export while it runs and after it was stopped, compression."""

import csv
import json
from pathlib import Path

import pytest

from nni_autorecon.experiment.loopback import open_address
from nni_autorecon.generator.genotype import Genotype
from tests.helpers import managers
from tests.helpers.managers import FLAGS, get, tool, wait_until_done

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(digits_teacher, tmp_path_factory):
    return managers.environment(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def experiment(environment, tmp_path_factory):
    """The id and the port of a finished experiment of experiment.yml's kind: one trial good, one with a bad setting."""
    command = f"python trials/search.py --teacher digits --threads 1 {FLAGS}"
    space = {"width": {"_type": "choice", "_value": [2, 0]}}
    changes = {"trialCommand": command, "searchSpace": space, "maxTrialNumber": 2}
    with managers.experiment(environment, tmp_path_factory.mktemp("experiment"), **changes) as (identifier, port):
        wait_until_done(port)
        yield identifier, port


def _trials(port):
    """Return the trials of the experiment by width."""
    return {json.loads(job["hyperParameters"][0])["parameters"]["width"]: job for job in get(port, "trial-jobs")}


def test_the_good_trial_succeeds_and_the_bad_one_fails(experiment):
    _, port = experiment
    trials = _trials(port)
    assert get(port, "check-status")["status"] == "DONE"
    assert (trials[2]["status"], trials[0]["status"]) == ("SUCCEEDED", "FAILED")
    log = Path(trials[0]["logPath"], "trial.stderr").read_text()
    assert log == "nni-autorecon: error: tuner: width = 0 is too small; the least is 1\n"


def test_the_first_trial_alone_warns_that_nnictl_lets_everybody_in(experiment):
    _, port = experiment
    said = Path(_trials(port)[2]["logPath"], "trial.stderr").read_text()
    if address := open_address(port):
        assert said.startswith(f"nni-autorecon: warning: NNI listens on {address}:{port} without a login")
        assert said.count("\n") == 1
    else:  # a machine without a network
        assert said == ""


def test_the_web_ui_gets_a_curve_with_its_parts(experiment):
    _, port = experiment
    trial = _trials(port)[2]["trialJobId"]
    metrics = get(port, f"metric-data/{trial}")
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
    tool(environment, "nnictl", "experiment", "export", identifier, "-t", "csv", "-f", tmp_path / "x.csv")
    with (tmp_path / "x.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["genotype"]]
    assert len(rows) == 1
    assert Genotype.from_json(rows[0]["genotype"]).width == 2


def test_export_and_compress_before_and_after_the_stop(experiment, environment, tmp_path):
    identifier, port = experiment
    best = Genotype.load(Path(_trials(port)[2]["logPath"]) / "genotype.json")
    for name in ("running.json", "stopped.json"):
        done = tool(environment, "nni-autorecon", "best-genotype", "--experiment", identifier, "-o", tmp_path / name)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert Genotype.load(tmp_path / name) == best
        tool(environment, "nnictl", "stop", identifier)
    again = tool(
        environment, "nni-autorecon", "best-genotype", "--experiment", identifier, "-o", tmp_path / "running.json"
    )
    assert again.returncode == 2
    assert "already exists" in again.stderr
    compressed = tool(
        environment,
        "nni-autorecon",
        "compress",
        "--genotype",
        tmp_path / "stopped.json",
        "-o",
        tmp_path / "run",
        *"--method gdfq --batch-size 4 --epochs 3 --steps 2 --warmup-epochs 1 --agreement-steps 1".split(),
    )
    assert compressed.returncode == 0, compressed.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["bits"] == "w4a4"
