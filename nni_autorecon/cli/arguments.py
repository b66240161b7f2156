"""Arguments of the command line that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ..config.common import Config


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; see {self.prog} --help\n")


def add_stage(
    parser: argparse.ArgumentParser, config: type[Config], run: Callable[[argparse.Namespace], object] | None = None
) -> argparse.ArgumentParser:
    """The arguments of a stage, for its command and for its trial script."""
    parser.add_argument("--config", metavar="FILE", help="settings in JSON or YAML; flags override it")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="folder for results (default: under runs/)")
    parser.add_argument("--force", action="store_true", help="replace results that stand in the folder")
    parser.add_argument("--resume", action="store_true", help="go on with the unfinished run in the folder")
    parser.add_argument("--tensorboard", action="store_true", help="write the metrics for TensorBoard, too")
    config.add_arguments(parser)
    parser.set_defaults(run=run)
    return parser
