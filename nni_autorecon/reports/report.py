"""A report is made of runs: the paper's tables as Markdown, a line per run for CSV, and a caption with the settings.

Students are compared by their accuracy, searches by L_r of the generators found.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..config.search import FINAL_VALIDATION_STEPS
from ..config.stages import STAGES, stage_of_settings
from ..errors import InputError
from ..runs.records import FINISHED, Run
from .comparable import (
    EXECUTION,
    NOT_USED,
    SAME_IN_SEARCHES,
    SCALE,
    SEED,
    Entry,
    comparable_entries,
    row_settings,
    varying,
)
from .tables import MEASURES, USER_COSTS, Table, make_table

DESCRIPTIONS = {
    "accuracy": "Test accuracy",
    "agreement": "No test data: agreement of student and teacher on held-out synthetic images",
    "ranges_only_accuracy": "By the ranges alone, before any training of the student",
    "file_bytes": "Size of the student's file, in kB",
    "latency": "Latency of an image in onnxruntime, in ms",
}
UPDATES = "batches of the search, which update W or α, or reward a controller"
BESIDE = dict.fromkeys(STAGES, ("generator_macs", "generator_parameters")) | {
    "search": ("class_loss", "bns_loss", "generator_macs", "updates", "seconds")
}
"""These metrics stand in a table beside the metric that is compared."""
IN_CAPTION = dict.fromkeys(
    STAGES, ("teacher", "checkpoint", "seed", "generator", "genotype", "bits", "protocol", "epochs")
) | {"search": ("teacher", "checkpoint", "seed", "strategy", "bns_weight", "batch_size", "final_steps")}


@dataclass(frozen=True)
class Section:
    """The tables of one protocol (and of one bit width, if columns are scales), and a note on their runs' states."""

    heading: str
    tables: tuple[Table, ...]
    note: str


@dataclass(frozen=True)
class Report:
    """Tables, a caption, and in ``frame`` a line per run: the settings in which it differs, its status and metrics."""

    caption: str
    sections: tuple[Section, ...]
    frame: pd.DataFrame
    teacher_accuracy: float | None
    """This accuracy is in %; None if it is unknown or not the same in all runs."""
    stage: str
    entries: tuple[Entry, ...]

    def to_markdown(self) -> str:
        """Return caption, tables and notes as Markdown."""
        parts = [self.caption]
        for section in self.sections:
            parts += [f"## {section.heading}"] if section.heading else []
            for table in section.tables:
                parts += [f"{DESCRIPTIONS[table.metric]}:"] if table is not section.tables[0] else []
                parts.append(table_markdown(table))
            parts.append(section.note)
        return "\n\n".join(parts) + "\n"


def make_report(runs: Sequence[Run]) -> Report:
    """Return tables of runs of one stage and one teacher; runs that differ in nothing but the seed share a cell.

    Searches beside students are left out. Protocols are never mixed: each has its own tables. Raises InputError that
    names two runs if they must not be compared: they differ in command or teacher, only one has test accuracy, or they
    are searches whose L_r are not of the same kind.
    """
    stage = _stage(runs)
    entries = comparable_entries([run for run in runs if stage == "search" or run.command != "search"])
    _require_alike(entries, stage)
    metric = "accuracy" if _measured(entries, "accuracy") else STAGES[stage].default
    rows, seeds = row_settings(entries, stage), _seeds(entries)
    column = SCALE if varying(entries, among=[SCALE]) else "bits" if entries[0].settings.get("bits") else None
    split = varying(entries, among=["protocol", *(["bits"] if column == SCALE else [])])
    groups: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[tuple(show(entry.settings[name]) for name in split)].append(entry)
    sections = []
    for values, group in sorted(groups.items()):
        metrics = [metric, *(name for name in ("ranges_only_accuracy", *USER_COSTS) if _measured(group, name))]
        tables = tuple(
            make_table(name, group, rows, column, beside=() if name in USER_COSTS else BESIDE[stage], seeds=len(seeds))
            for name in metrics
        )
        heading = ", ".join(f"{name} {value}" for name, value in zip(split, values, strict=True))
        sections.append(Section(heading, tables, _note(group, tables[0])))
    gains = any(table.gain(*key) is not None for section in sections for table in section.tables for key in table.cells)
    caption = [_headline(entries, metric, column, gains=gains), _settings_line(entries, stage), _versions_line(entries)]
    if len(entries) < len(runs):
        caption.append(f"Left out: {len(runs) - len(entries)} of search.")
    teachers = set(_measured(entries, "teacher_accuracy"))
    accuracy = 100 * teachers.pop() if len(teachers) == 1 else None
    frame = _frame(entries, rows, STAGES[stage].metrics)
    return Report("\n".join(caption), tuple(sections), frame, accuracy, stage, tuple(entries))


