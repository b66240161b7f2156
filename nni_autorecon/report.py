"""From runs to a report: the paper's tables as Markdown, a line per run for CSV, a caption that says what was done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from .comparison import EXECUTION, SCALE, SEED, Entry, Table, compare, make_table, row_settings, varying
from .errors import InputError
from .records import FINISHED, METRICS, STAGES, Run, stage_of

MEASURES = {
    "accuracy": "Test accuracy",
    "agreement": "No test data: agreement of student and teacher on fresh synthetic images",
    "ranges_only_accuracy": "By the ranges alone, before any training of the student",
}
IN_CAPTION = {"teacher", "checkpoint", "seed", "generator", "genotype", "bits", "protocol", "epochs"}


@dataclass(frozen=True)
class Section:
    """Tables of one protocol (and of one bit width, where columns are scales), and what became of their runs."""

    heading: str
    tables: tuple[Table, ...]
    note: str


@dataclass(frozen=True)
class Report:
    """Tables, how they came about, and a line per run in ``frame``: in what it differs, its status and metrics."""

    caption: str
    sections: tuple[Section, ...]
    frame: pd.DataFrame
    teacher_accuracy: float | None
    """In %; None where it is not known or not the same in all runs."""

    def to_markdown(self) -> str:
        parts = [self.caption]
        for section in self.sections:
            parts += [f"## {section.heading}"] if section.heading else []
            for table in section.tables:
                parts += [f"{MEASURES[table.metric]}:"] if table is not section.tables[0] else []
                parts.append(table_markdown(table))
            parts.append(section.note)
        return "\n\n".join(parts) + "\n"


def make_report(runs: Sequence[Run]) -> Report:
    """Tables of runs of one stage and one teacher; runs that differ in nothing but the seed share a cell.

    Protocols are never mixed: each has tables of its own. Raises InputError if there is nothing to compare, or names
    two runs that must not be compared: of other commands or teachers, or one with test accuracy and one without.
    """
    entries = compare([run for run in runs if run.command != "search"])
    if not entries:
        raise InputError("these are runs of search, which no table compares; give runs of compress or distill")
    _require_alike(entries)
    metric = "accuracy" if _measured(entries, "accuracy") else "agreement"
    rows, seeds = row_settings(entries), _seeds(entries)
    column = SCALE if varying(entries, among=[SCALE]) else "bits" if entries[0].settings.get("bits") else None
    split = varying(entries, among=["protocol", *(["bits"] if column == SCALE else [])])
    groups: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[tuple(show(entry.settings[name]) for name in split)].append(entry)
    sections = []
    for values, group in sorted(groups.items()):
        metrics = [metric, *(["ranges_only_accuracy"] if _measured(group, "ranges_only_accuracy") else [])]
        tables = tuple(make_table(name, group, rows, column, seeds=len(seeds)) for name in metrics)
        heading = ", ".join(f"{name} {value}" for name, value in zip(split, values, strict=True))
        sections.append(Section(heading, tables, _note(group, tables[0])))
    gains = any(table.gain(*key) is not None for section in sections for table in section.tables for key in table.cells)
    caption = [_headline(entries, metric, column, gains=gains), _settings_line(entries), _versions_line(entries)]
    if len(entries) < len(runs):
        caption.append(f"Left out: {len(runs) - len(entries)} of search.")
    teachers = set(_measured(entries, "teacher_accuracy"))
    accuracy = 100 * teachers.pop() if len(teachers) == 1 else None
    return Report("\n".join(caption), tuple(sections), _frame(entries, rows), accuracy)


def table_markdown(table: Table) -> str:
    """A GitHub table: the settings that make rows, a column each of ``table.columns``, and the generator's costs."""
    lines = [[*table.row_names, *table.column_heads(), "MMACs", "parameters (k)"]]
    lines.append(["---"] * len(lines[0]))
    for row in table.rows:
        lines.append([*map(show, row), *(table.text(row, column) for column in table.columns), *table.costs[row]])
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def show(value: Any) -> str:
    """A setting's value as a person reads it."""
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _require_alike(entries: Sequence[Entry]) -> None:
    finished = [entry for entry in entries if entry.run.status == FINISHED]
    alike = {
        "command": [(entry, entry.run.command) for entry in entries if entry.run.command],
        "teacher": [(entry, _teacher(entry)) for entry in entries],
        "data": [(entry, "test accuracy" if _measured([entry], "accuracy") else "none") for entry in finished],
    }
    for what, values in alike.items():
        for entry, value in values:
            first, expected = values[0]
            if value != expected:
                runs = f"{first.run.source} ({expected}) and {entry.run.source} ({value})"
                raise InputError(f"{runs} differ in {what}; make a report of each")
    for entry in finished:
        if not (_measured([entry], "accuracy") or _measured([entry], "agreement")):
            raise InputError(f"{entry.run.source} has neither accuracy nor agreement; run it again or leave it out")


def _teacher(entry: Entry) -> str:
    return " with ".join(entry.settings[name] for name in ("teacher", "checkpoint") if entry.settings.get(name))


