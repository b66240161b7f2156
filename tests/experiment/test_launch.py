"""``nni-autorecon start`` refuses what cannot run, shields what it starts, and says why nothing works."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import nni_node
import pytest
import yaml
from nni.experiment.config import ExperimentConfig

from nni_autorecon.cli import main as cli
from nni_autorecon.cli.screen import command_line
from nni_autorecon.errors import InputError
from nni_autorecon.experiment import launch as start
from nni_autorecon.experiment import loopback
from nni_autorecon.experiment.manager import Manager
from tests.helpers import managers
from tests.helpers.managers import (
    TOOLS,
    assert_only_this_machine_reaches,
    free_port,
    get,
    processes,
    start_tensorboard,
    tool,
    wait_until,
)

TRIAL = """
import nni

print(nni.get_next_parameter()["x"])
nni.report_final_result(1.0)
"""
EXPERIMENT = {
    "searchSpace": {"x": {"_type": "uniform", "_value": [0, 1]}},
    "trialCommand": "python trial.py",
    "trialCodeDirectory": ".",
    "trialConcurrency": 1,
    "maxTrialNumber": 4,
    "tuner": {"name": "TPE"},
    "trainingService": {"platform": "local"},
}


def _write(folder, **changes):
    """An experiment file with these changes, beside its trial script; None takes a setting away."""
    (folder / "trial.py").write_text(TRIAL)
    settings = {name: value for name, value in {**EXPERIMENT, **changes}.items() if value is not None}
    (folder / "it.yml").write_text(yaml.safe_dump(settings))
    return folder / "it.yml"


def _refused(file, capsys, *arguments):
    """Return the line with which it is refused before anything is started."""
    assert cli.main(["start", str(file), *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("nni-autorecon: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.fixture(autouse=True)
def nothing_starts(request, monkeypatch):
    """Tests in this process are of refusals; those of real managers run the command."""

    def created(*arguments):
        raise AssertionError("an experiment was started")

    monkeypatch.setattr(Manager, "start", created)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is neither JSON nor YAML"),
        ("a: 2021-13-45", "month must be in 1..12; nni-autorecon new"),
        ("[" * 3000, "is neither JSON nor YAML"),
        ("- a", "expected names and values, got list"),
        ("", "is empty; nni-autorecon new"),
        ("1: 2", "does not take"),
    ],
)
def test_files_that_are_no_experiment(text, message, tmp_path, capsys):
    (tmp_path / "it.yml").write_text(text)
    assert message in _refused(tmp_path / "it.yml", capsys)


SPACE = {"_type": "choice", "_value": [1, 2]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trialConcurency": 1}, "does not have field(s) trialconcurency"),
        ({"trialConcurrency": 0}, "self.trial_concurrency > 0"),
        ({"trialConcurrency": "many"}, "type of trial_concurrency ('many')"),
        ({"trialCommand": None}, "trial_command"),
        ({"searchSpace": {"x": {"_value": [0, 1]}}}, "x needs _type and _value"),
        ({"searchSpace": {"x": {"_type": "choice"}}}, "x needs _type and _value"),
        ({"searchSpace": {"x": [0, 1]}}, "x needs _type and _value"),
        ({"searchSpace": {"x": {"_type": "unifrom", "_value": [0, 1]}}}, "x has an unknown _type 'unifrom'"),
        ({"searchSpace": {"x": {"_type": "choice", "_value": []}}}, "the _value of x must be a list"),
        ({"searchSpace": [1]}, "must map names"),
        (
            {"searchSpace": {"m": {"_type": "choice", "_value": [{"_name": "a", "x": {"_type": "choice"}}]}}},
            "m.x needs _type and _value",
        ),
        ({"tuner": {"name": "TEP"}}, "NNI has no tuner 'TEP'; it has"),
        ({"tuner": {"name": "Medianstop"}}, "NNI has no tuner 'Medianstop'"),
        ({"assessor": {"name": "TPE"}}, "NNI has no assessor 'TPE'"),
        ({"tuner": {"name": "gp"}}, "GP fails on today's numpy and scipy; choose TPE"),
        ({"tuner": {"name": "SMAC"}}, "SMAC cannot be loaded (No module named"),
        (
            {"tuner": {"name": "TPE", "classArgs": {"optimise_mode": "max"}}},
            "unexpected keyword argument 'optimise_mode'",
        ),
        ({"trialCommand": "python nonesuch.py --x 1"}, "runs nonesuch.py, which is not in"),
        ({"trialCommand": "A=1 exec python3 nonesuch.py"}, "runs nonesuch.py, which is not in"),
        ({"trialCommand": "python 'trial.py"}, "cannot be read: No closing quotation"),
        ({"trialCommand": " "}, "is empty; nni-autorecon new"),
        ({"trainingService": [{"platform": "local"}]}, "so NNI needs nniManagerIp"),
        ({"trialCodeDirectory": "nonesuch"}, "is not a directory"),
        ({"searchSpace": None, "searchSpaceFile": "nonesuch.json"}, "search space"),
        ({"searchSpace": None, "searchSpaceFile": "bad.json"}, "bad.json is neither JSON nor YAML"),
        ({"searchSpace": None, "searchSpaceFile": "type.json"}, "type.json: x has an unknown _type"),
    ],
)
def test_what_nni_would_say_late_or_at_length(changes, message, tmp_path, capsys):
    (tmp_path / "bad.json").write_text('{"x": [')
    (tmp_path / "type.json").write_text(json.dumps({"x": {"_type": "coice", "_value": [1]}}))
    assert message in _refused(_write(tmp_path, **changes), capsys)


@pytest.mark.parametrize(
    "changes",
    [
        {"trialCommand": "cd elsewhere && python nonesuch.py"},
        {"trialCommand": "python -m nonesuch"},
        {"trialCommand": "A=1 bin/nni-autorecon compress --bits w4a4"},
        {"trialCommand": "python trial.py --then 'nni-autorecon search'"},
        {"searchSpace": {"m": {"_type": "choice", "_value": [{"_name": "a", "x": SPACE}, {"_name": "b"}]}}},
        {
            "tuner": {"className": "mine.Tuner", "codeDirectory": "."},
            "searchSpace": {"x": {"_type": "mine", "_value": 1}},
        },
        {"assessor": {"name": "Medianstop"}},
    ],
)
def test_what_is_right_or_cannot_be_known_is_started(changes, tmp_path):
    with pytest.raises(AssertionError, match="an experiment was started"):
        cli.main(["start", str(_write(tmp_path, **changes)), "--port", str(free_port())])


@pytest.mark.parametrize("port", [-1, 70000, None])
def test_ports_that_cannot_be_had(port, tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        message = _refused(_write(tmp_path), capsys, "--port", port or taken.getsockname()[1])
    assert "cannot be used for the web UI" in message


def _remote(*hosts, ip=None, several=False):
    """NNI's configuration with these machines, which call back at ``ip``."""
    machines = [{"host": host, "user": "me", "password": "x"} for host in hosts]
    service = {"platform": "remote", "machineList": machines}
    services = [service, {"platform": "local"}] if several else service
    address = {"nniManagerIp": ip} if ip else {}
    return ExperimentConfig(**{**EXPERIMENT, **address, "trainingService": services}).canonical_copy()


