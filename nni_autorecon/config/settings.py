"""Settings that know their range: checked on every way in, whether from a file, a flag or the tuner."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import math
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from ..errors import InputError, one_line, shown
from ..files import parse_json, read_text

if TYPE_CHECKING:
    from typing_extensions import Self


def setting(
    default: Any,
    help: str,
    *,
    symbol: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    pattern: str | None = None,
) -> Any:
    """A dataclass field that knows its range (both ends included) and what it means."""
    metadata = {"help": help, "symbol": symbol, "low": low, "high": high, "choices": choices, "pattern": pattern}
    return dataclasses.field(default=default, metadata=metadata)


Presets = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Settings whose values stand for values of others: by name and value."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Named values, each declared by :func:`setting` in a subclass."""

    PRESETS: ClassVar[Presets] = {}
    _given: ClassVar[frozenset[str]] = frozenset()
    """Names that :meth:`override` was given, each object's own."""

    def override(self, values: Mapping[str, Any], *, source: str = "settings") -> Self:
        """A copy with ``values`` replaced, each checked against its type and range.

        A preset among them gives its own values to those that neither they nor an override before them name. Of two
        presets the later in ``PRESETS`` wins.
        ``source`` says in errors where the values came from. Raises InputError for an unknown name, a wrong
        type or a value out of range. A whole float is taken for an int: NNI's ``quniform`` sends 4.0.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"{source}: expected names and values, got {type(values).__name__}; use key: value pairs")
        fields = {field.name: field for field in dataclasses.fields(self)}
        presets = {name: str(values[name]) for name in self.PRESETS if values.get(name) is not None}
        checked = self._ungiven(presets) if presets else {}
        for name, value in values.items():
            if name not in fields:
                raise InputError(f"{source}: unknown setting {shown(name)}{_suggestion(name, fields)}")
            checked[name] = _check(fields[name], type(self).field_type(name), value, source)
        changed = dataclasses.replace(self, **checked)
        object.__setattr__(changed, "_given", self._given | values.keys())  # no field: results do not depend on it
        return changed

    def _ungiven(self, presets: Mapping[str, str]) -> dict[str, Any]:
        """What ``presets`` say, and in what those before said the default, of settings that have not been given.

        What the constructor was told counts as given where it differs from the default and from the presets before.
        """
        before = {name: str(getattr(self, name)) for name in self.PRESETS}
        old, defaults = self._meaning(before), {field.name: field.default for field in dataclasses.fields(self)}
        new = {**{name: defaults[name] for name in old}, **self._meaning({**before, **presets})}
        ungiven = {name: (defaults[name], old.get(name, defaults[name])) for name in new}
        return {
            name: value
            for name, value in new.items()
            if name not in self._given and getattr(self, name) in ungiven[name]
        }

    def _meaning(self, presets: Mapping[str, str]) -> dict[str, Any]:
        """What presets of these names say together."""
        said = [meanings.get(presets[name], {}) for name, meanings in self.PRESETS.items()]
        return {name: value for meaning in said for name, value in meaning.items()}

    @classmethod
    def load(cls, path: str | Path | None) -> Self:
        """Defaults overridden by a JSON or YAML file; the defaults alone if ``path`` is None."""
        if path is None:
            return cls()
        text = read_text(Path(path), "config file")
        try:
            values = _read_json_or_yaml(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a number or date that is none
            fault = f"config file {path} is neither JSON nor YAML: {one_line(error)}"
            raise InputError(f"{fault}; give a line for each setting, such as epochs: 3") from error
        if isinstance(values, dict):
            values = {name: cls._as_meant(name, value) for name, value in values.items()}
        return cls().override({} if values is None else values, source=f"config file {path}")

    @classmethod
    def _as_meant(cls, name: Any, value: Any) -> Any:
        """YAML takes 1e-3 for text, and a grey mean of 0.5 for a number."""
        if name in ("mean", "std") and isinstance(value, (int, float)):
            return str(value)
        if isinstance(value, str) and name in cls.__dataclass_fields__ and cls.field_type(name) is float:
            return _parse(float, value)
        return value

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """One flag per setting. Flags that are not given leave no trace, so that files and defaults show through."""
        group = parser.add_argument_group("settings", "each may also stand in the file given with --config")
        for field in dataclasses.fields(cls):
            meta = field.metadata
            flag = "--" + field.name.replace("_", "-")
            default = "" if field.default is None else f" (default: {field.default})"
            symbol = f" [{meta['symbol']}]" if meta["symbol"] else ""
            help_text = f"{meta['help']}{symbol}{default}".replace("%", "%%")
            if cls.field_type(field.name) is bool:
                action: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
            else:
                action = {"metavar": "|".join(meta["choices"]) if meta["choices"] else _METAVARS.get(field.name, "N")}
            group.add_argument(flag, dest=field.name, default=argparse.SUPPRESS, help=help_text, **action)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """Defaults, then the file in ``arguments.config``, then the flags that were given."""
        names = {field.name for field in dataclasses.fields(cls)}
        given = {name: value for name, value in vars(arguments).items() if name in names}
        parsed = {
            name: _parse(cls.field_type(name), value) if isinstance(value, str) else value
            for name, value in given.items()
        }
        return cls.load(getattr(arguments, "config", None)).override(parsed, source="command line")

    @classmethod
    def field_type(cls, name: str) -> type:
        """The plain type of a setting: int, float, bool or str (``None`` may be allowed beside it)."""
        annotation = _annotations(typing.cast(Any, cls))[name]
        if isinstance(annotation, types.UnionType):
            annotation = next(member for member in typing.get_args(annotation) if member is not type(None))
        return typing.cast(type, annotation)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _read_json_or_yaml(text: str) -> Any:
    """JSON is read as JSON: YAML 1.1 takes its 1e-05 for text."""
    try:
        return parse_json(text)
    except ValueError:
        return yaml.load(text, _PlainLoader)


class _PlainLoader(yaml.SafeLoader):
    """Reads data only, as ``yaml.safe_load``, but no aliases, which can stand for endless text, and no name twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*) are not read", self.get_mark())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                raise yaml.constructor.ConstructorError(None, None, f"{shown(key.value)} stands twice", key.start_mark)
            names.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def _check(field: dataclasses.Field[Any], kind: type, value: Any, source: str) -> Any:
    """``value`` as ``kind``, within the field's range, or InputError."""
    meta, where = field.metadata, f"{source}: {field.name}"
    if value is None and field.default is None:
        return None
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if value.bit_length() < 1024 else math.inf
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{where} = {shown(value)} is not {_ARTICLE[kind]}; give {_ARTICLE[kind]}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} = {value!r} is not finite; give an ordinary number")
    if meta["choices"] and value not in meta["choices"]:
        raise InputError(f"{where} = {shown(value)} is not one of {', '.join(meta['choices'])}; choose one of them")
    if meta["pattern"] and not re.fullmatch(meta["pattern"], str(value)):
        raise InputError(f"{where} = {shown(value)} does not look like {field.default} (bits from 2 to 8); correct it")
    if isinstance(value, str) and not _can_be_a_name(value):
        raise InputError(f"{where} = {shown(value)} holds characters that no file name has; leave them out")
    if meta["low"] is not None and value < meta["low"]:
        raise InputError(f"{where} = {shown(value)} is too small; the least is {meta['low']:g}")
    high: Any = meta["high"] or (_LARGEST_INT if kind is int else None)
    if high is not None and value > high:
        raise InputError(f"{where} = {shown(value)} is too large; the most is {high:.10g}")
    return value


_LARGEST_INT = 2**31 - 1


def _can_be_a_name(text: str) -> bool:
    """Whether the system can be asked for a file of this name: most text settings are one."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half of a character that JSON spells in two
        return False


_ARTICLE = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _parse(kind: type, text: str) -> Any:
    """A flag's text as ``kind``; what cannot be read stays text, for ``_check`` to name."""
    if kind is str:
        return text
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        return text


_METAVARS = {"checkpoint": "FILE", "genotype": "FILE", "bits": "wNaN", "mean": "N,N,N", "std": "N,N,N"} | dict.fromkeys(
    ("teacher", "student", "generator", "test_data"), "SPEC"
)


def _suggestion(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known settings: {', '.join(known)}"
