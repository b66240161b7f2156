"""Reading NNI's database: the best genotype, the trials of a report, and what is said when there is none."""

import json
import re
import sqlite3

import pytest

from nni_autorecon.cli import main as cli
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.config.search import SearchConfig
from nni_autorecon.config.stages import STAGES
from nni_autorecon.errors import InputError
from nni_autorecon.experiment import database as experiment
from nni_autorecon.experiment.database import best_genotype, read_runs, read_trials
from nni_autorecon.experiment.trial import plain_parameters
from nni_autorecon.generator.genotype import Genotype, random_choices
from nni_autorecon.nas.search import SearchResult
from tests.helpers.report_runs import in_folder, run


@pytest.fixture
def database(tmp_path, monkeypatch):
    """An experiment "e" with NNI's tables, empty."""
    (tmp_path / "e" / "db").mkdir(parents=True)
    monkeypatch.setattr(experiment.Experiments, "get_all_experiments", lambda self: {"e": {"logDir": str(tmp_path)}})
    with sqlite3.connect(tmp_path / "e" / "db" / "nni.sqlite") as connection:
        connection.executescript(
            "CREATE TABLE TrialJobEvent (timestamp integer, trialJobId text, event text, data text, logPath text, "
            "sequenceId integer, message text, environmentId text);"
            "CREATE TABLE MetricData (timestamp integer, trialJobId text, parameterId text, type text, "
            "sequence integer, data text);"
        )
    yield connection
    connection.close()


