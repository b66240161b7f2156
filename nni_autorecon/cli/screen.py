"""What a command has to say at its end: what was made, how good it is, and what to type next."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterable

PROGRAM = "nni-autorecon"


def conclude(made: str, lines: Iterable[str] = (), *, then: str = "") -> None:
    """Print the summary of a command.

    made: the files that were made or measured, and their main figures.
    lines: how good that is, in lines of their own.
    then: the next command, as :func:`command_line` writes it.
    """
    print("\n".join([made, *lines, *([f"next: {then}"] if then else [])]))


def command_line(*words: str) -> str:
    """Return a command of this program as a person pastes it into this shell."""
    program = [PROGRAM] if shutil.which(PROGRAM) else [sys.executable, "-m", __package__.partition(".")[0]]
    return shlex.join([*program, *words])
