"""Runs side by side, as the paper's tables have them: a row per method, generator or strategy, over seeds."""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from .records import FINISHED, STAGES, Run
from .search_config import STRATEGIES, STRATEGY_SETTINGS

Row = tuple[Any, ...]

SCALE, EQUAL_MACS, SEED = "generator_scale", "gdfq@equal-macs", "{seed}"
NOT_USED = "–"
EXECUTION = ("threads", "device")
IMAGE_METHODS, IMAGE_SETTINGS = ("zeroq", "zeroq-kd", "dfc"), ("image_count", "image_steps", "image_lr")
"""Methods that distil images, and how."""
NO_ROW = {"seed", "bits", SCALE, "protocol", *EXECUTION}
"""Settings that make no row: they make columns and tables, or say where it ran."""
IN_ORDER = (
    "dfq", "zeroq", "zeroq-kd", "dfc", "gdfq", "gdfq-conditional", EQUAL_MACS, "random", "all", "published", "searched",
)  # fmt: skip


class Measure(NamedTuple):
    """How a metric is printed: under which head, times what, with how many decimals."""

    head: str
    factor: float
    decimals: int

    def spread(self, values: Iterable[float]) -> str:
        """Mean ± sample standard deviation of ``values``, which are multiplied already; a single one as it is."""
        values = list(values)
        mean = f"{statistics.mean(values):.{self.decimals}f}"
        return f"{mean} ± {statistics.stdev(values):.{self.decimals}f}" if len(values) > 1 else mean


MEASURES = {
    "accuracy": Measure("accuracy", 100, 2),
    "agreement": Measure("agreement", 100, 2),
    "ranges_only_accuracy": Measure("ranges only accuracy", 100, 2),
    "loss": Measure("L_r", 1, 3),
    "class_loss": Measure("class_loss", 1, 3),
    "bns_loss": Measure("bns_loss", 1, 5),
    "generator_macs": Measure("MMACs", 1e-6, 1),
    "generator_parameters": Measure("parameters (k)", 1e-3, 0),
    "updates": Measure("updates", 1, 0),
    "seconds": Measure("seconds", 1, 0),
}


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

    def text(self, measure: Measure, *, gain: float | None, seeds: int) -> str:
        """``92.31 ± 0.20 (+1.10), 1 of 4 failed``; ``n=2`` if fewer than ``seeds`` were run at all."""
        counts = Counter(sorted(self.unfinished))
        if not self.by_seed:
            alone = len(counts) == 1
            return ", ".join(status if alone else f"{n} {status}" for status, n in counts.items()) or "–"
        finished, total = len(self.by_seed), len(self.by_seed) + len(self.unfinished)
        parts = [measure.spread(self.by_seed.values()) + ("" if gain is None else f" ({gain:+.2f})")]
        if finished == 1 or (finished < seeds and not counts):
            parts.append(f"n={finished}")
        return ", ".join([*parts, *(f"{n} of {total} {status}" for status, n in counts.items())])


@dataclass(frozen=True)
class Table:
    """``metric`` as it is printed, over rows that differ in ``row_names`` and columns in the setting ``column``."""

    metric: str
    row_names: tuple[str, ...]
    rows: tuple[Row, ...]
    column: str | None
    columns: tuple[Any, ...]
    cells: Mapping[tuple[Row, Any], Cell]
    beside: tuple[str, ...]
    """Further metrics, a column each."""
    texts: Mapping[Row, tuple[str, ...]]
    """What stands there in each row."""
    seeds: int
    """How many the whole report has."""

    def cell(self, row: Row, column: Any) -> Cell:
        return self.cells.get((row, column), Cell({}))

    def gain(self, row: Row, column: Any) -> float | None:
        """Points over the row that has GDFQ's method, generator and losses, and is the same otherwise; None for it.

        Where GDFQ's generator stands at equal MACs only, that is the row.
        """
        kinds = {_kind(str(each[-1])): each[-1] for each in self.rows}
        gdfq_row = {
            "method": "gdfq",
            "generator": kinds.get("gdfq", kinds.get(EQUAL_MACS)),
            "genotype": NOT_USED,
            "losses": "gdfq",
        }
        gdfq = tuple(gdfq_row.get(name, value) for name, value in zip(self.row_names, row, strict=True))
        mean, baseline = self.cell(row, column).mean, self.cell(gdfq, column).mean
        if self.metric == "agreement":  # each generator's is measured on its own images
            return None
        return None if row == gdfq or mean is None or baseline is None else mean - baseline

    def text(self, row: Row, column: Any) -> str:
        """What stands in the cell; – where no run was begun."""
        gain = self.gain(row, column)
        return self.cell(row, column).text(MEASURES[self.metric], gain=gain, seeds=self.seeds)

    def column_heads(self) -> list[str]:
        if self.column is None:
            return [MEASURES[self.metric].head]
        return [f"s = {value:g}" if self.column == SCALE else str(value) for value in self.columns]


