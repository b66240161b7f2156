"""What a person sees when something is wrong: one line that names the thing and the remedy."""

from __future__ import annotations

import reprlib


class AutoReConError(Exception):
    """Any error this package raises on purpose; the command line prints it as one line."""


class InputError(AutoReConError, ValueError):
    """Something the person gave (a setting, a file, a network) cannot be used. Exit code 2."""


class MachineError(AutoReConError, RuntimeError):
    """The machine cannot do what is asked: its disk is full, a download failed, there is no GPU. Exit code 3."""


class DivergenceError(AutoReConError, RuntimeError):
    """Training produced NaN or infinity. Exit code 1."""


def one_line(error: BaseException) -> str:
    """The message of any error, on one line."""
    return " ".join(str(error).split())


def named(error: BaseException) -> str:
    """The type and message of any error, on one line."""
    return f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")


def shown(value: object) -> str:
    """``repr(value)``, short whatever it is: nested, endless, or a number of a million digits."""
    return _SHORT.repr(value)


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxdict, self.maxstring, self.maxother = 2, 4, 4, 80, 80

    def repr_int(self, number: int, level: int) -> str:
        return repr(number) if number.bit_length() < 256 else f"<a number of {number.bit_length()} bits>"


_SHORT = _Short()
