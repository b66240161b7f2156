"""This module starts or resumes an NNI experiment so that it works or says why not, and is reached from here alone."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from nni.experiment import Experiment
from nni.experiment.config import ExperimentConfig
from nni.runtime.log import silence_stdout

from ..config.stages import stage_of_command
from ..errors import InputError
from .database import is_running, known_experiments, orphans, read_settings, read_trials
from .gpus import count_gpus, refuse_unmeetable_request
from .loopback import SHIELD, TUNER_PATIENCE, node_options, require_loopback_suffices
from .manager import Manager
from .reading import read_experiment
from .settings_file import check_experiment, training_services

ORPHANS = 60.0  # the processes of a killed manager may take so many seconds to end; a tuner needs some 12
ANEW = "its file and start a new experiment"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    """A started experiment: its id, the address of its web UI, and whether trials run or all were over before."""

    experiment: str
    address: str
    running: bool
    makes_students: bool
    """True if its trials make students; others are searches."""


def start_experiment(file: Path, port: int, *, listen_everywhere: bool = False) -> Started:
    """Start the experiment, and return it once a trial works.

    The trials get this Python, also if its environment is not active. Unless ``listen_everywhere``, only this machine
    can reach NNI. Raises InputError, before anything starts, if something in the file cannot work or the port is taken.
    Raises AutoReConError with the reason, after stopping the experiment, if no trial works.
    """
    settings = read_experiment(file)
    config = _checked(settings, file, file.parent)
    _require_reachable(config, port, listen_everywhere)
    return _launch(Manager(Experiment(config), str(file)), port, listen_everywhere, config)


def resume_experiment(experiment_id: str, port: int, *, listen_everywhere: bool = False) -> Started:
    """Go on with an experiment that was stopped, or whose manager was killed, in the way of :func:`start_experiment`.

    Interrupted trials start again, each with its id and in its folder. Raises InputError also if there is no such
    experiment, or if its manager or one of its trials still runs.
    """
    settings = read_settings(experiment_id)
    settings.pop("searchSpaceFile", None)  # the file may have changed since; NNI keeps the space that it read
    known = known_experiments()[experiment_id]
    if is_running(experiment_id, known):
        address = f"http://127.0.0.1:{known['port']}"
        raise InputError(f"experiment {experiment_id} is running, see {address}; there is nothing to continue")
    try:
        config = _checked(settings, f"experiment {experiment_id}", Path(known["logDir"]))
    except InputError as error:
        raise InputError(f"{error} (an experiment keeps its settings; to change them, mend {ANEW})") from error
    config.experiment_working_directory = known["logDir"]  # the database is there
    _require_reachable(config, port, listen_everywhere)
    _wait_for_orphans(experiment_id)
    experiment = Experiment(config, id=experiment_id)
    experiment._action = "resume"
    before = {trial.id: trial.status for trial in read_trials(experiment_id)}
    return _launch(Manager(experiment, ANEW, before), port, listen_everywhere, config)


def _checked(settings: Mapping[str, Any], source: Path | str, folder: Path) -> ExperimentConfig:
    """Return the settings as NNI understands them. Raises InputError if trials could not run with them."""
    silence_stdout()
    logging.getLogger("nni").addHandler(logging.NullHandler())  # otherwise its warnings go to stderr
    config = check_experiment(settings, source, folder)
    refuse_unmeetable_request(settings, count_gpus())
    return config


def _require_reachable(config: ExperimentConfig, port: int, listen_everywhere: bool) -> None:
    """Raise InputError if the port is taken, or if machines of the experiment could not reach this one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            fault = getattr(error, "strerror", None) or error
            raise InputError(
                f"port {port} cannot be used for the web UI ({fault}); choose another with --port"
            ) from error
    if not listen_everywhere:
        require_loopback_suffices(config, port)


def _wait_for_orphans(experiment_id: str) -> None:
    """Let a killed manager's tuner and trials end; they would talk to the next one. Raises InputError if any stays."""
    left = orphans(experiment_id)
    if left:
        _log.info("waiting for %d processes to end that the last manager has left behind", len(left))
    if alive := psutil.wait_procs(left, timeout=ORPHANS)[1]:
        numbers = ", ".join(str(process.pid) for process in alive)
        raise InputError(
            f"experiment {experiment_id} still has processes from before ({numbers}); a trial ends within ten "
            "seconds of work: wait for that, or kill them"
        )


def _launch(manager: Manager, port: int, listen_everywhere: bool, config: ExperimentConfig) -> Started:
    """Start the manager, and return the experiment once a trial works; stop it if none does."""
    try:
        manager.start(port, {"NODE_OPTIONS": node_options(TUNER_PATIENCE, *([] if listen_everywhere else [SHIELD]))})
        _log.info("waiting for the first trial to work; Ctrl-C stops the experiment")
        works = manager.wait()
    except KeyboardInterrupt:
        manager.stop()
        raise KeyboardInterrupt(f"experiment {manager.id} is stopped") from None
    except BaseException:
        manager.stop()
        raise
    stages = [stage_of_command(service.trial_command) for service in training_services(config)]
    makes_students = any(stage is not None and stage.makes_student for stage in stages)
    return Started(manager.id, f"http://127.0.0.1:{port}", works, makes_students)
