"""A run's metrics are written as TensorBoard reads them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import unwritable

STEPS = ("epoch", "candidate")
"""Rows count one of these; each row has exactly one."""


class EventFile:
    """An event file in ``folder`` with the numbers in the rows of a run, under their names, by epoch or candidate.

    Raises InputError if tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise InputError(f"--tensorboard needs {error.name}; pip install 'nni-autorecon[tensorboard]'") from error
        self._event, self._summary, self._writer = Event, Summary, RecordWriter
        self.folder = folder
        self._path = folder / f"events.out.tfevents.{time.time():.0f}.{os.getpid()}"

    def begin(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Start the file with ``rows``. Raises InputError if the folder cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self._append(self._event(wall_time=time.time(), file_version="brain.Event:2"))
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Append the numbers of a row, at the step of its ``epoch`` or ``candidate``."""
        values = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if isinstance(value, (int, float)) and name not in STEPS
        ]
        step = next(row[name] for name in STEPS if name in row)
        self._append(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))

    def _append(self, event: Any) -> None:
        try:
            with self._path.open("ab") as file:
                self._writer(file).write(event.SerializeToString())
        except OSError as error:
            raise unwritable(self._path, error) from error


def remove_events(folder: Path) -> None:
    """Delete the event files in ``folder``, and the folder if nothing else is in it."""
    for path in folder.glob("events.out.tfevents.*"):
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
