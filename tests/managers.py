"""Real NNI managers for tests: a home of their own, nnictl, their REST API, the processes they leave."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import requests

from nni_autorecon.files import CACHE_VARIABLE

ROOT = Path(__file__).parent.parent
TOOLS = Path(sys.executable).parent
FLAGS = "--width 2 --latent-dim 5 --batch-size 4 --epochs 2 --weight-steps 2 --architecture-steps 1 --final-steps 2"
SECONDS = 240


def environment(home):
    """Variables for a home of its own for NNI's records; the teacher's cache is the session's."""
    path = f"{TOOLS}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "HOME": str(home), "PATH": path, CACHE_VARIABLE: os.environ[CACHE_VARIABLE]}


def tool(environment, name, *arguments, cwd=ROOT):
    """Run nnictl or nni-autorecon to its end."""
    return subprocess.run(
        [TOOLS / name, *map(str, arguments)], env=environment, cwd=cwd, capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(port, what):
    return requests.get(f"http://127.0.0.1:{port}/api/v1/nni/{what}", timeout=10).json()


def wait_until(condition, what, seconds=SECONDS):
    """Poll until ``condition()`` is true; returns what it was then."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return value


def processes(word):
    """Those whose command line or environment holds ``word``: an experiment's or a trial's id, or a home."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if any(word in each for each in words) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found
