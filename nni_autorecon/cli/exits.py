"""A process ends with an exit code, and without delay; an error that is meant for a person is one line."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

from ..errors import AutoReConError, InputError, MachineError
from ..runs.log_file import LOG_FILE
from ..version import __version__
from . import screen

INTERRUPTED, TERMINATED = 130, 143  # a shell reports Ctrl-C and SIGTERM by these codes
CODES = ((InputError, 2), (MachineError, 3))
"""Exit codes of errors that the person can mend and of errors of the machine; other errors have 1."""


def report_errors(run: Callable[[], object], words: Sequence[str] | None = None) -> int:
    """Call ``run`` and return its exit code; errors that are meant for a person become one line on stderr.

    words: the command, if its run is to have a log. A trial's has none, because NNI keeps what it prints.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path may hold bytes that are not text
            stream.reconfigure(errors="backslashreplace")
    screen.show_messages()
    if words is not None and "NNI_PLATFORM" not in os.environ:
        LOG_FILE.open(f"{screen.PROGRAM} {__version__}: {shlex.join(words)}")
    heeds_signals = threading.current_thread() is threading.main_thread()  # only there Python lets us set a handler
    before = signal.signal(signal.SIGTERM, _terminated) if heeds_signals else None
    try:
        run()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as head, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except AutoReConError as error:
        screen.error(f"{screen.PROGRAM}: error: {' '.join(str(error).split())}")
        return next((code for kind, code in CODES if isinstance(error, kind)), 1)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        screen.error(f"{screen.PROGRAM}: error: out of memory; lower --batch-size, --width or --image-count")
        return 1
    except Terminated as error:
        screen.error(f"{screen.PROGRAM}: error: {error}")
        return TERMINATED
    except KeyboardInterrupt as error:
        screen.say(": ".join(filter(None, (screen.PROGRAM, "interrupted", str(error)))))
        return INTERRUPTED
    finally:
        LOG_FILE.close()
        if heeds_signals:
            signal.signal(signal.SIGTERM, before)
    return 0


class Terminated(BaseException):  # not an Exception: code that handles errors must not handle it
    """SIGTERM has come."""


def _terminated(number: int, frame: object) -> NoReturn:
    raise Terminated("terminated by a signal; an unfinished run goes on with --resume")


def _is_out_of_memory(error: Exception) -> bool:
    """Return True if an error says that there is no memory; PyTorch has no class for it on the CPU."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "bad allocation")


def leave(code: int) -> NoReturn:
    """End the process. A process that was stopped skips the unloading of torch and NNI, which takes seconds.

    A trial that NNI stops by SIGINT ends by that signal, because NNI takes an exit code for a failure.
    """
    if code in (INTERRUPTED, TERMINATED):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        if code == INTERRUPTED and "NNI_PLATFORM" in os.environ:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(code)
    sys.exit(code)
