"""A folder gets the experiments for a network, once the network has been checked. Heavy imports wait until then."""

from __future__ import annotations

import json
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.compress import CompressConfig
from ..config.stages import STAGES
from .recipes import Recipe, recipe
from .screen import command_line, conclude, progress

if TYPE_CHECKING:
    from ..teacher.loading import Teacher

ASKED = {
    "the network": (
        "teacher",
        "checkpoint",
        "image_size",
        "mean",
        "std",
        "num_classes",
        "checkpoint_key",
        "bns_weight",
        "allow_partial",
    ),
    "images to measure on": ("test_data", "labels", "download", "allow_weak_teacher"),
}
"""These settings say what the network is; all others are chosen for it."""
MEASURED = 500
"""On so many test images a network shows whether it is loaded as it was trained."""
SPACES = {"search": "search.json", "compress": "compress.json"}
EXPERIMENTS = {"search": "experiment.yml", "compress": "compress.yml"}


def new_folder(folder: Path, given: CompressConfig, *, force: bool = False) -> None:
    """Write two experiments for the network that ``given`` names into ``folder``, and a README.md of what to type.

    The network and its test data are first loaded and checked as the stages do. Raises InputError in the same cases,
    with nothing written, and if the folder holds something and ``force`` is False.
    """
    from ..files import require_absent, write_text
    from ..runs.progress import said_if_slow

    require_absent(folder, force=force)
    teacher = checked_teacher(given)
    chosen = recipe(teacher)
    with said_if_slow("the time of a search and of a student is measured"):
        chosen = replace(chosen, duration=duration_of(given, teacher, chosen))
    files = folder_files(absolute(given), teacher, chosen)
    for name, text in files.items():
        write_text(folder / name, text)
    start = command_line("start", EXPERIMENTS[chosen.first])
    conclude(
        f"{folder}: {', '.join(files)}",
        [f"{teacher.name} takes {_image(teacher)} images, and has {_sizes(teacher)}", chosen.duration],
        values={"folder": folder, "files": [folder / name for name in files]},
        then=f"cd {shlex.quote(str(folder))} && {start}",
    )


