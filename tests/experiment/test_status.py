"""An experiment's status is read from NNI's database, or with the trials' folders, also if its manager is dead."""

import json
import os
import sqlite3

import pytest

from nni_autorecon.cli import main as cli
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.config.distill import DistillConfig
from nni_autorecon.config.search import SearchConfig
from nni_autorecon.errors import InputError
from nni_autorecon.experiment import database as experiment
from nni_autorecon.experiment import status
from nni_autorecon.experiment.status import duration, experiment_status, planned_trials

SEARCH = "python trials/search.py --epochs 5 --weight-steps 3 --architecture-steps 1 --final-steps 8"
COMPRESS = "python trials/compress.py --method gdfq --generator gdfq --epochs 9 --warmup-epochs 2"


@pytest.fixture
def database(tmp_path, monkeypatch):
    """Experiments "e" and "f" with NNI's tables; the manager of "e" is alive, that of "f" is not."""
    (tmp_path / "e" / "db").mkdir(parents=True)
    known = {name: {"logDir": str(tmp_path), "port": 81, "pid": 0} for name in "ef"}
    monkeypatch.setattr(experiment.Experiments, "get_all_experiments", lambda self: known)
    monkeypatch.setattr(status, "is_running", lambda name, entry: name == "e")
    with sqlite3.connect(tmp_path / "e" / "db" / "nni.sqlite") as connection:
        connection.executescript(
            "CREATE TABLE TrialJobEvent (timestamp integer, trialJobId text, event text, data text, logPath text);"
            "CREATE TABLE MetricData (timestamp integer, trialJobId text, type text, sequence integer, data text);"
            "CREATE TABLE ExperimentProfile (params text, revision integer);"
        )
    yield connection
    connection.close()


def _profile(database, command, **settings):
    for revision, given in enumerate(({"trialCommand": "old"}, {"trialCommand": command, **settings})):
        database.execute("INSERT INTO ExperimentProfile VALUES (?, ?)", (json.dumps(given), revision))
    database.commit()


def _add(database, trial, *events, parameters=None, folder=None, points=(), final=None):
    """A trial with ``events`` (seconds, status) and ``points`` (seconds, sequence, metrics)."""
    for seconds, event in events:
        data = json.dumps({"parameters": parameters or {}})
        row = (1000 * seconds, trial, event, data, folder and str(folder))
        database.execute("INSERT INTO TrialJobEvent VALUES (?, ?, ?, ?, ?)", row)
    for seconds, sequence, metrics in points:
        row = (1000 * seconds, trial, "PERIODICAL", sequence, json.dumps(json.dumps(metrics)))
        database.execute("INSERT INTO MetricData VALUES (?, ?, ?, ?, ?)", row)
    if final:
        data = json.dumps(json.dumps(final))
        database.execute("INSERT INTO MetricData VALUES (0, ?, 'FINAL', 0, ?)", (trial, data))
    database.commit()


def _losses(*seconds):
    return [(when, sequence, {"default": 9.0 - sequence}) for sequence, when in enumerate(seconds)]


def test_a_running_search_by_the_database_alone(database):
    _profile(database, SEARCH, experimentName="mine", maxTrialNumber=3)
    _add(database, "a", (100, "WAITING"), (110, "RUNNING"), points=_losses(120, 124, 128))
    now = experiment_status("e", now=129)
    (trial,) = now.trials
    assert (trial.state, trial.epoch, trial.epochs, trial.measured) == ("running", 3, 5, {"L_r": 7.0})
    # 4 s an epoch: two more, then 8 steps of 4 an epoch, less the second since the last
    assert trial.seconds_left == pytest.approx(2 * 4 + 8 - 1)
    assert now.summary() == "mine (e): manager running at http://127.0.0.1:81, 0 of 3 trials done"


