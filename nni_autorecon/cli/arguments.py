"""These arguments of the command line are shared by several commands."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, NoReturn

from ..config.common import Config


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line, and which takes ``-1,0,0`` for a value."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._negative_number_matcher = re.compile(r"-\.?\d[\d.,eE+-]*")

    def error(self, message: str) -> NoReturn:
        """Print one line that names the error and the help, and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; see {self.prog} --help\n")


def add_stage(parser: argparse.ArgumentParser, config: type[Config]) -> argparse.ArgumentParser:
    """Add the arguments of a stage, for its command and for its trial script, and return the parser."""
    parser.usage = "%(prog)s [--config FILE] [-o FOLDER] [settings]"
    group = parser.add_argument_group("the run", "settings may also stand in the file given with --config")
    group.add_argument("--config", metavar="FILE", help="settings in JSON or YAML; flags override it")
    group.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="folder for results (default: under runs/)")
    group.add_argument("--force", action="store_true", help="replace results that stand in the folder")
    group.add_argument("--resume", action="store_true", help="go on with the unfinished run in the folder")
    group.add_argument("--tensorboard", action="store_true", help="write the metrics for TensorBoard, too")
    config.add_arguments(parser)
    return parser
