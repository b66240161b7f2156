"""NNI's manager of an experiment is started here, and watched until a trial works or none will."""

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
RESUMED = ("WAITING", "RUNNING")  # NNI starts trials again that had this status when it ended
SETTLED = 10.0  # a trial that has run for so many seconds works; a tuner that was done for so long gives no more trials
FIRST_TRIAL = 600.0  # seconds to wait for the first trial, as remote machines must first install NNI
FAILURES = 3  # so many failed trials, while none has worked, mean that none will
RETRIES = 20  # seconds to wait until NNI's manager answers; NNI itself waits for three
POLL = 0.5  # seconds between two looks at the manager
SHUTDOWN = 60.0  # NNI's manager takes up to so many seconds to end
MANAGER, TUNER, STDERR = LOGS = ("nnimanager.log", "dispatcher.log", "nnictl_stderr.log")


class Manager:
    """The manager of an experiment.

    file: the file with the settings, which errors ask the person to correct.
    before: the status of each trial, by id, if the experiment is resumed. Trials that were over by then do not tell
        whether trials work now; neither do lines that were in the logs by then. Both are left out.
    """

    def __init__(self, experiment: Experiment, file: str, before: Mapping[str, str] | None = None) -> None:
        self.id: str = experiment.id
        self._experiment, self._file, self._before = experiment, file, before or {}
        self._read = {name: self._log(name).stat().st_size for name in LOGS if self._log(name).exists()}

    def start(self, port: int, variables: Mapping[str, str]) -> None:
        """Start the manager as ``nnictl create`` or ``nnictl resume`` does, but without their banner.

        port: the manager's port; variables: environment variables for the manager and its trials. The folder of this
        Python comes first in their PATH. Raises AutoReConError if the manager does not start.
        """
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        with _environment({"PATH": path, **variables}), _signals_afterwards(), _retries():
            try:
                self._experiment.start(port, run_mode=RunMode.Detach)
            except (OSError, RuntimeError) as error:  # the errors of requests are OSErrors, too
                words = self._last_words(STDERR)
                raise AutoReConError(f"NNI did not start: {named(error)}{words and f'; it said: {words}'}") from error

    def wait(self) -> bool:
        """Return True when a trial works, or False if all trials were over before and the experiment has no others.

        A trial works if it has succeeded, or has run for ``SETTLED`` seconds. Raises AutoReConError, with the reason,
        if the manager has ended, if it or its tuner has failed, if ``FAILURES`` trials have failed, or if no trial has
        started within ``FIRST_TRIAL`` seconds.
        """
        since: dict[str, float] = {}
        end = time.monotonic() + FIRST_TRIAL
        while (now := time.monotonic()) < end:
            try:
                status, trials = self._get("check-status").json(), self._get("trial-jobs").json()
            except requests.RequestException as error:
                if isinstance(error, requests.ConnectionError) and self._ends():
                    raise AutoReConError(self._why_it_ended()) from error
                time.sleep(POLL)  # the manager lives and is only busy
                continue
            trials = [trial for trial in trials if self._before.get(trial["trialJobId"], "WAITING") in RESUMED]
            new = any(trial["trialJobId"] not in self._before for trial in trials)
            # The tuner may end the dispatcher's thread without NNI noticing; then its log has an error, and no new
            # trial comes.
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
        """End the manager as ``nnictl stop`` does, or by force if that fails, and all processes that it has started."""
        manager = self._experiment._proc
        if manager is None:  # NNI could not start the manager, and has ended it itself
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
        """Return a message with the last line of the first failed trial's log, or one for no failed trial."""
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
        """Return a message for the status ERROR; mostly NNI's dispatcher, the process of the tuner, has died."""
        if words := self._last_words(TUNER):
            return f"NNI's tuner failed: {words}; mend tuner or search space in {self._file} (log: {self._log(TUNER)})"
        return f"NNI failed: {' '.join(errors)} (log: {self._log(MANAGER)})"

    def _why_it_ended(self) -> str:
        """Return a message for a manager that has ended by itself; mostly it cannot use the machines for trials."""
        begin = r"ERROR \(\w+\) (?:Training srevice initialize failed: )?"  # NNI's spelling
        found = re.search(f"{begin}(.*)", self._said(MANAGER))
        reason = found[1].rstrip(" {") if found else self._last_words(STDERR) or "no reason given"
        return f"NNI ended by itself: {reason}; mend trainingService in {self._file} (log: {self._log(MANAGER)})"

    def _ends(self) -> bool:
        """Return True if the manager, which does not answer, ends within ``SHUTDOWN`` seconds."""
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
        """Return the text that has been added to a log since this object was made."""
        text = self._log(name).read_bytes() if self._log(name).exists() else b""
        return text[self._read.get(name, 0) :].decode(errors="replace")

    def _last_words(self, name: str) -> str:
        """Return the last line of a log that begins with an error's name, as a traceback ends; "" if there is none."""
        lines = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*", self._said(name), re.MULTILINE)
        return one_line(Exception(lines[-1])) if lines else ""


def _lasting(status: str, trials: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return what counts once it has lasted: the ids of running trials, and a status that means no more trials."""
    running = {trial["trialJobId"] for trial in trials if trial["status"] == "RUNNING"}
    exhausted = status == "TUNER_NO_MORE_TRIAL" and all(trial["status"] in OVER for trial in trials)
    return running | {status} if exhausted else running


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started within the block."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _retries() -> Iterator[None]:
    """Let NNI wait ``RETRIES`` seconds for its manager, as a busy machine takes that long to start it."""
    impatient = launcher._check_rest_server
    launcher._check_rest_server = partial(impatient, retry=RETRIES)
    try:
        yield
    finally:
        launcher._check_rest_server = impatient


@contextmanager
def _signals_afterwards() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the block ends: a manager that has been started must first be known."""
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