def _add(database, trial, status, final=None, *, parameters=None, folder=None):
    """Rows as NNI's manager writes them: parameters come with the first event alone."""
    given = json.dumps({"parameter_id": 0, "parameter_source": "algorithm", "parameters": parameters or {}})
    folder = folder and str(folder)
    for time, event, data in ((1, "RUNNING" if status != "WAITING" else status, given), (2, status, None)):
        row = (time, trial, event, data, folder, 0, None, "local-env")
        database.execute("INSERT INTO TrialJobEvent VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    if final is not None:
        data = json.dumps(json.dumps(final))
        database.execute("INSERT INTO MetricData VALUES (1, ?, '0', 'PERIODICAL', 0, '\"{}\"')", (trial,))
        database.execute("INSERT INTO MetricData VALUES (2, ?, '0', 'FINAL', 0, ?)", (trial, data))
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
    genotype, trial, _ = best_genotype("e")
    assert (trial, genotype.width) == ("best", 2)


def _searched(seed, loss, **settings):
    return {**_final(seed, loss), "config": json.dumps(SearchConfig(seed=seed, **settings).to_dict())}


def test_losses_that_do_not_compare_are_not_compared(database):
    _add(database, "one", "SUCCEEDED", _searched(1, 0.7))
    _add(database, "two", "SUCCEEDED", _searched(2, 0.6, width=8))
    _add(database, "old", "SUCCEEDED", _final(3, 0.8))
    assert best_genotype("e")[1] == "two"
    _add(database, "three", "SUCCEEDED", _searched(4, 0.1, bns_weight=1.0))
    with pytest.raises(InputError, match=r"one \(100.0\) and three \(1.0\) differ in bns_weight.*--trial"):
        best_genotype("e")
    genotype, trial, _ = best_genotype("e", "one")
    assert (trial, genotype.width) == ("one", 1)
    with pytest.raises(InputError, match=r"trial four of e has no genotype; those that have one: one, two, old, three"):
        best_genotype("e", "four")


def test_the_last_status_counts(database):
    _add(database, "a", "FAILED")
    _add(database, "b", "RUNNING")
    assert [(trial.id, trial.status, trial.final) for trial in read_trials("e")] == [
        ("a", "FAILED", None),
        ("b", "RUNNING", None),
    ]


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


def _compressed(accuracy, *, config=True, **settings):
    """The final metric of a compression trial."""
    final = {
        "default": 0.5,
        "accuracy": accuracy,
        "teacher_accuracy": 0.99,
        "ranges_only_accuracy": 0.25,
        "loss": 1.0,
        "generator_macs": 2_000_000,
        "generator_parameters": 3_000,
    }
    return final | (
        {"config": json.dumps(CompressConfig(**{"generator": "gdfq", **settings}).to_dict())} if config else {}
    )


def _run_folder(folder, **settings):
    folder.mkdir()
    values = {"command": "compress", "config": CompressConfig(**settings).to_dict(), "versions": {"torch": "2.15.0"}}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_the_settings_are_those_the_trial_reports_not_nnis(database):
    _add(database, "a", "SUCCEEDED", _compressed(0.9, seed=1), parameters={"seed": 2})
    (run,) = read_runs("e")
    assert (run.source, run.command, run.status) == ("trial a", "compress", "finished")
    assert run.settings == CompressConfig(seed=1, generator="gdfq").to_dict()
    assert run.metrics == {
        "accuracy": 0.9,
        "teacher_accuracy": 0.99,
        "ranges_only_accuracy": 0.25,
        "agreement": 0.5,
        "generator_macs": 2_000_000,
        "generator_parameters": 3_000,
    }


def test_what_a_search_reports_is_what_its_report_shows(database):
    details = {"macs": 7_000_000, "parameters": 9_000}
    parts = {"loss": 0.5, "class_loss": 0.2, "bns_loss": 0.003}
    result = SearchResult(Genotype(random_choices(0), width=2, details=details), parts, None, updates=192, seconds=31.5)
    config = json.dumps(SearchConfig(seed=1, strategy="tpe").to_dict())
    _add(database, "a", "SUCCEEDED", {**result.metrics(), "config": config}, parameters={"seed": 2})
    (run,) = read_runs("e")
    assert (run.command, run.status, run.settings["strategy"], run.settings["seed"]) == ("search", "finished", "tpe", 1)
    assert {**run.metrics, "device": ""} == result.to_dict()
    assert set(run.metrics) == set(STAGES["search"].metrics)


def test_a_trial_without_a_result_has_its_folders_settings_or_else_nnis(database, tmp_path):
    folder = _run_folder(tmp_path / "b", seed=3)
    _add(database, "b", "FAILED", parameters={"seed": 2}, folder=folder)
    _add(database, "c", "FAILED", parameters={"seed": 2}, folder=tmp_path / "gone")
    (b, c) = read_runs("e")
    assert (b.settings["seed"], b.command, b.status, b.versions) == (3, "compress", "failed", {"torch": "2.15.0"})
    assert (c.settings, c.command, c.status, c.metrics) == ({"seed": 2}, None, "failed", {})
    assert (b.folder, c.folder) == (folder, None)


@pytest.mark.parametrize(
    ("event", "final", "status"),
    [
        ("WAITING", False, "waiting"),
        ("RUNNING", False, "running"),
        ("RUNNING", True, "finished"),
        ("SUCCEEDED", True, "finished"),
        ("SUCCEEDED", False, "incomplete"),
        ("FAILED", True, "failed"),
        ("USER_CANCELED", False, "canceled"),
        ("SYS_CANCELED", False, "canceled"),
        ("EARLY_STOPPED", False, "canceled"),
        ("USER_TO_CANCEL", False, "canceled"),
        ("UNKNOWN", False, "unknown"),
    ],
)
def test_nnis_words_for_a_status(database, event, final, status):
    _add(database, "a", event, _compressed(0.9) if final else None)
    assert [run.status for run in read_runs("e")] == [status]


def test_events_that_are_no_status_do_not_count(database):
    _add(database, "a", "SUCCEEDED", _compressed(0.9))
    for trial, event in (("a", "ADD_HYPERPARAMETER"), ("", "IMPORT_DATA")):
        row = (9, trial, event, '{"parameters": {}}')
        database.execute("INSERT INTO TrialJobEvent VALUES (?, ?, ?, ?, NULL, NULL, NULL, NULL)", row)
    database.commit()
    assert [(run.source, run.status) for run in read_runs("e")] == [("trial a", "finished")]


def test_trials_without_settings_are_no_report(database, tmp_path):
    with pytest.raises(InputError, match="experiment e has no trials yet"):
        read_runs("e")
    folder = _run_folder(tmp_path / "a")
    _add(database, "a", "SUCCEEDED", _compressed(0.9, config=False), folder=folder)
    assert read_runs("e")[0].status == "finished"  # its folder knows
    _add(database, "b", "SUCCEEDED", _final(1, 0.7))
    with pytest.raises(InputError, match="trial b reported no 'config'"):
        read_runs("e")


def test_a_trial_that_chose_its_generator_says_which(database):
    _add(database, "a", "SUCCEEDED", {**_compressed(0.9, generator=None), "generator": "noise"})
    _add(database, "b", "SUCCEEDED", {**_compressed(0.9, generator="random:3"), "generator": "random:3"})
    _add(database, "c", "SUCCEEDED", _compressed(0.9, generator=None))  # an earlier version did not report it
    assert [run.settings["generator"] for run in read_runs("e")] == ["noise", "random:3", None]


def test_nested_choices_are_settings_side_by_side(database):
    nested = {
        "method": {"_name": "gdfq", "generator": {"_name": "all:identity", "width": 3}},
        "seed": 1,
        "bits": {"x": 1},
    }
    plain = {"method": "gdfq", "generator": "all:identity", "width": 3, "seed": 1, "bits": {"x": 1}}
    assert plain_parameters(nested) == plain
    _add(database, "a", "WAITING", parameters=nested)
    assert read_runs("e")[0].settings == plain


def test_a_page_shows_what_trials_left_in_their_folders(database, tmp_path):
    for seed in (0, 1):
        folder = _run_folder(tmp_path / str(seed), seed=seed)
        in_folder(run(90.0), folder)
        _add(database, f"t{seed}", "SUCCEEDED", _compressed(0.9, seed=seed), folder=folder)
    assert cli.main(["report", "--experiment", "e", "-o", str(tmp_path / "t"), "--html"]) == 0
    page = (tmp_path / "t.html").read_text()
    assert re.findall('section id="(.*?)"', page) == ["results", "curves", "images", "layers", "runs", "settings"]
    assert page.count("<img ") == 2


def test_an_experiment_becomes_a_report(database, tmp_path, capsys):
    for seed, accuracy in enumerate((0.9, 0.92)):
        _add(database, f"g{seed}", "SUCCEEDED", _compressed(accuracy, seed=seed))
        final = _compressed(accuracy + 0.02, seed=seed, generator=f"random:{seed}")
        _add(database, f"r{seed}", "SUCCEEDED", final, parameters={"seed": 7, "generator": "gdfq"})
    _add(database, "r2", "FAILED", parameters={"seed": 2, "generator": "random:{seed}"})
    assert cli.main(["report", "--experiment", "e", "-o", str(tmp_path / "t")]) == 0
    printed = capsys.readouterr().out
    assert "| gdfq | 91.00 ± 1.41, n=2 | 2.0 | 3 |" in printed
    assert "| random | 93.00 ± 1.41 (+2.00), 1 of 3 failed | 2.0 | 3 |" in printed
    assert "5 runs: 4 finished; 1 failed (trial r2)." in printed
    assert printed.endswith((tmp_path / "t.md").read_text())
