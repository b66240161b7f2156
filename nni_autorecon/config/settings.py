"""Settings check themselves when they are made, whether by a constructor, a file, a flag or the tuner."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import os
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import InputError, shown
from .reading import read_names_and_values
from .rules import Rule

if TYPE_CHECKING:
    from typing_extensions import Self


def setting(
    default: Any,
    help: str,
    *,
    symbol: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Iterable[str] | None = None,
) -> Any:
    """Return a dataclass field that knows its range (both ends included), its choices and its meaning."""
    choices = None if choices is None else tuple(choices)
    metadata = {"help": help, "symbol": symbol, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


Presets = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""A preset is a setting whose value sets others: by the preset's name, by its value, by the other's name."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Named values, each declared by :func:`setting` in a subclass and checked when an object is made.

    A value that the constructor is given stands. A preset among these sets other settings (of two presets, the later in
    ``PRESETS`` wins). All remaining settings have their defaults. ``given`` holds the names that were given.

    Raises InputError for an unknown name and for a value of a wrong type or out of range. A whole float is taken for an
    int, because NNI's ``quniform`` sends 4.0.
    """

    PRESETS: ClassVar[Presets] = {}
    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Headings of the help, in their order, with the settings below each; all other settings come last."""
    RULES: ClassVar[tuple[Rule, ...]] = ()
    """These rules say when settings are used."""
    IDLE_PRESETS: ClassVar[bool] = True
    """This is True if a preset may set a setting that is not used."""
    FORMER_VALUES: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Former values by setting, with their present names; they are still read."""

    given: ClassVar[frozenset[str]] = frozenset()
    """The names that the constructor was given; each object has its own. No result depends on it, so it is no field."""

    shared: ClassVar[frozenset[str]] = frozenset()
    """These given names may have no effect, because they are meant for several trials; see :meth:`as_shared`."""

    def __new__(cls, **values: Any) -> Self:
        cls._require_known(values, "settings")
        made = super().__new__(cls)
        object.__setattr__(made, "given", frozenset(values))
        return made

    def __post_init__(self) -> None:
        for name in fields_of(type(self)):  # in their order, so that the same one of several errors is always shown
            if name in self.given:
                object.__setattr__(self, name, self._checked(name, getattr(self, name), "settings"))
        for name, value in self.preset_values.items():
            if name not in self.given:
                object.__setattr__(self, name, value)

    @property
    def preset_values(self) -> dict[str, Any]:
        """Return the values that the presets set, also for settings that were given otherwise."""
        said = [meanings.get(str(getattr(self, name)), {}) for name, meanings in self.PRESETS.items()]
        return {name: value for meaning in said for name, value in meaning.items()}

    def override(self, values: Mapping[str, Any], *, source: str = "settings") -> Self:
        """Return a copy in which ``values`` are given beside what was given before, which they replace.

        ``source`` says in errors where the values came from. Raises InputError for an unknown name, a wrong type or a
        value out of range.
        """
        before = {name: getattr(self, name) for name in self.given}
        made = type(self)(**{**before, **self._all_checked(values, source)})
        object.__setattr__(made, "shared", self.shared - values.keys())
        return made

    def as_shared(self) -> Self:
        """Return a copy whose settings may have no effect: a tuner chooses others, trial by trial."""
        made = self.override({})
        object.__setattr__(made, "shared", made.given)
        return made

    def require_used(self) -> None:
        """Raise InputError if a setting was given that has no effect, by ``RULES``."""
        values = self.to_dict()
        asked = {name for name in self.given - self.shared if values[name] is not None}
        by_preset = {} if self.IDLE_PRESETS else self._named_by_presets(asked)
        idle: dict[str, list[str]] = {}
        for rule in self.RULES:
            if not rule.holds(values):
                found = [name for name in rule.names if name in asked or name in by_preset]
                idle.setdefault(rule.reason(values), []).extend(found)
        for reason, names in idle.items():
            if names:
                causes = dict.fromkeys(by_preset.get(name, name) for name in names)
                raise InputError(
                    f"{reason}, so that {', '.join(names)} would do nothing; leave out {' and '.join(causes)}"
                )

    def _named_by_presets(self, asked: set[str]) -> dict[str, str]:
        """Return the settings that presets in ``asked`` change, and the presets, written as ``losses hast``."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {
            name: f"{preset} {getattr(self, preset)}"
            for preset, meanings in self.PRESETS.items()
            if preset in asked
            for name, value in meanings.get(str(getattr(self, preset)), {}).items()
            if name not in asked and getattr(self, name) == value != defaults[name]
        }

    @classmethod
    def from_record(cls, values: Mapping[str, Any], *, source: str) -> Self:
        """Return the settings that an earlier run wrote down; missing ones have their defaults, whatever a preset says.

        Raises InputError as :meth:`override` does.
        """
        checked = cls._all_checked(values, source)
        made = cls(**{**cls().to_dict(), **checked})
        object.__setattr__(made, "given", frozenset())
        return made

    @classmethod
    def load(cls, path: str | Path | None) -> Self:
        """Return the defaults overridden by a JSON or YAML file; return the defaults alone if ``path`` is None.

        Raises InputError if the file cannot be read, or as :meth:`override` does.
        """
        if path is None:
            return cls()
        values = read_names_and_values(path, "config file", remedy="give a line for each setting, such as epochs: 3")
        meant = {name: cls._as_meant(name, value) for name, value in values.items()}
        return cls().override(meant, source=f"config file {path}")

    @classmethod
    def _as_meant(cls, name: Any, value: Any) -> Any:
        """Mend a misreading of YAML, which takes 1e-3 for text."""
        if isinstance(value, str) and name in fields_of(cls) and cls.field_type(name) is float:
            return read_number(float, value)
        return value

    @classmethod
    def field_type(cls, name: str) -> type:
        """Return the plain type of a setting: int, float, bool, str or a kind of str; a None beside it is left out."""
        annotation = _annotations(typing.cast(Any, cls))[name]
        if isinstance(annotation, types.UnionType):
            annotation = next(member for member in typing.get_args(annotation) if member is not type(None))
        return typing.cast(type, annotation)

    @classmethod
    def _all_checked(cls, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Return ``values``, each checked. Raises InputError, also for a name that is no setting."""
        if not isinstance(values, Mapping):
            raise InputError(f"{source}: expected names and values, got {type(values).__name__}; use key: value pairs")
        cls._require_known(values, source)
        return {name: cls._checked(name, value, source) for name, value in values.items()}

    @classmethod
    def _require_known(cls, names: Iterable[str], source: str) -> None:
        """Raise InputError if one of ``names`` is no setting."""
        for name in names:
            if name not in fields_of(cls):
                hint = _suggestion(name, fields_of(cls))
                raise InputError(f"{source}: unknown setting {shown(name)}{hint}")

    @classmethod
    def _checked(cls, name: str, value: Any, source: str) -> Any:
        """Return ``value`` as the type of the setting ``name``, within its range. Raises InputError if that fails."""
        if name in ("mean", "std"):
            value = _as_text(value)
        if isinstance(value, str):
            value = cls.FORMER_VALUES.get(name, {}).get(value, value)
        return _check(fields_of(cls)[name], cls.field_type(name), value, source)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings, as JSON holds them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: str(value) if isinstance(value, str) else value for name, value in values.items()}


