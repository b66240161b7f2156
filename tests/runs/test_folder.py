"""The folder of a run: what each mode does with one that holds something, and what is left at the end."""

import json
import multiprocessing
import time
from contextlib import contextmanager

import pytest
from filelock import FileLock

from nni_autorecon.cli import main as cli
from nni_autorecon.config.search import SearchConfig
from nni_autorecon.errors import InputError
from nni_autorecon.runs.folder import LOCK, METRICS, RESULT, NoFolder, RunFolder
from nni_autorecon.runs.records import SNAPSHOT

CONFIG = SearchConfig(epochs=3)


def begin(path, mode="new", config=CONFIG, rows=1, result=None):
    """A run that has logged rows, and its result, if it is one."""
    with RunFolder(path, mode) as run:
        state = run.earlier("search", config)
        run.start("search", config, device="cpu")
        for number in range(rows):
            run.log({"epoch": len(run.rows) + 1, "loss": 0.5 * number})
            run.save("search", config, {"epoch": len(run.rows)})
        if result is not None:
            run.write_result(result)
    return state


class StopError(Exception):
    pass


@contextmanager
def held(path):
    """The folder's lock, as another process has it: a lock object of its own is as strange to others."""
    path.mkdir(exist_ok=True)
    with FileLock(path / LOCK):
        yield


def names(path):
    return {each.name for each in path.iterdir()}


def test_a_run_that_is_over_leaves_results_alone(tmp_path):
    begin(tmp_path, result={"loss": 0.5})
    assert names(tmp_path) == {"config.json", METRICS, RESULT}


@pytest.mark.parametrize("result", [None, {"loss": 0.5}])
def test_a_run_that_fails_can_be_gone_on_with(result, tmp_path):
    """Be it after its result was written: the folder then lacks figures."""
    with pytest.raises(StopError), RunFolder(tmp_path) as run:  # noqa: PT012
        run.start("search", CONFIG, device="cpu")
        run.log({"epoch": 1})
        run.save("search", CONFIG, {"epoch": 1})
        if result:
            run.write_result(result)
        raise StopError
    assert SNAPSHOT in names(tmp_path)
    with FileLock(tmp_path / LOCK, timeout=0):
        pass  # it is free
    with RunFolder(tmp_path, "resume") as again:
        assert again.earlier("search", CONFIG) == {"epoch": 1}
        assert again.rows == [{"epoch": 1}]


def test_a_block_without_a_result_keeps_the_snapshot(tmp_path):
    begin(tmp_path)
    assert names(tmp_path) >= {SNAPSHOT, "config.json", METRICS}


