"""What a person sees when something is wrong: one line that names the thing and the remedy."""


class AutoReConError(Exception):
    """Any error this package raises on purpose; the command line prints it as one line."""


class InputError(AutoReConError, ValueError):
    """Something the person gave (a setting, a file, a network) cannot be used. Exit code 2."""


class DivergenceError(AutoReConError, RuntimeError):
    """Training produced NaN or infinity. Exit code 1."""


def one_line(error: Exception) -> str:
    """The message of any error, on one line."""
    return " ".join(str(error).split())


def named(error: Exception) -> str:
    """The type and message of any error, on one line."""
    return f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