def test_a_search_that_tries_candidates_counts_them(database):
    _profile(database, f"{SEARCH} --strategy random --candidate-steps 2")
    _add(database, "a", (110, "RUNNING"), points=_losses(120, 124, 128))
    (trial,) = experiment_status("e", now=129).trials
    assert (trial.epoch, trial.epochs) == (3, 5 * 4 // 2)
    # 4 s a candidate: seven more, then 8 steps of 2 a candidate, less the second since the last
    assert trial.seconds_left == pytest.approx(7 * 4 + 4 * 4 - 1)


def test_what_the_tuner_gave_counts(database):
    _profile(database, SEARCH)
    _add(database, "a", (0, "RUNNING"), parameters={"epochs": 7.0, "width": {"_name": 3}})
    assert experiment_status("e").trials[0].epochs == 7


def test_pauses_between_attempts_are_no_pace(database):
    _profile(database, SEARCH)
    _add(database, "a", (0, "RUNNING"), (5000, "RUNNING"), points=_losses(10, 14, 18, 5009))
    (trial,) = experiment_status("e", now=5009).trials
    assert (trial.epoch, trial.seconds_left) == (4, pytest.approx(4 + 8))
    _add(database, "b", (0, "RUNNING"), (5000, "RUNNING"), points=_losses(10, 14, 18))
    assert experiment_status("e", now=5003).trials[1].seconds_left == pytest.approx(2 * 4 + 8 - 3)


def test_one_epoch_is_an_estimate_from_the_start_and_none_is_none(database):
    _profile(database, SEARCH)
    _add(database, "a", (100, "RUNNING"), points=_losses(106))
    _add(database, "b", (100, "RUNNING"))
    _add(database, "late", (101, "RUNNING"), points=_losses(1, 2, 3, 4, 5))
    a, b, late = experiment_status("e", now=108).trials
    assert a.seconds_left == pytest.approx(6 * (4 + 2) - 2)
    assert (b.epoch, b.epochs, b.seconds_left) == (None, 5, None)
    assert late.seconds_left == 0.0


def test_the_warm_up_of_a_compression_counts_though_nni_does_not_hear_of_it(database):
    _profile(database, COMPRESS)
    points = [(30, 0, {"default": 0.5, "epoch": 3}), (33, 1, {"default": 0.75, "epoch": 4})]
    _add(database, "a", (0, "RUNNING"), points=points)
    (trial,) = experiment_status("e", now=33).trials
    assert (trial.epoch, trial.epochs, trial.measured) == (4, 9, {"agreement": 0.75})
    assert trial.seconds_left == pytest.approx(3 * 5)


def test_a_student_of_blocks_says_itself_how_long_it_takes(database):
    """Blocks differ, so that the time of one does not tell that of another."""
    _profile(database, COMPRESS.replace("gdfq", "blockwise"))
    points = [(30, 0, {"default": 0.5, "seconds_left": 80.0}), (50, 4, {"default": 0.75, "seconds_left": 25.5})]
    _add(database, "a", (0, "RUNNING"), points=points)
    _add(database, "b", (0, "RUNNING"), (51, "SUCCEEDED"), points=points, final={"default": 0.75})
    a, b = experiment_status("e", now=53).trials
    assert (a.epochs, a.seconds_left) == (None, pytest.approx(25.5 - 3))
    assert b.seconds_left is None
    assert experiment_status("e", now=99).trials[0].seconds_left == 0


@pytest.mark.parametrize(
    ("command", "config"),
    [
        ("search", SearchConfig(epochs=4)),
        ("distill", DistillConfig(epochs=4)),
        ("compress", CompressConfig(method="gdfq", epochs=4, warmup_epochs=0)),
    ],
)
def test_the_folder_knows_better(command, config, database, tmp_path):
    _profile(database, "python mine.py")
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"command": command, "config": config.to_dict()}))
    (folder / "metrics.csv").write_text("epoch,loss\n1,0.5\n2,0.25\n")
    _add(database, "a", (0, "RUNNING"), folder=folder, points=[(6, 0, {"default": 0.5})])
    (trial,) = experiment_status("e", now=10).trials
    name = "L_r" if command == "search" else "agreement"
    assert (trial.epoch, trial.epochs, trial.measured) == (2, 4, {name: 0.5})


