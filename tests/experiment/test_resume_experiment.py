"""``nni-autorecon continue`` refuses what cannot go on; a killed experiment goes on, for this machine alone."""

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from nni_autorecon.cli import main as cli
from nni_autorecon.experiment import database as experiment
from nni_autorecon.experiment import launch as start
from nni_autorecon.experiment import loopback
from nni_autorecon.experiment.manager import Manager
from tests.helpers import managers
from tests.helpers.managers import FLAGS, ROOT, TOOLS, free_port, get, processes, tool, wait_until, wait_until_done

SETTINGS = {
    "experimentType": "hpo",
    "searchSpace": {"x": {"_type": "choice", "_value": [1, 2]}},
    "searchSpaceFile": "/no-such-file.json",
    "trialCommand": "python trial.py",
    "trialConcurrency": 1,
    "tuner": {"name": "TPE"},
}


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """``stored(**changes)``: keep these settings as NNI does, of experiment "e", whose manager has ended."""
    known = {"e": {"logDir": str(tmp_path), "port": 81, "pid": None}}
    monkeypatch.setattr(experiment.Experiments, "get_all_experiments", lambda self: known)
    (tmp_path / "e" / "db").mkdir(parents=True)
    (tmp_path / "trial.py").touch()

    def keep(**changes):
        settings = {
            **SETTINGS,
            "trialCodeDirectory": str(tmp_path),
            "experimentWorkingDirectory": "/where/it/was/once",
            "trainingService": {"platform": "local", "trialCommand": "python trial.py"},
            **changes,
        }
        with sqlite3.connect(tmp_path / "e" / "db" / "nni.sqlite") as database:
            database.executescript(
                "CREATE TABLE TrialJobEvent (timestamp integer, trialJobId text, event text, data text, logPath text);"
                "CREATE TABLE MetricData (timestamp integer, trialJobId text, type text, sequence integer, data text);"
                "CREATE TABLE ExperimentProfile (params text, revision integer);"
            )
            database.execute("INSERT INTO ExperimentProfile VALUES (?, 1)", (json.dumps(settings),))
            for trial, event in (("a", "RUNNING"), ("a", "FAILED"), ("b", "WAITING"), ("b", "RUNNING")):
                database.execute("INSERT INTO TrialJobEvent VALUES (0, ?, ?, '', '')", (trial, event))
        database.close()
        return known["e"]

    return keep


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """Managers that would have been started; those of real experiments run the command."""
    begun = []
    monkeypatch.setattr(Manager, "start", lambda self, port, variables: begun.append((self, port, variables)))
    monkeypatch.setattr(Manager, "wait", lambda self: True)
    return begun


def _refused(started, capsys, *arguments):
    """Return the line with which it is refused before anything is started."""
    assert cli.main(["resume", *map(str, arguments)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("nni-autorecon: error: ")
    assert not started
    return error


def test_it_goes_on_with_what_nni_has_kept(stored, started, tmp_path, capsys):
    stored()
    port = free_port()
    assert cli.main(["resume", "e", "--port", str(port)]) == 0
    ((manager, at, variables),) = started
    begun = manager._experiment
    assert (begun.id, begun._action, at) == ("e", "resume", port)
    assert "loopback.js" in variables["NODE_OPTIONS"]
    assert begun.config.experiment_working_directory == str(tmp_path)  # there its records are
    assert begun.config.search_space == SETTINGS["searchSpace"]
    assert manager._before == {"a": "FAILED", "b": "RUNNING"}
    assert capsys.readouterr().out.startswith(f"experiment e is running: http://127.0.0.1:{port}\n")


def test_other_machines_are_let_in_only_when_asked(stored, started):
    stored()
    assert cli.main(["resume", "e", "--port", str(free_port()), "--listen-everywhere"]) == 0
    assert "loopback.js" not in started[0][2]["NODE_OPTIONS"]


def test_an_experiment_that_nni_does_not_know(stored, started, capsys):
    assert "NNI knows no experiment 'f' on this machine; it has: e" in _refused(started, capsys, "f")


def test_an_experiment_without_records(stored, started, capsys):
    assert "cannot read the database of experiment e" in _refused(started, capsys, "e")


def test_one_that_runs(stored, started, capsys):
    entry = stored()
    with subprocess.Popen([sys.executable, "-c", "input()", "e"], stdin=subprocess.PIPE) as process:
        entry["pid"] = process.pid
        assert "e is running, see http://127.0.0.1:81; there is nothing" in _refused(started, capsys, "e")
        process.stdin.close()


def test_a_port_that_is_taken(stored, started, capsys):
    stored()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        message = _refused(started, capsys, "e", "--port", taken.getsockname()[1])
    assert "cannot be used for the web UI" in message


GPUS = {"platform": "local", "trialGpuNumber": 99, "useActiveGpu": True}
REMOTE = {"platform": "remote", "machineList": [{"host": "gpu.lab", "user": "me", "password": "x"}]}


@pytest.mark.filterwarnings("ignore:SSH password will be exposed")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trialCodeDirectory": "/"}, "in experiment e runs trial.py, which is not in /; .*keeps its settings"),
        ({"tuner": {"name": "SMAC"}}, "SMAC cannot be loaded .*keeps its settings"),
        ({"trainingService": GPUS}, "trialGpuNumber: 99.*keeps its settings"),
        ({"experimentType": "nas"}, "experiment e is of type nas"),
        ({"trainingService": REMOTE}, "gpu.lab.*--listen-everywhere"),
    ],
    ids=["script", "tuner", "gpus", "nas", "machines"],
)
def test_settings_with_which_it_would_not_run(changes, message, stored, started, capsys):
    stored(**changes)
    assert re.search(message, _refused(started, capsys, "e", "--port", free_port()))


