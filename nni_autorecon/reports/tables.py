"""Runs stand side by side as in the paper's tables: a row per method, generator or strategy, over seeds."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ..config.rules import STRATEGIES
from ..quantization.specification import Size
from ..runs.records import FINISHED
from .comparable import EQUAL_MACS, NOT_USED, SCALE, Entry, kind_of

Row = tuple[Any, ...]

IN_ORDER = (
    "dfq",
    "zeroq",
    "zeroq-kd",
    "dfc",
    "gdfq",
    "gdfq-conditional",
    EQUAL_MACS,
    "random",
    "all",
    "published",
    "searched",
)


class Measure(NamedTuple):
    """The printed form of a metric: its head, the factor of its values, and their decimals."""

    head: str
    factor: float
    decimals: int

    def spread(self, values: Iterable[float]) -> str:
        """Return mean ± sample standard deviation of ``values``, already multiplied; return a single value alone."""
        values = list(values)
        mean = f"{statistics.mean(values):.{self.decimals}f}"
        return f"{mean} ± {statistics.stdev(values):.{self.decimals}f}" if len(values) > 1 else mean


MEASURES = {
    "accuracy": Measure("accuracy", 100, 2),
    "agreement": Measure("agreement", 100, 2),
    "teacher_accuracy": Measure("teacher's accuracy", 100, 2),
    "ranges_only_accuracy": Measure("ranges only accuracy", 100, 2),
    "loss": Measure("L_r", 1, 3),
    "class_loss": Measure("class_loss", 1, 3),
    "bns_loss": Measure("bns_loss", 1, 5),
    "generator_macs": Measure("MMACs", 1e-6, 1),
    "generator_parameters": Measure("parameters (k)", 1e-3, 0),
    "updates": Measure("updates", 1, 0),
    "seconds": Measure("seconds", 1, 0),
    "file_bytes": Measure("file (kB)", 1e-3, 1),
    "latency": Measure("latency (ms)", 1, 2),
    "float_latency": Measure("in floating point (ms)", 1, 2),
}
USER_COSTS = ("file_bytes", "latency")
"""The student's file costs its user these; there are tables of those that were measured."""


@dataclass(frozen=True)
class Cell:
    """The runs of one row and column: the values of the finished ones by seed, and the status of the others."""

    by_seed: Mapping[int, float]
    unfinished: tuple[str, ...] = ()

    @property
    def mean(self) -> float | None:
        """Return the mean over the seeds; None if there are none."""
        return statistics.mean(self.by_seed.values()) if self.by_seed else None

    @property
    def std(self) -> float | None:
        """Return the sample standard deviation over the seeds; None for fewer than two."""
        return statistics.stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None

    def text(self, measure: Measure, *, gain: float | None, seeds: int) -> str:
        """Return the text, as in ``92.31 ± 0.20 (+1.10), 1 of 4 failed``; add ``n=2`` if fewer than ``seeds`` ran."""
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
    """``metric`` as it is printed, over rows that differ in ``row_names`` and columns that differ in ``column``."""

    metric: str
    row_names: tuple[str, ...]
    rows: tuple[Row, ...]
    column: str | None
    columns: tuple[Any, ...]
    cells: Mapping[tuple[Row, Any], Cell]
    beside: tuple[str, ...]
    """Further metrics have a column each."""
    texts: Mapping[Row, tuple[str, ...]]
    """The texts of these further columns, for each row."""
    seeds: int
    """The number of seeds in the whole report."""

    def cell(self, row: Row, column: Any) -> Cell:
        """Return the cell, which is empty if no run was begun."""
        return self.cells.get((row, column), Cell({}))

    def gain(self, row: Row, column: Any) -> float | None:
        """Return the points gained over the row with GDFQ's method, generator and losses that is the same otherwise.

        If GDFQ's generator is there only at equal MACs, that row counts. Returns None for that row itself, for
        agreement, size and latency, and if a mean is missing.
        """
        kinds = {kind_of(str(each[-1])): each[-1] for each in self.rows}
        gdfq_row = {
            "method": "gdfq",
            "generator": kinds.get("gdfq", kinds.get(EQUAL_MACS)),
            "genotype": NOT_USED,
            "losses": "gdfq",
        }
        gdfq = tuple(gdfq_row.get(name, value) for name, value in zip(self.row_names, row, strict=True))
        mean, baseline = self.cell(row, column).mean, self.cell(gdfq, column).mean
        if self.metric in ("agreement", *USER_COSTS):  # each generator's agreement is measured on its own images
            return None
        return None if row == gdfq or mean is None or baseline is None else mean - baseline

    def text(self, row: Row, column: Any) -> str:
        """Return the text of the cell; it is – if no run was begun."""
        gain = self.gain(row, column)
        return self.cell(row, column).text(MEASURES[self.metric], gain=gain, seeds=self.seeds)

    def column_heads(self) -> list[str]:
        """Return the heads of the columns: the metric, or the scales or bit widths."""
        if self.column is None:
            return [MEASURES[self.metric].head]
        return [f"s = {value:g}" if self.column == SCALE else str(value) for value in self.columns]


