"""AutoReCon on Microsoft NNI: search a generator for a frozen classifier, then quantize it without data.

Example:
    >>> import nni_autorecon as nar
    >>> nar.Bits("w4a8").activations
    8
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .api import (
        AutoReConError,
        Bits,
        CompressConfig,
        CompressionResult,
        DistillationResult,
        DistillConfig,
        DivergenceError,
        Genotype,
        InputError,
        MachineError,
        SavedNetwork,
        SearchConfig,
        SearchResult,
        Student,
        Teacher,
        compress,
        distill,
        load_student,
        load_teacher,
        search,
    )

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
    "__version__",
    "compress",
    "distill",
    "load_student",
    "load_teacher",
    "search",
]

# NNI 3.0 says this of classes that torch has added since; nobody can act on it.
warnings.filterwarnings("ignore", message=".*is found to be not a nn.Module", category=RuntimeWarning)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and NNI take seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
