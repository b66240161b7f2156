"""A run that is killed at random moments, again and again, ends as if nothing had been."""

import json
import subprocess
import sys

import pytest

from tests.helpers.interrupted_runs import RUNS, results_of

KILLS = 6
PROGRAM = """
import json, math, os, random, signal, sys, time
from nni_autorecon.cli import main as cli
from nni_autorecon.nas import search
from nni_autorecon.student import compression_run

arguments, folder, kills = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
random.seed(0)


def snapshot():
    try:
        return os.stat(os.path.join(folder, "snapshot.bin")).st_mtime_ns
    except FileNotFoundError:
        return None


def attempt(seconds, epochs):
    # A child of a process that has imported everything starts at once. It is killed after so many seconds, or somewhere
    # in the epoch after so many, whichever comes first. Returns how it ended, None if it was killed.
    begun = os.path.exists(os.path.join(folder, "config.json"))
    child = os.fork()
    if child == 0:
        os._exit(cli.main([*arguments, "-o", folder, "--resume" if begun else "--force"]))
    end, seen = time.monotonic() + seconds, snapshot()
    while time.monotonic() < end and epochs:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.001)
        if snapshot() != seen:
            seen, epochs = snapshot(), epochs - 1
    time.sleep(random.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


snapshots = 0
for kill in range(kills):  # every other one at any time at all, which a busy machine may not take to its first epoch
    ended = attempt(random.uniform(0.2, 2.5) if kill % 2 else math.inf, random.randint(1, 3))
    assert ended is None, "it ended before it was killed often enough"
    snapshots += os.path.exists(os.path.join(folder, "snapshot.bin"))
assert attempt(600, math.inf) == 0
print(snapshots)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "epochs"), [("search", 20), ("gdfq", 32)])
def test_kills_again_and_again_change_nothing(stage, epochs, digits_teacher, tmp_path):
    arguments = [*RUNS[stage], "--epochs", str(epochs)]

    def run(folder, kills):
        command = [sys.executable, "-c", PROGRAM, json.dumps(arguments), str(folder), str(kills)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    run(tmp_path / "whole", 0)
    assert run(tmp_path / "killed", KILLS) > KILLS / 2  # most came after a first epoch
    assert results_of(tmp_path / "killed") == results_of(tmp_path / "whole")
