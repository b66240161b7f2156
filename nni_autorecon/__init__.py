"""AutoReCon on Microsoft NNI: search a generator for a frozen classifier, then quantize it without data."""

import warnings

from .version import __version__

__all__ = ["__version__"]

# NNI 3.0 says this of classes that torch has added since; nobody can act on it.
warnings.filterwarnings("ignore", message=".*is found to be not a nn.Module", category=RuntimeWarning)
