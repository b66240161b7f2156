"""The doctor says what a machine lacks for the command line, NNI and its experiments. It needs little to run itself."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata, util
from itertools import zip_longest
from pathlib import Path

from ..cache import CACHE_VARIABLE, cache_folder
from ..errors import AutoReConError, InputError, named, one_line
from ..version import __version__
from .gpus import count_gpus, refuse_unmeetable_request

OK, NOTE, WRONG = "ok", "note", "wrong"
PYTHON = ">=3.10,<3.14"
PACKAGES = {  # the dependencies in pyproject.toml
    "nni": "==3.0",
    "torch": ">=2.9",
    "torchvision": ">=0.24",
    "numpy": ">=1.26",
    "pandas": ">=2.0",
    "matplotlib": ">=3.8",
    "pytorch-lightning": ">=2.5,<3",
    "scikit-learn": ">=1.3",
    "safetensors": ">=0.4",
    "setuptools": ">=77.0.3,<80.9",
    "filelock": ">=3.4",
    "platformdirs": ">=4.0",
    "pyyaml": ">=6.0",
    "psutil": ">=5.9",
    "requests": ">=2.28",
    "tqdm": ">=4.64",
    "argcomplete": ">=3.0",
    "jinja2": ">=3.1",
}
PORT = 8080
GIB = 2**30
LEAST_SPACE = 2 * GIB
SECONDS = 120


@dataclass(frozen=True)
class Finding:
    """The finding of a check: ``ok``, ``note`` (worth knowing) or ``wrong``, and what to do about it."""

    name: str
    state: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:<6}{self.name:<18} {self.found}{'; ' if self.remedy else ''}{self.remedy}"


def doctor(file: Path | None = None, *, quiet: bool = False) -> list[Finding]:
    """Print a line for each check, with ``quiet`` only where something is to be said; return all findings."""
    findings = []
    for finding in examine(file):
        findings.append(finding)
        if not quiet or finding.state != OK:
            print(finding, flush=True)
    return findings


def require_sound(findings: Iterable[Finding]) -> None:
    """Raise AutoReConError if something is wrong."""
    if any(finding.state == WRONG for finding in findings):
        raise AutoReConError(f"each line above that begins with {WRONG} says what to do")


def examine(file: Path | None = None) -> Iterator[Finding]:
    """Yield findings about the machine and, with ``file``, about that experiment, one after another."""
    yield check_python()
    yield Finding("nni-autorecon", OK, f"{__version__}, {Path(__file__).parents[1]}")
    yield from (check_package(name, wanted) for name, wanted in PACKAGES.items())
    yield from (check() for check in CHECKS)
    for name, folder in (("NNI's folder", _nni_home()), ("working folder", Path.cwd())):
        yield check_folder(name, folder, "make it writable, or use another")
    yield check_folder("cache", cache_folder(), f"set {CACHE_VARIABLE} to another folder")
    if file is not None:
        yield check_experiment_file(file)


def check_python() -> Finding:
    version = platform.python_version()
    if _meets(version, PYTHON):
        return Finding("python", OK, f"{version}, {sys.executable}")
    return Finding("python", WRONG, f"{version} does not run NNI 3.0", "make a virtual environment with 3.10 to 3.13")


def check_package(name: str, wanted: str) -> Finding:
    remedy = f"pip install '{name}{wanted}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, WRONG, "is not installed", remedy)
    if not _meets(version, wanted):
        return Finding(name, WRONG, f"{version} is not {wanted}", remedy)
    return Finding(name, OK, version)


def check_machine() -> Finding:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding("machine", OK, f"{cores} CPU core(s), {memory / GIB:.0f} GiB of memory")


def check_gpu() -> Finding:
    """Compare the GPUs that PyTorch can use with those that the driver has."""
    driver = _run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])[1].split("\n")[0]
    there = count_gpus()
    try:
        import torch

        seen = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        gpus = [torch.cuda.get_device_properties(index) for index in seen]
    except Exception as error:  # a damaged installation may raise anything
        return Finding("GPU", WRONG, f"PyTorch does not start ({named(error)})", "pip install --force-reinstall torch")
    if gpus:
        each = ", ".join(f"cuda:{i} {gpu.name} {gpu.total_memory / GIB:.0f} GiB" for i, gpu in enumerate(gpus))
        return Finding("GPU", OK, f"{each}, driver {driver or 'unknown'}")
    if there and os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        return Finding("GPU", NOTE, f"{there} hidden by CUDA_VISIBLE_DEVICES", "unset it to use them")
    if there:
        remedy = "install the build of torch for this driver, see pytorch.org"
        return Finding("GPU", WRONG, f"{there} in the machine, which torch {torch.__version__} cannot use", remedy)
    return Finding("GPU", OK, "none, work is done on the CPU")


def check_pkg_resources() -> Finding:
    if util.find_spec("pkg_resources") is None:
        remedy = f"pip install 'setuptools{PACKAGES['setuptools']}'"
        return Finding("pkg_resources", WRONG, "cannot be imported, and nnictl needs it", remedy)
    return Finding("pkg_resources", OK, "can be imported")


def check_nnictl() -> Finding:
    tool = Path(sysconfig.get_path("scripts"), "nnictl")
    code, output = _run([str(tool), "--version"])
    if code:
        return Finding(
            "nnictl", WRONG, f"{tool} does not start ({_last(output)})", "pip install --force-reinstall nni==3.0"
        )
    return Finding("nnictl", OK, f"{tool} starts")


def check_manager() -> Finding:
    """Start the node that NNI brings, which runs the manager."""
    package = util.find_spec("nni_node")
    folders = (package and package.submodule_search_locations) or []
    code, output = _run([str(Path(folder, "node")) for folder in folders] + ["--version"])
    if code or not folders:
        return Finding(
            "NNI's manager", WRONG, f"does not start ({_last(output)})", "pip install --force-reinstall nni==3.0"
        )
    return Finding("NNI's manager", OK, f"starts, node {_last(output)}")


def check_path() -> Finding:
    """Look which Python the shell finds, for it runs ``trialCommand: python …``."""
    code, prefix = _run(["python", "-c", "import sys; print(sys.prefix)"])
    if code == 0 and prefix and Path(prefix).resolve() == Path(sys.prefix).resolve():
        return Finding("python on PATH", OK, "this environment's, as trialCommand needs")
    remedy = "activate the environment, or start experiments with nni-autorecon start"
    return Finding("python on PATH", WRONG, f"{shutil.which('python') or 'none'}, not this environment's", remedy)


def check_experiments() -> Finding:
    """Look for experiments that NNI's list calls running although nobody runs them."""
    listed = _nni_home() / ".experiment"
    try:
        experiments = json.loads(listed.read_text(encoding="utf-8")) if listed.exists() else {}
        live = {key: value.get("pid") for key, value in experiments.items() if value.get("status") != "STOPPED"}
    except (OSError, ValueError, AttributeError) as error:
        return Finding("experiments", WRONG, f"{listed} cannot be read ({one_line(error)})", "move it away")
    dead = [key for key, pid in live.items() if not _alive(pid)]
    if dead:
        remedy = "nni-autorecon continue ID goes on with one; nnictl stop --all clears the list"
        return Finding("experiments", NOTE, f"{', '.join(dead)} listed as running, but the manager is gone", remedy)
    return Finding("experiments", OK, f"{len(live)} running ({', '.join(live)})" if live else "none running")


