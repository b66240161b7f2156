"""How a stage begins: with the teacher that it was given or that its settings name, and with what a run left."""

from __future__ import annotations

from ..config.common import Config
from ..teacher.loading import Teacher, configured_teacher, use_threads
from .folder import RunFolder
from .snapshots import State


def taken_up(run: RunFolder, command: str, config: Config, teacher: Teacher | None) -> tuple[Teacher, State | None]:
    """Return the teacher, loaded if it is not given, and what an unfinished run of ``command`` left in the folder.

    A run that cannot be resumed is refused before anything is loaded. Raises InputError if it cannot, or as
    :func:`~nni_autorecon.teacher.loading.load_teacher` does.
    """
    if teacher is None:
        state = run.earlier(command, config)
        return configured_teacher(config), state
    use_threads(config)
    run.inputs |= teacher.inputs
    return teacher, run.earlier(command, config)
