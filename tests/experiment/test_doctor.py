"""Each fault provoked, and what is said of it; and a real run."""

import json
import os
import re
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nni_autorecon.cache import CACHE_VARIABLE
from nni_autorecon.cli import main as cli
from nni_autorecon.experiment import doctor
from nni_autorecon.experiment.doctor import NOTE, OK, WRONG

ROOT = Path(__file__).parents[2]


def _is(finding, state, found, remedy=""):
    assert (finding.state, "\n" in str(finding)) == (state, False)
    assert found in finding.found
    assert remedy in finding.remedy
    assert bool(finding.remedy) == (state != OK)


def test_versions_are_those_of_the_package():
    project = (ROOT / "pyproject.toml").read_text()
    assert f'requires-python = "{doctor.PYTHON}"' in project
    listed = project.partition("\ndependencies = [")[2].partition("\n]")[0]
    needed = re.findall(r'^ *"([^"]+)"', listed, flags=re.MULTILINE)
    assert sorted(f"{name}{wanted}" for name, wanted in doctor.PACKAGES.items()) == sorted(needed) != []


@pytest.mark.parametrize(
    ("version", "wanted", "met"),
    [
        ("2.10.0+cu128", ">=2.6", True),
        ("2.6", ">=2.6", True),
        ("2.5.1", ">=2.6", False),
        ("3.0", "==3.0", True),
        ("3.0.0", "==3.0", True),
        ("2.10", "==3.0", False),
        ("80.8.0", ">=77.0.3,<80.9", True),
        ("80.9.0", ">=77.0.3,<80.9", False),
        ("82", ">=77.0.3,<80.9", False),
        ("3.0.0rc1", ">=2.5,<3", False),
        ("unknown", ">=2.6", False),
    ],
)
def test_versions_compare_number_by_number(version, wanted, met):
    assert doctor._meets(version, wanted) == met


@pytest.mark.parametrize(("version", "state"), [("3.9.18", WRONG), ("3.10.0", OK), ("3.13.9", OK), ("3.14.0", WRONG)])
def test_python(version, state, monkeypatch):
    monkeypatch.setattr("platform.python_version", lambda: version)
    _is(doctor.check_python(), state, version, "with 3.10 to 3.13" if state == WRONG else "")


def test_packages_that_are_missing_or_of_another_version(monkeypatch):
    def version(name):
        if name == "nni":
            raise metadata.PackageNotFoundError
        return "82.0.1"

    monkeypatch.setattr(metadata, "version", version)
    _is(doctor.check_package("nni", "==3.0"), WRONG, "is not installed", "pip install 'nni==3.0'")
    _is(doctor.check_package("setuptools", ">=77,<80.9"), WRONG, "82.0.1 is not >=77,<80.9", "'setuptools>=77,<80.9'")
    _is(doctor.check_package("torch", ">=2.9"), OK, "82.0.1")


def test_pkg_resources_and_nnis_programs_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    _is(doctor.check_pkg_resources(), WRONG, "cannot be imported", "pip install 'setuptools")
    _is(doctor.check_nnictl(), WRONG, "nnictl does not start (No such file or directory)", "nni==3.0")
    _is(doctor.check_manager(), WRONG, "does not start", "nni==3.0")


def _program(path, *lines):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)


def test_nnis_programs_fail(monkeypatch, tmp_path):
    _program(tmp_path / "nnictl", "echo Traceback >&2", "echo no module named nni >&2", "exit 1")
    _program(tmp_path / "node", "echo GLIBC_2.28 not found >&2", "exit 1")
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    _is(doctor.check_nnictl(), WRONG, "does not start (no module named nni)", "--force-reinstall nni==3.0")
    _is(doctor.check_manager(), WRONG, "does not start (GLIBC_2.28 not found)", "--force-reinstall nni==3.0")


def test_a_program_that_never_ends_is_not_waited_for(monkeypatch, tmp_path):
    _program(tmp_path / "nnictl", "exec sleep 60")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(doctor, "SECONDS", 0.1)
    _is(doctor.check_nnictl(), WRONG, "does not start (no answer in 0.1 s)", "nni==3.0")


def test_another_python_on_the_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    _is(doctor.check_path(), OK, "this environment's")
    monkeypatch.setenv("PATH", str(tmp_path))
    _is(doctor.check_path(), WRONG, "none, not this environment's", "activate the environment")
    _program(tmp_path / "python", "echo /usr")
    _is(doctor.check_path(), WRONG, f"{tmp_path}/python, not this environment's", "activate the environment")


@pytest.fixture
def nobody():
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_experiments_without_a_manager(monkeypatch, tmp_path, nobody):
    monkeypatch.setenv("HOME", str(tmp_path))
    _is(doctor.check_experiments(), OK, "none running")
    listed = tmp_path / "nni-experiments" / ".experiment"
    listed.parent.mkdir()
    experiments = {"a": {"status": "RUNNING", "pid": os.getpid()}, "b": {"status": "STOPPED", "pid": None}}
    listed.write_text(json.dumps(experiments))
    _is(doctor.check_experiments(), OK, "1 running (a)")
    listed.write_text(json.dumps({**experiments, "c": {"status": "RUNNING", "pid": nobody}, "d": {"status": "DONE"}}))
    gone = "c, d listed as running, but the manager is gone"
    _is(doctor.check_experiments(), NOTE, gone, "nni-autorecon continue ID")
    for damaged in ("{", "[]", '{"a": 1}'):
        listed.write_text(damaged)
        _is(doctor.check_experiments(), WRONG, f"{listed} cannot be read", "move it away")


