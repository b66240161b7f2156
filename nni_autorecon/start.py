"""Starting an NNI experiment so that it either works or says why not, and only this machine can reach it."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import psutil
import requests
from nni.experiment import Experiment, RunMode
from nni.runtime.log import silence_stdout

from .errors import AutoReConError, InputError, named, one_line
from .experiment_file import check_experiment, read_experiment
from .gpus import count_gpus, refuse_unmeetable_request
from .loopback import node_options, require_loopback_suffices

WORKING = ("SUCCEEDED", "EARLY_STOPPED")
SETTLED = 10.0  # seconds after which a trial that runs has not failed at once
PATIENCE = 600.0  # seconds for a first trial: remote machines first install NNI
FAILURES = 3  # trials that fail before any works, of as many as may follow
POLL = 0.5  # seconds
SHUTDOWN = 60.0  # seconds that NNI's manager gives itself to end


def start_experiment(file: Path, port: int, *, listen_everywhere: bool = False) -> None:
    """Start the experiment, wait until a trial works, and print what one needs next.

    The trials get this Python, whether or not its environment is active. Unless ``listen_everywhere``, nobody but
    this machine can reach NNI. Raises InputError, before anything starts, if something in the file cannot work or the
    port is taken, and AutoReConError with the reason, the experiment being stopped, if no trial works.
    """
    content = read_experiment(file)
    silence_stdout()
    logging.getLogger("nni").addHandler(logging.NullHandler())  # or its warnings go to stderr
    config = check_experiment(content, file)
    refuse_unmeetable_request(content, count_gpus())
    _require_free(port)
    if not listen_everywhere:
        require_loopback_suffices(config, port)
    experiment = Experiment(config)
    try:
        _create(experiment, port, {} if listen_everywhere else {"NODE_OPTIONS": node_options()})
        print("waiting for the first trial to work; Ctrl-C stops the experiment", file=sys.stderr)
        _wait(experiment, file)
    except KeyboardInterrupt:
        _stop(experiment)
        raise KeyboardInterrupt(f"experiment {experiment.id} is stopped") from None
    except BaseException:
        _stop(experiment)
        raise
    identifier = experiment.id
    print(
        f"experiment {identifier} is running: http://127.0.0.1:{port}\n"
        f"  nni-autorecon status --experiment {identifier}\n"
        f"  nni-autorecon export --experiment {identifier}\n"
        f"  nnictl stop {identifier}"
    )


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port {port} cannot be used for the web UI ({error}); choose another with --port"
            ) from error


def _create(experiment: Experiment, port: int, variables: Mapping[str, str]) -> None:
    """What ``nnictl create`` does, without its banner."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with _environment({"PATH": path, **variables}), _ctrl_c_afterwards():
        try:
            experiment.start(port, run_mode=RunMode.Detach)
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
            words = _last_words(_log(experiment, "nnictl_stderr.log"))
            raise AutoReConError(f"NNI did not start: {named(error)}{words and f'; it said: {words}'}") from error


def _wait(experiment: Experiment, file: Path) -> None:
    """Return when a trial works. Raises AutoReConError if none will, as far as one can tell."""
    since: dict[str, float] = {}
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            status, trials = _get(experiment, "check-status").json(), _get(experiment, "trial-jobs").json()
        except requests.RequestException as error:
            if isinstance(error, requests.ConnectionError) and _is_ending(experiment):
                raise AutoReConError(_why_it_ended(experiment, file)) from error
            time.sleep(POLL)  # it is only busy
            continue
        # The dispatcher's thread may die of its tuner without NNI noticing; its log tells, and there is no first trial.
        if status["status"] == "ERROR" or (not trials and _last_words(_log(experiment, "dispatcher.log"))):
            raise AutoReConError(_why_it_failed(experiment, file, status["errors"]))
        for trial in trials:
            if trial["status"] == "RUNNING":
                since.setdefault(trial["trialJobId"], time.monotonic())
        if any(_works(trial, since) for trial in trials):
            return
        if _none_will_work(trials, over=status["status"] == "DONE"):
            raise AutoReConError(_why_trials_fail(experiment, trials))
        time.sleep(POLL)
    log = _log(experiment, "nnimanager.log")
    raise AutoReConError(f"no trial has started within {PATIENCE:.0f} seconds; NNI's log may say why: {log}")


