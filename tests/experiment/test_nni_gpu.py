"""The real thing on a machine with one made-up GPU: NNI gives it to a trial, and the trial says that it is missing."""

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import requests
import yaml

from tests.helpers import managers
from tests.helpers.managers import ROOT, free_port, tool

pytestmark = pytest.mark.slow

DRIVER = """
class NVMLError(Exception): pass
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return 1
"""


@pytest.fixture
def trial(tmp_path):
    """The first trial of experiments/gpu.yml once it has ended, as NNI's manager describes it."""
    (tmp_path / "pynvml.py").write_text(DRIVER)
    environment = {**managers.environment(tmp_path), "PYTHONPATH": str(tmp_path)}
    settings = yaml.safe_load((ROOT / "experiments" / "gpu.yml").read_text())
    del settings["searchSpaceFile"]
    settings |= {"searchSpace": {}, "trialCodeDirectory": str(ROOT), "maxTrialNumber": 1, "tuner": {"name": "Random"}}
    (tmp_path / "gpu.yml").write_text(yaml.safe_dump(settings))
    port = free_port()
    try:
        created = tool(environment, "nnictl", "create", "--config", tmp_path / "gpu.yml", "--port", port)
        assert created.returncode == 0, created.stdout + created.stderr
        jobs, deadline = [], time.time() + 120
        while not jobs or jobs[0]["status"] in ("WAITING", "RUNNING"):
            assert time.time() < deadline, jobs
            time.sleep(0.5)
            jobs = requests.get(f"http://127.0.0.1:{port}/api/v1/nni/trial-jobs", timeout=10).json()
        yield jobs[0]
    finally:
        listed = tmp_path / "nni-experiments" / ".experiment"
        experiments = json.loads(listed.read_text()) if listed.exists() else {}
        try:
            tool(environment, "nnictl", "stop", "--all")
        finally:  # a manager that waits for a GPU hears nothing and fills the memory
            for experiment in experiments.values():
                with suppress(ProcessLookupError):
                    os.kill(experiment["pid"], signal.SIGKILL)


def test_the_only_gpu_is_given_away_and_found_missing(trial):
    assert trial["status"] == "FAILED"
    lines = Path(trial["logPath"], "trial.stderr").read_text().splitlines()
    (error,) = (line for line in lines if not line.startswith("nni-autorecon: warning: NNI listens on"))
    assert error.startswith("nni-autorecon: error: NNI gave this trial GPU 0, but PyTorch sees none")
