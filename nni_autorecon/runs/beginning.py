"""A stage begins with its teacher, given or named in its settings, and with the state of an unfinished run."""

from __future__ import annotations

from ..config.common import Config
from ..teacher.configured import configured_teacher, use_threads
from ..teacher.loading import Teacher
from .folder import RunFolder
from .progress import said_if_slow
from .snapshots import State


def taken_up(run: RunFolder, command: str, config: Config, teacher: Teacher | None) -> tuple[Teacher, State | None]:
    """Return the teacher, loaded if it is not given, and the state of an unfinished run of ``command`` in the folder.

    A run that cannot be resumed is refused before anything is loaded. Raises InputError in that case, and as
    :func:`~nni_autorecon.teacher.loading.load_teacher` does.
    """
    if teacher is None:
        state = run.earlier(command, config)
        with said_if_slow(f"teacher {config.teacher} is loaded and checked"):
            return configured_teacher(config), state
    use_threads(config)
    run.inputs |= teacher.inputs
    return teacher, run.earlier(command, config)
