"""These commands do all but run a stage: they set up, start, export, compare and measure. Heavy imports wait."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .next_steps import after_experiment
from .screen import command_line, conclude, progress

if TYPE_CHECKING:
    from ..experiment.launch import Started
    from ..export.latency import Latency
    from ..export.saved_network import SavedNetwork
    from ..generator.genotype import Genotype


def new(arguments: argparse.Namespace) -> None:
    """Write the experiments for a network into a folder."""
    from ..config.compress import CompressConfig
    from ..config.flags import from_flags
    from .new_folder import new_folder

    new_folder(arguments.folder, from_flags(CompressConfig, arguments), force=arguments.force)


def start(arguments: argparse.Namespace) -> None:
    """Start an experiment."""
    from ..experiment.launch import start_experiment

    _conclude_start(start_experiment(arguments.file, arguments.port, listen_everywhere=arguments.listen_everywhere))


def continue_experiment(arguments: argparse.Namespace) -> None:
    """Go on with a stopped experiment."""
    from ..experiment.launch import resume_experiment

    _conclude_start(
        resume_experiment(arguments.experiment, arguments.port, listen_everywhere=arguments.listen_everywhere)
    )


def _conclude_start(started: Started) -> None:
    """Print where an experiment is seen, and what to type while it runs and when it has ended."""
    name = started.experiment
    end = ["-o", f"{name}-report"] if started.makes_students else []
    results = command_line("report" if started.makes_students else "best-genotype", "--experiment", name, *end)
    conclude(
        f"experiment {name} {'is running' if started.running else 'has no trials left to run'}: {started.address}",
        [f"its results: {results}", f"end it: nnictl stop {name}"],
        values=dataclasses.asdict(started),
        then=command_line("status", "--experiment", name) if started.running else results,
    )


def doctor(arguments: argparse.Namespace) -> None:
    """Print a line for each check of the machine and, if a file is given, of its experiment.

    Raises AutoReConError if something is wrong, after the summary.
    """
    from ..experiment.doctor import NOTE, WRONG, doctor, require_sound

    findings = doctor(arguments.file, quiet=arguments.quiet)
    count = Counter(finding.state for finding in findings)
    values = {"wrong": count[WRONG], "findings": [dataclasses.asdict(finding) for finding in findings]}
    conclude(f"{len(findings)} checks: {count[WRONG]} wrong, {count[NOTE]} worth a note", values=values)
    require_sound(findings)


def best_genotype(arguments: argparse.Namespace) -> None:
    """Write the best genotype of an experiment."""
    from ..experiment import database
    from ..files import require_absent

    require_absent(arguments.output, force=arguments.force)
    genotype, trial_id, loss = database.best_genotype(arguments.experiment, arguments.trial)
    genotype.save(arguments.output)
    made = f"{arguments.output}: genotype of trial {trial_id}, L_r {loss:.4f}"
    values = {"file": arguments.output, "trial": trial_id, "loss": loss}
    conclude(made, values=values, then=after_experiment(genotype.details, arguments.output))


def status(arguments: argparse.Namespace) -> None:
    """Print how the trials of an experiment stand."""
    from ..experiment.status import experiment_status

    found = experiment_status(arguments.experiment)
    summary, *lines = found.to_text().splitlines()
    conclude(summary, lines, values=dataclasses.asdict(found))


def report(arguments: argparse.Namespace) -> None:
    """Write tables and figures of an experiment's trials, or of runs in folders, and print the tables.

    The files are Markdown, CSV and PNG, and HTML if it is asked for. Raises InputError unless either folders or an
    experiment is given.
    """
    if bool(arguments.folders) == bool(arguments.experiment):
        raise InputError("report takes either folders or --experiment ID; give one of them")
    from ..figures.canvas import save_figure
    from ..files import require_absent, write_text
    from ..reports.figure import plot_costs, plot_report
    from ..reports.report import make_report
    from ..runs.records import read_folders

    output = arguments.output
    if output.suffix in (".md", ".csv", ".png", ".html") or not output.name:
        raise InputError(f"-o {output} must be a name for several files, such as table2")
    ends = (".md", ".csv", ".png", "-costs.png", ".html")
    markdown, csv, png, over_costs, html = (output.with_name(output.name + end) for end in ends)
    for path in (markdown, csv, png, over_costs, *([html] if arguments.html else [])):
        require_absent(path, force=arguments.force)
    if arguments.experiment:
        from ..experiment.database import read_runs

        runs = read_runs(arguments.experiment)
    else:
        runs = read_folders(arguments.folders)
    report = make_report(runs)
    if arguments.html:
        from ..reports.page import to_html

        write_text(html, to_html(report, title=output.name))
    write_text(markdown, report.to_markdown())
    write_text(csv, report.frame.to_csv(index=False))
    save_figure(plot_report(report), png)
    if (costs := plot_costs(report)) is not None:
        save_figure(costs, over_costs)
    files = [markdown, csv, png, *([over_costs] if costs is not None else []), *([html] if arguments.html else [])]
    values = {"files": files, "runs": json.loads(report.frame.to_json(orient="records"))}
    conclude(", ".join(map(str, files)), ["", report.to_markdown().rstrip("\n")], values=values)


def to_onnx(arguments: argparse.Namespace) -> None:
    """Write a saved student as ONNX; print its size, how well it agrees with the student, and its latency."""
    from ..export.check_images import images_beside
    from ..export.latency import measure_latency
    from ..export.onnx import export_onnx
    from ..export.onnx_runtime import OnnxNetwork, load_onnx
    from ..export.student_file import load_network
    from ..files import require_absent

    if arguments.file.suffix == ".onnx":
        raise InputError(f"{arguments.file} is ONNX already; give the student.safetensors of a compression")
    output = arguments.output or arguments.file.parent / f"{arguments.file.stem}.onnx"
    require_absent(output, force=arguments.force)
    if arguments.check is not None and arguments.check < 1:
        raise InputError(f"--check {arguments.check} compares nothing; give 1 or more")
    saved = load_network(arguments.file, teacher=arguments.teacher)
    images = images_beside(arguments.file, saved.description.image)
    agreement = export_onnx(saved, output, purpose=arguments.purpose, images=images, noise_images=arguments.check)
    written = load_onnx(output)
    lines = [agreement.summary()]
    values = {"file": output, **_size(written), "agreement": dataclasses.asdict(agreement)}
    if isinstance(written.network, OnnxNetwork):
        latency = measure_latency(written, None)
        lines.append(latency.summary())
        values |= latency.to_dict()
    structure = ["--teacher", arguments.teacher] if arguments.teacher else []
    then = command_line("evaluate", str(output), "--latency", *structure)
    conclude(f"{output}: {written.size()}", lines, values=values, then=then)


def evaluate(arguments: argparse.Namespace) -> None:
    """Measure the test accuracy of a saved student, from its file alone, or its latency, and print both.

    Raises InputError if no images are named and none are known, or if an ONNX file is to be measured on a GPU.
    """
    from ..api import load_student
    from ..data.images import accuracy
    from ..data.test_sets import load_evaluation_data
    from ..runs.progress import progress_bar
    from ..teacher.device import resolve_device

    device = resolve_device(arguments.device)
    if arguments.latency:
        _set_threads(arguments.threads)  # before the file is loaded into onnxruntime
    for_latency_alone = arguments.latency and arguments.file.suffix == ".onnx"
    saved = load_student(arguments.file, teacher=None if for_latency_alone else arguments.teacher)
    if arguments.file.suffix == ".onnx" and device.type != "cpu":
        raise InputError("an ONNX file is measured in onnxruntime, on the CPU; leave out --device")
    known = saved.description
    spec = arguments.test_data or ("digits" if known.teacher == "digits" else None)
    if spec is None and not arguments.latency:
        raise InputError(f"{arguments.file} is a student of {known.teacher}; name images to measure with --test-data")
    lines: list[str] = []
    values: dict[str, Any] = {"file": arguments.file, **_size(saved)}
    if spec is not None:
        data = load_evaluation_data(
            spec,
            num_classes=known.num_classes,
            image=known.image,
            resize=known.resize,
            download=arguments.download,
            labels=arguments.labels,
        )
        count = len(data)  # type: ignore[arg-type] # every data set here has a length
        with progress_bar("evaluate", count, progress(), passes=True) as bar:
            right = accuracy(
                saved.network.to(device), data, mean=known.mean, std=known.std, device=device, on_images=bar.update
            )
        lines.append(f"test accuracy {right:.2%} on {count} images")
        values |= {"accuracy": right, "images": count}
    if arguments.latency:
        latency = _latency(saved, arguments)
        lines.append(latency.summary())
        values |= latency.to_dict()
    conclude(f"{arguments.file}: {saved.size()}", lines, values=values)


def _size(saved: SavedNetwork) -> dict[str, Any]:
    """Return the size of a student as result.json has it."""
    return {"file_bytes": saved.file_bytes, "compression_ratio": saved.compression_ratio}


def _set_threads(threads: int) -> None:
    """Let PyTorch, and onnxruntime with it, compute in so many threads. Raises InputError for less than 1."""
    import torch

    if threads < 1:
        raise InputError(f"--threads {threads} is too few; give 1 or more")
    torch.set_num_threads(threads)


def _latency(saved: SavedNetwork, arguments: argparse.Namespace) -> Latency:
    """Return the latency of a student, beside its teacher's where that can be built anew, by its name.

    Raises InputError if it is code that must be named.
    """
    from ..export.latency import measure_latency
    from ..export.onnx import floating_point
    from ..export.student_file import require_trusted
    from ..teacher.sources import names_code

    known = saved.description
    distilled = known.quantization is None  # its structure is no teacher's, and --teacher names its own
    if distilled and names_code(known.teacher):
        return measure_latency(saved, None)
    if arguments.teacher is None:
        require_trusted(known.teacher, arguments.file)
    teacher = known.teacher if distilled else arguments.teacher or known.teacher
    return measure_latency(saved, floating_point(known.structure(teacher), known.image))


def show(arguments: argparse.Namespace) -> None:
    """Print a genotype as a sum for each node, and draw it if a file is named."""
    from ..files import require_absent

    genotype = _genotype(arguments.file)
    if arguments.output:
        from ..figures.architecture import plot_genotype
        from ..figures.canvas import save_figure

        require_absent(arguments.output, force=arguments.force)
        save_figure(plot_genotype(genotype.choices, title=arguments.file), arguments.output)
    lines = [*genotype.equations().splitlines(), *([f"drawn: {arguments.output}"] if arguments.output else [])]
    values = {"file": arguments.file, "drawing": arguments.output, "genotype": json.loads(genotype.to_json())}
    conclude(f"{arguments.file}: {_summary(genotype)}", lines, values=values)


def diff(arguments: argparse.Namespace) -> None:
    """Print where two genotypes have different operations."""
    first, second = (_genotype(file) for file in arguments.files)
    pairs = {label: (first.choices[label], second.choices[label]) for label in first.choices}
    different = {label: pair for label, pair in pairs.items() if len(set(pair)) == 2}
    conclude(
        f"{len(different)} of {len(pairs)} edges differ",
        [
            *(f"{file}: {_summary(each)}" for file, each in zip(arguments.files, (first, second), strict=True)),
            *(f"{label}: {' | '.join(pair)}" for label, pair in different.items()),
        ],
        values={"files": arguments.files, "edges": len(pairs), "different": different},
    )


def _genotype(name: str) -> Genotype:
    from ..generator.genotype import Genotype, published_genotype

    kind, _, published = name.partition(":")
    return published_genotype(published) if kind == "published" else Genotype.load(name)


def _summary(genotype: Genotype) -> str:
    """Return the known details of a genotype in one line."""
    details = genotype.details
    loss, macs = details.get("loss"), details.get("macs")
    parts = [
        f"teacher {details['teacher']}" if isinstance(details.get("teacher"), str) else "",
        f"width {genotype.width}, latent vectors of {genotype.latent_dim}",
        f"L_r {loss['loss']:.4f}" if isinstance(loss, dict) and isinstance(loss.get("loss"), float) else "",
        f"{macs / 1e6:.1f} MMACs" if isinstance(macs, int) else "",
    ]
    return ", ".join(part for part in parts if part)
