"""Trials that end before they are done: canceled, stopped, or left alone by a manager that was killed."""

import re
import time
from pathlib import Path

import pandas as pd
import pytest
import requests
import yaml

from nni_autorecon.runs.snapshots import load_snapshot
from tests.helpers import managers
from tests.helpers.managers import FLAGS, ROOT, STUDENT, free_port, get, processes, tool, wait_until

pytestmark = pytest.mark.slow

EPOCHS = 40  # of the trial that goes on to its end
ENDLESS = 100_000


@pytest.fixture(scope="module")
def environment(digits_teacher, tmp_path_factory):
    return managers.environment(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def experiment(environment, tmp_path_factory):
    """Id and port of an experiment of experiment.yml's kind, whose trials have so many epochs that none ends soon."""
    folder = tmp_path_factory.mktemp("experiment")
    settings = yaml.safe_load((ROOT / "experiment.yml").read_text())
    del settings["searchSpaceFile"]
    settings |= {
        "trialCommand": f"{settings['trialCommand']} {FLAGS}",
        "searchSpace": {"epochs": {"_type": "choice", "_value": [ENDLESS, EPOCHS]}},
        "trialCodeDirectory": str(ROOT),
        "maxTrialNumber": 3,
    }
    (folder / "toy.yml").write_text(yaml.safe_dump(settings))
    port = free_port()
    created = tool(environment, "nnictl", "create", "--config", folder / "toy.yml", "--port", port)
    assert created.returncode == 0, created.stdout + created.stderr
    identifier = get(port, "experiment")["id"]
    yield identifier, port
    tool(environment, "nnictl", "stop", identifier)


def _running_trial(port):
    """The trial that runs now, once it has saved where it stands."""

    def look():
        running = [job for job in get(port, "trial-jobs") if job["status"] == "RUNNING"]
        return running and (Path(running[0]["logPath"]) / "snapshot.bin").exists() and running[0]

    return wait_until(look, "no trial has saved a snapshot")


def _epochs(trial):
    return len(pd.read_csv(Path(trial["logPath"]) / "metrics.csv"))


def _said(trial):
    return (Path(trial["logPath"]) / "trial.stderr").read_text().splitlines()[-1]


def _assert_resumable(trial):
    folder = Path(trial["logPath"])
    assert load_snapshot(folder / "snapshot.bin")["rows"]
    assert not [path for path in folder.iterdir() if path.name.startswith(".snapshot")]


def _assert_ends_with_its_manager(trial, identifier):
    """Kill the manager of the experiment, as nothing can prepare for."""
    (manager,) = [process for process in processes(identifier) if "--experiments-directory" in process.cmdline()]
    manager.kill()
    wait_until(lambda: not processes(identifier), "an orphan survives", seconds=60)
    assert re.search("NNI's manager is gone; nni-autorecon continue ID", _said(trial))
    _assert_resumable(trial)


def test_a_trial_is_canceled_from_the_web_ui(experiment):
    _, port = experiment
    trial = _running_trial(port)
    identifier = trial["trialJobId"]
    assert len(processes(identifier)) == 1  # the shell has become Python: signals reach it
    began = time.monotonic()
    requests.delete(f"http://127.0.0.1:{port}/api/v1/nni/trial-jobs/{identifier}", timeout=30).raise_for_status()
    wait_until(lambda: not processes(identifier), "the trial is still there")
    assert time.monotonic() - began < 4  # a second before NNI would have killed it
    wait_until(lambda: get(port, f"trial-jobs/{identifier}")["status"] == "USER_CANCELED", "it is not canceled")
    assert _said(trial) == "nni-autorecon: interrupted"
    _assert_resumable(trial)


def test_after_kill_9_of_the_manager_the_trial_ends_and_nnictl_resume_goes_on_to_the_end(experiment, environment):
    identifier, port = experiment
    trial = _running_trial(port)
    _assert_ends_with_its_manager(trial, identifier)
    done = _epochs(trial)
    assert 0 < done < EPOCHS

    resumed = tool(environment, "nnictl", "resume", identifier, "--port", port)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    after = _status_of(port, trial, "SUCCEEDED")
    assert after["logPath"] == trial["logPath"]
    sequences = [point["sequence"] for point in get(port, f"metric-data/{trial['trialJobId']}")]
    assert sorted(sequences)[-1] == EPOCHS - 1
    assert _epochs(trial) == EPOCHS
    again = [point for point in range(EPOCHS) if sequences.count(point) > 1]
    assert len(again) <= 1 + 1  # it went on from there; 0 also counts the final result
    assert (Path(trial["logPath"]) / "genotype.json").exists()


def _status_of(port, trial, status):
    def look():
        job = get(port, f"trial-jobs/{trial['trialJobId']}")
        assert job["status"] in ("WAITING", "ADD_RESUMED", "RUNNING", status), job
        return job["status"] == status and job

    return wait_until(look, f"the trial is not {status}")


def test_nnictl_stop_leaves_nothing_but_the_snapshot(experiment, environment):
    identifier, port = experiment
    trial = _running_trial(port)
    assert tool(environment, "nnictl", "stop", identifier).returncode == 0
    assert not processes(identifier)
    assert re.search("interrupted|NNI's manager is gone", _said(trial))  # NNI first stops to listen
    _assert_resumable(trial)


def test_a_compression_ends_with_its_manager_also_while_nothing_is_reported(environment, tmp_path):
    """The warm-up, of which NNI is told nothing."""
    changes = {
        "trialCommand": f"python trials/compress.py --teacher digits --threads 1 --generator gdfq {STUDENT} "
        f"--epochs {ENDLESS} --warmup-epochs {ENDLESS - 2}",
        "searchSpace": {"seed": {"_type": "choice", "_value": [0]}},
        "maxTrialNumber": 1,
    }
    with managers.experiment(environment, tmp_path, **changes) as (identifier, port):
        trial = _running_trial(port)
        _assert_ends_with_its_manager(trial, identifier)
