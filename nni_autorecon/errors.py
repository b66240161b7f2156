"""Errors show a person one line that names what is wrong and the remedy."""

from __future__ import annotations

import reprlib


class AutoReConError(Exception):
    """The base of all errors that this package raises on purpose; the command line prints them as one line."""


class InputError(AutoReConError, ValueError):
    """An error for a setting, a file or a network that the person gave and that cannot be used. Exit code 2."""


class DivergenceError(AutoReConError, RuntimeError):
    """An error for training that produced NaN or infinity. Exit code 1."""


def one_line(error: BaseException) -> str:
    """Return the message of any error on one line."""
    return " ".join(str(error).split())


def named(error: BaseException) -> str:
    """Return the type and the message of any error on one line."""
    return f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")


def shown(value: object) -> str:
    """Return a short form of ``repr(value)``, even if the value is nested, endless, or a number of a million digits."""
    return _SHORT.repr(value)


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxdict, self.maxstring, self.maxother = 2, 4, 4, 80, 80

    def repr_int(self, number: int, level: int) -> str:
        return repr(number) if number.bit_length() < 256 else f"<a number of {number.bit_length()} bits>"


_SHORT = _Short()
