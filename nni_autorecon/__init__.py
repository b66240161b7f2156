"""AutoReCon on Microsoft NNI: search a generator for a frozen classifier, then quantize it without data."""

from .version import __version__

__all__ = ["__version__"]
