"""Every setting is a flag of the command line; its help, its choices and its type are the setting's own."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from .settings import Settings, fields_of, read_number

AnySettings = TypeVar("AnySettings", bound=Settings)

_METAVARS = {
    "checkpoint": "FILE",
    "checkpoint_key": "KEY",
    "genotype": "FILE",
    "labels": "FILE",
    "bits": "wNaN",
    "student_bits": "wNaN",
    "size": "SIZE",
    "mean": "N,N,N",
    "std": "N,N,N",
} | dict.fromkeys(("teacher", "student", "generator", "test_data"), "SPEC")


def add_flags(
    parser: argparse.ArgumentParser, kind: type[Settings], groups: Mapping[str, tuple[str, ...]] | None = None
) -> None:
    """Add one flag per setting. A flag that is not given leaves no trace; files and defaults show through.

    groups: headings with the settings below each, for a command that takes these alone and has other defaults.
    """
    fields = fields_of(kind)
    tell_defaults = groups is None
    if groups is None:
        listed = {name for names in kind.GROUPS.values() for name in names}
        rest = tuple(name for name in fields if name not in listed)
        groups = {**kind.GROUPS, **({"other settings": rest} if rest else {})}
    for heading, names in groups.items():
        group = parser.add_argument_group(heading)
        for name in names:
            _add_flag(group, fields[name], kind.field_type(name), tell_default=tell_defaults)


def _add_flag(group: Any, field: dataclasses.Field[Any], kind: type, *, tell_default: bool) -> None:
    meta = field.metadata
    flag = "--" + field.name.replace("_", "-")
    default = f" (default: {field.default})" if tell_default and field.default is not None else ""
    symbol = f" [{meta['symbol']}]" if meta["symbol"] else ""
    help_text = f"{meta['help']}{symbol}{default}".replace("%", "%%")
    if kind is bool:
        action: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
    else:
        action = {"metavar": "|".join(meta["choices"]) if meta["choices"] else _METAVARS.get(field.name, "N")}
        if field.name in ("mean", "std"):
            action["nargs"] = "+"  # people write 0.5 0.4 0.3 as well as 0.5,0.4,0.3
    added = group.add_argument(flag, dest=field.name, default=argparse.SUPPRESS, help=help_text, **action)
    if meta["choices"] or kind in (int, float):
        added.completer = lambda **_: meta["choices"] or ()  # argcomplete asks for it; else it names files


def from_flags(kind: type[AnySettings], arguments: argparse.Namespace) -> AnySettings:
    """Return the defaults, overridden by the file in ``arguments.config`` and then by the flags that were given."""
    given = {name: value for name, value in vars(arguments).items() if name in fields_of(kind)}
    parsed = {
        name: read_number(kind.field_type(name), value)
        if isinstance(value, str) and kind.field_type(name) in (int, float)
        else value
        for name, value in given.items()
    }
    return kind.load(getattr(arguments, "config", None)).override(parsed, source="command line")
