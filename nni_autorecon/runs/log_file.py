"""What a command prints is also written to ``log.txt`` in the folder of its run."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

LOG = "log.txt"


class LogFile:
    """Lines wait here until the run has its folder, and go to its file from then on, each at once.

    Nothing is kept unless :meth:`open` was called, as only the command line does: a trial's lines are kept by NNI.
    """

    def __init__(self) -> None:
        self._waiting: list[str] | None = None
        self._path: Path | None = None

    def open(self, command: str) -> None:
        """Keep lines from now on; the first one says when which command began."""
        self._waiting, self._path = [], None
        self.add(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {command}")

    def add(self, line: str) -> None:
        """Keep a line. A disk that is full does not end a run here, because the run's own files will."""
        if self._path is not None:
            with suppress(OSError), self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{line}\n")
        elif self._waiting is not None:
            self._waiting.append(line)

    def begin(self, folder: Path) -> None:
        """Write what waits to the end of ``log.txt`` in ``folder``, and later lines after it."""
        if self._waiting is not None:
            waiting, self._waiting, self._path = self._waiting, None, folder / LOG
            self.add("\n".join(waiting))

    def close(self) -> None:
        """Keep nothing from now on."""
        self._waiting = self._path = None


LOG_FILE = LogFile()
"""The log of the command that this process runs."""
