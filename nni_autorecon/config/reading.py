"""This module reads the names and values that a person writes in JSON or YAML, for settings and for experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError, one_line, shown
from ..files import DEEPEST, parse_json, read_text

LARGEST = 10_000
"""A file may hold this many values; a value that aliases repeat counts each time."""


def read_names_and_values(path: str | Path, what: str, *, remedy: str) -> dict[Any, Any]:
    """Return the names and values in the file ``path``; an empty file holds none.

    ``what`` is the kind of file that errors name. YAML merges (``<<``) and the aliases that they need are read. Raises
    InputError, ending in ``remedy``, if the file is missing, is neither JSON nor YAML, holds anything but names and
    values, or has a name twice.
    """
    text = read_text(Path(path), what)
    try:
        values = parse_json_or_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError stands for an impossible number or date
        reason = one_line(error).replace('"<unicode string>", ', "")
        raise InputError(f"{what} {path} is neither JSON nor YAML: {reason}; {remedy}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{what} {path}: expected names and values, got {type(values).__name__}; {remedy}")
    return values


def parse_json_or_yaml(text: str) -> Any:
    """Return the value that ``text`` spells; JSON is read as JSON, because YAML 1.1 takes its 1e-05 for text.

    Raises ValueError or yaml.YAMLError, with a message for a person. This includes a name that stands twice, values
    that are nested too deeply, and values that are endless by their aliases.
    """
    try:
        return parse_json(text)
    except ValueError:
        value = yaml.load(text, _Loader)
    _require_small(value)
    return value


class _Loader(yaml.SafeLoader):
    """A loader that reads data only, as ``yaml.safe_load`` does, and refuses a mapping in which a name stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in names:
                raise yaml.constructor.ConstructorError(None, None, f"{shown(key.value)} stands twice", key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)


def _require_small(value: Any) -> None:
    """Raise ValueError if ``value`` is nested too deeply or holds more than ``LARGEST`` values."""
    count, level = 0, [value]
    for _ in range(DEEPEST + 1):
        count += len(level)
        if count > LARGEST:
            raise ValueError(f"it holds more than {LARGEST} values")
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise ValueError("it is nested too deeply")