def checked_teacher(config: CompressConfig) -> Teacher:
    """Load and check the teacher and its test data. Raises InputError if a stage could not use them."""
    from torch.utils.data import Subset

    from ..export.description import require_same_structure
    from ..quantization.insertion import quantize_network
    from ..runs.progress import said_if_slow
    from ..student.results import evaluation_data, measured_accuracy
    from ..teacher.configured import configured_teacher

    with said_if_slow(f"teacher {config.teacher} is loaded and checked"):
        teacher = configured_teacher(config)
    require_same_structure(teacher)
    quantize_network(teacher.graph, config.quantization, image=teacher.image)
    if (data := evaluation_data(config, teacher)) is not None:
        count = len(data)  # type: ignore[arg-type] # every data set here has a length
        evenly = Subset(data, range(0, count, -(-count // MEASURED)))  # folders are in the order of their classes
        measured_accuracy(config, teacher, evenly, progress())
    return teacher


def absolute(config: CompressConfig) -> CompressConfig:
    """Return the settings with absolute paths: trials work in another folder than the person who named the files."""
    make: dict[str, Callable[[str], str]] = {
        "teacher": _absolute_code,
        "checkpoint": os.path.abspath,
        "test_data": _absolute_data,
        "labels": os.path.abspath,
    }
    given = {name: getattr(config, name) for name in make if name in config.given}
    return config.override({name: make[name](value) for name, value in given.items()})


def _absolute_code(spec: str) -> str:
    """Return ``models.py:make`` with the file's absolute path; so is a module that is found from this folder alone."""
    from ..teacher.sources import names_code

    place, _, factory = spec.rpartition(":")
    if not names_code(spec):
        return spec
    if not place.endswith(".py"):
        file = getattr(sys.modules.get(place), "__file__", None) or ""
        place = file if Path(file).is_relative_to(Path.cwd()) else place
    return f"{os.path.abspath(place) if place.endswith('.py') else place}:{factory}"


def _absolute_data(spec: str) -> str:
    from ..data.test_sets import DATA_SETS

    kind, _, folder = spec.partition(":")
    if kind in DATA_SETS and folder:
        return f"{kind}:{os.path.abspath(folder)}"
    return spec if spec == "digits" else os.path.abspath(spec)


def folder_files(config: CompressConfig, teacher: Teacher, chosen: Recipe) -> dict[str, str]:
    """Return the texts of all files by name. ``config``: what the person says of the network, with absolute paths."""
    files = {}
    for stage, name in EXPERIMENTS.items():
        words = as_flags(stage_settings(config, chosen, stage))
        files[name] = EXPERIMENT.format(
            title=json.dumps(f"AutoReCon {stage}, {teacher.name}", ensure_ascii=False),
            about=chosen.about[stage],
            file=name,
            stage=stage,
            space=SPACES[stage],
            command=json.dumps(shlex.join([sys.executable, "-m", "nni_autorecon", stage, *words]), ensure_ascii=False),
            mode="minimize" if stage == "search" else "maximize",
        )
        entries = [f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in chosen.spaces[stage].items()]
        files[SPACES[stage]] = "{\n" + ",\n".join(entries) + "\n}\n"
    return {**files, "README.md": _readme(config, teacher, chosen)}


def stage_settings(config: CompressConfig, chosen: Recipe, stage: str) -> dict[str, Any]:
    """Return the settings of a stage that all its trials share: what the person says, and what is chosen for that."""
    fields = STAGES[stage].config.__dataclass_fields__
    own = {key: value for key, value in config.to_dict().items() if key in config.given and key in fields}
    rest = {key: value for key, value in chosen.flags[stage].items() if key not in own}
    return {"teacher": config.teacher, **own, **rest}


def duration_of(config: CompressConfig, teacher: Teacher, chosen: Recipe) -> str:
    """Return what is said of the time that the experiments take here, by the first steps of a search and a student.

    Raises InputError if either is refused.
    """
    from ..experiment.status import duration
    from .foretelling import search_seconds, student_seconds

    student = {**stage_settings(config, chosen, "compress"), **chosen.typical}
    return chosen.duration.format(
        search=duration(search_seconds(teacher, stage_settings(config, chosen, "search"))),
        student=duration(student_seconds(teacher, student)),
    )


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """Return settings as words of a command line."""
    words = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return words


def _image(teacher: Teacher) -> str:
    return "×".join(map(str, teacher.image))


def _sizes(teacher: Teacher) -> str:
    parameters = sum(weight.numel() for weight in teacher.network.parameters())
    macs = f"{teacher.macs:,} multiply-accumulates an image"
    return f"{teacher.num_classes} classes, {parameters:,} parameters and {macs}"


def _readme(config: CompressConfig, teacher: Teacher, chosen: Recipe) -> str:
    from ..teacher.sources import names_code

    again: dict[str, Any] = {"teacher": config.teacher} if names_code(config.teacher) else {}
    test_data = {name: value for name, value in config.to_dict().items() if name in ("test_data", "labels") and value}
    order = ("search", "compress", "student") if chosen.first == "search" else ("compress", "student", "search")
    text = "\n\n".join(f"## {number}. {SECTIONS[name]}" for number, name in enumerate(order, 1))
    return README.format(
        name=teacher.name,
        image=_image(teacher),
        sizes=_sizes(teacher),
        mean=", ".join(f"{number:g}" for number in teacher.mean),
        std=", ".join(f"{number:g}" for number in teacher.std),
        sections=text.format(
            code="".join(f" {shlex.quote(word)}" for word in as_flags(again)),
            measure="".join(f" {shlex.quote(word)}" for word in as_flags({**again, **test_data})),
        ),
        duration=textwrap.fill(chosen.duration, 120),
        reason=textwrap.fill(chosen.reason, 120),
        program=shlex.join([sys.executable, "-m", "nni_autorecon"]),
    )


EXPERIMENT = """\
# {about}
#
#   nni-autorecon start {file}      (or nnictl create --config {file}, for every machine to reach)
#
# The tuner varies what stands in {space}; settings that all trials share are flags here, see
# nni-autorecon {stage} --help-all. Their paths are absolute.
experimentName: {title}
searchSpaceFile: {space}
trialCommand: {command}
trialCodeDirectory: .
trialConcurrency: 1 # with more, the web UI of NNI 3.0 may show a trial with another's parameters
tuner:
  name: GridSearch
  classArgs: {{optimize_mode: {mode}}} # what the web UI sorts by
trainingService:
  platform: local
"""
README = """\
# Compress {name} without data

The network takes {image} images, standardized by mean {mean} and std {std} of pixels from 0 to 1.
It has {sizes}.

Type these lines in this folder (`{program}` is `nni-autorecon`, if your shell does not find it).
`start` prints the experiment's ID and the address of NNI's web UI.
`nnictl create --config` does the same, but then other machines reach NNI, too, and can run code as you.

{duration}

{sections}

## Why these settings

{reason}
"""
SECTIONS = {
    "search": """\
Search a generator

```
nni-autorecon start experiment.yml
```

In the web UI every trial is a falling curve of L_r. `nni-autorecon status` says how much time is left, from the end of
the first epoch on. When the trials have ended, or when one is good enough:

```
nni-autorecon best-genotype --experiment ID
nnictl stop ID
```""",
    "compress": """\
Compress the network

If it is to be fast and not only small, first write `--protocol integer` into `trialCommand` of `compress.yml`.

```
nni-autorecon start compress.yml
```

`nni-autorecon status` shows the trials, and how much time is left. When they have ended:

```
nni-autorecon report --experiment ID --html -o students
nnictl stop ID
```""",
    "student": """\
Take a student away

`nni-autorecon status --experiment ID` shows the id of each TRIAL. ONNX needs `pip install 'nni-autorecon[onnx]'`.

```
nni-autorecon to-onnx ~/nni-experiments/ID/environments/local-env/trials/TRIAL/student.safetensors{code} -o student.onnx
nni-autorecon evaluate student.onnx --latency{measure}
```""",
}
