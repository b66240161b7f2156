"""Readers of files that people write: whatever stands in one, it is read, or refused in one line."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.config.distill import DistillConfig
from nni_autorecon.config.search import SearchConfig
from nni_autorecon.errors import InputError
from nni_autorecon.experiment.reading import read_experiment
from nni_autorecon.experiment.settings_file import check_experiment, training_services
from nni_autorecon.files import LARGEST_TEXT, unsealed
from nni_autorecon.generator.genotype import Genotype, uniform_choices
from nni_autorecon.reports.artifacts import read_artifacts
from nni_autorecon.runs.records import read_folder
from nni_autorecon.runs.snapshots import load_snapshot, save_snapshot

EXAMPLES = 80
"""So many examples are drawn of each kind of each reader: some 500 a reader."""

GENOTYPE = unsealed(
    json.loads(Genotype(uniform_choices("conv_3x3"), 5, 7, {"teacher": "digits", "loss": {"loss": 1.5}}).to_json())
)
SET = (
    "teacher",
    "checkpoint",
    "epochs",
    "weight_lr",
    "seed",
    "mean",
    "bits",
    "method",
    "allow_partial",
    "student_clip",
)
EXPERIMENT = {
    "searchSpace": {
        "seed": {"_type": "choice", "_value": [0, {"_name": "a", "width": {"_type": "choice", "_value": [8]}}]}
    },
    "trialCommand": "python search.py --threads 1",
    "trialCodeDirectory": ".",
    "trialConcurrency": 1,
    "tuner": {"name": "TPE", "classArgs": {"optimize_mode": "minimize"}},
    "assessor": {"name": "Medianstop"},
    "trainingService": {"platform": "local"},
}
CONFIG = {name: CompressConfig(generator="gdfq").to_dict()[name] for name in SET}

any_text = st.text(st.characters())  # lone surrogates too
numbers = st.integers() | st.sampled_from([2**63, -(10**30), 10**400]) | st.floats()
any_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | numbers | any_text,
    lambda inner: st.lists(inner) | st.dictionaries(any_text, inner),
    max_leaves=12,
)
INNER = ("edges", "searchSpace", "tuner", "trainingService", "coverage", "mixed_precision")
names = st.sampled_from(sorted({*GENOTYPE, *GENOTYPE["edges"], *CONFIG, *EXPERIMENT}))


@st.composite
def edited(draw: st.DrawFn, valid: dict[str, Any]) -> dict[str, Any]:
    """``valid`` with up to three names removed, added or given other values, at the top or below one of ``INNER``."""
    document = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(1, 3))):
        inner = [document[name] for name in INNER if isinstance(document.get(name), dict)]
        place = draw(st.sampled_from(inner)) if inner and draw(st.booleans()) else document
        name = draw(names | st.sampled_from([*place, "x"]) | any_text)
        if draw(st.booleans()):
            place.pop(name, None)
        else:
            place[name] = draw(any_json | st.sampled_from(["none", "nearest", "conv_3x3", 1, 2.0]))
    return document


@st.composite
def spliced(draw: st.DrawFn, valid: str) -> str:
    """``valid`` with a stretch of it replaced."""
    start = draw(st.integers(0, len(valid)))
    end = draw(st.integers(start, min(len(valid), start + 60)))
    return valid[:start] + draw(st.text(string.printable, max_size=20) | any_text) + valid[end:]


def as_bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def written(values: st.SearchStrategy[Any], dump: Callable[[Any], str] = json.dumps) -> st.SearchStrategy[bytes]:
    return values.map(lambda value: as_bytes(dump(value)))


def documents(valid: dict[str, Any]) -> dict[str, st.SearchStrategy[bytes]]:
    return {
        "bytes": st.binary(),
        "text": any_text.map(as_bytes),
        "JSON": written(any_json),
        "edited": written(edited(valid)),
        "edited, unescaped": written(edited(valid), lambda value: json.dumps(value, ensure_ascii=False)),
        "spliced": spliced(json.dumps(valid)).map(as_bytes),
        "deep": st.integers(1, 3000).map(
            lambda n: as_bytes(json.dumps(valid)[:-1] + ', "x": ' + "[" * n + "]" * n + "}")
        ),
    }


def fuzz(values: st.SearchStrategy[Any], check: Callable[[Any], object]) -> None:
    limits = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    limits(given(values)(check))()


def one_line(error: InputError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 2000


@pytest.mark.parametrize("kind", documents(GENOTYPE))
def test_a_genotype_is_read_whole_or_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "g.json"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            genotype = Genotype.load(path)
        except InputError as error:
            return one_line(error)
        genotype.save(path)
        assert Genotype.load(path) == genotype
        return None

    fuzz(documents(GENOTYPE)[kind], check)


def yaml_documents(valid: dict[str, Any]) -> dict[str, st.SearchStrategy[bytes]]:
    return {
        "YAML": written(any_json, lambda value: yaml.safe_dump(value, allow_unicode=True)),
        "edited YAML": written(edited(valid), yaml.safe_dump),
        "spliced YAML": spliced(yaml.safe_dump(valid)).map(as_bytes),
        "YAML's signs": st.text("-:[]{}&*!|>'\"%@`?,# \n\tab01.e", max_size=40).map(as_bytes),
    }


@pytest.mark.parametrize("kind", [*sorted(documents(CONFIG).keys() - {"deep"}), *yaml_documents(CONFIG)])
def test_a_config_file_is_read_whole_or_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yml"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            config = CompressConfig.load(path)
        except InputError as error:
            return one_line(error)
        path.write_text(json.dumps(config.to_dict()))
        assert CompressConfig.load(path) == config
        return None

    fuzz({**documents(CONFIG), **yaml_documents(CONFIG)}[kind], check)


@pytest.mark.parametrize("kind", [*sorted(documents(EXPERIMENT).keys() - {"deep"}), *yaml_documents(EXPERIMENT)])
def test_an_experiment_file_is_understood_or_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "search.py").touch()
    path = tmp_path / "e.yml"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            config = check_experiment(read_experiment(path), path, tmp_path)
        except InputError as error:
            return one_line(error)
        assert all(service.trial_command.strip() for service in training_services(config))
        return None

    fuzz({**documents(EXPERIMENT), **yaml_documents(EXPERIMENT)}[kind], check)


@pytest.mark.parametrize("kind", [SearchConfig, CompressConfig, DistillConfig])
def test_settings_from_a_tuner_are_taken_whole_or_refused(kind: Any) -> None:
    """Each by its own name, so that most get as far as their type and range."""
    some = st.sampled_from(sorted(kind().to_dict()))

    def check(values: Any) -> None:
        try:
            config = kind().override(values, source="tuner")
        except InputError as error:
            return one_line(error)
        assert kind().override(config.to_dict()) == config
        return None

    fuzz(st.dictionaries(some, numbers | any_json, max_size=3) | any_json, check)


RUN = {"command": "compress", "config": CONFIG, "versions": {"torch": "2.15.0"}}
CHOICE = {"bits": "84", "bytes": 9, "harm": 0.5}
RESULT = {
    "accuracy": 0.5,
    "teacher_accuracy": 0.75,
    "agreement": 1.0,
    "seconds": 1.5,
    "coverage": {
        "weights": [{"name": "stem", "kind": "Conv2d", "bits": 8, "shape": [16, 3, 3, 3]}],
        "activations": [],
        "float_inputs": None,
        "gaps": [{"name": "odd", "reason": "no kernel"}],
    },
    "layers": [{"name": "stem", "sqnr": 30.0, "share": 0.5}],
    "mixed_precision": {
        "size": 9,
        "harms": {"stem": {"8": 0.5}},
        "chosen": CHOICE,
        "frontier": [CHOICE],
        "uniform": [CHOICE],
    },
}


@pytest.mark.parametrize(("name", "valid"), [("config.json", RUN), ("result.json", RESULT), ("metrics.csv", RESULT)])
@pytest.mark.parametrize("kind", ["bytes", "JSON", "edited", "spliced"])
def test_what_a_run_left_is_read_or_refused(name: str, valid: dict[str, Any], kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RUN))

    def check(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        try:
            run = read_folder(tmp_path)
            read_artifacts(run)
        except InputError as error:
            return one_line(error)
        assert run.command in ("search", "compress", "distill")
        return None

    fuzz(documents(valid)[kind], check)


def test_a_damaged_snapshot_is_none(tmp_path: Path) -> None:
    path = tmp_path / "s"
    save_snapshot(path, {"x": torch.arange(3), "command": "search"})
    whole = path.read_bytes()

    def check(damage: tuple[int, int, int]) -> None:
        start, length, flip = damage
        content = bytearray(whole)
        content[start] ^= flip
        path.write_bytes(bytes(content[: len(whole) - length]))
        assert load_snapshot(path) is None

    fuzz(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, len(whole)), st.integers(1, 255)), check)


def test_endless_text_is_not_read_to_its_end() -> None:
    """A device, or a file of some other kind: no more than the largest text is read."""
    with pytest.raises(InputError, match=f"larger than {LARGEST_TEXT >> 20} MiB"):
        Genotype.load("/dev/zero")