def table_markdown(table: Table) -> str:
    """Return a GitHub table of :func:`table_lines`."""
    head, *rows = table_lines(table)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def table_lines(table: Table) -> list[list[str]]:
    """Return heads and rows: the settings that make rows, a column for each of ``table.columns``, further metrics."""
    heads = [*table.row_names, *table.column_heads(), *(MEASURES[name].head for name in table.beside)]
    rows = (
        [*map(show, row), *(table.text(row, column) for column in table.columns), *table.texts[row]]
        for row in table.rows
    )
    return [heads, *rows]


def show(value: Any) -> str:
    """Return a setting's value as a person reads it."""
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _stage(runs: Sequence[Run]) -> str:
    """Return the stage of ``runs``, which is search only if all are searches; settings decide if no run knows it."""
    told = stage_of_settings({name: None for run in runs for name in run.settings}).name
    return min((run.command for run in runs if run.command), default=told)  # "search" is the last in the alphabet


def _require_alike(entries: Sequence[Entry], stage: str) -> None:
    finished = [entry for entry in entries if entry.run.status == FINISHED]
    alike = {
        "command": [(entry, entry.run.command) for entry in entries if entry.run.command],
        "teacher": [(entry, _teacher(entry)) for entry in entries],
        "data": [(entry, "test accuracy" if _measured([entry], "accuracy") else "none") for entry in finished],
    }
    for name in SAME_IN_SEARCHES if stage == "search" else ():
        alike[name] = [(entry, show(entry.settings.get(name))) for entry in finished]
    for what, values in alike.items():
        for entry, value in values:
            first, expected = values[0]
            if value != expected:
                runs = f"{first.run.source} ({expected}) and {entry.run.source} ({value})"
                raise InputError(f"{runs} differ in {what}; make a report of each")
    needed = [["loss"], ["updates"]] if stage == "search" else [["accuracy", "agreement"]]
    for entry, either in itertools.product(finished, needed):
        if not any(_measured([entry], metric) for metric in either):
            raise InputError(f"{entry.run.source} has no {' and no '.join(either)}; run it again or leave it out")


def _teacher(entry: Entry) -> str:
    return " with ".join(entry.settings[name] for name in ("teacher", "checkpoint") if entry.settings.get(name))


def _seeds(entries: Sequence[Entry]) -> list[int]:
    return sorted({entry.settings["seed"] for entry in entries if entry.settings.get("seed") is not None})


def _measured(entries: Sequence[Entry], metric: str) -> list[float]:
    """Return ``metric`` of the finished runs that have it."""
    values = [entry.run.metrics.get(metric) for entry in entries if entry.run.status == FINISHED]
    return [value for value in values if value is not None]


def _headline(entries: Sequence[Entry], metric: str, column: str | None, *, gains: bool) -> str:
    """Return teacher, metric, when it was measured, seeds, and the settings that all tables share."""
    fixed = _fixed(entries)
    teacher = f"Teacher {_teacher(entries[0]) or 'unknown'}"
    percents = sorted({f"{100 * value:.2f} %" for value in _measured(entries, "teacher_accuracy")})
    if percents:
        teacher += f", accuracy {' to '.join(percents[:: max(1, len(percents) - 1)])}"
    if len(percents) > 1:
        teacher += " (its weights or the test data are not the same in all runs)"
    seeds = _seeds(entries)
    over = "mean ± standard deviation over seeds " if len(seeds) > 1 else "seed "
    over += ", ".join(map(str, seeds))
    sentences = [
        teacher,
        f"{_measurement(entries, metric)}: {over}" + ("; in brackets the gain over GDFQ" if gains else ""),
        *(_equal_cost(entries) if metric == "loss" else []),
    ]
    sentences += [
        f"{name.capitalize()} {fixed[name]}" for name in ("protocol", "bits") if fixed.get(name) and name != column
    ]
    return ". ".join(sentences) + "."