@functools.cache
def _annotations(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def fields_of(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """Return the settings by name; ``__dataclass_fields__`` holds class variables, too."""
    return {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}


def _check(field: dataclasses.Field[Any], kind: type, value: Any, source: str) -> Any:
    """Return ``value`` as ``kind``, within the field's range. Raises InputError if that fails."""
    meta, where = field.metadata, f"{source}: {field.name}"
    if value is None and field.default is None:
        return None
    plain = str if issubclass(kind, str) else kind
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if value.bit_length() < 1024 else math.inf
    if not isinstance(value, plain) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{where} = {shown(value)} is not {_ARTICLE[plain]}; give {_ARTICLE[plain]}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} = {value!r} is not finite; give an ordinary number")
    if meta["choices"] and value not in meta["choices"]:
        raise InputError(f"{where} = {shown(value)} is not one of {', '.join(meta['choices'])}; choose one of them")
    if isinstance(value, str) and not _can_be_a_name(value):
        raise InputError(f"{where} = {shown(value)} holds characters that no file name has; leave them out")
    if meta["low"] is not None and value < meta["low"]:
        raise InputError(f"{where} = {shown(value)} is too small; the least is {meta['low']:g}")
    high: Any = meta["high"] or (_LARGEST_INT if kind is int else None)
    if high is not None and value > high:
        raise InputError(f"{where} = {shown(value)} is too large; the most is {high:.10g}")
    if kind is plain:
        return value
    try:
        return kind(value)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


_LARGEST_INT = 2**31 - 1


def _as_text(value: Any) -> Any:
    """Return the numbers of channels, one or several, as text with commas; anything else is returned as it is."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if values and all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in values):
        return ",".join(map(repr, values))
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return ",".join(each.strip(",") for each in value)
    return value


def _can_be_a_name(text: str) -> bool:
    """Return True if the system can be asked for a file of this name; most text settings name a file."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # the text holds one half of a surrogate pair
        return False


_ARTICLE = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def read_number(kind: type, text: str) -> Any:
    """Return ``text`` as ``kind``, int or float; text that cannot be read stays text, and ``_check`` names it."""
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        return text


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known settings: {', '.join(known)}"
