"""The README and docs/: commands parse, settings are read, code runs, links lead somewhere, nothing is left out."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import importlib.util
import inspect
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import nni_autorecon as nar
from nni_autorecon.cli import main as cli
from nni_autorecon.cli.exits import CODES, INTERRUPTED, TERMINATED
from nni_autorecon.config.flags import from_flags
from nni_autorecon.config.stages import STAGES
from nni_autorecon.networks import resnet20
from nni_autorecon.runs.folder import EVENTS, LOCK, RESULTS

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")),
    *DOCS,
    *sorted((ROOT / "docs" / "results").glob("*.md")),
]
EXPERIMENT = {"trainingService", "trialCommand", "nniManagerIp"}
"""A YAML fence with one of these names is an experiment; tests/experiment reads it."""


def fences(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of the languages; a block without one is for the shell."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command in the shell's blocks, lines that go on joined."""
    for block in fences(page, "", "sh", "bash", "shell"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"\s(?:&&|\|)\s", line):
                if words := shlex.split(command, comments=True):
                    yield words


def pages_with(found: Any) -> list[Any]:
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in PAGES if any(found(page))]


def subparsers() -> dict[str, argparse.ArgumentParser]:
    (kinds,) = (each for each in cli.build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return dict(kinds.choices)


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings}


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """The code that makes the tables of the site."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", pages_with(commands))
def test_commands_can_be_given(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in fences(page, "yaml"):
        Path("mine.yml").write_text(text)  # the name that --config has in the documentation
    for words in commands(page):
        if page.parent.name != "results" or words[0] == "nni-autorecon":  # some results are what a command printed
            check(words)


def check(words: list[str]) -> None:
    """Fail if the program, a file, a flag or a value of a command is not there."""
    program, *rest = words
    if program == "nni-autorecon":
        arguments = cli.build_parser().parse_args(rest)
        if rest[0] in STAGES:
            from_flags(STAGES[rest[0]].config, arguments).require_used()
    elif program in ("python", "python3") and rest[0].endswith(".py"):
        source = (ROOT / rest[0]).read_text()
        own = rest[: rest.index("--")] if "--" in rest else rest
        assert all(f'"{word}"' in source for word in own if word.startswith("--")), words
    elif program in ("python", "python3"):
        assert rest[0] == "-m"
        assert rest[1] == "venv" or importlib.util.find_spec(rest[1]), words
    elif program == "pip":
        extras = re.findall(r"\w+", "".join(re.findall(r"\[(.*?)\]", " ".join(rest))))
        known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        assert set(extras) <= set(known), words
    elif program == "nnictl":
        assert all((ROOT / word).is_file() for word in rest if word.endswith(".yml")), words
    else:
        assert program in (".", "eval", "pytest", "mkdocs"), words
    assert all((ROOT / w).is_file() for w in rest if w.startswith("experiment") and w.endswith(".yml")), words


def test_flags_and_commands_within_the_text_exist():
    parsers = subparsers()
    known = set().union(*map(flags_of, parsers.values()), {"--version", "--help"})
    known |= {
        flag for file in (ROOT / "benchmarks").glob("*.py") for flag in re.findall(r'"(--[\w-]+)"', file.read_text())
    }
    known |= {"--upgrade", "--require", "--logdir"}  # pip's, Node's and TensorBoard's
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for span in re.findall(r"`([^`]+)`", text):
            flags = re.findall(r"(?<![\w-])--[a-z][\w-]*", span)
            assert set(flags) <= known, f"{page.name}: {span}"
            if command := re.match(r"nni-autorecon\s+([a-z][\w-]*)", span):
                assert command[1] in parsers, f"{page.name}: {span}"
                assert set(flags) <= flags_of(parsers[command[1]]) | {"--help"}, f"{page.name}: {span}"


@pytest.mark.parametrize("page", pages_with(lambda page: fences(page, "yaml", "yml")))
def test_settings_are_read(page, tmp_path):
    for text in fences(page, "yaml", "yml"):
        if EXPERIMENT & yaml.safe_load(text).keys():
            continue
        file = tmp_path / "mine.yml"
        file.write_text(text)
        taken = 0
        for stage in STAGES.values():
            with contextlib.suppress(nar.InputError):
                stage.config.load(file).require_used()
                taken += 1
        assert taken, f"no stage takes\n{text}"


@pytest.mark.parametrize("page", pages_with(lambda page: fences(page, "python")))
def test_names_in_code_exist(page):
    for text in fences(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("nni_autorecon"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, name.name) for name in node.names)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nar":
                assert node.attr in nar.__all__, node.attr
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("nar."):
                check_keywords(ast.unparse(node.func).removeprefix("nar."), [str(word.arg) for word in node.keywords])


def check_keywords(name: str, keywords: list[str]) -> None:
    called: Any = nar
    for part in name.split("."):
        called = getattr(called, part)
    known = set(inspect.signature(called).parameters)
    if name in STAGES:
        known |= {field.name for field in dataclasses.fields(STAGES[name].config)}
    assert set(keywords) <= known, name


MODELS = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5),
    )

network = make().eval()
"""
SMALL = {"epochs": 3, "warmup_epochs": 1, "steps": 2, "batch_size": 4, "width": 3, "agreement_steps": 1}
SMALL_SEARCH = {"epochs": 1, "weight_steps": 1, "architecture_steps": 1, "validation_steps": 1, "final_steps": 1}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the README supposes: models.py, its weights, and images on which it is right."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "models", raising=False)
    Path("models.py").write_text(MODELS)
    network = importlib.import_module("models").network
    torch.save(network.state_dict(), "mine.pt")
    images = np.random.default_rng(0).integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.491, 0.482, 0.447), (0.202, 0.199, 0.201)))
    with torch.no_grad():
        labels = network((torch.from_numpy(images).float() / 255 - mean) / std).argmax(1)
    np.savez("test.npz", images=images, labels=labels.numpy())
    yield tmp_path
    sys.modules.pop("models", None)


