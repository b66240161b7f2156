"""Real NNI managers for tests: a home of their own, nnictl, their REST API, the processes they leave."""

import ipaddress
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import requests
import yaml

from nni_autorecon.cache import CACHE_VARIABLE
from nni_autorecon.experiment import loopback
from nni_autorecon.experiment.loopback import TUNER_PATIENCE, node_options
from tests.helpers.command_line import SEARCH

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
FLAGS = " ".join(SEARCH)
STUDENT = (
    "--method gdfq --width 2 --latent-dim 5 --batch-size 4 --epochs 3 --steps 1 --warmup-epochs 1 --agreement-steps 1"
)
"""These flags make a compression that is over at once."""
SECONDS = 240

Environment = Mapping[str, str]
T = TypeVar("T")


def environment(home: Path) -> dict[str, str]:
    """Variables for a home of its own for NNI's records; the teacher's cache is the session's, if it has one.

    NNI's managers are as patient with their tuner as those that ``nni-autorecon start`` starts.
    """
    path = f"{TOOLS}{os.pathsep}{os.environ['PATH']}"
    cache = os.environ.get(CACHE_VARIABLE, str(home / "cache"))
    options = node_options(TUNER_PATIENCE)
    return {**os.environ, "HOME": str(home), "PATH": path, CACHE_VARIABLE: cache, "NODE_OPTIONS": options}


def tool(variables: Environment, name: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run nnictl or nni-autorecon to its end."""
    return subprocess.run(
        [TOOLS / name, *map(str, arguments)],
        env=variables,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@contextmanager
def experiment(variables: Environment, folder: Path, **changes: Any) -> Iterator[tuple[str, int]]:
    """Id and port of an experiment of experiment.yml's kind with other settings, under way until the block ends."""
    settings = yaml.safe_load((ROOT / "experiment.yml").read_text()) | {"trialCodeDirectory": str(ROOT)} | changes
    if "searchSpace" in changes:
        del settings["searchSpaceFile"]
    (folder / "experiment.yml").write_text(yaml.safe_dump(settings))
    port = free_port()
    created = tool(variables, "nnictl", "create", "--config", folder / "experiment.yml", "--port", port)
    assert created.returncode == 0, created.stdout + created.stderr
    assert f"http://127.0.0.1:{port}" in created.stdout
    identifier = get(port, "experiment")["id"]
    try:
        yield identifier, port
    finally:
        tool(variables, "nnictl", "stop", identifier)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int, what: str) -> Any:
    return requests.get(f"http://127.0.0.1:{port}/api/v1/nni/{what}", timeout=10).json()


def wait_until(condition: Callable[[], T], what: str, seconds: float = SECONDS) -> T:
    """Poll until ``condition()`` is true; returns what it was then."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.5)
    return value


def wait_until_done(port: int, seconds: float = SECONDS) -> None:
    """Until the experiment has no more trials to run."""
    try:
        wait_until(lambda: _is_done(port), "the experiment is not over", seconds)
    except AssertionError as error:
        trials = [(trial["sequenceId"], trial["status"]) for trial in get(port, "trial-jobs")]
        raise AssertionError(f"{error}: {get(port, 'check-status')}, trials {trials}") from None


def _is_done(port: int) -> bool:
    """NNI says DONE only once there are maxTrialNumber trials; where a grid ends before, its trials tell."""
    status = get(port, "check-status")["status"]
    if status == "TUNER_NO_MORE_TRIAL":
        return all(trial["status"] not in ("WAITING", "RUNNING", "UNKNOWN") for trial in get(port, "trial-jobs"))
    return status in ("DONE", "ERROR")


def start_tensorboard(port: int, trial: str) -> int:
    """Do what the web UI's button does; the port of the TensorBoard that shows this trial, once it answers."""
    address = f"http://127.0.0.1:{port}/api/v1/nni/tensorboard"
    started = requests.post(address, json={"trials": trial}, timeout=30)
    started.raise_for_status()
    return wait_for_tensorboard(int(started.json()["port"]))


def wait_for_tensorboard(port: int) -> int:
    """The port, once a TensorBoard answers there."""

    def answers() -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{port}/data/runs", timeout=10).ok
        except requests.RequestException:
            return False

    wait_until(answers, "TensorBoard does not answer")
    return port


def processes(word: str) -> list[psutil.Process]:
    """Return the processes whose command line or environment holds ``word``, such as the id of an experiment."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if any(word in each for each in words) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def assert_only_this_machine_reaches(word: str, *ports: int) -> None:
    """``ports`` are among those on which processes of ``word`` listen, and none of these is open to other machines."""
    pids = {process.pid for process in processes(word)}
    sockets = psutil.net_connections("tcp")
    listening = [entry.laddr for entry in sockets if entry.pid in pids and entry.status == psutil.CONN_LISTEN]
    assert {*ports} <= {address.port for address in listening}
    for own, port in listening:
        assert ipaddress.ip_address(own).is_loopback, (own, port)
        for other in loopback._own_addresses():
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((other, port), timeout=5)
