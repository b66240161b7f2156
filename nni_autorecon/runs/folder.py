"""The folder that every run leaves behind."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pandas as pd
from filelock import FileLock, Timeout

from ..config.common import Config
from ..errors import InputError
from ..files import digest, parse_json, read_text, require_absent, sealed, unwritable, write_json, write_text
from .provenance import versions
from .snapshots import LAYOUT, State, load_snapshot, save_snapshot
from .tensorboard import EventFile, remove_events

log = logging.getLogger(__name__)


SNAPSHOT, LOCK, RESULT = "snapshot.bin", ".lock", "result.json"


EVENTS = "tensorboard"
"""The folder for TensorBoard, where NNI expects it."""


RESULTS = (
    SNAPSHOT, "metrics.csv", "genotype.json", "probabilities.json", RESULT, "student.safetensors", "student.pt",
    "loss.png", "agreement.png", "probabilities.png", "genotype.png", "images.png",
)  # fmt: skip


class RunFolder:
    """``config.json`` (resolved settings, versions) at the start, ``metrics.csv`` row by row, the rest by the caller.

    With ``resume`` an unfinished run in the folder goes on; with ``force``, too, another begins where there is none.
    As a context it leaves the folder to others at the end, which it kept from them while the run was under way.
    With ``tensorboard`` its rows are there for TensorBoard, too.
    Raises InputError if the folder holds something already, unless ``force`` or ``resume``, or is a file.
    """

    def __init__(
        self, path: str | Path, *, force: bool = False, resume: bool = False, tensorboard: bool = False
    ) -> None:
        self.path, self.force, self.resume = Path(path), force, resume
        self._events = EventFile(self / EVENTS) if tensorboard else None
        require_absent(self.path, force=force or resume)
        if self.path.is_file():
            raise InputError(f"{path} is a file; name a folder for the results")
        self.rows: list[dict[str, Any]] = []
        self.device = ""
        self._contents: dict[str, str | None] = {}
        self._going_on = False
        self._waits = force and resume  # a trial, which may find an earlier attempt of its own at work
        self._lock = FileLock(self / LOCK)

    def earlier(self, command: str, config: Config) -> State | None:
        """What :meth:`save` left of an unfinished run of the same command and settings, its rows read; None without.

        One that was killed within its first epoch begins again. Raises InputError, unless ``force``, if it is to be
        resumed and cannot.
        """
        if not self.resume:
            return None
        if (self / SNAPSHOT).exists() or ((self / "config.json").exists() and not (self / RESULT).exists()):
            self._take()
        snapshot = load_snapshot(self / SNAPSHOT)
        if snapshot is None and self._only_begun(command, config):
            self.force = True
            return None
        if snapshot is None:
            fault = f"{self.path} holds no unfinished run"
        elif snapshot.get("layout") != LAYOUT:
            fault = f"{self.path} holds a run of another version of nni-autorecon"
        elif snapshot["command"] != command:
            fault = f"{self.path} holds a run of {snapshot['command']}, not of {command}"
        elif changed := _changes(snapshot["config"], config.to_dict()):
            fault = f"{self.path} was started with other settings ({', '.join(changed)})"
        elif changed := [name for name, now in _contents(config).items() if now not in (None, snapshot["files"][name])]:
            named = ", ".join(f"{name} {config.files[name]}" for name in changed)
            fault = f"{self.path} was started with other contents of {named}"
        else:
            self.rows, self._going_on = snapshot["rows"], True
            return cast(State, snapshot["state"])
        if self.force:
            return None
        raise InputError(f"{fault}; leave out --resume and choose another folder")

    def _only_begun(self, command: str, config: Config) -> bool:
        """Whether the folder holds a run of the same command and settings that has left no snapshot and no result."""
        earlier = self._earlier()
        same = earlier.get("command") == command and not _changes(dict(earlier.get("config", {})), config.to_dict())
        return same and not any((self / name).exists() for name in (SNAPSHOT, RESULT))

    def save(self, command: str, config: Config, state: State) -> None:
        """Remember where the run stands, after the row of the epoch was logged."""
        here = {"layout": LAYOUT, "command": command, "config": config.to_dict(), "files": self._contents}
        save_snapshot(self / SNAPSHOT, {**here, "rows": self.rows, "state": state})

    def write_result(self, values: Mapping[str, Any]) -> None:
        """Write ``result.json``, with a checksum."""
        write_json(self / RESULT, sealed(values))

    def finish(self) -> None:
        """Forget it: all results are written."""
        (self / SNAPSHOT).unlink(missing_ok=True)
        (self / LOCK).unlink(missing_ok=True)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release(force=True)  # however often it was taken

    def _take(self) -> None:
        """Be the only process that works in the folder. A trial waits for what may be an earlier attempt of its own."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            if not self._waits:
                fault = f"another process works in {self.path}"
                raise InputError(f"{fault}; wait for it, or choose another folder") from None
            log.warning("another process works in %s; waiting for it to end", self.path)
            self._lock.acquire()
        except NotImplementedError as error:
            raise InputError(f"the file system of {self.path} has no locks; choose a place on another") from error
        except OSError as error:
            raise unwritable(self.path, error) from error

    def start(self, command: str, config: Config, *, device: str) -> None:
        """Write the resolved settings and the device: what was asked for has proved usable, and work begins.

        With ``force``, results of an earlier run of the same command go. Raises InputError if the folder holds those
        of another, which this one may need, or if another run took it meanwhile. A run that goes on keeps its rows.
        """
        self.device, self._contents = device, _contents(config)
        if self._going_on:
            self._write_rows()
            self._note_device()
            self._begin_events()
            return
        require_absent(self.path, force=self.force)
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

    def _require_other_inputs(self, config: Config) -> None:
        """Raise InputError if the run depends on a file that it would replace."""
        for name, path in config.files.items():
            if any(Path(path).resolve() == (self / result).resolve() for result in RESULTS):
                raise InputError(f"{name} {path} would be replaced by results; choose another folder for them")

    def _begin_events(self) -> None:
        """Write the rows so far afresh: an earlier attempt may have logged one that its snapshot lacks."""
        if self._events or not self._going_on:
            remove_events(self / EVENTS)
        if self._events:
            self._events.begin(self.rows)

    def _earlier(self) -> dict[str, Any]:
        """What config.json says; nothing if it is missing or damaged."""
        try:
            return dict(parse_json(read_text(self / "config.json", "settings of an earlier run")))
        except (ValueError, TypeError):
            return {}

    def _note_device(self) -> None:
        """A run that goes on elsewhere says so: ``cpu, then cuda:0 NVIDIA A100``."""
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
        write_text(self / "metrics.csv", pd.DataFrame(self.rows).to_csv(index=False))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of settings that differ, but for those on which no result depends."""
    return sorted(
        name for name in {*before, *now} - {"threads", "device", "download"} if before.get(name) != now.get(name)
    )


def _contents(config: Config) -> dict[str, str | None]:
    """Digests of the files that the settings name; None of one that cannot be read, as its reader will say."""
    return {name: digest(path) for name, path in config.files.items()}


def new_folder(stage: str, root: Path = Path("runs")) -> Path:
    """A folder name for a run that was given none: stage, time and process, e.g. ``runs/search-20210819-143000-77``."""
    name = f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    names = (name, *(f"{name}-{number}" for number in range(2, 1000)))  # as a second one of the same second and process
    return next(path for each in names if not (path := root / each).exists())
