"""The picture of the README: size, latency and accuracy of a network beside its students'.

    python benchmarks/front_picture.py --output docs/students

Without folders it makes students of the digits teacher first, half a minute to a minute each on one core. With folders
of finished runs (``compress --protocol integer --onnx`` with test data, one teacher) it draws these. The numbers are
written beside the picture, as NAME.csv.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import nni_autorecon as nar
from nni_autorecon.cli.exits import report_errors
from nni_autorecon.errors import InputError
from nni_autorecon.figures.canvas import DPI, INK, MUTED, SERIES_COLOURS, save_figure
from nni_autorecon.files import parse_json, read_text, require_absent, write_text

BITS = ("w8a8", "w4a4", "w3a3")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help="finished runs; default: new ones")
    parser.add_argument("--output", type=Path, required=True, metavar="NAME", help="write NAME.png and NAME.csv")
    parser.add_argument("--force", action="store_true", help="replace them if they exist")
    arguments = parser.parse_args(argv)
    for suffix in (".png", ".csv"):
        require_absent(arguments.output.with_suffix(suffix), force=arguments.force)
    with tempfile.TemporaryDirectory() as place:
        table = numbers(arguments.folders or list(new_runs(Path(place))))
    write_text(arguments.output.with_suffix(".csv"), table.to_csv(index=False))
    save_figure(plot(table), arguments.output.with_suffix(".png"))


def new_runs(place: Path) -> Iterator[Path]:
    """Make a student of the digits teacher for each bit width, and yield the folder of its run."""
    for bits in BITS:
        nar.compress(bits=bits, protocol="integer", onnx=True, threads=1, folder=place / bits, progress="lines")
        yield place / bits


def numbers(folders: Sequence[Path]) -> pd.DataFrame:
    """Return a row for the network in floating point and one for each student: bytes, milliseconds, a share."""
    results = [parse_json(read_text(folder / "result.json", "result")) for folder in folders]
    for folder, result in zip(folders, results, strict=True):
        if missing := [name for name in ("latency", "accuracy") if result.get(name) is None]:
            raise InputError(f"{folder} has no {missing[0]}; compress with --protocol integer --onnx and --test-data")
    return pd.DataFrame([_teacher(results), *map(_student, results)])


def _teacher(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the row of the network; its latency was measured beside each student, and the median is taken."""
    first = results[0]
    return {
        "network": "float32",
        "weight_bytes": round(first["file_bytes"] * first["compression_ratio"]),
        "latency": pd.Series([result["float_latency"] for result in results]).median(),
        "accuracy": first["teacher_accuracy"],
    }


def _student(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "network": result["bits"],
        "weight_bytes": result["file_bytes"],
        "onnx_bytes": result["onnx_bytes"],
        "latency": result["latency"],
        "accuracy": result["accuracy"],
    }


def plot(table: pd.DataFrame) -> Figure:
    """Draw a panel of bars for each of size, latency and accuracy; the network is the upper, grey bar."""
    figure = Figure(figsize=(9.0, 2.4), dpi=DPI, layout="constrained")
    size, latency, accuracy = figure.subplots(1, 3, sharey=True)
    unit, name, digits = (1e6, "MB", ".1f") if table["weight_bytes"].max() >= 1e6 else (1e3, "kB", ".0f")
    rows = range(len(table))
    _bars(size, table["weight_bytes"] / unit, f"file ({name})", digits)
    size.plot(table["onnx_bytes"] / unit, rows, "|", color=INK, ms=12, mew=1.5)
    for row, onnx_bytes in enumerate(table["onnx_bytes"]):
        if onnx_bytes > 0:  # the network in floating point has none
            text = f"{onnx_bytes / unit:{digits}} as the ONNX file that is timed"
            size.annotate(text, (onnx_bytes / unit, row), (5, -3), textcoords="offset points", fontsize=7, color=INK)
    _bars(latency, table["latency"], "latency of an image (ms)", ".3f" if table["latency"].max() < 1 else ".1f")
    _bars(accuracy, 100 * table["accuracy"], "test accuracy (%)", ".1f")
    size.set_yticks(rows, table["network"], fontsize=9, color=INK)
    size.invert_yaxis()
    return figure


def _bars(axes: Axes, values: pd.Series, label: str, digits: str) -> None:
    colours = [MUTED, *[SERIES_COLOURS[0]] * (len(values) - 1)]
    bars = axes.barh(range(len(values)), values, color=colours, height=0.62)
    axes.bar_label(bars, [format(value, digits) for value in values], padding=3, fontsize=8, color=INK)
    axes.set_xlim(0, 1.18 * values.max())
    axes.set_xlabel(label, fontsize=9, color=INK)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(report_errors(main))
