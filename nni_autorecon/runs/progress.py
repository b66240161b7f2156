"""A run shows how far it is and when it will be over: by a bar in a terminal, by plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from tqdm import tqdm

_log = logging.getLogger(__name__)

Show = bool | Literal["lines"]
"""True shows a bar in a terminal or notebook, plain lines elsewhere; ``lines`` shows them anywhere, False nothing."""
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
FIRST, LATER = 5.0, 30.0
"""So many seconds pass before the first line, and between two later ones."""
FORESEEN = 10.0
"""What is foreseen counts as much as so many seconds of work."""


def progress_bar(what: str, total: float, show: Show, *, passes: bool = False) -> Bar:
    """Return a bar of ``total`` units, which are of equal cost, so that the time left can be told from those before.

    passes: show the bar only if its work takes long, and leave nothing of it.
    """
    if show == "lines" or (show and not sys.stderr.isatty()):
        return _Lines(total=total, desc=what, file=sys.stderr, delay=FIRST, mininterval=FIRST, miniters=0)
    brief: dict[str, Any] = {"delay": FIRST, "leave": False} if passes else {}
    return Bar(total=total, desc=what, disable=not show, bar_format=BAR, file=sys.stderr, **brief)


@contextmanager
def said_if_slow(message: str) -> Iterator[None]:
    """Log what the block does, if it takes longer than ``FIRST`` seconds."""
    timer = threading.Timer(FIRST, _log.info, (message,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Bar(tqdm):  # type: ignore[type-arg]
    """A bar that tells the time left by the average pace so far, because foreseen costs are right on average only."""

    before: float = 0.0
    """The seconds that do not count."""
    foreseen: float = 0.0
    """As if so many units had been done at their foreseen pace, one a second, before the first of them."""

    def begin(self, done: float = 0, *, in_seconds: bool = False) -> None:
        """Leave out of the pace what came before: getting ready, and the units ``done`` by an earlier process.

        in_seconds: the units are foreseen seconds, which are believed until there is a pace to go by.
        """
        self.update(done)
        self.foreseen = FORESEEN if in_seconds else 0.0
        self.initial, self.before = self.n, self.format_dict["elapsed"]

    @property
    def format_dict(self) -> Any:
        """Return what tqdm shows."""
        known = super().format_dict
        if (seconds := known["elapsed"] - self.before) > 0:
            known["rate"] = (self.n - self.initial + self.foreseen) / (seconds + self.foreseen)
        return known


class _Lines(Bar):
    """A bar that writes a line of its own each time, the first one soon."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        def write(text: str) -> None:
            if text.strip():
                file.write(f"{text}\n")
                file.flush()

        return write

    def refresh(self, *arguments: Any, **named: Any) -> Any:
        if self.format_dict["elapsed"] < FIRST:
            return None
        self.mininterval = LATER
        percent = min(int(100 * self.n / (self.total or 1)), 99)
        left = ", {remaining} left" if percent else ""  # before, it would be a wild guess
        self.bar_format = f"{{desc}}: {percent} % done after {{elapsed}}{left}{{postfix}}"
        return super().refresh(*arguments, **named)

    def moveto(self, n: int) -> None:
        """Do not move the cursor, as bars do that stand below others."""

    def close(self) -> None:
        self.leave = False  # the result is printed next
        self.disable = True
        super().close()