def _works(trial: Mapping[str, Any], since: Mapping[str, float]) -> bool:
    if trial["status"] in WORKING:
        return True
    return trial["status"] == "RUNNING" and time.monotonic() - since[trial["trialJobId"]] >= SETTLED


def _none_will_work(trials: Sequence[Mapping[str, Any]], *, over: bool) -> bool:
    """Whether all trials there are, or so many that no chance is left to the others, have failed."""
    return over or sum(trial["status"] == "FAILED" for trial in trials) >= FAILURES


def _why_trials_fail(experiment: Experiment, trials: Sequence[Mapping[str, Any]]) -> str:
    failed = [trial for trial in trials if trial["status"] == "FAILED"]
    if not failed:
        return "the experiment is over and no trial has succeeded; look into the search space and maxTrialNumber"
    first = failed[0]
    said = "nothing"
    with suppress(requests.RequestException):
        said = _get(experiment, f"trial-file/{first['trialJobId']}/stderr").text.strip().splitlines()[-1]
    return f"trials fail at once; the first says: {said} (its log: {first['logPath']}/trial.stderr)"


def _why_it_failed(experiment: Experiment, file: Path, errors: Sequence[str]) -> str:
    """NNI's status is ERROR: mostly its dispatcher, the process of the tuner, has died."""
    log = _log(experiment, "dispatcher.log")
    if words := _last_words(log):
        return f"NNI's tuner failed: {words}; mend tuner or search space in {file} (log: {log})"
    return f"NNI failed: {' '.join(errors)} (log: {_log(experiment, 'nnimanager.log')})"


def _why_it_ended(experiment: Experiment, file: Path) -> str:
    """NNI's manager has ended by itself: mostly the machines for the trials cannot be used."""
    log = _log(experiment, "nnimanager.log")
    found = re.search(r"ERROR \(\w+\) (?:Training srevice initialize failed: )?(.*)", _text(log))  # NNI's spelling
    reason = found[1].rstrip(" {") if found else _last_words(_log(experiment, "nnictl_stderr.log")) or "no reason given"
    return f"NNI ended by itself: {reason}; mend trainingService in {file} (log: {log})"


def _is_ending(experiment: Experiment) -> bool:
    """Whether the manager, which does not answer, ends within the time it gives itself."""
    try:
        experiment._proc.wait(timeout=SHUTDOWN)
    except TimeoutExpired:
        return False
    return True


def _stop(experiment: Experiment) -> None:
    """End the manager as ``nnictl stop`` does, or by force, and whatever it has started."""
    if experiment._proc is None:  # NNI itself has ended what it could not start
        return
    try:
        children = psutil.Process(experiment._proc.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    experiment._proc.terminate()
    if not _is_ending(experiment):
        experiment._proc.kill()
    for child in psutil.wait_procs(children, timeout=5)[1]:
        child.kill()


def _get(experiment: Experiment, what: str) -> requests.Response:
    response = requests.get(f"http://127.0.0.1:{experiment.port}/api/v1/nni/{what}", timeout=10)
    response.raise_for_status()
    return response


def _log(experiment: Experiment, name: str) -> Path:
    return Path(experiment.config.experiment_working_directory, experiment.id, "log", name)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def _last_words(file: Path) -> str:
    """The last line of a log that names an error, such as a traceback's last."""
    lines = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*", _text(file), re.MULTILINE)
    return one_line(Exception(lines[-1])) if lines else ""


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
def _ctrl_c_afterwards() -> Iterator[None]:
    """Let Ctrl-C wait, lest it leave a manager behind of which nobody knows."""
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
