"""``nni-autorecon new`` writes what runs and refuses what cannot, and needs no clone of the repository."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from errno import EACCES
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from nni_autorecon import files
from nni_autorecon.cli import foretelling
from nni_autorecon.cli import main as cli
from nni_autorecon.cli.recipes import recipe
from nni_autorecon.experiment import trial
from nni_autorecon.experiment.reading import read_experiment
from nni_autorecon.experiment.settings_file import check_experiment
from nni_autorecon.shapes import ImageShape
from nni_autorecon.teacher.configured import configured_teacher
from nni_autorecon.teacher.factories import network_of_factory
from tests.helpers import grids
from tests.helpers.command_line import SEARCH

ROOT = Path(__file__).parents[2]
WRITTEN = {"experiment.yml", "search.json", "compress.yml", "compress.json", "README.md"}
COMPRESS = "--batch-size 4 --epochs 3 --steps 1 --warmup-epochs 1 --agreement-steps 1 --block-images 8".split()
MODELS = """
from torch import nn


def make(num_classes=5):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *head(num_classes))


def head(num_classes):
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)


def without_norm():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *head(5))


def without_activation():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *head(5))
"""
WITHOUT_NORM = "--teacher models.py:without_norm --checkpoint without_norm.pt"
WITHOUT_ACTIVATION = "--teacher models.py:without_activation --checkpoint without_activation.pt"
MINE = "--teacher models.py:make --checkpoint make.pt --image-size 12".split()


@pytest.fixture
def network_here(tmp_path, monkeypatch):
    """A working folder, with a space in its name, of somebody who has a network and images that it knows."""
    folder = tmp_path / "my work"
    folder.mkdir()
    (folder / "models.py").write_text(MODELS)
    monkeypatch.chdir(folder)
    for name in ("without_norm", "without_activation", "make"):
        network = network_of_factory("models.py", name, None, name).eval()
        torch.save(network.state_dict(), f"{name}.pt")
    images = torch.randint(256, (40, 3, 12, 12), dtype=torch.uint8)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5]))
    with torch.no_grad():
        labels = network((images / 255 - mean) / std).argmax(1)
    np.savez("known.npz", images=images.numpy(), labels=labels.numpy())
    np.savez("unknown.npz", images=images.numpy(), labels=(labels.numpy() + 1) % 5)
    return folder


@pytest.fixture
def here(network_here, monkeypatch):
    """The same folder, where times need not be measured."""
    monkeypatch.setattr(foretelling, "search_seconds", lambda *_: 50)
    monkeypatch.setattr(foretelling, "student_seconds", lambda *_: 200)
    return network_here


def _new(*arguments):
    return cli.main(["new", *map(str, arguments)])


def _refused(capsys, *arguments):
    """Return the line with which it is refused; nothing is written."""
    before = {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*") if "__pycache__" not in path.parts}
    capsys.readouterr()
    assert _new(*arguments) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if not line.startswith("teacher ")]
    assert (printed.out, len(lines)) == ("", 1)
    assert lines[0].startswith("nni-autorecon: error: ")
    after = {path: path.stat().st_mtime_ns for path in Path.cwd().rglob("*") if "__pycache__" not in path.parts}
    assert after == before
    return lines[0]


def _words(file):
    """The words of its trialCommand."""
    return shlex.split(yaml.safe_load(file.read_text())["trialCommand"])


# What is written


@pytest.mark.parametrize(
    ("arguments", "searches", "students"),
    [([], 6, ["w4a4", "w3a3", "w2a2"]), (MINE, 3, ["w8a8", "w4a4", "w3a3"]), ([*MINE[:-1], "64"], 3, ["w8a8", "w4a8"])],
    ids=["digits", "small", "large"],
)
def test_start_takes_the_files_and_every_trial_its_settings(arguments, searches, students, digits_teacher, here):
    assert _new("a folder", *arguments) == 0
    folder = here / "a folder"
    assert {path.name for path in folder.iterdir()} == WRITTEN
    for name in ("experiment.yml", "compress.yml"):
        check_experiment(read_experiment(folder / name), name, folder)
    search, compress = (grids.configs(folder / name) for name in ("experiment.yml", "compress.yml"))
    assert len(search) == searches
    assert [config.bits for config in compress] == students
    for config in (*search, *compress):
        config.require_consistent()


def test_what_is_said_of_the_network_arrives_and_holds_in_another_folder(here, tmp_path, monkeypatch, capsys):
    said = "--num-classes 5 --mean 0.1,0.2,0.3 --std 0.5,0.5,0.5 --bns-weight 2 --test-data known.npz".split()
    assert _new(tmp_path / "new", *MINE, *said) == 0
    assert "teacher models.py:make: 100.00 % of 40 test images" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    known = {
        "teacher": f"{here}/models.py:make",
        "checkpoint": f"{here}/make.pt",
        "image_size": 12,
        "num_classes": 5,
        "mean": "0.1,0.2,0.3",
        "std": "0.5,0.5,0.5",
        "bns_weight": 2.0,
    }
    (search, *_), (compress, *_) = (
        grids.configs(tmp_path / "new" / name) for name in ("experiment.yml", "compress.yml")
    )
    for config in (search, compress):
        assert {name: getattr(config, name) for name in known} == known
    assert compress.test_data == f"{here}/known.npz"
    assert configured_teacher(search).image == (3, 12, 12)
    readme = (tmp_path / "new" / "README.md").read_text()
    assert f"-o student.onnx\nnni-autorecon evaluate student.onnx --latency --teacher '{here}/models.py:make'" in readme
    assert f"--test-data '{here}/known.npz'\n" in readme
    assert "start compress.yml\n```\n" in readme  # what is pasted with it would end the experiment


def test_what_the_network_tells_itself_is_not_repeated(digits_teacher, here):
    assert _new("new") == 0
    for stage, name in (("search", "experiment.yml"), ("compress", "compress.yml")):
        words = _words(here / "new" / name)
        assert words == [sys.executable, "-m", "nni_autorecon", stage, "--teacher", "digits", "--threads", "1"]


@pytest.mark.parametrize(
    ("spec", "written"), [("cifar10:data", "cifar10:{}/data"), ("a/b", "{}/a/b"), ("digits", "digits")]
)
def test_test_data_are_named_by_absolute_paths(spec, written, here, monkeypatch):
    monkeypatch.setattr("nni_autorecon.student.results.evaluation_data", lambda config, teacher: None)
    assert _new("new", *MINE, "--test-data", spec) == 0
    words = _words(here / "new" / "compress.yml")
    assert words[words.index("--test-data") + 1] == written.format(here)


def test_a_module_that_is_found_from_here_alone_is_named_by_its_file(here):
    (here / "of_mine").mkdir()
    shutil.copy("models.py", here / "of_mine" / "nets.py")
    assert _new("new", *MINE, "--teacher", "of_mine.nets:make") == 0
    assert f"{here}/of_mine/nets.py:make" in _words(here / "new" / "experiment.yml")


@pytest.mark.parametrize(("size", "search", "compress"), [(64, 32, 32), (128, 24, 32), (224, 8, 32), (448, 4, 8)])
def test_large_images_have_smaller_batches(size, search, compress):
    flags = recipe(SimpleNamespace(name="mine", image=ImageShape(3, size, size))).flags
    assert (flags["search"]["batch_size"], flags["compress"]["batch_size"]) == (search, compress)


@pytest.mark.parametrize(("size", "first", "headings"), [(12, "experiment.yml", "SCT"), (64, "compress.yml", "CTS")])
def test_students_of_large_images_come_before_a_search(size, first, headings, here, capsys):
    assert _new("new", *MINE[:-1], size) == 0
    *_, duration, then = capsys.readouterr().out.splitlines()
    assert then.endswith(f" start {first}")
    readme = (here / "new" / "README.md").read_text()
    assert re.findall(r"^## \d\. (\w)", readme, re.MULTILINE) == [*headings]
    assert duration in readme.replace("\n", " ")
    space = (here / "new" / "compress.json").read_text()
    assert ("genotype" in space) == (first == "experiment.yml")
    assert ("--minutes 30" in (here / "new" / "compress.yml").read_text()) == (first == "compress.yml")


def test_force_replaces_what_it_writes_and_nothing_else(here):
    assert _new("new", *MINE) == 0
    before = (here / "new" / "README.md").read_text()
    for name in ("README.md", "mine.txt"):
        (here / "new" / name).write_text("mine")
    assert _new("new", *MINE, "--force") == 0
    assert (here / "new" / "README.md").read_text() == before
    assert (here / "new" / "mine.txt").read_text() == "mine"


def test_an_empty_folder_is_as_good_as_none(here):
    (here / "new").mkdir()
    assert _new("new", *MINE) == 0


def test_times_are_those_of_this_machine(network_here, capsys):
    threads = torch.get_num_threads()
    assert _new("new", *MINE) == 0
    time = r"about (\d+ s|\d+ min)"
    assert re.search(f"three searches takes {time} on this machine, .* students {time[6:]}", capsys.readouterr().out)
    assert torch.get_num_threads() == threads


def test_a_search_takes_as_long_as_its_updates(monkeypatch):
    def four_seconds_each(config, run, teacher, *, on_step):
        for _ in range(9):
            clock.append(clock[-1] + 4)
            on_step()

    clock = [0]
    monkeypatch.setattr("nni_autorecon.nas.search.run_search", four_seconds_each)
    monkeypatch.setattr(foretelling, "time", SimpleNamespace(perf_counter=lambda: clock[-1]))
    settings = {"epochs": 5, "weight_steps": 7, "architecture_steps": 3, "final_steps": 30}
    assert foretelling.search_seconds(None, settings) == pytest.approx(4 * (5 * 10 + 30 / 3))


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--teacher models.py:mak", "has no function or class 'mak'; did you mean make?"),
        (WITHOUT_NORM, "has no BatchNorm2d .* set --bns-weight 0"),
        (WITHOUT_ACTIVATION, "cannot quantize .* no activation function, .*--allow-partial"),
        ("--checkpoint no.pt", "cannot read checkpoint no.pt: No such file"),
        ("--checkpoint without_norm.pt", "checkpoint without_norm.pt does not fit models.py:make"),
        ("--image-size 2", "image_size = 2 is too small"),
        ("--num-classes 7", "give one of exactly this network"),
        ("--mean 0.5", "mean and std belong together"),
        ("--test-data no.npz", "no.npz"),
        ("--test-data unknown.npz --mean 0.1,0.2,0.3 --std 0.5,0.5,0.5", "check --mean and --std"),
        ("--labels l.csv", "there are no test data that --labels could be of"),
    ],
)
def test_a_network_that_a_stage_would_refuse(arguments, message, here, capsys):
    assert re.search(message, _refused(capsys, "new", *MINE, *arguments.split()))


@pytest.mark.parametrize("flags", [f"{WITHOUT_NORM} --bns-weight 0", f"{WITHOUT_ACTIVATION} --allow-partial"])
def test_the_remedies_of_these_refusals_reach_the_trials(flags, here):
    assert _new("new", *MINE, *flags.split()) == 0
    search, compress = (grids.configs(here / "new" / name)[0] for name in ("experiment.yml", "compress.yml"))
    assert (search.bns_weight == compress.bns_weight == 0) != compress.allow_partial


def test_what_is_there_stays(here, capsys):
    assert _new("new", *MINE) == 0
    assert "new already exists; choose another place or pass --force" in _refused(capsys, "new", *MINE)
    assert "models.py already exists" in _refused(capsys, "models.py", *MINE)
    assert "cannot write models.py/" in _refused(capsys, "models.py", *MINE, "--force")


def test_a_folder_that_may_not_be_written(here, monkeypatch, capsys):
    def denied(path):
        raise OSError(EACCES, "Permission denied")

    (here / "new").mkdir()
    monkeypatch.setattr(files, "create_beside", denied)
    assert "cannot write new/experiment.yml: Permission denied; choose a writable" in _refused(capsys, "new", *MINE)


# What is written works


def test_the_trials_run(here, monkeypatch, capsys):
    """NNI starts them in the folder, and hands them parameters."""

    class Trial:
        output, parameters = here / "trial", {"seed": 2}
        require_manager = report_intermediate = staticmethod(lambda *arguments: None)

        def report_final(self, metrics):
            reported.append(metrics)

    reported = []
    assert _new("new", *MINE) == 0
    monkeypatch.chdir("new")
    search, compress = (_words(Path(name))[3:] for name in ("experiment.yml", "compress.yml"))
    assert cli.main([*search, *SEARCH, "-o", "run"]) == 0
    shutil.copy(Path("run", "genotype.json"), "best-genotype.json")
    monkeypatch.setenv("NNI_PLATFORM", "local")
    monkeypatch.setattr(trial, "Trial", Trial)
    Trial.parameters = {"bits": "w8a8", "genotype": "best-genotype.json"}
    assert cli.main([*compress, *COMPRESS]) == 0, capsys.readouterr().err
    config = json.loads(reported[0]["config"])
    assert (config["bits"], config["genotype"]) == ("w8a8", "best-genotype.json")
    assert (Trial.output / "student.safetensors").exists()


@pytest.mark.slow
def test_a_wheel_is_enough(digits_teacher, tmp_path):
    """What ``new`` writes into an empty folder is searched and compressed without the clone."""
    source, target, work = (tmp_path / name for name in ("source", "target", "work"))
    work.mkdir()
    for name in ("nni_autorecon", "search_spaces"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    environment = {**os.environ, "PYTHONPATH": str(target)}

    def run(*words):
        done = subprocess.run(
            [sys.executable, *map(str, words)], cwd=work, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("nni_autorecon/")}
    ours = {path.relative_to(ROOT) for path in (ROOT / "nni_autorecon").rglob("*") if path.is_file()}
    ours |= {"nni_autorecon" / path.relative_to(ROOT) for path in (ROOT / "search_spaces").rglob("*.json")}
    assert packed == {path.as_posix() for path in ours if "__pycache__" not in path.parts}
    run(*pip, "install", "--no-deps", "--no-index", "--target", target, wheel)
    assert run("-c", "import nni_autorecon as a; print(a.__file__)").startswith(str(target))
    run("-m", "nni_autorecon", "show", "published:cifar10-resnet20")
    assert f"cd {work / 'new'} && " in run("-m", "nni_autorecon", "new", work / "new")
    for name, flags in (
        ("experiment.yml", SEARCH),
        ("compress.yml", ["--genotype", "search/genotype.json", *COMPRESS]),
    ):
        _, *command = _words(work / "new" / name)
        run(*command, *flags, "-o", command[2])
    assert (work / "compress" / "student.safetensors").exists()