@pytest.mark.parametrize("variable", ["NNI_EXP_ID", "NNI_LOG_DIRECTORY"])
def test_a_trial_or_a_tuner_that_stays(variable, stored, started, monkeypatch, capsys, tmp_path):
    stored()
    monkeypatch.setattr(start, "ORPHANS", 0.1)
    value = {"NNI_EXP_ID": "e", "NNI_LOG_DIRECTORY": str(tmp_path / "e" / "log")}[variable]
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={**os.environ, variable: value}
    ) as process:
        message = _refused(started, capsys, "e", "--port", free_port())
        process.stdin.close()
    assert f"e still has processes from before ({process.pid})" in message
    assert cli.main(["resume", "e", "--port", str(free_port())]) == 0


EPOCHS = 120  # that do not end before the test has looked, also on a fast machine


@pytest.fixture
def environment(digits_teacher, tmp_path):
    """Yield variables for a home of its own, in which nothing is left to run."""
    variables = managers.environment(tmp_path / "home")
    yield variables
    tool(variables, "nnictl", "stop", "--all")


def _interrupted(port):
    """A trial and its process, which stands still after it has saved where it stands."""

    def look():
        trials = get(port, "trial-jobs")
        return trials and (Path(trials[0]["logPath"]) / "snapshot.bin").exists() and trials[0]

    trial = wait_until(look, "no trial has saved a snapshot")
    (process,) = processes(trial["trialJobId"])
    process.suspend()
    return trial, process


@pytest.mark.slow
def test_a_killed_experiment_goes_on_to_its_end(environment, tmp_path):
    settings = yaml.safe_load((ROOT / "experiment.yml").read_text())
    del settings["searchSpaceFile"]
    settings |= {
        "trialCommand": f"{settings['trialCommand']} {FLAGS} --epochs {EPOCHS}",
        "searchSpace": {"seed": {"_type": "choice", "_value": [3]}},
        "trialCodeDirectory": str(ROOT),
        "maxTrialNumber": 1,
    }
    (tmp_path / "it.yml").write_text(yaml.safe_dump(settings))
    port = free_port()
    command = [TOOLS / "nni-autorecon", "start", tmp_path / "it.yml", "--port", str(port)]
    told = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    trial, process = _interrupted(port)  # not while it starts: its end sends a hang-up to those who stand still
    identifier, name = told.split()[1], trial["trialJobId"]
    assert told.startswith(f"experiment {identifier} is running")
    listed = json.loads((tmp_path / "home" / "nni-experiments" / ".experiment").read_text())
    psutil.Process(listed[identifier]["pid"]).kill()
    process.resume()
    wait_until(lambda: not processes(name), "the trial outlives its manager")
    said = (Path(trial["logPath"]) / "trial.stderr").read_text().splitlines()[-1]
    assert said.startswith("nni-autorecon: error: NNI's manager is gone; nni-autorecon continue ID, or")

    status = tool(environment, "nni-autorecon", "status", "--experiment", identifier).stdout.splitlines()
    assert status[0].endswith(f"({identifier}): manager not running, 0 of 1 trials done")
    done = int(re.match(rf"{name} +interrupted +(\d+)/{EPOCHS} ", status[2])[1])
    assert 0 < done < EPOCHS
    assert status[3:] == [f"nni-autorecon continue {identifier} starts 1 again, 1 from a snapshot"]

    resumed = tool(environment, "nni-autorecon", "resume", identifier, "--port", port)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.startswith(f"experiment {identifier} is running: http://127.0.0.1:{port}\n")
    for address in loopback._own_addresses():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, port), timeout=5)
    wait_until_done(port)
    assert [(each["trialJobId"], each["status"]) for each in get(port, "trial-jobs")] == [(name, "SUCCEEDED")]
    points = [point["sequence"] for point in get(port, f"metric-data/{name}") if point["type"] == "PERIODICAL"]
    assert set(points) >= set(range(done, EPOCHS))
    assert len(points) <= EPOCHS  # what the killed manager had not read yet is in metrics.csv only
    rows = (Path(trial["logPath"]) / "metrics.csv").read_text().splitlines()[1:]
    assert [int(row.partition(",")[0]) for row in rows] == list(range(1, EPOCHS + 1))
    exported = tool(
        environment, "nni-autorecon", "best-genotype", "--experiment", identifier, "-o", tmp_path / "best.json"
    )
    assert exported.returncode == 0, exported.stderr

    tool(environment, "nnictl", "stop", identifier)
    again = tool(environment, "nni-autorecon", "resume", identifier, "--port", port)
    assert again.stdout.startswith(f"experiment {identifier} has no trials left to run: http://127.0.0.1:{port}\n")
