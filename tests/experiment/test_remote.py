"""The real thing over SSH: an sshd of the test's own, with another home, plays the other machine."""

import getpass
import json
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import requests
import yaml

from nni_autorecon.cache import CACHE_VARIABLE
from nni_autorecon.generator.genotype import Genotype
from tests.helpers import managers
from tests.helpers.managers import (
    FLAGS,
    ROOT,
    SECONDS,
    STUDENT,
    TOOLS,
    assert_only_this_machine_reaches,
    free_port,
    get,
    tool,
)

pytestmark = pytest.mark.slow

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
NEEDED = [SSHD, *(shutil.which(name) or name for name in ("ssh", "scp", "ssh-keygen"))]
CONFIG = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
PidFile {folder}/sshd.pid
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
Subsystem sftp internal-sftp
SetEnv "HOME={home}" "TMPDIR={tmp}" "{cache_variable}={cache}" OMP_NUM_THREADS=1 PIP_NO_INDEX=1
"""


def _wait(condition, seconds=SECONDS):
    """True as soon as ``condition`` holds, False if it has not in ``seconds``."""
    deadline = time.time() + seconds
    while not condition():
        if time.time() > deadline:
            return False
        time.sleep(0.2)
    return True


@pytest.fixture(scope="module")
def remote(digits_teacher, tmp_path_factory):
    """The other machine: its port, key, user and home, and OpenSSH's options to reach it."""
    if missing := [name for name in NEEDED if not Path(name).is_file()]:
        pytest.skip(f"needs OpenSSH's server and client; not here: {', '.join(missing)}")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(parents=True, exist_ok=True)  # sshd of root wants it
    folder = tmp_path_factory.mktemp("remote")
    home, tmp, port, user = folder / "home", folder / "tmp", free_port(), getpass.getuser()
    home.mkdir()
    tmp.mkdir()
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "key.pub").rename(folder / "authorized_keys")
    config = CONFIG.format(
        port=port, folder=folder, home=home, tmp=tmp, cache_variable=CACHE_VARIABLE, cache=os.environ[CACHE_VARIABLE]
    )
    (folder / "sshd_config").write_text(config)
    options = ["-F", "none", "-i", folder / "key", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]
    options += ["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    ssh = ["ssh", *options, "-p", str(port), f"{user}@127.0.0.1"]
    with (folder / "sshd.log").open("w") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    try:
        if not _wait(lambda: subprocess.run([*ssh, "true"], capture_output=True, check=False).returncode == 0, 15):
            pytest.skip(f"sshd does not let {user} in here: {(folder / 'sshd.log').read_text()[-500:]}")
        yield SimpleNamespace(home=home, port=port, user=user, key=folder / "key", options=options)
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def environment(digits_teacher, tmp_path_factory):
    """The manager's home is not the other machine's."""
    return managers.environment(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """It holds what a trial needs of a clone, and what NNI would refuse to copy: an environment of over 2,000 files."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("trials", "search_spaces", "experiments"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / ".nniignore", folder)
    (folder / "models.py").touch()
    for name in (".venv/lib", ".git", "docs", "runs/one", "tests", "trials/__pycache__"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "file").touch()
    for number in range(2001):
        (folder / ".venv" / "lib" / f"{number}.py").touch()
    return folder


@pytest.fixture
def start(remote, environment, clone, tmp_path):
    """Start an experiment over SSH: remote.yml, with another command and space; (id, port). Stopped at the end."""
    started = []

    def run(command, space, starter=("nnictl", "create", "--config")):
        settings = yaml.safe_load((clone / "experiments" / "remote.yml").read_text())
        del settings["searchSpaceFile"]
        settings |= {
            "trialCommand": command,
            "searchSpace": space,
            "trialCodeDirectory": str(clone),
            "maxTrialNumber": 1,
            "nniManagerIp": "127.0.0.1",
        }
        (machine,) = settings["trainingService"]["machineList"]
        machine |= {
            "host": "127.0.0.1",
            "port": remote.port,
            "user": remote.user,
            "sshKeyFile": str(remote.key),
            "pythonPath": str(TOOLS),
        }
        (tmp_path / "remote.yml").write_text(yaml.safe_dump(settings))
        port = free_port()
        created = tool(environment, *starter, tmp_path / "remote.yml", "--port", port)
        assert created.returncode == 0, created.stdout + created.stderr
        started.append(get(port, "experiment")["id"])
        return started[-1], port

    yield run
    for identifier in started:
        tool(environment, "nnictl", "stop", identifier)


def _search_command():
    return yaml.safe_load((ROOT / "experiments" / "remote.yml").read_text())["trialCommand"]


def _finished_trial(port):
    """Return the only trial, once the experiment is done."""
    managers.wait_until_done(port)
    (trial,) = get(port, "trial-jobs")
    assert trial["status"] == "SUCCEEDED", _said(port, trial, "stderr")
    return trial


def _said(port, trial, stream):
    """The other machine's trial.stdout or trial.stderr, through NNI's manager."""
    address = f"http://127.0.0.1:{port}/api/v1/nni/trial-file/{trial['trialJobId']}/trial.{stream}"
    return requests.get(address, timeout=30).text


def _folder(remote, trial):
    """The trial's outputs on the other machine, by the path that NNI shows: ``127.0.0.1:~/nni-experiments/…``."""
    host, path = trial["logPath"].split(":")
    assert host == "127.0.0.1"
    assert not Path(trial["logPath"]).exists()
    return remote.home / path.removeprefix("~/")


def test_a_genotype_comes_home_with_the_final_metric(remote, environment, clone, start, tmp_path):
    identifier, port = start(f"{_search_command()} {FLAGS}", {"width": {"_type": "choice", "_value": [2]}})
    trial = _finished_trial(port)
    there = _folder(remote, trial)
    found = Genotype.load(there / "genotype.json")
    uploaded = {path.name for path in (there.parent.parent / "upload" / "trial_code").iterdir()}
    assert uploaded == {"trials", "search_spaces", "models.py"}
    assert not (there.parent.parent / "upload" / "trial_code" / "trials" / "__pycache__").exists()

    tool(environment, "nnictl", "stop", identifier)
    shutil.rmtree(remote.home / "nni-experiments")  # the other machine has forgotten it
    assert not list(Path(environment["HOME"]).rglob("genotype.json"))
    exported = tool(
        environment, "nni-autorecon", "best-genotype", "--experiment", identifier, "-o", tmp_path / "best.json"
    )
    assert exported.returncode == 0, exported.stderr
    assert Genotype.load(tmp_path / "best.json") == found
    shown = tool(environment, "nni-autorecon", "show", tmp_path / "best.json")
    assert (shown.returncode, shown.stderr) == (0, "")


def test_a_student_is_reported_here_and_fetched_with_scp(remote, environment, start, tmp_path):
    command = f"python trials/compress.py --teacher digits --threads 1 --generator gdfq {STUDENT}"
    identifier, port = start(command, {"seed": {"_type": "choice", "_value": [0]}})
    trial = _finished_trial(port)
    reported = tool(environment, "nni-autorecon", "report", "--experiment", identifier, "-o", tmp_path / "table")
    assert (reported.returncode, reported.stderr) == (0, "")
    assert "finished" in reported.stdout
    assert (tmp_path / "table.csv").exists()

    lines = _said(port, trial, "stdout").splitlines()
    (result,) = (line.split(": ")[1] for line in lines if line.startswith("result: "))
    assert Path(result).parent == _folder(remote, trial)
    source = f"{remote.user}@127.0.0.1:{Path(result).parent}/student.safetensors"
    subprocess.run(["scp", "-q", *remote.options, "-P", str(remote.port), source, tmp_path], check=True)
    measured = tool(environment, "nni-autorecon", "evaluate", tmp_path / "student.safetensors")
    assert (measured.returncode, measured.stderr) == (0, "")


def _processes(remote):
    """Return the processes on the other machine: NNI's trial keeper and trials, known by their home."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("HOME") == str(remote.home):
                found.append(process)
    return found


def test_only_this_machine_reaches_the_manager_and_stopping_leaves_nothing_running_there(remote, environment, start):
    endless = FLAGS.replace("--epochs 2", "--epochs 100000")
    command, space = f"{_search_command()} {endless}", {"width": {"_type": "choice", "_value": [2]}}
    identifier, port = start(command, space, starter=("nni-autorecon", "start"))
    assert _wait(lambda: get(port, "metric-data")), get(port, "trial-jobs")
    (trial,) = get(port, "trial-jobs")
    assert trial["status"] == "RUNNING"
    assert len(_processes(remote)) >= 2
    assert_only_this_machine_reaches(environment["HOME"], port)

    tool(environment, "nnictl", "stop", identifier)
    assert _wait(lambda: not _processes(remote), 30)
    folder = _folder(remote, trial)
    # After 5 s NNI kills: that it could say so means that it was faster.
    assert (folder / "trial.stderr").read_text() == "nni-autorecon: interrupted\n"
    assert json.loads((folder / "config.json").read_text())["config"]["width"] == 2
