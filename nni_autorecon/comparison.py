"""Runs side by side, as the paper's tables have them: a row per method or generator, over seeds."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .records import FINISHED, Run

Row = tuple[Any, ...]

SCALE, EQUAL_MACS, SEED = "generator_scale", "gdfq@equal-macs", "{seed}"
EXECUTION = ("threads", "device")
IMAGE_METHODS, IMAGE_SETTINGS = ("zeroq", "zeroq-kd", "dfc"), ("image_count", "image_steps", "image_lr")
"""Methods that distil images, and how."""
NO_ROW = {"seed", "bits", SCALE, "protocol", *EXECUTION}
"""Settings that make no row: they make columns and tables, or say where it ran."""
IN_ORDER = (
    "dfq", "zeroq", "zeroq-kd", "dfc", "gdfq", "gdfq-conditional", EQUAL_MACS, "random", "all", "published", "searched",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A run and the settings it is compared by, its generator under the name it has over all seeds.

    ``pattern`` spells that name out: "searched" may be ``searched:digits/seed-{seed}.json``.
    """

    run: Run
    settings: Mapping[str, Any]
    pattern: str


@dataclass(frozen=True)
class Cell:
    """The runs of one row and column: what the finished ones measured, by seed, and the status of the others."""

    by_seed: Mapping[int, float]
    unfinished: tuple[str, ...] = ()

    @property
    def mean(self) -> float | None:
        return statistics.mean(self.by_seed.values()) if self.by_seed else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds; None for fewer than two."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    def text(self, *, gain: float | None, seeds: int) -> str:
        """``92.31 ± 0.20 (+1.10), 1 of 4 failed``; ``n=2`` if fewer than ``seeds`` were run at all."""
        counts = Counter(sorted(self.unfinished))
        if not self.by_seed:
            alone = len(counts) == 1
            return ", ".join(status if alone else f"{n} {status}" for status, n in counts.items()) or "–"
        finished, total = len(self.by_seed), len(self.by_seed) + len(self.unfinished)
        parts = [spread(self.by_seed.values(), ".2f") + ("" if gain is None else f" ({gain:+.2f})")]
        if finished == 1 or (finished < seeds and not counts):
            parts.append(f"n={finished}")
        return ", ".join([*parts, *(f"{n} of {total} {status}" for status, n in counts.items())])


@dataclass(frozen=True)
class Table:
    """``metric`` in % over rows, which differ in ``row_names``, and columns, which differ in the setting ``column``."""

    metric: str
    row_names: tuple[str, ...]
    rows: tuple[Row, ...]
    column: str | None
    columns: tuple[Any, ...]
    cells: Mapping[tuple[Row, Any], Cell]
    costs: Mapping[Row, tuple[str, str]]
    """Of each row's generator: MMACs, thousands of parameters."""
    seeds: int
    """How many the whole report has."""

    def cell(self, row: Row, column: Any) -> Cell:
        return self.cells.get((row, column), Cell({}))

    def gain(self, row: Row, column: Any) -> float | None:
        """Points over the row that has GDFQ's method and generator and is the same otherwise; None for that row.

        Where GDFQ's generator stands at equal MACs only, that is the row.
        """
        kinds = {_kind(str(each[-1])): each[-1] for each in self.rows}
        gdfq_row = {"method": "gdfq", "generator": kinds.get("gdfq", kinds.get(EQUAL_MACS)), "genotype": None}
        gdfq = tuple(gdfq_row.get(name, value) for name, value in zip(self.row_names, row, strict=True))
        mean, baseline = self.cell(row, column).mean, self.cell(gdfq, column).mean
        if self.metric == "agreement":  # each generator's is measured on its own images
            return None
        return None if row == gdfq or mean is None or baseline is None else mean - baseline

    def text(self, row: Row, column: Any) -> str:
        """What stands in the cell; – where no run was begun."""
        return self.cell(row, column).text(gain=self.gain(row, column), seeds=self.seeds)

    def column_heads(self) -> list[str]:
        if self.column is None:
            return [self.metric.replace("_", " ")]
        return [f"s = {value:g}" if self.column == SCALE else str(value) for value in self.columns]