def test_a_port_that_is_taken(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setattr(doctor, "PORT", taken.getsockname()[1])
        _is(doctor.check_port(), NOTE, "is taken", "--port")
    _is(doctor.check_port(), OK, "is free")


def test_folders(monkeypatch, tmp_path):
    _is(doctor.check_folder("cache", tmp_path / "new" / "folder", "set X"), OK, "can be written")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    _is(doctor.check_folder("cache", tmp_path / "file", "set X"), WRONG, "cannot be written (Not a directory)", "set X")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=2**29))
    _is(doctor.check_folder("cache", tmp_path, "set X"), WRONG, "has 0.5 GiB left", "make space, or set X")


def _cards(monkeypatch, *, there, seen, visible=None):
    """A machine in which the driver and PyTorch find so many GPUs."""
    monkeypatch.setattr(doctor, "count_gpus", lambda: there)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    card = SimpleNamespace(name="Card", total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


def test_gpus(monkeypatch, tmp_path):
    _program(tmp_path / "nvidia-smi", "echo 580.1", "echo 580.1")
    monkeypatch.setenv("PATH", str(tmp_path))
    _cards(monkeypatch, there=2, seen=2)
    _is(doctor.check_gpu(), OK, "cuda:0 Card 24 GiB, cuda:1 Card 24 GiB, driver 580.1")
    _cards(monkeypatch, there=1, seen=0)
    _is(doctor.check_gpu(), WRONG, "1 in the machine, which torch", "the build of torch for this driver")
    _cards(monkeypatch, there=1, seen=0, visible="")
    _is(doctor.check_gpu(), NOTE, "1 hidden by CUDA_VISIBLE_DEVICES", "unset")
    _cards(monkeypatch, there=0, seen=0)
    _is(doctor.check_gpu(), OK, "none, work is done on the CPU")
    monkeypatch.setitem(sys.modules, "torch", None)
    _is(doctor.check_gpu(), WRONG, "PyTorch does not start (ModuleNotFoundError", "torch")


@pytest.mark.parametrize(
    ("text", "state", "found", "remedy"),
    [
        ("trainingService: {platform: local}", OK, "asks for GPUs that NNI can give, or for none", ""),
        ("trialGpuNumber: 1\ntrainingService: {platform: local}", WRONG, "NNI sees no GPU", "leave out both it"),
        ("", WRONG, "e.yml is empty", "nni-autorecon new"),
        ("- 1", WRONG, "expected names and values, got list", "nni-autorecon new"),
        ("a: [", WRONG, "is neither JSON nor YAML", "nni-autorecon new"),
        ("experimentName: 2021-13-45", WRONG, "is neither JSON nor YAML: month must be in 1..12", "nni-autorecon new"),
        ("[" * 3000, WRONG, "is neither JSON nor YAML", "nni-autorecon new"),
        (None, WRONG, "e.yml does not exist", "check the path"),
    ],
)
def test_an_experiment_file(text, state, found, remedy, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "count_gpus", lambda: 0)
    if text is not None:
        (tmp_path / "e.yml").write_text(text)
    _is(doctor.check_experiment_file(tmp_path / "e.yml"), state, found, remedy)


def _doctor(*arguments, python=(sys.executable,), **variables):
    """Run as a person does, with this environment's python on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [*python, "-m", "nni_autorecon", "doctor", *map(str, arguments)]
    environment = {**os.environ, "PATH": path, **variables}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_sound_machine_and_one_with_a_fault(tmp_path):
    done = _doctor(ROOT / "experiment.yml")
    assert (done.returncode, done.stderr) == (0, "")
    *lines, summary = done.stdout.splitlines()
    assert summary.startswith(f"{len(lines)} checks: 0 wrong, ")
    names = [line[6:24].strip() for line in lines]
    for name in ("python", *doctor.PACKAGES, "GPU", "nnictl", "python on PATH", "cache", "experiment.yml"):
        assert names.count(name) == 1
    (tmp_path / "file").touch()
    done = _doctor(**{CACHE_VARIABLE: str(tmp_path / "file")})
    assert done.returncode == 1
    assert [line[6:24].strip() for line in done.stdout.splitlines() if line.startswith(WRONG)] == ["cache"]
    assert done.stderr.count("\n") == 1
    assert f"begins with {WRONG}" in done.stderr
    done = _doctor("--quiet", "--json", **{CACHE_VARIABLE: str(tmp_path / "file")})
    found = json.loads(done.stdout)
    assert [finding["name"] for finding in found["findings"] if finding["state"] == WRONG] == ["cache"]
    assert (done.returncode, found["wrong"], "GPU" in done.stderr) == (1, 1, False)


def test_an_environment_with_next_to_nothing(monkeypatch, capsys):
    """Without torch, NNI, setuptools and the rest every check still has its line."""
    whole = len(list(doctor.examine()))
    for name in ("torch", "pynvml", "nni"):
        monkeypatch.setitem(sys.modules, name, None)

    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sysconfig.get_path", lambda name: "/nowhere")
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr()
    assert printed.out.count("\n") == whole + 1
    assert printed.out.count(f"{WRONG} ") >= len(doctor.PACKAGES) + 4
    assert printed.err.count("\n") == 1
