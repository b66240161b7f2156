"""Python users call these functions: three stages, and the loaders of teachers and students.

The command line calls the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .accel.memory import keep_freed_memory
from .config.common import NETWORK, Config
from .config.compress import CompressConfig
from .config.distill import DistillConfig
from .config.search import SearchConfig
from .errors import AutoReConError, DivergenceError, InputError, MachineError
from .export.loading import load_student
from .export.saved_network import SavedNetwork
from .export.student import Student
from .generator.genotype import Genotype
from .quantization.specification import Bits
from .runs.folder import Mode, NoFolder, RunFolder
from .runs.progress import Show
from .student.compression_run import run_compression
from .student.distillation_run import run_distillation
from .student.results import CompressionResult, DistillationResult
from .teacher.loading import Teacher, load_teacher

if TYPE_CHECKING:
    from .nas.search import SearchResult

__all__ = [
    "AutoReConError",
    "Bits",
    "CompressConfig",
    "CompressionResult",
    "DistillConfig",
    "DistillationResult",
    "DivergenceError",
    "Genotype",
    "InputError",
    "MachineError",
    "SavedNetwork",
    "SearchConfig",
    "SearchResult",
    "Student",
    "Teacher",
    "compress",
    "distill",
    "load_student",
    "load_teacher",
    "search",
]

Row = Mapping[str, Any]
"""The metrics of an epoch, by name."""
AnyConfig = TypeVar("AnyConfig", bound=Config)


def search(
    teacher: Teacher | str = "digits",
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    replace: bool = False,
    tensorboard: bool = False,
    progress: Show = True,
    on_epoch: Callable[[Row], object] = lambda row: None,
    on_step: Callable[[], object] = lambda: None,
    on_result: Callable[[SearchResult], object] = lambda result: None,
    config: SearchConfig | None = None,
    mode: Mode | None = None,
    **settings: Any,
) -> SearchResult:
    """Search a generator architecture for a teacher (stage 1 of Algorithm 1).

    Args:
        teacher: The frozen network, or its name as ``load_teacher`` takes it.
        folder: The folder for settings, metrics, figures and the genotype. None writes nothing.
        resume: Go on with the unfinished run in ``folder``, as after an interruption.
        replace: Replace the results of an earlier run in ``folder``.
        tensorboard: Write the metrics for TensorBoard, too.
        progress: Show a bar in a terminal or notebook, plain lines elsewhere; ``lines`` writes plain lines anywhere.
        on_epoch: A function called with the metrics of each epoch (or candidate). Its errors end the search.
        on_step: A function called with every batch. Its errors end the search.
        on_result: A function called with the result while the folder is still this process's own.
        config: All settings at once, instead of ``settings``.
        mode: The treatment of a folder that holds something, instead of ``resume`` and ``replace``.
        **settings: Settings of :class:`SearchConfig` by name, such as ``seed=1`` or ``preset="best"``.

    Returns:
        The genotype, L_r of its generator after the final training, and the costs of the search.

    Raises:
        InputError: If a setting, the teacher or the folder cannot be used.
        DivergenceError: If a loss is no longer finite.
        MachineError: If the disk is full, a download fails, or a GPU is asked for and missing.

    Example:
        >>> import nni_autorecon as nar
        >>> found = nar.search("digits", epochs=1, weight_steps=1, architecture_steps=1, final_steps=1, progress=False)
        >>> len(found.genotype.choices)
        33
    """
    from .nas.search import run_search  # NNI is imported here, because the other stages do without it

    network, config = _configured(SearchConfig, config, teacher, settings)
    with _run_folder(folder, _mode(mode, resume, replace), tensorboard) as run:
        result = run_search(config, run, network, on_epoch=on_epoch, on_step=on_step, progress=progress)
        on_result(result)
    return result


def compress(
    teacher: Teacher | str = "digits",
    *,
    genotype: Genotype | str | Path | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    replace: bool = False,
    tensorboard: bool = False,
    progress: Show = True,
    on_epoch: Callable[[Row], object] = lambda row: None,
    on_step: Callable[[], object] = lambda: None,
    on_result: Callable[[CompressionResult], object] = lambda result: None,
    config: CompressConfig | None = None,
    mode: Mode | None = None,
    **settings: Any,
) -> CompressionResult:
    """Quantize a teacher and distil it, without data (stage 2 of Algorithm 1, and the methods of Table 5).

    Args:
        teacher: The frozen network, or its name as ``load_teacher`` takes it.
        genotype: The generator's genotype, as a search returned it, or a file of it.
        folder: The folder for settings, metrics, figures and the student. None writes nothing.
        resume: Go on with the unfinished run in ``folder``, as after an interruption.
        replace: Replace the results of an earlier run in ``folder``.
        tensorboard: Write the metrics for TensorBoard, too.
        progress: Show a bar in a terminal or notebook, plain lines elsewhere; ``lines`` writes plain lines anywhere.
        on_epoch: A function called with the metrics of each epoch, and with about how many ``seconds_left`` the
            epochs after it take. Its errors end the run.
        on_step: A function called with every batch. Its errors end the run.
        on_result: A function called with the result while the folder is still this process's own.
        config: All settings at once, instead of ``genotype`` and ``settings``.
        mode: The treatment of a folder that holds something, instead of ``resume`` and ``replace``.
        **settings: Settings of :class:`CompressConfig` by name, such as ``bits="w4a4"`` or ``test_data="mine.npz"``.

    Returns:
        The measurements, and the student, which can be saved or exported.

    Raises:
        InputError: If a setting, the teacher, the genotype or the folder cannot be used.
        DivergenceError: If a loss is no longer finite.
        MachineError: If the disk is full, a download fails, or a GPU is asked for and missing.

    Example:
        >>> import nni_autorecon as nar
        >>> result = nar.compress("digits", method="dfq", bits="w8a8", progress=False)
        >>> result.accuracy > 0.9
        True
    """
    network, config = _configured(CompressConfig, config, teacher, settings, genotype)
    with _run_folder(folder, _mode(mode, resume, replace), tensorboard) as run:
        result = run_compression(config, run, network, on_epoch=on_epoch, on_step=on_step, progress=progress)
        on_result(result)
    return result


def distill(
    teacher: Teacher | str = "digits",
    *,
    genotype: Genotype | str | Path | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    replace: bool = False,
    tensorboard: bool = False,
    progress: Show = True,
    on_epoch: Callable[[Row], object] = lambda row: None,
    on_step: Callable[[], object] = lambda: None,
    on_result: Callable[[DistillationResult], object] = lambda result: None,
    config: DistillConfig | None = None,
    mode: Mode | None = None,
    **settings: Any,
) -> DistillationResult:
    """Distil a teacher into another architecture, without data (Table 4).

    Args:
        teacher: The frozen network, or its name as ``load_teacher`` takes it.
        genotype: The generator's genotype, as a search returned it, or a file of it.
        folder: The folder for settings, metrics, figures and the student. None writes nothing.
        resume: Go on with the unfinished run in ``folder``, as after an interruption.
        replace: Replace the results of an earlier run in ``folder``.
        tensorboard: Write the metrics for TensorBoard, too.
        progress: Show a bar in a terminal or notebook, plain lines elsewhere; ``lines`` writes plain lines anywhere.
        on_epoch: A function called with the metrics of each epoch. Its errors end the run.
        on_step: A function called with every iteration. Its errors end the run.
        on_result: A function called with the result while the folder is still this process's own.
        config: All settings at once, instead of ``genotype`` and ``settings``.
        mode: The treatment of a folder that holds something, instead of ``resume`` and ``replace``.
        **settings: Settings of :class:`DistillConfig` by name, such as ``student="models.py:make"``.

    Returns:
        The measurements, and the trained network.

    Raises:
        InputError: If a setting, the teacher, the student, the genotype or the folder cannot be used.
        DivergenceError: If a loss is no longer finite.
        MachineError: If the disk is full, a download fails, or a GPU is asked for and missing.

    Example:
        >>> import nni_autorecon as nar
        >>> result = nar.distill("digits", generator="gdfq", epochs=1, steps=1, student_steps=1, progress=False)
        >>> result.student_parameters < result.teacher_parameters
        True
    """
    network, config = _configured(DistillConfig, config, teacher, settings, genotype)
    with _run_folder(folder, _mode(mode, resume, replace), tensorboard) as run:
        result = run_distillation(config, run, network, on_epoch=on_epoch, on_step=on_step, progress=progress)
        on_result(result)
    return result


def _configured(
    kind: type[AnyConfig],
    config: AnyConfig | None,
    teacher: Teacher | str,
    settings: Mapping[str, Any],
    genotype: Genotype | str | Path | None = None,
) -> tuple[Teacher | None, AnyConfig]:
    """Return the teacher, if it is loaded already, and all settings.

    Raises InputError if they contradict each other.
    """
    keep_freed_memory()
    if config is not None:
        if settings or genotype is not None:
            raise InputError(f"config is given, and {', '.join(settings) or 'genotype'} beside it; give one of them")
        if isinstance(teacher, str):
            if teacher not in ("digits", config.teacher):  # digits is the parameter's default
                raise InputError(
                    f"teacher {teacher} is given beside a config of teacher {config.teacher}; give one of them"
                )
            return None, config
        return teacher, _of_loaded(teacher, config)
    values = dict(settings)
    if genotype is not None:
        values["genotype"] = genotype.to_json(indent=None) if isinstance(genotype, Genotype) else str(genotype)
    if isinstance(teacher, str):
        return None, kind().override({"teacher": teacher, **values}, source="arguments")
    return teacher, _of_loaded(teacher, kind().override(values, source="arguments"))


def _of_loaded(teacher: Teacher, config: AnyConfig) -> AnyConfig:
    """Return ``config`` with the settings of a loaded teacher. Raises InputError if it sets such ones itself."""
    if said := [name for name in (*NETWORK, "device") if name in config.given]:
        raise InputError(f"the teacher is loaded already, so that {', '.join(said)} would do nothing; leave it out")
    return config.override({"teacher": teacher.name, **teacher.settings}, source="arguments")


def __getattr__(name: str) -> Any:
    """Import the result of a search when it is first named, because NNI takes seconds."""
    if name != "SearchResult":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .nas.search import SearchResult

    return SearchResult


def _mode(mode: Mode | None, resume: bool, replace: bool) -> Mode:
    """Return the treatment of a folder that holds something. Raises InputError if both flags are set."""
    if mode is not None:
        return mode
    if resume and replace:
        raise InputError("resume goes on with a run and replace begins it again; give one of them")
    return "resume" if resume else "replace" if replace else "new"


def _run_folder(folder: str | Path | None, mode: Mode, tensorboard: bool) -> RunFolder:
    """Return the folder of a run, or its stand-in if nothing is to be written.

    Raises InputError if there is no folder to resume, to replace or to write into.
    """
    if folder is not None:
        return RunFolder(folder, mode, tensorboard=tensorboard)
    if mode != "new" or tensorboard:
        raise InputError("without a folder there is nothing to resume, to replace or to write into; give folder")
    return NoFolder()
