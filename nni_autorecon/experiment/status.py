"""This module reports the state of an experiment: its trials, their metrics so far, and the time they still need."""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NoReturn

from ..config.common import Config
from ..config.compress import CompressConfig
from ..config.distill import DistillConfig
from ..config.flags import add_flags, from_flags
from ..config.rules import MULTI_TRIAL
from ..config.search import SearchConfig
from ..config.stages import STAGES, Stage, stage_of_command
from ..errors import InputError
from ..runs.records import CANCELED, FAILED, FINISHED, INCOMPLETE, RUNNING, SNAPSHOT, read_config
from .database import (
    STATUSES,
    TrialRecord,
    is_running,
    known_experiments,
    query,
    read_settings,
    read_trials,
    reported_metrics,
)
from .trial import plain_parameters

INTERRUPTED = "interrupted"
"""The state of a trial that the database calls running although no manager runs any more."""
OVER = (FINISHED, INCOMPLETE, FAILED, CANCELED)


@dataclass(frozen=True)
class Point:
    """An intermediate result: its ``time`` in seconds since 1970, and its number in ``sequence``, counted from 0."""

    time: float
    sequence: int
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """A trial's stage and settings, as far as they are known."""

    stage: Stage | None = None
    config: Config | None = None

    @property
    def epochs(self) -> int | None:
        """Return the number of epochs, or of candidates if a search tries one after another; None if it is unknown."""
        if isinstance(self.config, CompressConfig):
            return None if self.config.method == "blockwise" else len(self.config.phases)
        if isinstance(self.config, SearchConfig) and self.config.strategy in MULTI_TRIAL:
            return self.config.candidates
        return self.config.epochs if isinstance(self.config, (SearchConfig, DistillConfig)) else None

    @property
    def afterwards(self) -> float:
        """Return a search's work after its last epoch, in epochs: a tournament, and training the generator found."""
        if not isinstance(self.config, SearchConfig):
            return 0.0
        steps = self.config.candidate_steps if self.config.strategy in MULTI_TRIAL else self.config.epoch_steps
        return (self.config.tournament_updates + self.config.final_steps) / steps


@dataclass(frozen=True)
class TrialStatus:
    """A trial: its state, its epochs done and in all, its last metrics, and the seconds to its end, as far as known."""

    id: str
    state: str
    epoch: int | None = None
    epochs: int | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    seconds_left: float | None = None
    has_snapshot: bool = False

    def cells(self, measures: Sequence[str]) -> list[str]:
        """Return a row of the table, with a column for each of ``measures``."""
        of = "" if self.epochs is None else f"/{self.epochs}"
        epoch = "–" if self.epoch is None else f"{self.epoch}{of}"
        values = [f"{self.measured[name]:.4f}" if name in self.measured else "–" for name in measures]
        return [self.id, self.state, epoch, *values, "–" if self.seconds_left is None else duration(self.seconds_left)]


@dataclass(frozen=True)
class ExperimentStatus:
    """An experiment: its name, the address of a running manager, its trials, and their planned number if known."""

    id: str
    name: str
    address: str | None
    trials: Sequence[TrialStatus]
    planned: int | None

    def summary(self) -> str:
        """Return one line: the name, the manager's state, and how many trials are done."""
        done = sum(trial.state in OVER for trial in self.trials)
        of = "" if self.planned is None else f" of {self.planned}"
        manager = f"manager running at {self.address}" if self.address else "manager not running"
        return f"{self.name} ({self.id}): {manager}, {done}{of} trials done"

    def to_text(self) -> str:
        """Return the line on the experiment, a table of its trials, and a line on trials that can go on."""
        measures = list(dict.fromkeys(name for trial in self.trials for name in trial.measured))
        rows = [
            ["trial", "state", "epoch", *measures, "time left"],
            *(trial.cells(measures) for trial in self.trials),
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows]
        parts = [self.summary(), *(lines if self.trials else [])]
        if interrupted := [trial for trial in self.trials if trial.state == INTERRUPTED]:
            saved = sum(trial.has_snapshot for trial in interrupted)
            parts.append(f"nni-autorecon continue {self.id} starts {len(interrupted)} again, {saved} from a snapshot")
        return "\n".join(parts)


def experiment_status(experiment_id: str | None = None, *, now: float | None = None) -> ExperimentStatus:
    """Return the state of an experiment at ``now``, in seconds since 1970; by default the only one whose manager runs.

    Raises InputError if NNI does not know the experiment, or if none is named and not exactly one is running.
    """
    experiment_id = experiment_id or _only_running()
    profile = read_settings(experiment_id)
    known = known_experiments()[experiment_id]
    running = is_running(experiment_id, known)
    points, started = _points(experiment_id), _starts(experiment_id)
    trials = [
        _trial(
            trial,
            _state(trial, running),
            profile.get("trialCommand") or "",
            points.get(trial.id, []),
            started.get(trial.id),
            now or time.time(),
        )
        for trial in read_trials(experiment_id)
    ]
    name = profile.get("experimentName") or "experiment without a name"
    address = f"http://127.0.0.1:{known['port']}" if running else None
    return ExperimentStatus(experiment_id, name, address, trials, planned_trials(profile))


