"""NNI's manager of an experiment, from its start until a trial works or it is plain that none will."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import psutil
import requests
from nni.experiment import Experiment, RunMode, launcher

from ..errors import AutoReConError, named, one_line

WORKING = ("SUCCEEDED", "EARLY_STOPPED")
OVER = (*WORKING, "FAILED", "USER_CANCELED", "SYS_CANCELED")
RESUMED = ("WAITING", "RUNNING")  # a trial that was left so, NNI starts again
SETTLED = 10.0  # seconds after which a trial that runs has not failed at once, and a tuner has no trial under way
FIRST_TRIAL = 600.0  # seconds for a first trial: remote machines first install NNI
FAILURES = 3  # trials that fail before any works, of as many as may follow
RETRIES = 20  # a second each, until NNI's manager answers; NNI gives it three
POLL = 0.5  # seconds
SHUTDOWN = 60.0  # seconds that NNI's manager gives itself to end
MANAGER, TUNER, STDERR = LOGS = ("nnimanager.log", "dispatcher.log", "nnictl_stderr.log")


class Manager:
    """The manager of an experiment, whose settings a person mends in ``file``.

    ``before`` has the status, by id, of the trials of an experiment that is resumed. Those that were over say nothing
    of whether trials work now, nor do the lines that are in the logs already.
    """

    def __init__(self, experiment: Experiment, file: str, before: Mapping[str, str] | None = None) -> None:
        self.id: str = experiment.id
        self._experiment, self._file, self._before = experiment, file, before or {}
        self._read = {name: self._log(name).stat().st_size for name in LOGS if self._log(name).exists()}

    def start(self, port: int, variables: Mapping[str, str]) -> None:
        """What ``nnictl create`` or ``nnictl resume`` does, without its banner. Trials find this Python first."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        with _environment({"PATH": path, **variables}), _signals_afterwards(), _retries():
            try:
                self._experiment.start(port, run_mode=RunMode.Detach)
            except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
                words = self._last_words(STDERR)
                raise AutoReConError(f"NNI did not start: {named(error)}{words and f'; it said: {words}'}") from error

    def wait(self) -> bool:
        """Return True when a trial works, False if all were over before and the experiment has no others.

        Raises AutoReConError if none will work, as far as one can tell.
        """
        since: dict[str, float] = {}
        end = time.monotonic() + FIRST_TRIAL
        while (now := time.monotonic()) < end:
            try:
                status, trials = self._get("check-status").json(), self._get("trial-jobs").json()
            except requests.RequestException as error:
                if isinstance(error, requests.ConnectionError) and self._ends():
                    raise AutoReConError(self._why_it_ended()) from error
                time.sleep(POLL)  # it is only busy
                continue
            trials = [trial for trial in trials if self._before.get(trial["trialJobId"], "WAITING") in RESUMED]
            new = any(trial["trialJobId"] not in self._before for trial in trials)
            # The dispatcher's thread may die of its tuner without NNI noticing; its log tells, and no trial is new.
            if status["status"] == "ERROR" or (not new and self._last_words(TUNER)):
                raise AutoReConError(self._why_it_failed(status["errors"]))
            since = {name: since.get(name, now) for name in _lasting(status["status"], trials)}
            settled = {name for name, began in since.items() if now - began >= SETTLED}
            if any(trial["status"] in WORKING or trial["trialJobId"] in settled for trial in trials):
                return True
            over = status["status"] == "DONE" or status["status"] in settled
            if over and self._before and not trials:
                return False
            if over or sum(trial["status"] == "FAILED" for trial in trials) >= FAILURES:
                raise AutoReConError(self._why_trials_fail(trials))
            time.sleep(POLL)
        log = self._log(MANAGER)
        raise AutoReConError(f"no trial has started within {FIRST_TRIAL:.0f} seconds; NNI's log may say why: {log}")

    def stop(self) -> None:
        """End the manager as ``nnictl stop`` does, or by force, and whatever it has started."""
        manager = self._experiment._proc
        if manager is None:  # NNI itself has ended what it could not start
            return
        try:
            children = psutil.Process(manager.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            children = []
        manager.terminate()
        if not self._ends():
            manager.kill()
        for child in psutil.wait_procs(children, timeout=5)[1]:
            child.kill()

    def _why_trials_fail(self, trials: Sequence[Mapping[str, Any]]) -> str:
        failed = [trial for trial in trials if trial["status"] == "FAILED"]
        if not failed:
            limits = "the search space, maxTrialNumber and maxExperimentDuration"
            return f"the experiment is over and no trial has succeeded; look into {limits}"
        first = failed[0]
        said = "nothing"
        with suppress(requests.RequestException):
            lines = self._get(f"trial-file/{first['trialJobId']}/stderr").text.strip().splitlines()
            said = lines[-1] if lines else said
        return f"trials fail at once; the first says: {said} (its log: {first['logPath']}/trial.stderr)"

    def _why_it_failed(self, errors: Sequence[str]) -> str:
        """NNI's status is ERROR: mostly its dispatcher, the process of the tuner, has died."""
        if words := self._last_words(TUNER):
            return f"NNI's tuner failed: {words}; mend tuner or search space in {self._file} (log: {self._log(TUNER)})"
        return f"NNI failed: {' '.join(errors)} (log: {self._log(MANAGER)})"

    def _why_it_ended(self) -> str:
        """It has ended by itself: mostly the machines for the trials cannot be used."""
        begin = r"ERROR \(\w+\) (?:Training srevice initialize failed: )?"  # NNI's spelling
        found = re.search(f"{begin}(.*)", self._said(MANAGER))
        reason = found[1].rstrip(" {") if found else self._last_words(STDERR) or "no reason given"
        return f"NNI ended by itself: {reason}; mend trainingService in {self._file} (log: {self._log(MANAGER)})"

    def _ends(self) -> bool:
        """Whether the manager, which does not answer, ends within the time it gives itself."""
        try:
            self._experiment._proc.wait(timeout=SHUTDOWN)
        except TimeoutExpired:
            return False
        return True

    def _get(self, what: str) -> requests.Response:
        response = requests.get(f"http://127.0.0.1:{self._experiment.port}/api/v1/nni/{what}", timeout=10)
        response.raise_for_status()
        return response

    def _log(self, name: str) -> Path:
        return Path(self._experiment.config.experiment_working_directory, self.id, "log", name)

    def _said(self, name: str) -> str:
        """What has come into a log since before the start."""
        text = self._log(name).read_bytes() if self._log(name).exists() else b""
        return text[self._read.get(name, 0) :].decode(errors="replace")

    def _last_words(self, name: str) -> str:
        """The last line of a log that names an error, such as a traceback's last."""
        lines = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*", self._said(name), re.MULTILINE)
        return one_line(Exception(lines[-1])) if lines else ""


def _lasting(status: str, trials: Sequence[Mapping[str, Any]]) -> set[str]:
    """What tells something once it has lasted: ids of trials that run, and a status that says there are no more."""
    running = {trial["trialJobId"] for trial in trials if trial["status"] == "RUNNING"}
    exhausted = status == "TUNER_NO_MORE_TRIAL" and all(trial["status"] in OVER for trial in trials)
    return running | {status} if exhausted else running


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for what is started meanwhile."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _retries() -> Iterator[None]:
    """Let NNI wait for its manager for as long as a busy machine takes to start it."""
    impatient = launcher._check_rest_server
    launcher._check_rest_server = partial(impatient, retry=RETRIES)
    try:
        yield
    finally:
        launcher._check_rest_server = impatient


@contextmanager
def _signals_afterwards() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait, lest they leave a manager behind of which nobody knows."""
    came: list[int] = []
    waiting = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in waiting}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        os.kill(os.getpid(), came[0])