@pytest.fixture
def quick(monkeypatch):
    """The stages are over at once, whatever a snippet says of their length."""

    def shorten(name: str, **less: Any) -> None:
        stage = getattr(nar, name)
        monkeypatch.setattr(nar, name, lambda *args, **more: stage(*args, **{**more, **less, "progress": False}))

    return shorten


def run(page: str, number: int = 0, **names: Any) -> dict[str, Any]:
    """Run a Python block of a page, and return its names."""
    code = fences(ROOT / page, "python")[number]
    exec(compile(code, page, "exec"), names)
    return names


@pytest.mark.usefixtures("place")
def test_own_network_by_the_shell(capsys):
    for words in commands(ROOT / "README.md"):
        if words[0] == "nni-autorecon" and words[1] != "start" and any("mine" in word for word in words):
            small = [f"--{name.replace('_', '-')}={value}" for name, value in {**SMALL, "block_images": 8}.items()]
            assert cli.main([*words[1:], *(small if words[1] == "compress" else [])]) == 0, capsys.readouterr().err
    assert Path("mine-costs.png").is_file()
    assert "test accuracy" in capsys.readouterr().out


@pytest.mark.usefixtures("place")
def test_own_network_from_python_and_in_onnxruntime_alone(quick, capsys):
    quick("compress", **SMALL, block_images=8)
    result = run("README.md")["result"]
    assert result.accuracy is not None
    assert run("docs/students.md", 1)["logits"].shape == (24, 5)