@pytest.mark.filterwarnings("ignore:SSH password will be exposed")
@pytest.mark.parametrize(
    ("config", "suffices"),
    [
        (lambda: _remote("127.0.0.1"), True),
        (lambda: _remote("localhost", "127.0.0.1", ip="127.0.0.1"), True),
        (lambda: _remote("gpu.lab", ip="127.0.0.1"), True),  # by a tunnel
        (lambda: _remote("gpu.lab", ip="localhost"), True),
        (lambda: _remote("gpu.lab", ip="127.0.0.1", several=True), True),
        (lambda: _remote("gpu.lab"), False),
        (lambda: _remote("127.0.0.1", "gpu.lab"), False),
        (lambda: _remote("gpu.lab", ip="10.1.2.3"), False),
        (lambda: _remote("127.0.0.1", ip="10.1.2.3"), False),  # that is where NNI has it call
        (lambda: _remote("127.0.0.1", ip="10.1.2.3", several=True), False),
    ],
)
def test_machines_that_must_reach_this_one_are_not_shut_out_unawares(config, suffices):
    if suffices:
        loopback.require_loopback_suffices(config(), 8080)
        return
    with pytest.raises(InputError, match=r"'ssh -R 8080:127.0.0.1:8080 .*nniManagerIp: 127.0.0.1.*--listen-everywhere"):
        loopback.require_loopback_suffices(config(), 8080)


