"""kill -9 at random moments, again and again: the run ends as if nothing had been."""

import json
import subprocess
import sys

import pytest

from .test_resume import RUNS, _results

KILLS = 20
PROGRAM = """
import json, os, random, signal, sys, time
from nni_autorecon import cli, compression, search

arguments, folder, kills = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
random.seed(0)


def attempt(resume, seconds):
    # A child of a process that has imported everything starts at once. Returns how it ended, None if it was killed.
    child = os.fork()
    if child == 0:
        os._exit(cli.main([*arguments, "-o", folder, *resume]))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


resume, snapshots = ["--resume", "--force"], 0
for _ in range(kills):
    assert attempt(resume, random.uniform(0.2, 2.5)) is None, "it ended before it was killed often enough"
    snapshots += os.path.exists(os.path.join(folder, "snapshot.bin"))
assert attempt(resume, 600) == 0
print(snapshots)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "epochs"), [("search", 40), ("gdfq", 300)])
def test_twenty_kills_change_nothing(stage, epochs, digits_teacher, tmp_path):
    arguments = [*RUNS[stage], "--epochs", str(epochs)]

    def run(folder, kills):
        command = [sys.executable, "-c", PROGRAM, json.dumps(arguments), str(folder), str(kills)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    run(tmp_path / "whole", 0)
    assert run(tmp_path / "killed", KILLS) > KILLS / 2  # most kills came after the first epoch
    assert _results(tmp_path / "killed") == _results(tmp_path / "whole")