def compare(runs: Sequence[Run]) -> list[Entry]:
    """``runs`` with comparable settings.

    Where NNI's record lacks a setting, it is the other runs' if these agree. A method without a generator has none,
    whatever the setting says.
    """
    names = dict.fromkeys(name for run in runs for name in run.settings)
    given = [{name: _plain(value) for name, value in run.settings.items()} for run in runs]
    known = {name: {settings[name] for settings in given if name in settings} for name in names}
    shared = {name: next(iter(values)) if len(values) == 1 else None for name, values in known.items()}
    filled = [
        {**(shared if run.command is None else dict.fromkeys(names)), **settings}
        for run, settings in zip(runs, given, strict=True)
    ]
    generators = _generator_names(filled)
    genotypes = _patterns([(f"searched:{settings.get('genotype')}", settings.get("seed")) for settings in filled])
    for settings, genotype in zip(filled, genotypes, strict=True):
        matters = settings.get("genotype") and _has_width_of_genotype(settings)  # else it is in the generator's name
        settings["genotype"] = genotype.partition(":")[2] if matters else None
    for name in IMAGE_SETTINGS:
        _level_unless_used(filled, name, lambda one: one.get("method") in IMAGE_METHODS)
    _level_unless_used(filled, "genotype", _has_width_of_genotype)
    return [
        Entry(run, {**settings, "generator": name}, pattern)
        for run, settings, (name, pattern) in zip(runs, filled, generators, strict=True)
    ]


def _level_unless_used(
    settings: Sequence[dict[str, Any]], name: str, uses: Callable[[Mapping[str, Any]], bool]
) -> None:
    """Give runs that have no use for a setting the one value of those that have, or None, so that it makes no row."""
    used = {one.get(name) for one in settings if uses(one)}
    for one in settings:
        if used and not uses(one):
            one[name] = next(iter(used)) if len(used) == 1 else None


def _has_width_of_genotype(settings: Mapping[str, Any]) -> bool:
    return _kind(str(settings.get("generator"))) in ("random", "all") and settings.get("width") is None


def varying(entries: Sequence[Entry], *, among: Iterable[str] | None = None) -> list[str]:
    """The settings in which ``entries`` differ."""
    names = entries[0].settings if among is None else among
    return [name for name in names if len({entry.settings.get(name) for entry in entries}) > 1]


def row_settings(entries: Sequence[Entry]) -> tuple[str, ...]:
    """The settings that tell rows apart: method first, generator last, the others between; at least the generator."""
    names = [name for name in varying(entries) if name not in NO_ROW | {"method", "generator"}]
    ends = varying(entries, among=("method", "generator"))
    return (*(["method"] if "method" in ends else []), *names, *(["generator"] if ends != ["method"] else []))


def make_table(
    metric: str, entries: Sequence[Entry], row_names: tuple[str, ...], column: str | None, *, seeds: int
) -> Table:
    """``metric`` of ``entries`` (which hold it as a fraction) in %, rows and columns in the paper's order."""
    groups: dict[tuple[Row, Any], list[Entry]] = defaultdict(list)
    for entry in entries:
        row = tuple(entry.settings[name] for name in row_names)
        groups[row, entry.settings[column] if column else None].append(entry)
    rows = sorted({row for row, _ in groups}, key=lambda row: [_rank(value) for value in row])
    columns = sorted({value for _, value in groups}, key=_rank, reverse=column == "bits")  # w6a6 first, as printed
    cells = {key: _cell(metric, group) for key, group in groups.items()}
    by_row = {row: [groups[row, value] for value in columns if (row, value) in groups] for row in rows}
    costs = {
        row: (_cost(group, column, "macs", 1e6), _cost(group, column, "parameters", 1e3))
        for row, group in by_row.items()
    }
    return Table(metric, row_names, tuple(rows), column, tuple(columns), cells, costs, seeds)


