"""Every run leaves a folder behind."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pandas as pd
from filelock import FileLock, Timeout

from ..config.common import Config
from ..config.stages import STAGES
from ..errors import InputError
from ..files import parse_json, read_text, require_absent, sealed, unwritable, write_json, write_text
from .log_file import LOG, LOG_FILE
from .provenance import versions
from .records import SNAPSHOT
from .resuming import changes, contents, why_not
from .snapshots import LAYOUT, State, load_snapshot, save_snapshot
from .tensorboard import EventFile, remove_events

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)
LOCK, RESULT, METRICS = ".lock", "result.json", "metrics.csv"
EVENTS = "tensorboard"
"""The folder for TensorBoard, where NNI expects it."""
RESULTS = (SNAPSHOT, METRICS, RESULT, LOG, *sorted({name for stage in STAGES.values() for name in stage.files}))
Mode = Literal["new", "replace", "resume", "trial"]
"""A mode says how a folder that is not empty is treated: new refuses it, replace replaces its results, resume goes on
with its unfinished run. An NNI trial goes on if it can, waits for an earlier attempt of its own, and otherwise replaces
the results."""


class RunFolder:
    """The folder of a run: ``config.json`` (resolved settings, versions) at the start, ``metrics.csv`` row by row.

    As a context it keeps the folder from other processes while the run is under way. If its block ends well after
    :meth:`write_result`, nothing is left to go on with, and the snapshot is deleted. With ``tensorboard`` the rows are
    also written for TensorBoard. ``inputs`` are digests of the run's inputs beside the files that its settings name.

    Raises InputError if the folder holds something and ``mode`` is new, or if it is a file.
    """

    keeps = True
    """This is False if nothing is written."""

    def __init__(self, path: str | Path, mode: Mode = "new", *, tensorboard: bool = False) -> None:
        self.path, self.mode = Path(path), mode
        self._events = EventFile(self / EVENTS) if tensorboard else None
        if mode == "new" and (self / SNAPSHOT).exists():
            raise InputError(f"{path} holds an unfinished run; go on with --resume, or replace it with --force")
        require_absent(self.path, force=mode != "new")
        if self.path.is_file():
            raise InputError(f"{path} is a file; name a folder for the results")
        self.rows: list[dict[str, Any]] = []
        self.device = ""
        self.inputs: dict[str, str | None] = {}
        self._replaces = mode in ("replace", "trial")
        self._going_on = self._has_result = False
        self._lock = FileLock(self / LOCK)

    def earlier(self, command: str, config: Config) -> State | None:
        """Return the state that :meth:`save` left of an unfinished run of the same command and settings, or None.

        The rows of that run are read, too. A run that was killed within its first epoch begins again. Raises InputError
        if the run is to be resumed and cannot be; a trial then begins anew.
        """
        self.inputs |= contents(config)
        if self.mode not in ("resume", "trial"):
            return None
        if (self / SNAPSHOT).exists() or ((self / "config.json").exists() and not (self / RESULT).exists()):
            self._take()
        snapshot = load_snapshot(self / SNAPSHOT)
        if snapshot is None and self._only_begun(command, config):
            self._replaces = True
            return None
        fault = why_not(snapshot, command, config, self.inputs)
        if fault is None:
            known = cast(dict[str, Any], snapshot)
            self.rows, self._going_on = known["rows"], True
            return cast(State, known["state"])
        if self.mode == "trial":
            return None
        raise InputError(f"{self.path} {fault}; leave out --resume and choose another folder")

    def _only_begun(self, command: str, config: Config) -> bool:
        """Return True if the folder holds a run of the same settings that has left no snapshot and no result."""
        earlier = self._earlier()
        same = earlier.get("command") == command and not changes(dict(earlier.get("config", {})), config.to_dict())
        return same and not any((self / name).exists() for name in (SNAPSHOT, RESULT))

    def save(self, command: str, config: Config, state: State) -> None:
        """Save the state of the run, after the row of the epoch was logged."""
        here = {"layout": LAYOUT, "command": command, "config": config.to_dict(), "files": self.inputs}
        save_snapshot(self / SNAPSHOT, {**here, "rows": self.rows, "state": state})

    def write_result(self, values: Mapping[str, Any]) -> None:
        """Write ``result.json``, with a checksum."""
        write_json(self / RESULT, sealed(values))
        self._has_result = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None and self._has_result:
            (self / SNAPSHOT).unlink(missing_ok=True)
            (self / LOCK).unlink(missing_ok=True)
        self._lock.release(force=True)  # it may have been taken several times
        if kind is KeyboardInterrupt and self.mode != "trial" and (self / SNAPSHOT).exists():
            raise KeyboardInterrupt(f"--resume goes on with the run in {self.path}")

    def _take(self) -> None:
        """Take the folder for this process alone; a trial waits for what may be an earlier attempt of its own.

        Raises InputError if another process works there, or if the folder cannot be locked or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            if self.mode != "trial":
                fault = f"another process works in {self.path}"
                raise InputError(f"{fault}; wait for it, or choose another folder") from None
            log.warning("another process works in %s; waiting for it to end", self.path)
            self._lock.acquire()
        except NotImplementedError as error:
            raise InputError(f"the file system of {self.path} has no locks; choose a place on another") from error
        except OSError as error:
            raise unwritable(self.path, error) from error

    def start(self, command: str, config: Config, *, device: str) -> None:
        """Write the resolved settings and the device, now that all inputs have proved usable and work begins.

        Results of an earlier run of the same command are deleted if they are to be replaced. A run that goes on keeps
        its rows. Raises InputError if the folder holds results of another command, which this one may need, or if
        another run has taken it meanwhile.
        """
        self.device = device
        if self._going_on:
            self._write_rows()
            self._note_device()
            self._begin_events()
            LOG_FILE.begin(self.path)
            return
        require_absent(self.path, force=self._replaces)
        earlier_run = (self / "config.json").exists()
        if earlier_run and (earlier := self._earlier().get("command", "something else")) != command:
            raise InputError(f"{self.path} holds results of {earlier}, not of {command}; choose another folder")
        self._require_other_inputs(config)
        self._take()
        here = {"command": command, "config": config.to_dict(), "device": device, "versions": versions()}
        write_json(self / "config.json", here)
        for name in RESULTS if earlier_run else ():
            (self / name).unlink(missing_ok=True)
        self._begin_events()
        LOG_FILE.begin(self.path)

    def _require_other_inputs(self, config: Config) -> None:
        """Raise InputError if the run depends on a file that it would replace."""
        for name, path in config.files.items():
            if any(Path(path).resolve() == (self / result).resolve() for result in RESULTS):
                raise InputError(f"{name} {path} would be replaced by results; choose another folder for them")

    def _begin_events(self) -> None:
        """Write all rows so far afresh, because an earlier attempt may have logged one that its snapshot lacks."""
        if self._events or not self._going_on:
            remove_events(self / EVENTS)
        if self._events:
            self._events.begin(self.rows)

    def _earlier(self) -> dict[str, Any]:
        """Return the content of config.json; return nothing if it is missing or damaged."""
        try:
            return dict(parse_json(read_text(self / "config.json", "settings of an earlier run")))
        except (ValueError, TypeError):
            return {}

    def _note_device(self) -> None:
        """Note in config.json that a run goes on on another device: ``cpu, then cuda:0 NVIDIA A100``."""
        earlier = self._earlier()
        if earlier and str(earlier.get("device", self.device)).split(", then ")[-1] != self.device:
            self.device = f"{earlier['device']}, then {self.device}"
            write_json(self / "config.json", {**earlier, "device": self.device})

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row of metrics; the file on disk is always whole."""
        self.rows.append(dict(row))
        self._write_rows()
        if self._events:
            self._events.add(row)

    def _write_rows(self) -> None:
        write_text(self / METRICS, pd.DataFrame(self.rows).to_csv(index=False))


class NoFolder(RunFolder):
    """A run that leaves nothing behind; it knows its rows and its device while it lasts."""

    keeps = False

    def __init__(self) -> None:
        self.rows, self.device, self.inputs = [], "", {}

    def earlier(self, command: str, config: Config) -> None:
        """Return None, because there is nothing to go on with."""

    def save(self, command: str, config: Config, state: State) -> None:
        """Do nothing."""

    def write_result(self, values: Mapping[str, Any]) -> None:
        """Do nothing."""

    def start(self, command: str, config: Config, *, device: str) -> None:
        """Note the device."""
        self.device = device

    def log(self, row: Mapping[str, Any]) -> None:
        """Keep a row of metrics for as long as the run lasts."""
        self.rows.append(dict(row))

    def __exit__(self, *error: object) -> None:
        """Do nothing."""


def new_folder(stage: str, root: Path = Path("runs")) -> Path:
    """Return a name for the folder of a run, from stage, time and process: ``runs/search-20210819-143000-77``."""
    name = f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    # A second run may begin in the same second and process.
    names = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    return next(path for each in names if not (path := root / each).exists())