def _measurement(entries: Sequence[Entry], metric: str) -> str:
    """Return how ``metric`` was measured, as far as it is known."""
    fixed = _fixed(entries)
    if metric != "loss":
        return f"{DESCRIPTIONS[metric]}, in %, {_moment(entries)}"
    if not all(fixed.get(name) for name in ("final_steps", "batch_size")):
        return "L_r of the generator found"
    inherited = {entry.run.settings.get("inherit_weights", False) for entry in entries}
    start = "the supernet's weights" if inherited == {True} else "fresh weights"
    start += ", or the supernet's with inherit_weights" if len(inherited) > 1 else ""
    return (
        f"L_r = class_loss + {show(fixed['bns_weight'])} bns_loss (eq. 1) of the generator found: trained by "
        f"{fixed['final_steps']} batches of {fixed['batch_size']} from {start}, measured on {FINAL_VALIDATION_STEPS} "
        "others"
    )


def _moment(entries: Sequence[Entry]) -> str:
    """Return when students were measured. Few methods train the whole student in epochs."""
    methods = {entry.settings.get("method") for entry in entries}
    if methods == {"blockwise"}:
        return "after the last block"
    epochs = None if methods & {"blockwise", "dfq", "zeroq"} else _fixed(entries).get("epochs")
    return f"last of {epochs} epochs" if epochs else "at the end of each run"


def _equal_cost(entries: Sequence[Entry]) -> list[str]:
    """Return a sentence on the cost: if all finished searches made equally many updates; none if none has finished."""
    counts = [f"{updates:.0f}" for updates in sorted(set(_measured(entries, "updates")))]
    if not counts:
        return []
    cost = f"{'Equal' if len(counts) == 1 else 'Unequal'} cost, {' or '.join(counts)} updates"
    plays = any(entry.settings.get("adaptability_weight") not in (None, 0, NOT_USED) for entry in entries)
    beside = "; steps of the student that a search plays against are not counted" if plays else ""
    return [f"{cost} ({UPDATES}); seconds include the final training{beside}"]


def _settings_line(entries: Sequence[Entry], stage: str) -> str:
    """Return the shared settings other than defaults, where the runs were computed, and the generators' full names."""
    defaults = STAGES[stage].config().to_dict()
    other = [
        f"{name} = {show(value)}"
        for name, value in _fixed(entries).items()
        if name not in IN_CAPTION[stage] and name in defaults and value != defaults[name]
    ]
    for name in varying(entries, among=EXECUTION):
        other.append(f"{name} = {' or '.join(sorted({show(entry.settings.get(name)) for entry in entries}))}")
    short = {entry.settings["generator"]: entry.pattern for entry in entries if SEED in entry.pattern}
    sentences = [f"Settings other than the defaults: {', '.join(other) or 'none'}"]
    sentences += [f"{name} is `{pattern}`" for name, pattern in sorted(short.items()) if name != pattern]
    return ". ".join(sentences) + "."


def _versions_line(entries: Sequence[Entry]) -> str:
    """Return the packages' versions, or only those that differ."""
    known: dict[str, dict[str, None]] = defaultdict(dict)  # packages stay in the order of their appearance
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
    """Return the settings in which all ``entries`` agree."""
    return {name: value for name, value in entries[0].settings.items() if not varying(entries, among=[name])}


def _note(entries: Sequence[Entry], table: Table) -> str:
    """Return how many runs have each status, and name the unfinished ones."""
    by_status: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        by_status[entry.run.status].append(entry.run.source)
    finished = len(by_status.pop(FINISHED, []))
    others = [f"{len(runs)} {status} ({', '.join(runs)})" for status, runs in sorted(by_status.items())]
    parts = [f"{finished} finished", *others]
    if repeated := finished - sum(len(cell.by_seed) for cell in table.cells.values()):
        parts.append(f"{repeated} repeated with the same seed, of which the last counts")
    return f"{len(entries)} run{'s' if len(entries) > 1 else ''}: {'; '.join(parts)}."


def _frame(entries: Sequence[Entry], rows: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Return a line per run, in the runs' order: identity and differing settings as set, then status, then metrics."""
    set_apart = [name for name in entries[0].run.settings if len({str(e.run.settings.get(name)) for e in entries}) > 1]
    names = dict.fromkeys([*rows, "bits", SCALE, "protocol", "seed", *varying(entries), *set_apart])
    lines = []
    for entry in entries:
        settings = {**entry.settings, **entry.run.settings}
        line = {name: settings[name] for name in names if name in settings}
        measured = {name: entry.run.metrics.get(name) for name in metrics}
        lines.append({"run": entry.run.source, **line, "status": entry.run.status, **measured})
    return pd.DataFrame(lines).astype(dict.fromkeys(metrics, float))
