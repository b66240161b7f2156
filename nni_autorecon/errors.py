"""Errors show a person one line that names what is wrong and the remedy."""

from __future__ import annotations

import reprlib

LONGEST = 1000
"""Messages of other libraries may hold all that a person's file holds; no more characters of them are shown."""


class AutoReConError(Exception):
    """The base of all errors that this package raises on purpose; the command line prints them as one line.

    Example:
        >>> try:
        ...     nar.load_student("missing.safetensors")
        ... except nar.AutoReConError as error:
        ...     print(error)
        cannot read saved network missing.safetensors: No such file or directory; check the path
    """


class InputError(AutoReConError, ValueError):
    """Something that the person gave (a setting, a file, a network) cannot be used. Exit code 2.

    Example:
        >>> nar.Bits("w9a9")
        Traceback (most recent call last):
        nni_autorecon.errors.InputError: bits 'w9a9' are not understood; write them as w4a8, with 2 to 8 bits each
    """


class MachineError(AutoReConError, RuntimeError):
    """The machine cannot do what is asked: its disk is full, a download failed, there is no GPU. Exit code 3.

    Example:
        >>> issubclass(nar.MachineError, RuntimeError)
        True
    """


class DivergenceError(AutoReConError, RuntimeError):
    """A loss is no longer finite: training produced NaN or infinity. Exit code 1.

    Example:
        >>> nar.search("digits", weight_lr=1e30, weight_steps=3, progress=False)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        nni_autorecon.errors.DivergenceError: training L_r in epoch 1 became nan; lower ...
    """


def one_line(error: BaseException) -> str:
    """Return the message of any error on one line, its first thousand characters if it is longer."""
    message = " ".join(str(error).split())
    return message if len(message) <= LONGEST else f"{message[:LONGEST]}…"


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