def test_a_resnet20_from_the_search_to_its_file(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(resnet20().state_dict(), "resnet20.pt")
    quick("search", **SMALL_SEARCH, batch_size=4, width=3)
    quick("compress", **SMALL, test_data=None)
    names = run("docs/your-network.md")
    assert nar.load_student("student.onnx").description.num_classes == 10
    settings = {
        "checkpoint": "resnet20.pt",
        "image_size": 32,
        "mean": "0.5,0.5,0.5",
        "std": "0.2,0.2,0.2",
        "method": "dfq",
    }
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    nar.compress("nni_autorecon.networks:resnet20", folder="runs/w3a3", bits="w8a8", progress=False, **settings)
    assert run("docs/students.md", images=torch.zeros(2, 3, 32, 32))["logits"].shape == (2, 10)
    assert names["found"].genotype.width == 3


def test_the_small_student_takes_the_digits():
    small = run("docs/distilling.md")["small"]
    assert isinstance(small(10), nn.Module)
    assert small(10)(torch.zeros(2, 1, 16, 16)).shape == (2, 10)


LINK = re.compile(r"(?<!`)\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")


@pytest.mark.parametrize("page", pages_with(lambda page: [True]))
def test_links_lead_somewhere(page):
    for path, anchor in LINK.findall(page.read_text()):
        target = Path(os.path.normpath(page.parent / path)) if path else page
        assert target.exists(), path
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, anchor


def test_the_front_page_is_short_warns_and_says_how_to_test():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert "NNI's manager has no login" in text
    assert "pip install -e '.[test]' && pytest" in text


def test_every_page_is_in_the_navigation_and_in_the_links_of_the_front_page():
    navigation, front = (ROOT / "mkdocs.yml").read_text(), (ROOT / "README.md").read_text()
    for page in DOCS:
        assert f": {page.name}\n" in navigation, page.name
        assert f"(docs/{page.name}" in front or page.name == "speed.md", page.name


def test_the_reference_has_every_public_name_command_setting_and_file(hooks):
    python, commands_page, settings, files = (
        (ROOT / "docs" / f"{name}.md").read_text() for name in ("python", "commands", "settings", "files")
    )
    assert set(re.findall(r"^::: nni_autorecon\.(\w+)", python, re.MULTILINE)) == set(nar.__all__) - {"__version__"}
    parsers = subparsers()
    assert set(re.findall(r"^<!-- command: ([\w-]+) -->$", commands_page, re.MULTILINE)) == set(parsers)
    assert re.findall(r"^<!-- settings: (\w+) -->$", settings, re.MULTILINE) == list(STAGES)
    assert not [name for name in (*RESULTS, "config.json", LOCK, f"{EVENTS}/") if f"`{name}`" not in files]
    for name, stage in STAGES.items():
        table = "\n".join(hooks.settings_lines(stage.config))
        assert not [f.name for f in dataclasses.fields(stage.config) if f"| `{f.name}`" not in table], name
    for name, parser in parsers.items():
        table = "\n".join(hooks.command_lines(name))
        settings_of = {f.name for f in dataclasses.fields(STAGES[name].config)} if name in STAGES else set()
        told = [a for a in parser._actions if a.dest not in settings_of | {"help"}]
        assert not [a.dest for a in told if (a.option_strings or [str(a.metavar)])[-1] not in table], name


def test_a_line_of_the_settings_says_range_default_and_use(hooks):
    lines = list(hooks.settings_lines(STAGES["compress"].config))
    (line,) = (line for line in lines if line.startswith("| `mixed_classes`"))
    used = "`generator` is not `noise` or `dead-leaves`; and if `mixed_share` is not `0`"
    assert line == f"| `mixed_classes` | classes of each of these | whole number, 2 or more | `2` | {used} |"
    (line,) = (line for line in lines if line.startswith("| `input_bits`"))
    assert line.endswith("| whole number, 2 to 8 | – | `protocol` is `integer` |")


def test_exit_codes_and_environment_variables_are_listed():
    text = (ROOT / "docs" / "environment.md").read_text()
    for code in (0, 1, INTERRUPTED, TERMINATED, *(code for _, code in CODES)):
        assert f"| {code} |" in text
    assert all(re.search(rf"^\| {code} \|.*`{kind.__name__}`", text, re.MULTILINE) for kind, code in CODES)
    sources = "".join(path.read_text() for path in (ROOT / "nni_autorecon").rglob("*.py"))
    assert not [name for name in set(re.findall(r"NNI_AUTORECON_[A-Z]+", sources)) if name not in text]


def test_the_version_is_the_same_wherever_it_stands():
    (newest, *_) = re.findall(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert newest == cited == nar.__version__