def compare(runs: Sequence[Run]) -> list[Entry]:
    """``runs`` with comparable settings.

    Where NNI's record lacks a setting, it is the other runs' if these agree. A method without a generator has none,
    whatever the setting says, and so it is with other settings that a method or strategy does not use. A preset speaks
    for settings that differ as it does.
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
        _level_unless_used(filled, name, [one.get("method") in IMAGE_METHODS for one in filled])
    for strategies, names_used in STRATEGY_SETTINGS.items():
        for name in names_used:
            _level_unless_used(filled, name, [one.get("strategy") in strategies for one in filled])
    _level_unless_used(filled, "genotype", [_has_width_of_genotype(one) for one in filled])
    for kind in STAGES.values():
        for preset, meanings in kind.PRESETS.items():
            _level_what_presets_say(filled, preset, meanings)
    return [
        Entry(run, {**settings, "generator": name}, pattern)
        for run, settings, (name, pattern) in zip(runs, filled, generators, strict=True)
    ]


def _level_unless_used(settings: Sequence[dict[str, Any]], name: str, uses: Sequence[bool]) -> None:
    """Give runs that have no use for a setting the one value of those that have, or –, so that it makes no row."""
    used = {one.get(name) for one, use in zip(settings, uses, strict=True) if use}
    for one, use in zip(settings, uses, strict=True):
        if used and not use:
            one[name] = next(iter(used)) if len(used) == 1 else NOT_USED


def _level_what_presets_say(
    settings: Sequence[dict[str, Any]], preset: str, meanings: Mapping[str, Mapping[str, Any]]
) -> None:
    """Take away the settings that differ between runs just as the runs' presets have them differ.

    Beside runs that name a preset, one whose values are a preset's counts as named so.
    """
    if not any(one.get(preset) in meanings for one in settings):
        return
    for one in settings:
        for name, meaning in meanings.items():
            if one.get(preset) is None and all(one.get(key) == value for key, value in meaning.items()):
                one[preset] = name
    if any(one.get(preset) not in meanings for one in settings):
        return
    for name in dict.fromkeys(name for meaning in meanings.values() for name in meaning):
        said = [(one.get(name), meanings[one[preset]].get(name)) for one in settings]
        if len(set(said)) > 1 and all(value in (None, meant) for value, meant in said):
            for one in settings:
                one.pop(name, None)


def _has_width_of_genotype(settings: Mapping[str, Any]) -> bool:
    return _kind(str(settings.get("generator"))) in ("random", "all") and settings.get("width") is None


def varying(entries: Sequence[Entry], *, among: Iterable[str] | None = None) -> list[str]:
    """The settings in which ``entries`` differ."""
    names = entries[0].settings if among is None else among
    return [name for name in names if len({entry.settings.get(name) for entry in entries}) > 1]


def row_settings(entries: Sequence[Entry], stage: str) -> tuple[str, ...]:
    """The settings that tell rows apart: of searches, the strategy and others.

    Of students, method first, generator last, the others between; at least the generator.
    """
    names = [name for name in varying(entries) if name not in NO_ROW | {"strategy", "method", "generator"}]
    if stage == "search":
        return ("strategy", *names)
    ends = varying(entries, among=("method", "generator"))
    return (*(["method"] if "method" in ends else []), *names, *(["generator"] if ends != ["method"] else []))


def make_table(
    metric: str,
    entries: Sequence[Entry],
    row_names: tuple[str, ...],
    column: str | None,
    *,
    beside: tuple[str, ...],
    seeds: int,
) -> Table:
    """``metric`` of ``entries``, rows and columns in the paper's order, and what stands ``beside`` it."""
    groups: dict[tuple[Row, Any], list[Entry]] = defaultdict(list)
    for entry in entries:
        row = tuple(entry.settings.get(name) for name in row_names)
        groups[row, entry.settings[column] if column else None].append(entry)
    rows = sorted({row for row, _ in groups}, key=lambda row: [*map(_rank, row_names, row)])
    columns = sorted({value for _, value in groups}, key=partial(_rank, column), reverse=column == "bits")  # w6a6 first
    cells = {key: _cell(metric, group) for key, group in groups.items()}
    by_row = {row: [groups[row, value] for value in columns if (row, value) in groups] for row in rows}
    texts = {row: tuple(_text(name, group, column) for name in beside) for row, group in by_row.items()}
    return Table(metric, row_names, tuple(rows), column, tuple(columns), cells, beside, texts, seeds)


def _cell(metric: str, group: Sequence[Entry]) -> Cell:
    unfinished = tuple(entry.run.status for entry in group if entry.run.status != FINISHED)
    return Cell(_by_seed(metric, group), unfinished)


def _by_seed(metric: str, group: Iterable[Entry]) -> dict[int, float]:
    """``metric`` as it is printed. Of several finished runs with the same seed, the last one counts."""
    finished = [entry for entry in group if entry.run.status == FINISHED]
    values = {entry.settings["seed"]: entry.run.metrics.get(metric) for entry in finished}
    return {seed: MEASURES[metric].factor * value for seed, value in values.items() if value is not None}


def _text(metric: str, groups: Sequence[Sequence[Entry]], column: str | None) -> str:
    """Over seeds; where columns are scales, one after another."""
    if column != SCALE:
        groups = [[entry for group in groups for entry in group]]
    texts = []
    for group in groups:
        known = [*_by_seed(metric, group).values()]
        texts.append(MEASURES[metric].spread(known if len(set(known)) > 1 else known[:1]) if known else "–")
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
        return NOT_USED
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


def _rank(setting: str | None, value: Any) -> tuple[int, float, str]:
    """Sorts numbers by size, strategies as they are listed, methods and generators as the paper has them.

    The rest comes by its letters.
    """
    if isinstance(value, (int, float)):
        return -1, value, ""
    kind = _kind(str(value))
    order = STRATEGIES if setting == "strategy" else IN_ORDER
    return order.index(kind) if kind in order else len(order), 0.0, str(value)


def _plain(value: Any) -> Any:
    """NNI's record may hold anything; a table needs something that can be compared."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
