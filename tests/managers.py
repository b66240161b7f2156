"""Real NNI experiments: a manager on a free port, with records in a home of its own, stopped at the end."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import yaml

ROOT = Path(__file__).parent.parent
TOOLS = Path(sys.executable).parent
FLAGS = "--width 2 --latent-dim 5 --batch-size 4 --epochs 2 --weight-steps 2 --architecture-steps 1 --final-steps 2"
SECONDS = 240


def tool(environment: Mapping[str, str], name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOLS / name, *map(str, arguments)], env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def get(port: int, what: str) -> Any:
    return requests.get(f"http://127.0.0.1:{port}/api/v1/nni/{what}", timeout=10).json()


def own_home(home: Path) -> dict[str, str]:
    """An environment in which NNI keeps its records in ``home``."""
    return {**os.environ, "HOME": str(home), "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"}


@contextmanager
def experiment(environment: Mapping[str, str], folder: Path, **changes: Any) -> Iterator[tuple[str, int]]:
    """(id, port) of an experiment of experiment.yml's kind with other settings, under way until the block ends."""
    settings = yaml.safe_load((ROOT / "experiment.yml").read_text()) | {"trialCodeDirectory": str(ROOT)} | changes
    if "searchSpace" in changes:
        del settings["searchSpaceFile"]
    (folder / "experiment.yml").write_text(yaml.safe_dump(settings))
    port = free_port()
    created = tool(environment, "nnictl", "create", "--config", folder / "experiment.yml", "--port", port)
    assert created.returncode == 0, created.stdout + created.stderr
    assert f"http://127.0.0.1:{port}" in created.stdout
    identifier = get(port, "experiment")["id"]
    try:
        yield identifier, port
    finally:
        tool(environment, "nnictl", "stop", identifier)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_done(port: int, seconds: float = SECONDS) -> None:
    deadline = time.time() + seconds
    while get(port, "check-status")["status"] not in ("DONE", "ERROR"):
        assert time.time() < deadline, get(port, "trial-jobs")
        time.sleep(1)
