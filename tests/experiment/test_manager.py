"""A started or resumed experiment counts as working, as over, or as failed, by what its manager answers."""

import os
import signal
from types import SimpleNamespace

import pytest

from nni_autorecon.errors import AutoReConError
from nni_autorecon.experiment import manager
from nni_autorecon.experiment.manager import SETTLED, Manager


@pytest.fixture
def wait(monkeypatch, tmp_path):
    """``wait(answers, before)``: outcome and seconds, given [(seconds from which on, status, {trial: its status})]."""
    (tmp_path / "e" / "log").mkdir(parents=True)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        manager,
        "time",
        SimpleNamespace(monotonic=lambda: clock.now, sleep=lambda seconds: setattr(clock, "now", clock.now + seconds)),
    )

    def run(answers, before=None, during=lambda: None, said="hello\n{}\n"):
        def get(self, what):
            if what.startswith("trial-file"):
                return SimpleNamespace(text=said.format(what))
            _, status, trials = next(answer for answer in reversed(answers) if answer[0] <= clock.now)
            jobs = [{"trialJobId": name, "status": now, "logPath": f"/{name}"} for name, now in trials.items()]
            here = {"check-status": {"status": status, "errors": ["it broke"]}, "trial-jobs": jobs}[what]
            return SimpleNamespace(json=lambda: here)

        monkeypatch.setattr(Manager, "_get", get)
        config = SimpleNamespace(experiment_working_directory=tmp_path)
        begun = Manager(SimpleNamespace(id="e", config=config), "it.yml", before)
        during()
        return begun.wait(), clock.now

    return run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_manager_is_known(number):
    class Stopped(BaseException):
        pass

    def stop(number, frame):
        raise Stopped

    started, before = [], signal.signal(number, stop)
    try:
        with manager._signals_afterwards():
            os.kill(os.getpid(), number)
            started.append(True)
    except Stopped:
        started.append("and only then stopped")
    finally:
        signal.signal(number, before)
    assert started == [True, "and only then stopped"]


def test_a_trial_that_runs_works_once_it_has_run_for_a_while(wait):
    assert wait([(0, "RUNNING", {}), (3, "RUNNING", {"a": "RUNNING"})]) == (True, 3 + SETTLED)


def test_a_trial_that_succeeds_works_at_once(wait):
    assert wait([(0, "RUNNING", {"a": "RUNNING"}), (2, "DONE", {"a": "SUCCEEDED"})]) == (True, 2)


@pytest.mark.parametrize("trials", [{"a": "FAILED", "b": "FAILED"}, {"a": "USER_CANCELED"}, {"a": "WAITING"}, {}])
def test_a_few_that_fail_or_wait_prove_nothing(wait, trials):
    assert wait([(0, "RUNNING", trials), (30, "RUNNING", {**trials, "c": "SUCCEEDED"})]) == (True, 30)


@pytest.mark.parametrize(
    ("status", "trials", "message"),
    [
        ("RUNNING", {"a": "FAILED", "b": "FAILED", "c": "FAILED", "d": "RUNNING"}, "trial-file/a/stderr .*/a/trial"),
        ("DONE", {"a": "FAILED"}, "trials fail at once; the first says: trial-file/a/stderr"),
        ("TUNER_NO_MORE_TRIAL", {"a": "FAILED"}, "trials fail at once"),
        ("DONE", {}, "no trial has succeeded"),
        ("ERROR", {"a": "RUNNING"}, "NNI failed: it broke"),
        ("RUNNING", {"a": "WAITING"}, "no trial has started within"),
    ],
)
def test_what_will_not_work(wait, status, trials, message):
    with pytest.raises(AutoReConError, match=message):
        wait([(0, status, trials)])


def test_a_trial_that_fails_and_says_nothing(wait):
    with pytest.raises(AutoReConError, match="the first says: nothing "):
        wait([(0, "DONE", {"a": "FAILED"})], said="\n \n")


def test_a_tuner_that_says_it_has_no_more_may_still_have_some_on_the_way(wait):
    assert wait([(0, "TUNER_NO_MORE_TRIAL", {}), (5, "TUNER_NO_MORE_TRIAL", {"a": "RUNNING"})]) == (True, 5 + SETTLED)


OLD = {"good": "SUCCEEDED", "a": "FAILED", "b": "FAILED", "c": "FAILED", "gone": "USER_CANCELED"}


def test_trials_that_were_over_before_a_resume_say_nothing(wait):
    going = [(0, "RUNNING", OLD), (4, "RUNNING", {**OLD, "new": "RUNNING"})]
    assert wait(going, OLD) == (True, 4 + SETTLED)
    with pytest.raises(AutoReConError, match="trial-file/new/stderr"):
        wait([(0, "DONE", {**OLD, "new": "FAILED"})], OLD)


def test_an_interrupted_trial_works_only_when_it_has_run_again(wait):
    before = {**OLD, "x": "RUNNING"}
    answers = [(0, "RUNNING", before), (8, "RUNNING", {**OLD, "x": "ADD_RESUMED"}), (9, "RUNNING", before)]
    assert wait(answers, before) == (True, 9 + SETTLED)
    assert wait([(0, "RUNNING", {**OLD, "x": "SUCCEEDED"})], before)[0]
    with pytest.raises(AutoReConError, match="trial-file/x/stderr"):
        wait([(0, "DONE", {**OLD, "x": "FAILED"})], before)


def test_an_experiment_that_is_over_has_no_trials_left(wait):
    assert wait([(0, "RUNNING", OLD), (2, "DONE", OLD)], OLD) == (False, 2)
    assert wait([(0, "TUNER_NO_MORE_TRIAL", OLD)], OLD) == (False, 2 + SETTLED)


def test_only_what_has_come_into_the_logs_since_counts(wait, tmp_path):
    log = tmp_path / "e" / "log" / "dispatcher.log"
    log.write_text("OSError: connection closed\n")
    assert wait([(0, "RUNNING", {"x": "SUCCEEDED"})], {"x": "RUNNING"})[0]

    def fail():
        log.write_text(log.read_text() + "ValueError: 7\n[2021] INFO\n")

    with pytest.raises(AutoReConError, match=f"tuner failed: ValueError: 7; mend .* in it.yml .log: {log}"):
        wait([(0, "RUNNING", {"x": "RUNNING"})], {"x": "RUNNING"}, fail)
    assert wait([(0, "RUNNING", {"new": "SUCCEEDED"})], {"x": "RUNNING"}, fail)[0]  # the tuner has made it
