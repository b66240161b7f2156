"""The event file beside metrics.csv, read back by TensorBoard itself."""

import errno
import sys

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nni_autorecon.cli import main as cli
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.errors import InputError, MachineError
from nni_autorecon.experiment.trial import Trial
from nni_autorecon.nas import search
from nni_autorecon.runs.folder import RunFolder
from nni_autorecon.student import compression_run
from tests.helpers.interrupted_runs import RUNS, KilledError, kill_after_two_epochs, run_until_killed


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    for stage in (search, compression_run):
        monkeypatch.setattr(stage, "_draw", lambda *arguments: None)


def _scalars(run):
    """Return the values by name and step in the only event file of a run; no step is there twice."""
    (file,) = (run / "tensorboard").iterdir()
    events = EventAccumulator(str(file)).Reload()
    curves = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert all(len(curve) == len(dict(curve)) for curve in curves.values())
    return {name: dict(curve) for name, curve in curves.items()}


def _numbers(run):
    """The same of metrics.csv."""
    table = pd.read_csv(run / "metrics.csv")
    rows = table.set_index(table.columns[0]).select_dtypes("number")  # epoch or candidate
    return {name: pytest.approx(rows[name].dropna().to_dict()) for name in rows}


@pytest.mark.parametrize("stage", ["search", "random", "gdfq"])
def test_the_numbers_are_those_of_the_table(stage, digits_teacher, tmp_path):
    assert cli.main([*RUNS[stage], "-o", str(tmp_path / "run"), "--tensorboard"]) == 0
    scalars = _scalars(tmp_path / "run")
    assert scalars == _numbers(tmp_path / "run")
    assert len(scalars["loss"]) > 3
    assert not scalars.keys() & {"epoch", "candidate", "phase"}


@pytest.mark.parametrize("moment", ["save", "log"])
def test_a_run_that_goes_on_has_every_row_once(moment, digits_teacher, tmp_path, monkeypatch):
    whole = getattr(RunFolder, moment)

    def and_die(run, *rest):
        whole(run, *rest)
        if len(run.rows) == 3:
            raise KilledError  # after the snapshot of epoch 3, or with a row of which the snapshot does not know

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, moment, and_die)
        run_until_killed(*RUNS["gdfq"], "-o", str(tmp_path / "run"), "--tensorboard")
    assert set(_scalars(tmp_path / "run")["loss"]) == {1, 2, 3}
    assert cli.main([*RUNS["gdfq"], "-o", str(tmp_path / "run"), "--tensorboard", "--resume"]) == 0
    assert _scalars(tmp_path / "run") == _numbers(tmp_path / "run")


def test_a_run_that_goes_on_without_it_leaves_what_is_there(digits_teacher, tmp_path, monkeypatch):
    kill_after_two_epochs(monkeypatch, *RUNS["gdfq"], "-o", str(tmp_path / "run"), "--tensorboard")
    assert cli.main([*RUNS["gdfq"], "-o", str(tmp_path / "run"), "--resume"]) == 0
    assert set(_scalars(tmp_path / "run")["loss"]) == {1, 2}


def test_rows_are_there_before_the_run_ends(tmp_path):
    run = RunFolder(tmp_path / "run", tensorboard=True)
    run.start("compress", CompressConfig(), device="cpu")
    assert _scalars(run.path) == {}
    run.log({"epoch": 1, "phase": "warm-up", "loss": 0.5})
    assert _scalars(run.path) == {"loss": {1: 0.5}}


@pytest.mark.parametrize("again", [True, False])
def test_results_that_are_replaced_take_theirs_along(again, tmp_path):
    for tensorboard in (True, again):
        run = RunFolder(tmp_path / "run", "replace", tensorboard=tensorboard)
        with run:
            run.start("compress", CompressConfig(), device="cpu")
            run.log({"epoch": 1 + len(list(tmp_path.glob("*/tensorboard/*"))), "loss": 0.5})
    assert (tmp_path / "run" / "tensorboard").exists() == again


def test_files_of_others_stay(tmp_path):
    mine = tmp_path / "run" / "tensorboard" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with RunFolder(tmp_path / "run", "replace", tensorboard=True) as run:
        run.start("compress", CompressConfig(), device="cpu")
    assert mine.read_text() == "mine"


def test_without_the_package_it_is_refused_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    assert cli.main([*RUNS["gdfq"], "-o", str(tmp_path / "run"), "--tensorboard"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--tensorboard needs tensorboard" in error
    assert "pip install 'nni-autorecon[tensorboard]'" in error
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    run = RunFolder(tmp_path / "run", "replace", tensorboard=True)
    run.path.mkdir()
    (run / "tensorboard").write_text("a file")
    with run, pytest.raises(InputError, match="cannot write .*tensorboard"):
        run.start("compress", CompressConfig(), device="cpu")


def test_a_disk_that_is_full_is_told(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunFolder(tmp_path / "run", tensorboard=True) as run:
        run.start("compress", CompressConfig(), device="cpu")
        run.log({"epoch": 1, "loss": 2.0})
        monkeypatch.setattr(run._events, "_writer", full)
        with pytest.raises(MachineError, match="cannot write .*tfevents.*free some space"):
            run.log({"epoch": 2, "loss": 1.0})


def test_nnis_button_finds_a_local_trials_events(tmp_path, monkeypatch):
    monkeypatch.setenv("NNI_EXP_ID", "e")
    monkeypatch.setattr("nni.get_trial_id", lambda: "t")
    events = tmp_path / "e" / "environments" / "local-env" / "trials" / "t" / "tensorboard"
    for _ in range(2):  # a trial that goes on finds its own link
        Trial.show_events(None, events)
        events.mkdir(parents=True, exist_ok=True)
        assert (tmp_path / "e" / "trials" / "t" / "output" / "tensorboard").resolve() == events
    Trial.show_events(None, tmp_path / "elsewhere" / "tensorboard")
    assert [path.name for path in tmp_path.iterdir()] == ["e"]