def test_what_nobody_knows_is_left_out(database, tmp_path):
    _profile(database, "python mine.py")
    (tmp_path / "config.json").write_text("{")
    _add(database, "a", (0, "RUNNING"), points=[(6, 0, {"default": 3.0})])
    _add(database, "damaged", (0, "RUNNING"), folder=tmp_path)
    _add(database, "number", (0, "RUNNING"), points=[(6, 0, 3.0)])
    a, damaged, number = experiment_status("e").trials
    assert (a.epoch, a.epochs, a.measured, a.seconds_left) == (1, None, {"default": 3.0}, None)
    assert (damaged.epochs, number.measured) == (None, {})
    _profile(database, f"{SEARCH} --epochs many")
    assert experiment_status("e").trials[0].epochs is None
    for spelled in ("--config mine.yml", "--config=mine.yml", "--conf mine.yml", "--t 5", "--seed 'unclosed"):
        _profile(database, f"{SEARCH} {spelled}")
        assert experiment_status("e").trials[0].epochs is None


def test_nothing_runs_without_a_manager(database, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(status, "is_running", lambda name, entry: False)
    _profile(database, COMPRESS, experimentName="mine")
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "snapshot.bin").write_bytes(b"")
    points = [(6, 0, {"default": 0.5, "epoch": 3}), (9, 1, {"default": 0.625, "epoch": 4})]
    _add(database, "a", (0, "RUNNING"), folder=saved, points=points)
    _add(database, "b", (0, "RUNNING"))
    _add(database, "c", (0, "RUNNING"), (9, "SUCCEEDED"), final={"default": 0.75, "accuracy": 0.875})
    _add(database, "d", (0, "RUNNING"), final={"default": 0.5, "accuracy": 0.25})
    _add(database, "g", (0, "RUNNING"), (9, "USER_CANCELED"))
    _add(database, "h", (0, "WAITING"))
    assert cli.main(["status", "--experiment", "e"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "mine (e): manager not running, 3 trials done",
        "trial  state        epoch  agreement  accuracy  time left",
        "a      interrupted  4/9    0.6250     –         –",
        "b      interrupted  –      –          –         –",
        "c      finished     –      0.7500     0.8750    –",
        "d      finished     –      0.5000     0.2500    –",
        "g      canceled     –      –          –         –",
        "h      waiting      –      –          –         –",
        "nni-autorecon continue e starts 2 again, 1 from a snapshot",
    ]


def test_the_one_that_runs_is_taken(database, monkeypatch, capsys):
    _profile(database, SEARCH)
    assert cli.main(["status"]) == 0
    assert capsys.readouterr().out.startswith("experiment without a name (e): manager running")
    for running, message in (
        (True, "2 experiments are running; name one with --experiment: e, f"),
        (False, "no experiment is running on this machine; name one with --experiment, NNI knows: e, f"),
    ):
        monkeypatch.setattr(status, "is_running", lambda name, entry, running=running: running)
        with pytest.raises(InputError, match=message):
            experiment_status()
    assert cli.main(["status", "--experiment", "g"]) == 2
    assert "NNI knows no experiment 'g'" in capsys.readouterr().err


def test_only_a_process_of_this_experiment_is_its_manager():
    here = {"pid": os.getpid()}
    assert not status.is_running("no-such-experiment", here)
    with open("/proc/self/cmdline") as file:
        assert status.is_running(file.read().split("\0")[0], here)
    for entry in ({}, {"pid": None}, {"pid": -1}, {"pid": 2**22 + 1}):
        assert not status.is_running("python", entry)


def test_how_many_trials_there_will_be():
    grid = {"tuner": {"name": "GridSearch"}, "searchSpace": {"a": {"_type": "choice", "_value": [1, 2, 3]}}}
    two = {**grid["searchSpace"], "b": {"_type": "choice", "_value": ["x", "y"]}}
    nested = {"a": {"_type": "choice", "_value": [{"_name": "x", "b": {"_type": "choice", "_value": [1, 2]}}]}}
    assert planned_trials(grid) == 3
    assert planned_trials({**grid, "searchSpace": two}) == 6
    assert planned_trials({**grid, "searchSpace": two, "maxTrialNumber": 4}) == 4
    assert planned_trials({**grid, "maxTrialNumber": 4}) == 3
    assert planned_trials({**grid, "searchSpace": nested}) is None
    assert planned_trials({**grid, "tuner": {"name": "TPE"}}) is None
    assert planned_trials({"searchSpace": two, "maxTrialNumber": 9}) == 9


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
