"""Runs, finished or not, leave records, which a report compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.stages import STAGES
from ..errors import InputError, shown
from ..files import parse_json, read_text, unsealed

FINISHED, INCOMPLETE, FAILED, CANCELED, RUNNING, WAITING = STATUSES = (
    "finished",
    "incomplete",
    "failed",
    "canceled",
    "running",
    "waiting",
)
SNAPSHOT = "snapshot.bin"
"""This file of a run's folder lets it go on."""
LOSS_SETTINGS = ("image_size", "mean", "std", "bns_weight", "bns_form")
"""L_r depends on these settings beside the teacher and the generator."""


@dataclass(frozen=True)
class Run:
    """One run of a stage: its place, its settings, its status and its metrics.

    If only NNI's own record is left, ``settings`` may lack some, and ``command`` is None. ``metrics`` holds the metrics
    of the stage, accuracies and agreement as fractions; a metric that was not measured is None or absent.
    """

    source: str
    command: str | None
    settings: Mapping[str, Any]
    status: str
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    """The folder with the run's files; None if it is not on this machine."""


def read_folders(folders: Sequence[Path]) -> list[Run]:
    """Return the runs in ``folders`` and below them, each once, sorted by path within each folder.

    Raises InputError if a folder holds none, or if a file is damaged, which it names.
    """
    found: dict[Path, Run] = {}
    for folder in map(Path, folders):
        try:
            configs = sorted(folder.rglob("config.json"))
        except OSError as error:
            raise InputError(f"cannot look into {folder}: {error.strerror or error}; give another folder") from error
        if not configs:
            raise InputError(
                f"no runs in {folder}; a run's folder holds config.json, and result.json once it has finished"
            )
        for config in configs:
            found.setdefault(config.parent.resolve(), read_folder(config.parent))
    return list(found.values())


def read_folder(folder: Path) -> Run:
    """Return the run in ``folder``; without a result.json it is incomplete. Raises InputError for a damaged file."""
    command, settings, versions = read_config(folder / "config.json")
    result = folder / "result.json"
    if not result.exists():
        return Run(str(folder), command, settings, INCOMPLETE, versions=versions, folder=folder)
    values = read_run_file(result)
    metrics = checked_metrics(values, command, source=str(result))
    return Run(str(folder), command, with_generator(settings, values), FINISHED, metrics, versions, folder)


def read_config(path: Path) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Return command, settings and versions in a run's config.json. Raises InputError if it holds anything else."""
    values = read_run_file(path)
    command, versions = values.get("command"), values.get("versions", {})
    if not isinstance(command, str) or command not in STAGES or not isinstance(versions, dict):
        raise InputError(f"{path} names no command of {', '.join(STAGES)}, so it is not a run's; leave its folder out")
    return command, checked_settings(values.get("config"), command, source=str(path)), versions


def checked_settings(settings: Any, command: str, *, source: str) -> dict[str, Any]:
    """Return all settings of ``command``, with defaults for those that an earlier version lacked.

    Raises InputError if ``settings`` are no such settings.
    """
    return STAGES[command].config.from_record(settings, source=source).to_dict()


def with_generator(settings: Mapping[str, Any], result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``settings`` with the generator that the run's result names, if they left it to the run to choose one."""
    chosen = result.get("generator")
    if "generator" not in settings or settings["generator"] is not None or not isinstance(chosen, str):
        return settings
    return {**settings, "generator": chosen}


def checked_metrics(values: Mapping[str, Any], command: str, *, source: str) -> dict[str, float | None]:
    """Return the metrics of the stage ``command`` among ``values``.

    Raises InputError if one is neither a number nor null.
    """
    metrics = {name: values[name] for name in STAGES[command].metrics if name in values}
    for name, value in metrics.items():
        if not (value is None or isinstance(value, (int, float))):
            fault = f"{name} = {shown(value)} is not a number"
            raise InputError(f"{source} is damaged: {fault}; run it again or leave it out")
    return metrics


def read_run_file(path: Path) -> dict[str, Any]:
    """Return the names and values in a JSON file of a run. Raises InputError if it is damaged."""
    try:
        values = parse_json(read_text(path, "run file"))
        if not isinstance(values, dict):
            raise ValueError("no names and values")
        return unsealed(values)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); run it again or leave its folder out") from error
