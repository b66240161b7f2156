"""These arguments of the command line are shared by several commands."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, cast

from ..config.common import Config
from ..config.flags import add_flags
from . import screen


class Parser(argparse.ArgumentParser):
    """A parser whose errors take one line, and which takes ``-1,0,0`` for a value."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._negative_number_matcher = re.compile(r"-\.?\d[\d.,eE+-]*")
        self.rare: list[Any] = []
        """The groups of arguments that ``--help`` leaves out, and ``--help-all`` shows."""

    def format_help(self) -> str:
        """Return the help without the rare groups."""
        every = self._action_groups
        self._action_groups = [group for group in every if group not in self.rare]
        try:
            return super().format_help()
        finally:
            self._action_groups = every

    def parse_known_args(self, *arguments: Any, **named: Any) -> Any:
        """Refuse unknown arguments in the parser of the command, which can say the name that was meant."""
        known, unknown = super().parse_known_args(*arguments, **named)
        if unknown:
            meant = _meant(unknown[0].partition("=")[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
        return known, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is not among the choices, which for a COMMAND are the commands, by the name that was meant."""
        if action.choices is not None and value not in action.choices:
            meant = _meant(str(value), action.choices) or f"; choose from {', '.join(map(str, action.choices))}"
            raise argparse.ArgumentError(action, f"{value!r} is unknown{meant}")

    def error(self, message: str) -> NoReturn:
        """Print one line that names the error and the help, and exit with code 2."""
        screen.error(f"{self.prog}: error: {' '.join(message.split())}; see {self.prog} --help")
        self.exit(2)


def _meant(word: str, choices: Iterable[Any]) -> str:
    """Return a question for the one of ``choices`` that ``word`` is nearly; nothing if there is none."""
    close = difflib.get_close_matches(word, map(str, choices), n=1)
    return f"; did you mean {close[0]}?" if close else ""


class _HelpAll(argparse.Action):
    """Shows the help with all groups."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        cast(Parser, parser).rare, parser.epilog = (
            [],
            "GDFQ, AdaDFQ and the like are papers; docs/settings.md lists them.",
        )
        parser.print_help()
        parser.exit()


def add_stage(parser: Parser, config: type[Config]) -> Parser:
    """Add the arguments of a stage, for its command and for its trial script, and return the parser."""
    parser.usage = "%(prog)s [--config FILE] [-o FOLDER] [settings]"
    group = parser.add_argument_group(
        "the run", "Settings may also stand in the file of --config. Symbols in [brackets] are the paper's."
    )
    group.add_argument("--config", metavar="FILE", help="settings in JSON or YAML; flags override it")
    group.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="folder for results (default: under runs/)")
    group.add_argument("--force", action="store_true", help="replace results that stand in the folder")
    group.add_argument("--resume", action="store_true", help="go on with the unfinished run in the folder")
    group.add_argument("--tensorboard", action="store_true", help="write the metrics for TensorBoard, too")
    screen.add_arguments(group)
    parser.add_argument("--help-all", action=_HelpAll, nargs=0, help="show all settings and exit")
    known = len(parser._action_groups)
    add_flags(parser, config)
    parser.rare = parser._action_groups[known + 1 :]  # the first group is what most people set
    parser.epilog = "%(prog)s --help-all shows all settings."
    return parser
