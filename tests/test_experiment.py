"""Reading NNI's database: which genotype is the best, and what is said when there is none."""

import json
import sqlite3

import pytest

from nni_autorecon import experiment
from nni_autorecon.errors import InputError
from nni_autorecon.experiment import best_genotype, read_trials
from nni_autorecon.genotype import Genotype, random_choices


@pytest.fixture
def database(tmp_path, monkeypatch):
    """An experiment "e" with NNI's tables, empty."""
    (tmp_path / "e" / "db").mkdir(parents=True)
    monkeypatch.setattr(experiment.Experiments, "get_all_experiments", lambda self: {"e": {"logDir": str(tmp_path)}})
    with sqlite3.connect(tmp_path / "e" / "db" / "nni.sqlite") as connection:
        connection.execute("CREATE TABLE TrialJobEvent (timestamp integer, trialJobId text, event text)")
        connection.execute("CREATE TABLE MetricData (timestamp integer, trialJobId text, type text, data text)")
    yield connection
    connection.close()


def _add(database, trial, status, final=None):
    database.execute("INSERT INTO TrialJobEvent VALUES (1, ?, 'RUNNING')", (trial,))
    database.execute("INSERT INTO TrialJobEvent VALUES (2, ?, ?)", (trial, status))
    if final is not None:
        data = json.dumps(json.dumps(final))
        database.execute("INSERT INTO MetricData VALUES (1, ?, 'PERIODICAL', '\"{}\"')", (trial,))
        database.execute("INSERT INTO MetricData VALUES (2, ?, 'FINAL', ?)", (trial, data))
    database.commit()


def _final(seed, loss):
    return {"default": loss, "genotype": Genotype(random_choices(seed), width=seed).to_json(indent=None)}


def test_the_least_loss_wins_whatever_else_was_reported(database):
    _add(database, "first", "SUCCEEDED", _final(1, 0.7))
    _add(database, "best", "SUCCEEDED", _final(2, 0.2))
    _add(database, "nan", "SUCCEEDED", _final(3, float("nan")))
    _add(database, "other", "SUCCEEDED", {"default": 0.1})
    _add(database, "number", "SUCCEEDED", 0.05)
    _add(database, "failed", "FAILED")
    genotype, trial = best_genotype("e")
    assert (trial, genotype.width) == ("best", 2)


def test_the_last_status_counts(database):
    _add(database, "a", "FAILED")
    _add(database, "b", "RUNNING")
    assert [(trial.id, trial.status, trial.final) for trial in read_trials("e")] == [
        ("a", "FAILED", None), ("b", "RUNNING", None),
    ]  # fmt: skip


def test_without_a_genotype_the_trials_are_counted(database):
    with pytest.raises(InputError, match=r"no finished search trial \(trials: none yet\)"):
        best_genotype("e")
    _add(database, "a", "FAILED")
    _add(database, "b", "FAILED")
    with pytest.raises(InputError, match=r"no finished search trial \(trials: 2 FAILED\); wait for one, or look into"):
        best_genotype("e")


def test_other_files_are_named(database, tmp_path):
    (tmp_path / "e" / "db" / "nni.sqlite").write_text("not a database at all, but long enough to be read as one" * 30)
    with pytest.raises(InputError, match="cannot read the database of experiment e"):
        best_genotype("e")
    with pytest.raises(InputError, match="NNI knows no experiment 'f' on this machine; it has: e"):
        best_genotype("f")