@pytest.mark.parametrize(("mode", "rows", "said"), [("new", 1, True), ("new", 0, False), ("trial", 1, False)])
def test_an_interrupted_run_says_how_it_goes_on(mode, rows, said, tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught, RunFolder(tmp_path, mode) as run:  # noqa: PT012
        run.start("search", CONFIG, device="cpu")
        for _ in range(rows):
            run.save("search", CONFIG, {"epoch": 1})
        raise KeyboardInterrupt
    assert str(caught.value) == f"--resume goes on with the run in {tmp_path}" * said


@pytest.mark.parametrize("mode", ["replace", "resume", "trial"])
def test_every_other_mode_takes_a_folder_that_holds_something(mode, tmp_path):
    begin(tmp_path)
    before = (tmp_path / METRICS).read_bytes()
    with pytest.raises(InputError, match="holds an unfinished run; go on with --resume, or replace it with --force"):
        RunFolder(tmp_path)
    with pytest.raises(InputError, match="already exists; choose another place or pass --force"):
        RunFolder(tmp_path.parent)
    RunFolder(tmp_path, mode)
    assert (tmp_path / METRICS).read_bytes() == before


def test_replacing_begins_again_and_leaves_what_is_not_its_own(tmp_path):
    begin(tmp_path, rows=3)
    for name in ("mine.txt", "loss.png", "student.pt"):
        (tmp_path / name).write_text("old")
    assert begin(tmp_path, "replace", SearchConfig(epochs=5), rows=2) is None
    assert (tmp_path / METRICS).read_text().splitlines() == ["epoch,loss", "1,0.0", "2,0.5"]
    assert names(tmp_path) == {"config.json", METRICS, SNAPSHOT, LOCK, "mine.txt"}
    assert json.loads((tmp_path / "config.json").read_text())["config"]["epochs"] == 5


def test_resuming_goes_on_where_the_snapshot_is(tmp_path):
    begin(tmp_path, rows=2)
    with (tmp_path / METRICS).open("a") as metrics:
        metrics.write("3,9.0\n")  # an epoch that the snapshot lacks
    assert begin(tmp_path, "resume", rows=0) == {"epoch": 2}
    assert (tmp_path / METRICS).read_text().splitlines() == ["epoch,loss", "1,0.0", "2,0.5"]
    with pytest.raises(InputError, match="was started with other settings .epochs.; leave out --resume"):
        begin(tmp_path, "resume", SearchConfig(epochs=4))
    assert begin(tmp_path, "resume", SearchConfig(epochs=3, device="cpu", threads=3), rows=0) == {"epoch": 2}


def test_a_trial_goes_on_if_it_can_and_replaces_what_else_is_there(tmp_path):
    begin(tmp_path, rows=2)
    assert begin(tmp_path, "trial") == {"epoch": 2}
    assert begin(tmp_path, "trial", SearchConfig(epochs=4), result={"loss": 1.0}) is None
    assert names(tmp_path) == {"config.json", METRICS, RESULT}
    assert begin(tmp_path, "trial") is None


@pytest.mark.parametrize("mode", ["resume", "replace"])
def test_a_folder_that_another_process_has_is_refused(mode, tmp_path):
    begin(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with held(tmp_path), pytest.raises(InputError, match="another process works in .*; wait for it"):
        begin(tmp_path, mode)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_that_is_refused_leaves_the_other_one_its_lock(tmp_path):
    with RunFolder(tmp_path / "run") as first:
        first.start("search", CONFIG, device="cpu")
        for _ in range(2):
            with pytest.raises(InputError, match="another process works in"):
                begin(tmp_path / "run", "resume")


@pytest.mark.parametrize("stage", ["search", "compress", "distill"])
def test_force_and_resume_contradict_each_other_at_once(stage, tmp_path, capsys):
    """Whoever has the folder."""
    with held(tmp_path):
        started = time.monotonic()
        assert cli.main([stage, "-o", str(tmp_path), "--force", "--resume"]) == 2
    assert time.monotonic() - started < 30
    error = capsys.readouterr().err
    assert "--resume goes on with a run and --force begins it again; give one of them" in error
    assert error.count("\n") == 1


def _hold(path, ready, done):
    with RunFolder(path) as run:
        run.start("search", CONFIG, device="cpu")
        ready.set()
        done.wait(60)


def test_another_process_that_died_leaves_its_folder_free(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "run", ready, done))
    other.start()
    try:
        assert ready.wait(120)
        with pytest.raises(InputError, match="another process works in"):
            begin(tmp_path / "run", "resume")
    finally:
        other.kill()
        other.join()
    assert begin(tmp_path / "run", "resume") is None  # killed before its first epoch was over: it begins again
    assert SNAPSHOT in names(tmp_path / "run")


def test_no_folder_knows_its_rows_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with NoFolder() as run:
        assert run.earlier("search", CONFIG) is None
        run.start("search", CONFIG, device="cpu")
        run.log({"epoch": 1})
        run.save("search", CONFIG, {})
        run.write_result({})
    assert (run.rows, run.device, run.keeps, RunFolder("x").keeps) == ([{"epoch": 1}], "cpu", False, True)
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; name a folder"):
        RunFolder(tmp_path / "file", "replace")