def _seeds(entries: Sequence[Entry]) -> list[int]:
    return sorted({entry.settings["seed"] for entry in entries if entry.settings.get("seed") is not None})


def _measured(entries: Sequence[Entry], metric: str) -> list[float]:
    """``metric`` of the finished runs that have it."""
    values = [entry.run.metrics.get(metric) for entry in entries if entry.run.status == FINISHED]
    return [value for value in values if value is not None]


def _headline(entries: Sequence[Entry], metric: str, column: str | None, *, gains: bool) -> str:
    """Teacher, metric, seeds, last epoch, and what all tables share."""
    fixed = _fixed(entries)
    teacher = f"Teacher {_teacher(entries[0]) or 'unknown'}"
    percents = sorted({f"{100 * value:.2f} %" for value in _measured(entries, "teacher_accuracy")})
    if percents:
        teacher += f", accuracy {' to '.join(percents[:: max(1, len(percents) - 1)])}"
    if len(percents) > 1:
        teacher += " (its weights or the test data are not the same in all runs)"
    epoch = f"last of {fixed['epochs']} epochs" if fixed.get("epochs") else "last epoch"
    seeds = _seeds(entries)
    over = "mean ± standard deviation over seeds " if len(seeds) > 1 else "seed "
    over += ", ".join(map(str, seeds))
    sentences = [
        teacher,
        f"{MEASURES[metric]}, in %, {epoch}: {over}" + ("; in brackets the gain over GDFQ" if gains else ""),
    ]
    sentences += [
        f"{name.capitalize()} {fixed[name]}" for name in ("protocol", "bits") if fixed.get(name) and name != column
    ]
    return ". ".join(sentences) + "."


def _settings_line(entries: Sequence[Entry]) -> str:
    """What all runs share and is no default, where they ran, and what short names of generators stand for."""
    command = next((entry.run.command for entry in entries if entry.run.command), stage_of(entries[0].settings))
    defaults = STAGES[command]().to_dict()
    other = [
        f"{name} = {show(value)}"
        for name, value in _fixed(entries).items()
        if name not in IN_CAPTION and name in defaults and value != defaults[name]
    ]
    for name in varying(entries, among=EXECUTION):
        other.append(f"{name} = {' or '.join(sorted({show(entry.settings.get(name)) for entry in entries}))}")
    short = {entry.settings["generator"]: entry.pattern for entry in entries if SEED in entry.pattern}
    sentences = [f"Settings other than the defaults: {', '.join(other) or 'none'}"]
    sentences += [f"{name} is `{pattern}`" for name, pattern in sorted(short.items()) if name != pattern]
    return ". ".join(sentences) + "."


def _versions_line(entries: Sequence[Entry]) -> str:
    """The packages' versions, or those that differ."""
    known: dict[str, dict[str, None]] = defaultdict(dict)  # in the order of their appearance
    for entry in entries:
        for package, version in entry.run.versions.items():
            known[package][version] = None
    if not known:
        return "Versions are not recorded."
    differ = [f"{package} {', '.join(versions)}" for package, versions in known.items() if len(versions) > 1]
    if differ:
        return f"Versions differ: {'; '.join(differ)}."
    return f"Versions: {', '.join(f'{package} {next(iter(versions))}' for package, versions in known.items())}."


def _fixed(entries: Sequence[Entry]) -> Mapping[str, Any]:
    """The settings in which all ``entries`` agree."""
    return {name: value for name, value in entries[0].settings.items() if not varying(entries, among=[name])}


def _note(entries: Sequence[Entry], table: Table) -> str:
    """How many runs became what, the unfinished by name."""
    by_status: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        by_status[entry.run.status].append(entry.run.source)
    finished = len(by_status.pop(FINISHED, []))
    others = [f"{len(runs)} {status} ({', '.join(runs)})" for status, runs in sorted(by_status.items())]
    parts = [f"{finished} finished", *others]
    if repeated := finished - sum(len(cell.by_seed) for cell in table.cells.values()):
        parts.append(f"{repeated} repeated with the same seed, of which the last counts")
    return f"{len(entries)} run{'s' if len(entries) > 1 else ''}: {'; '.join(parts)}."


def _frame(entries: Sequence[Entry], rows: Sequence[str]) -> pd.DataFrame:
    """A line per run: what identifies it or differs, as it was set; status; metrics as fractions; in their order."""
    set_apart = [name for name in entries[0].run.settings if len({str(e.run.settings.get(name)) for e in entries}) > 1]
    names = dict.fromkeys([*rows, "bits", SCALE, "protocol", "seed", *varying(entries), *set_apart])
    lines = []
    for entry in entries:
        settings = {**entry.settings, **entry.run.settings}
        line = {name: settings[name] for name in names if name in settings}
        metrics = {name: entry.run.metrics.get(name) for name in METRICS}
        lines.append({"run": entry.run.source, **line, "status": entry.run.status, **metrics})
    return pd.DataFrame(lines).astype(dict.fromkeys(METRICS, float))