def planned_trials(profile: Mapping[str, Any]) -> int | None:
    """Return the number of trials: maxTrialNumber, or a grid's size if that is less; None if nothing limits them."""
    limits = [profile["maxTrialNumber"]] if profile.get("maxTrialNumber") else []
    tuner, space = profile.get("tuner") or {}, profile.get("searchSpace") or {}
    if tuner.get("name") == "GridSearch" and all(_is_flat_choice(dimension) for dimension in space.values()):
        limits.append(math.prod(len(dimension["_value"]) for dimension in space.values()))
    return min(limits, default=None)


def duration(seconds: float) -> str:
    """Return a time for a person: ``40 s``, ``3 min``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _only_running() -> str:
    known = known_experiments()
    running = [experiment_id for experiment_id, entry in known.items() if is_running(experiment_id, entry)]
    if len(running) == 1:
        return running[0]
    if running:
        raise InputError(f"{len(running)} experiments are running; name one with --experiment: {', '.join(running)}")
    have = ", ".join(known) or "none"
    raise InputError(f"no experiment is running on this machine; name one with --experiment, NNI knows: {have}")


def _points(experiment_id: str) -> dict[str, list[Point]]:
    """Return the intermediate results of every trial, in the order in which they came."""
    points: dict[str, list[Point]] = {}
    sql = "SELECT trialJobId, timestamp, sequence, data FROM MetricData WHERE type = 'PERIODICAL' ORDER BY timestamp"
    for trial, milliseconds, sequence, data in query(experiment_id, sql):
        points.setdefault(trial, []).append(Point(milliseconds / 1000, sequence, reported_metrics(data) or {}))
    return points


def _starts(experiment_id: str) -> dict[str, float]:
    """Return the time at which each trial last began to run, in seconds since 1970."""
    sql = "SELECT trialJobId, max(timestamp) FROM TrialJobEvent WHERE event = 'RUNNING' GROUP BY trialJobId"
    return {trial: milliseconds / 1000 for trial, milliseconds in query(experiment_id, sql)}


def _state(trial: TrialRecord, running: bool) -> str:
    state = STATUSES.get(trial.status, trial.status.lower())
    if trial.final is not None and state in (INCOMPLETE, RUNNING):
        return FINISHED
    return INTERRUPTED if state == RUNNING and not running else state


def _trial(
    trial: TrialRecord, state: str, command: str, points: Sequence[Point], started: float | None, now: float
) -> TrialStatus:
    plan, last = _plan(trial, command), points[-1] if points else None
    epoch, left = _epochs_done(trial, last), None
    foretold = last.metrics.get("seconds_left") if last else None
    if state == RUNNING and last and isinstance(foretold, (int, float)):
        left = max(foretold - (now - last.time), 0.0)
    elif state == RUNNING and epoch and plan.epochs is not None and started is not None:
        heard = max(started, last.time) if last else now
        pace = _pace(points) or ((heard if heard > started else now) - started) / epoch
        left = max(pace * (plan.epochs + plan.afterwards - epoch) - (now - heard), 0.0)
    measured = _measured(plan.stage, trial.final or (last.metrics if last else {}))
    snapshot = trial.folder is not None and (trial.folder / SNAPSHOT).exists()
    return TrialStatus(trial.id, state, epoch, plan.epochs, measured, left, snapshot)


def _plan(trial: TrialRecord, command: str) -> Plan:
    """Return the plan by the trial's own config.json, or, on another machine, by its command and NNI's parameters."""
    stage = None
    try:
        stage = stage_of_command(command)
        if trial.folder and (trial.folder / "config.json").exists():
            name, values, _ = read_config(trial.folder / "config.json")
            stage = STAGES[name]
            return Plan(stage, stage.config.from_record(values, source=f"trial {trial.id}"))
        if stage is None:
            return Plan(stage)
        parser = _Parser()
        parser.add_argument("--config")
        add_flags(parser, stage.config)
        arguments = parser.parse_known_args(shlex.split(command))[0]
        if arguments.config is not None:  # the file may be on another machine
            return Plan(stage)
        config = from_flags(stage.config, arguments)
        return Plan(stage, config.override(plain_parameters(trial.parameters)))
    except (InputError, ValueError):  # the trial itself reports this in its trial.stderr
        return Plan(stage)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _measured(stage: Stage | None, metrics: Mapping[str, Any]) -> dict[str, float]:
    named = {stage.symbol if stage else "default": metrics.get("default"), "accuracy": metrics.get("accuracy")}
    return {name: value for name, value in named.items() if isinstance(value, (int, float))}


def _epochs_done(trial: TrialRecord, last: Point | None) -> int | None:
    """Return the number of epochs done, by the rows of metrics.csv, else by the last intermediate result."""
    rows = trial.folder / "metrics.csv" if trial.folder else None
    if rows and rows.exists():
        return len(rows.read_text(encoding="utf-8").splitlines()) - 1
    if last is None:
        return None
    epoch = last.metrics.get("epoch")  # NNI does not hear of all epochs of a compression
    return int(epoch) if isinstance(epoch, (int, float)) else last.sequence + 1


def _pace(points: Sequence[Point]) -> float | None:
    """Return the median seconds per epoch; pauses between attempts do not count."""
    steps = [b.time - a.time for a, b in pairwise(points) if b.sequence == a.sequence + 1]
    return statistics.median(steps) if steps else None


def _is_flat_choice(dimension: Mapping[str, Any]) -> bool:
    values = dimension.get("_value", ())
    return dimension.get("_type") == "choice" and not any(isinstance(value, Mapping) for value in values)