def _node():
    return Path(nni_node.__path__[0]) / "node"


SERVER = """
const server = require("http").createServer().listen({});
server.on("listening", () => {{
    console.log(server.address().address || server.address());
    server.close();
}});
"""


@pytest.mark.parametrize(
    "arguments", ["0", "0, () => {}", "() => {}", "{port: 0}", "", "'0'", "0, '0.0.0.0'", "{port: 0, host: '::'}"]
)
def test_a_node_server_listens_on_loopback_however_it_is_asked(arguments, tmp_path, monkeypatch):
    odd = tmp_path / 'a "b" \\c'
    odd.mkdir()
    (odd / "loopback.js").write_text(loopback.SHIELD.read_text())
    monkeypatch.setenv("NODE_OPTIONS", "--no-deprecation")
    environment = {**os.environ, "NODE_OPTIONS": loopback.node_options(odd / "loopback.js", loopback.TUNER_PATIENCE)}
    done = subprocess.run(
        [_node(), "-e", SERVER.format(arguments)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("127.0.0.1\n", "")


def test_a_node_server_may_listen_on_a_socket_file(tmp_path):
    environment = {**os.environ, "NODE_OPTIONS": loopback.node_options(loopback.SHIELD)}
    done = subprocess.run(
        [_node(), "-e", SERVER.format(f"'{tmp_path}/s'")], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{tmp_path}/s\n"


MACHINE = {"host": "127.0.0.1", "port": 1, "user": "me"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home of managers")


@pytest.fixture
def environment(cache_folder, home):
    return managers.environment(home)


@pytest.mark.parametrize(
    ("stage", "running", "results"),
    [
        ("search", True, "best-genotype --experiment e"),
        ("compress", True, "report --experiment e -o e-report"),
        ("search", False, "best-genotype --experiment e"),
    ],
)
def test_what_comes_next_is_named(stage, running, results, monkeypatch, capsys):
    manager = SimpleNamespace(id="e", start=lambda port, variables: None, wait=lambda: running)
    service = SimpleNamespace(trial_command=f"python trials/{stage}.py --teacher digits")
    started = start._launch(manager, 81, False, SimpleNamespace(training_service=service))
    monkeypatch.setattr(start, "resume_experiment", lambda *arguments, **named: started)
    assert cli.main(["continue", "e"]) == 0
    printed = capsys.readouterr().out.replace(command_line(), "nni-autorecon")
    assert f"\nits results: nni-autorecon {results}\nend it: nnictl stop e\n" in printed
    assert printed.endswith(f"next: nni-autorecon {'status --experiment e' if running else results}\n")
    assert cli.main(["continue", "e", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["experiment"], values["running"], values["address"]) == ("e", running, "http://127.0.0.1:81")


@pytest.mark.slow
def test_only_this_machine_reaches_what_was_started(environment, home, tmp_path):
    folder, port = tmp_path / "a folder", free_port()
    folder.mkdir()
    done = tool(environment, "nni-autorecon", "start", _write(folder), "--port", port)
    try:
        assert done.returncode == 0, done.stderr
        identifier = get(port, "experiment")["id"]
        assert done.stdout.splitlines() == [
            f"experiment {identifier} is running: http://127.0.0.1:{port}",
            f"its results: nni-autorecon best-genotype --experiment {identifier}",
            f"end it: nnictl stop {identifier}",
            f"next: nni-autorecon status --experiment {identifier}",
        ]
        assert done.stderr == "waiting for the first trial to work; Ctrl-C stops the experiment\n"
        assert_only_this_machine_reaches(str(home), port)
        with urllib.request.urlopen(f"http://localhost:{port}/") as page:
            assert b'<div id="root">' in page.read()
        trial = wait_until(lambda: get(port, "trial-jobs"), "no trial")[0]
        assert (Path(trial["logPath"]) / "trial.stderr").read_text() == ""
    finally:
        tool(environment, "nnictl", "stop", "--all")
    assert not processes(str(home))


@pytest.mark.slow
def test_only_this_machine_reaches_the_tensorboard_of_the_web_ui(cache_folder, tmp_path):
    environment, port = managers.environment(tmp_path), free_port()
    done = tool(environment, "nni-autorecon", "start", _write(tmp_path), "--port", port)
    try:
        assert done.returncode == 0, done.stderr
        tensorboard = start_tensorboard(port, get(port, "trial-jobs")[0]["trialJobId"])
        assert_only_this_machine_reaches(str(tmp_path), port, tensorboard)
    finally:
        tool(environment, "nnictl", "stop", "--all")
    assert not processes(str(tmp_path))


@pytest.mark.slow
def test_other_machines_may_be_let_in(environment, home, tmp_path):
    own, port = loopback._own_addresses(), free_port()
    if not own:
        pytest.skip("there are no other machines: this one has no network")
    done = tool(environment, "nni-autorecon", "start", _write(tmp_path), "--port", port, "--listen-everywhere")
    try:
        assert done.returncode == 0, done.stderr
        assert loopback.open_address(port) == own[0]
    finally:
        tool(environment, "nnictl", "stop", "--all")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trialCommand": "python -m nonesuch"}, r"trials fail at once; the first says: .*No module named nonesuch"),
        ({"tuner": {"name": "TPE", "classArgs": {"optimize_mode": "minimise"}}}, r"NNI's tuner failed: .*'minimise'"),
        (
            {"tuner": {"name": "Batch"}, "searchSpace": {"x": {"_type": "uniform", "_value": [0, 1]}}},
            r"NNI's tuner failed: RuntimeError: .*; mend tuner or search space in .*it.yml",
        ),
        (
            {"trainingService": {"platform": "remote", "machineList": [MACHINE]}},
            r"NNI ended by itself: .*Cannot parse privateKey.*; mend trainingService in .*it.yml",
        ),
    ],
    ids=["trials", "arguments", "space", "machine"],
)
def test_what_nni_keeps_to_itself_is_said_in_one_line_and_nothing_stays(changes, message, environment, home, tmp_path):
    (home / ".ssh").mkdir(exist_ok=True)
    (home / ".ssh" / "id_rsa").write_text("no key")
    done = tool(environment, "nni-autorecon", "start", _write(tmp_path, **changes), "--port", free_port())
    assert done.returncode == 1, done.stderr
    waiting, error = done.stderr.splitlines()
    assert waiting.startswith("waiting")
    assert re.search(f"^nni-autorecon: error: {message}", error), error
    assert done.stdout == ""
    assert not processes(str(home))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="needs OpenSSH's client")
def test_a_machine_that_does_not_answer_is_said_in_one_line_and_nothing_stays(environment, home, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    machine = {**MACHINE, "sshKeyFile": str(tmp_path / "key")}
    file = _write(tmp_path, trainingService={"platform": "remote", "machineList": [machine]})
    done = tool(environment, "nni-autorecon", "start", file, "--port", free_port())
    error = done.stderr.splitlines()[-1]
    assert re.search("^nni-autorecon: error: NNI ended by itself: .*ECONNREFUSED.*; mend trainingService in ", error), (
        error
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 2)
    assert not processes(str(home))


@pytest.mark.slow
def test_a_dispatcher_that_dies_is_said_in_one_line_and_nothing_stays(environment, home, tmp_path):
    command = [
        TOOLS / "nni-autorecon",
        "start",
        _write(tmp_path, trialCommand="sleep 1000"),
        "--port",
        str(free_port()),
    ]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline().startswith("waiting")
        (dispatcher,) = wait_until(
            lambda: [each for each in processes(str(home)) if "--exp_params" in each.cmdline()], "no dispatcher"
        )
        dispatcher.kill()
        error = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert re.fullmatch(r"nni-autorecon: error: NNI failed: .*[Dd]ispatcher.*\n", error), error
    assert not processes(str(home))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, r"interrupted: experiment \w+ is stopped"), (signal.SIGTERM, 143, "error: terminated by .*")],
)
def test_a_signal_while_waiting_stops_the_experiment(number, code, said, environment, home, tmp_path):
    file = _write(tmp_path, trialCommand="sleep 1000")
    command = [TOOLS / "nni-autorecon", "start", file, "--port", str(free_port())]
    with subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr.readline().startswith("waiting")
        process.send_signal(number)
        error = process.communicate(timeout=120)[1]
    assert process.returncode == code
    assert re.fullmatch(f"nni-autorecon: {said}\n", error)
    assert not processes(str(home))