def check_port() -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", PORT))
        except OSError as error:
            return Finding(f"port {PORT}", NOTE, f"is taken ({error.strerror})", "give experiments another with --port")
    return Finding(f"port {PORT}", OK, "is free for the web UI")


CHECKS: tuple[Callable[[], Finding], ...] = (
    check_machine,
    check_gpu,
    check_pkg_resources,
    check_nnictl,
    check_manager,
    check_path,
    check_experiments,
    check_port,
)


def check_folder(name: str, folder: Path, remedy: str) -> Finding:
    """Try whether files can be written in ``folder``, or where it would be made, and how much space is left."""
    try:
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(name, WRONG, f"{folder} cannot be written ({error.strerror})", remedy)
    if free < LEAST_SPACE:
        return Finding(name, WRONG, f"{folder} has {free / GIB:.1f} GiB left", f"make space, or {remedy}")
    return Finding(name, OK, f"{folder} can be written, {free / GIB:.0f} GiB free")


def check_experiment_file(file: Path) -> Finding:
    """Look whether NNI can give the experiment's trials the GPUs that they ask for."""
    from .reading import read_experiment  # it needs PyYAML, which may be missing

    try:
        refuse_unmeetable_request(read_experiment(file), count_gpus())
    except InputError as error:
        found, _, remedy = str(error).rpartition("; ")
        return Finding(file.name, WRONG, found, remedy)
    return Finding(file.name, OK, "asks for GPUs that NNI can give, or for none")


def _meets(version: str, wanted: str) -> bool:
    """Return True if ``version`` is in a range such as ``>=2.5,<3``; only the numbers at its beginning count."""
    for operator, bound in re.findall(r"(==|>=|<)([\d.]+)", wanted):
        pairs = list(zip_longest(_numbers(version), _numbers(bound), fillvalue=0))
        ours, limit = [a for a, _ in pairs], [b for _, b in pairs]
        if not {"==": ours == limit, ">=": ours >= limit, "<": ours < limit}[operator]:
            return False
    return True


def _numbers(version: str) -> list[int]:
    found = re.match(r"\d+(\.\d+)*", version)
    return [int(number) for number in found[0].split(".")] if found else []


def _run(command: list[str]) -> tuple[int, str]:
    """Return exit code and output of a program; -1 and the reason if it cannot be started or does not end."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, getattr(error, "strerror", None) or f"no answer in {SECONDS} s"
    return done.returncode, (done.stderr if done.returncode else done.stdout).strip()


def _last(output: str) -> str:
    return output.split("\n")[-1]


def _alive(pid: object) -> bool:
    try:
        os.kill(int(str(pid)), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _nni_home() -> Path:
    return Path.home() / "nni-experiments"


if __name__ == "__main__":  # for a Python too old for the command line
    try:
        require_sound(doctor(Path(sys.argv[1]) if sys.argv[1:] else None))
    except AutoReConError as error:
        sys.exit(f"nni-autorecon: error: {error}")