def make_table(
    metric: str,
    entries: Sequence[Entry],
    row_names: tuple[str, ...],
    column: str | None,
    *,
    beside: tuple[str, ...],
    seeds: int,
) -> Table:
    """Return the table of ``metric`` over ``entries``, in the paper's order, with the metrics ``beside`` it."""
    groups: dict[tuple[Row, Any], list[Entry]] = defaultdict(list)
    for entry in entries:
        row = tuple(entry.settings.get(name) for name in row_names)
        groups[row, entry.settings[column] if column else None].append(entry)
    rows = sorted({row for row, _ in groups}, key=lambda row: [*map(_rank, row_names, row)])
    # Columns of bit widths fall: w6a6 comes first. Sizes fall behind them.
    columns = sorted({value for _, value in groups}, key=partial(_rank, column), reverse=column == "bits")
    cells = {key: _cell(metric, group) for key, group in groups.items()}
    by_row = {row: [groups[row, value] for value in columns if (row, value) in groups] for row in rows}
    texts = {row: tuple(_text(name, group, column) for name in beside) for row, group in by_row.items()}
    return Table(metric, row_names, tuple(rows), column, tuple(columns), cells, beside, texts, seeds)


def _cell(metric: str, group: Sequence[Entry]) -> Cell:
    unfinished = tuple(entry.run.status for entry in group if entry.run.status != FINISHED)
    return Cell(_by_seed(metric, group), unfinished)


def _by_seed(metric: str, group: Iterable[Entry]) -> dict[int, float]:
    """Return ``metric`` by seed, as it is printed; the last of several finished runs with the same seed counts."""
    finished = [entry for entry in group if entry.run.status == FINISHED]
    values = {entry.settings["seed"]: entry.run.metrics.get(metric) for entry in finished}
    return {seed: MEASURES[metric].factor * value for seed, value in values.items() if value is not None}


def _text(metric: str, groups: Sequence[Sequence[Entry]], column: str | None) -> str:
    """Return a metric over seeds; if columns are scales, their values follow one another."""
    if column != SCALE:
        groups = [[entry for group in groups for entry in group]]
    texts = []
    for group in groups:
        known = [*_by_seed(metric, group).values()]
        texts.append(MEASURES[metric].spread(known if len(set(known)) > 1 else known[:1]) if known else "–")
    return " / ".join(texts) if set(texts) != {"–"} else "–"


def _rank(setting: str | None, value: Any) -> tuple[int, float, str]:
    """Return a key that sorts numbers and sizes, strategies as they are listed, methods and generators as in the paper.

    All others are sorted by their letters.
    """
    if isinstance(value, (int, float)):
        return -1, value, ""
    if setting == "bits" and " a" in str(value):  # a size
        return -1, Size(str(value).rpartition(" ")[0]).bytes, str(value)
    kind = kind_of(str(value))
    order = STRATEGIES if setting == "strategy" else IN_ORDER
    return order.index(kind) if kind in order else len(order), 0.0, str(value)
