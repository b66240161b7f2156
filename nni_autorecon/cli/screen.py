"""What a person sees of a command goes through here: messages and errors on stderr, its summary on stdout."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any, TextIO

from ..runs.log_file import LOG_FILE

PROGRAM = "nni-autorecon"
_BOLD, _RED = "1", "31"

_quiet = False
_json: TextIO | None = None
"""The stream for the result in JSON, if it is asked for."""


def add_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the flags that say what is shown; :func:`as_asked` follows them."""
    parser.add_argument("--quiet", action="store_true", help="show results and warnings alone, no progress")
    parser.add_argument(
        "--json", action="store_true", help="print the result as one JSON object on stdout, all else on stderr"
    )


@contextmanager
def as_asked(arguments: argparse.Namespace) -> Iterator[None]:
    """Show in this block what the flags ask for. With ``--json``, stdout is for the result alone, whoever prints."""
    global _quiet, _json
    before = _quiet, _json
    _quiet = getattr(arguments, "quiet", False)
    _json = sys.stdout if getattr(arguments, "json", False) else None
    try:
        with redirect_stdout(sys.stderr) if _json else nullcontext():
            yield
    finally:
        _quiet, _json = before


def conclude(made: str, lines: Sequence[str] = (), *, values: Mapping[str, Any], then: str = "") -> None:
    """Print the summary of a command.

    made: the files that were made or measured, and their main figures.
    lines: how good that is, in lines of their own.
    values: the same for ``--json``.
    then: the next command, as :func:`command_line` writes it.
    """
    text = [made, *lines, *([f"next: {then}"] if then else [])]
    LOG_FILE.add("\n".join(text))
    if _json is not None:
        print(json.dumps({**values, "next": then or None}, indent=2, default=str), file=_json)
        return
    print("\n".join([_styled(made, _BOLD, sys.stdout), *(lines if _quiet else text[1:])]))


def command_line(*words: str) -> str:
    """Return a command of this program as a person pastes it into this shell."""
    program = [PROGRAM] if shutil.which(PROGRAM) else [sys.executable, "-m", __package__.partition(".")[0]]
    return shlex.join([*program, *words])


def progress() -> bool:
    """Return True if progress is to be shown."""
    return not _quiet


def say(message: str, style: str = "", *, unseen: bool = False) -> None:
    """Print a message beside the result, and keep it in the log, where it goes alone if it is ``unseen``."""
    LOG_FILE.add(message)
    if not unseen:
        print(_styled(message, style, sys.stderr), file=sys.stderr)


def error(message: str) -> None:
    """Print an error."""
    say(message, _RED)


def show_messages() -> None:
    """Show the package's messages, such as the teacher's accuracy, on the stderr of the moment."""
    log = logging.getLogger(__package__.partition(".")[0])
    log.setLevel(logging.INFO)
    if not any(isinstance(handler, _Messages) for handler in log.handlers):
        log.addHandler(_Messages())


class _Messages(logging.Handler):
    """Prints messages as they are."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), unseen=_quiet and record.levelno < logging.WARNING)


def _styled(text: str, style: str, stream: TextIO) -> str:
    """Return ``text`` in a style if ``stream`` is a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return f"\033[{style}m{text}\033[0m" if style and stream.isatty() and not os.environ.get("NO_COLOR") else text