def spread(values: Iterable[float], form: str) -> str:
    """Mean ± sample standard deviation; a single value as it is."""
    values = list(values)
    mean = f"{statistics.mean(values):{form}}"
    return f"{mean} ± {statistics.stdev(values):{form}}" if len(values) > 1 else mean


def _cell(metric: str, group: Sequence[Entry]) -> Cell:
    """Of several finished runs with the same seed, the last one counts."""
    values = {entry.settings["seed"]: entry.run.metrics.get(metric) for entry in _finished(group)}
    measured = {seed: 100 * value for seed, value in values.items() if value is not None}
    return Cell(measured, tuple(entry.run.status for entry in group if entry.run.status != FINISHED))


def _finished(group: Iterable[Entry]) -> list[Entry]:
    return [entry for entry in group if entry.run.status == FINISHED]


def _cost(groups: Sequence[Sequence[Entry]], column: str | None, what: str, unit: float) -> str:
    """Over seeds; where columns are scales, one after another."""
    if column != SCALE:
        groups = [[entry for group in groups for entry in group]]
    texts = []
    for group in groups:
        costs = {entry.settings["seed"]: entry.run.metrics.get(f"generator_{what}") for entry in _finished(group)}
        known = [cost / unit for cost in costs.values() if cost is not None]
        form = ".1f" if what == "macs" else ".0f"
        texts.append(spread(known if len(set(known)) > 1 else known[:1], form) if known else "–")
    return " / ".join(texts) if set(texts) != {"–"} else "–"


def _generator_names(settings: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """``random:0`` of seed 0 and ``random:1`` of seed 1 are one generator, ("random", "random:{seed}"); so are files.

    If there are several of a kind, the pattern is the name. What runs of several seeds share is left as it is.
    """
    patterns = _patterns([(_spelled(one), one.get("seed")) for one in settings])
    kinds = Counter(_kind(pattern) for pattern in set(patterns) if SEED in pattern)
    return [
        (_kind(pattern) if SEED in pattern and kinds[_kind(pattern)] == 1 else pattern, pattern) for pattern in patterns
    ]


def _patterns(generators: Sequence[tuple[str, int | None]]) -> list[str]:
    """Generators, each with its run's seed, with ``{seed}`` in its place unless several seeds share the generator."""
    alone = {text for text, times in Counter(text for text, _ in set(generators)).items() if times == 1}
    return [_with_placeholder(text, seed) if text in alone else text for text, seed in generators]


def _spelled(settings: Mapping[str, Any]) -> str:
    """The generator with its genotype's file, or – for a method that has none."""
    if settings.get("method") not in (None, "gdfq"):
        return "–"
    generator, genotype = settings.get("generator") or "searched", settings.get("genotype")
    return f"{generator}:{genotype}" if genotype and _means_genotype(generator) else str(generator)


def _with_placeholder(text: str, seed: int | None) -> str:
    """The last whole number that is the seed becomes ``{seed}``, if a seed may stand there at all."""
    if SEED in text:
        return text
    kind, argument = _kind(text), text.partition(":")[2]
    found = list(re.finditer(rf"(?<!\d){seed}(?!\d)", argument))
    if not (kind == "random" or _means_genotype(kind)) or not found:
        return text
    return f"{kind}:{argument[: found[-1].start()]}{SEED}{argument[found[-1].end() :]}"


def _means_genotype(kind: str) -> bool:
    return kind == "searched" or kind.endswith("@equal-macs")


def _kind(generator: str) -> str:
    return generator.partition(":")[0]


def _rank(value: Any) -> tuple[int, float, str]:
    """Sorts numbers by size, methods and generators as the paper has them, and the rest by its letters."""
    if isinstance(value, (int, float)):
        return -1, value, ""
    kind = _kind(str(value))
    return IN_ORDER.index(kind) if kind in IN_ORDER else len(IN_ORDER), 0.0, str(value)


def _plain(value: Any) -> Any:
    """NNI's record may hold anything; a table needs something that can be compared."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
