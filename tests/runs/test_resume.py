"""Runs that are interrupted and go on: the same end as if nothing had been."""

import fcntl
import hashlib
import json
import runpy
import shutil
import threading

import pytest
import torch

from nni_autorecon.cli import main as cli
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.errors import InputError
from nni_autorecon.generator.gdfq import GDFQGenerator
from nni_autorecon.generator.genotype import Genotype, uniform_choices
from nni_autorecon.nas import enas, search
from nni_autorecon.nas.space import GeneratorSpace
from nni_autorecon.networks import digits_resnet
from nni_autorecon.runs import folder as runs
from nni_autorecon.runs.folder import LOCK, RunFolder
from nni_autorecon.runs.records import SNAPSHOT
from nni_autorecon.runs.snapshots import LAYOUT, load_snapshot, save_snapshot
from nni_autorecon.shapes import ImageShape
from nni_autorecon.student import compression_run, distillation_run
from nni_autorecon.student import images as image_sources
from nni_autorecon.teacher.loading import Teacher
from tests.helpers.interrupted_runs import (
    PHASES,
    RUNS,
    SMALL,
    STUDENT,
    KilledError,
    kill_after_two_epochs,
    results_of,
    run_until_killed,
)

DROPOUT = """
from torch import nn


def make(num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(12, num_classes),
    )
"""


@pytest.fixture(scope="module", autouse=True)
def no_figures():
    """They take most of the time and are drawn from what is compared. So do the architectures that ENAS draws."""
    with pytest.MonkeyPatch.context() as patch:
        for stage in (search, compression_run, distillation_run):
            patch.setattr(stage, "_draw", lambda *arguments: None)
        patch.setattr(enas, "DRAWN", 3)
        yield


@pytest.fixture(scope="module", params=RUNS)
def undisturbed(request, digits_teacher, tmp_path_factory):
    """Return arguments and folder of a run to its end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "small.py").write_text(DROPOUT)
    arguments = [part.format(student=f"{folder}/small.py:make") for part in RUNS[request.param]]
    assert cli.main([*arguments, "-o", str(folder / "run")]) == 0
    return arguments, folder / "run"


@pytest.mark.parametrize("moment", ["between the epochs", "within an epoch", "after the last epoch"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(undisturbed, moment, tmp_path, monkeypatch):
    arguments, whole = undisturbed
    rows = (whole / "metrics.csv").read_text().count("\n") - 1
    last = rows if moment == "after the last epoch" else 3
    save, log = RunFolder.save, RunFolder.log

    def save_and_die(run, *rest):
        save(run, *rest)
        if len(run.rows) == last:
            raise KilledError

    def log_and_die(run, row):
        log(run, row)
        if len(run.rows) == last:
            raise KilledError  # the row is written, the snapshot is the last epoch's

    with monkeypatch.context() as patch:
        if moment == "within an epoch":
            patch.setattr(RunFolder, "log", log_and_die)
        else:
            patch.setattr(RunFolder, "save", save_and_die)
        run_until_killed(*arguments, "-o", str(tmp_path / "killed"))
    torch.manual_seed(7)  # another process would have other random numbers
    assert cli.main([*arguments, "-o", str(tmp_path / "killed"), "--resume"]) == 0
    assert results_of(tmp_path / "killed") == results_of(whole)
    assert not (tmp_path / "killed" / SNAPSHOT).exists()


@pytest.fixture
def unfinished(tmp_path, digits_teacher, monkeypatch):
    """The folder of a compression that was killed after its second epoch."""
    kill_after_two_epochs(monkeypatch, *RUNS["gdfq"], "-o", str(tmp_path / "run"))
    return tmp_path / "run"


def test_what_was_killed_in_its_first_epoch_begins_again(tmp_path, digits_teacher, monkeypatch, capsys):
    def die(run, *rest):
        raise KilledError

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", die)
        run_until_killed(*RUNS["gdfq"], "-o", str(folder))
    assert cli.main([*RUNS["gdfq"], "--seed", "9", "-o", str(folder), "--resume"]) == 2  # which is another run
    assert "holds no unfinished run" in capsys.readouterr().err
    assert cli.main([*RUNS["gdfq"], "-o", str(folder), "--resume"]) == 0
    assert (folder / "result.json").exists()


def _bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--seed", "3"], "was started with other settings (seed)"),
        (["--bits", "w3a3", "--seed", "3"], "was started with other settings (bits, seed)"),
    ],
)
def test_another_run_is_not_resumed(unfinished, change, message, capsys):
    before = _bytes(unfinished)
    assert cli.main([*RUNS["gdfq"], *change, "-o", str(unfinished), "--resume"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert _bytes(unfinished) == before


def test_neither_threads_nor_device_make_another_run(unfinished):
    assert cli.main([*RUNS["gdfq"], "--threads", "2", "--device", "cpu", "-o", str(unfinished), "--resume"]) == 0
    assert (unfinished / "result.json").exists()


def test_a_run_that_goes_on_elsewhere_says_where(unfinished, monkeypatch, capsys):
    monkeypatch.setattr(Teacher, "device_name", "cuda:0 a card")
    assert cli.main([*RUNS["gdfq"], "-o", str(unfinished), "--resume"]) == 0
    assert "\ndevice: cpu, then cuda:0 a card\n" in capsys.readouterr().out
    assert json.loads((unfinished / "config.json").read_text())["device"] == "cpu, then cuda:0 a card"


def test_a_run_of_another_version_is_not_resumed(unfinished, monkeypatch, capsys):
    monkeypatch.setattr("nni_autorecon.runs.resuming.LAYOUT", LAYOUT + 1)
    assert cli.main([*RUNS["gdfq"], "-o", str(unfinished), "--resume"]) == 2
    assert "holds a run of another version of nni-autorecon; leave out --resume" in capsys.readouterr().err
    assert RunFolder(unfinished, "trial").earlier("compress", CompressConfig()) is None


def test_the_layout_is_counted_up_with_the_names_of_weights():
    """Count snapshots.LAYOUT up where this fails."""
    shape = {"image": ImageShape(1, 8, 8), "num_classes": 2, "width": 2, "latent_dim": 3}
    networks = GeneratorSpace(**shape), GDFQGenerator(**shape)
    state = [item for network in networks for item in sorted(network.state_dict().items())]
    shapes = [f"{name} {tuple(value.shape)}" for name, value in state]
    assert (LAYOUT, hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:8]) == (12, "768ec7ab")


@pytest.mark.parametrize("changed", ["checkpoint", "genotype", "missing", None])
def test_files_with_other_contents_are_not_gone_on_with(changed, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    torch.save(digits_resnet().state_dict(), tmp_path / "checkpoint")
    for name, operation in (("genotype", "conv_3x3"), ("other genotype", "conv_1x1")):
        Genotype(uniform_choices(operation), width=3, latent_dim=5).save(tmp_path / name)
    network = ["--teacher", "nni_autorecon.networks:digits_resnet", "--image-size", "16"]
    files = ["--checkpoint", f"{tmp_path}/checkpoint", "--genotype", f"{tmp_path}/genotype", "-o", f"{tmp_path}/run"]
    arguments = ["compress", *SMALL, *STUDENT, *PHASES, *network, *files]
    kill_after_two_epochs(monkeypatch, *arguments)
    if changed == "checkpoint":
        torch.save(digits_resnet().state_dict(), tmp_path / "checkpoint")
    elif changed == "genotype":
        shutil.copy(tmp_path / "other genotype", tmp_path / "genotype")
    elif changed == "missing":
        (tmp_path / "checkpoint").unlink()
    assert cli.main([*arguments, "--resume"]) == (2 if changed else 0)
    fault = f"was started with other contents of {changed} {tmp_path}/{changed}; leave out --resume"
    error = capsys.readouterr().err
    assert (fault in error) == (changed in ("checkpoint", "genotype"))
    assert ("cannot read checkpoint" in error) == (changed == "missing")


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_code_that_was_changed_is_not_gone_on_with(name, digits_teacher, tmp_path, monkeypatch, capsys):
    code = tmp_path / "models.py"
    code.write_text(DROPOUT)
    arguments = ["distill", *SMALL, *STUDENT, "--epochs", "4", "--generator", "gdfq", f"--{name}", f"{code}:make"]
    if name == "teacher":
        torch.save(runpy.run_path(str(code))["make"](10).state_dict(), tmp_path / "weights")
        arguments += ["--checkpoint", str(tmp_path / "weights"), "--num-classes", "10", "--image-size", "16"]
    kill_after_two_epochs(monkeypatch, *arguments, "-o", str(tmp_path / "run"))
    code.write_text(DROPOUT.replace("Dropout(0.5)", "Dropout(0.4)"))
    assert cli.main([*arguments, "-o", str(tmp_path / "run"), "--resume"]) == 2
    assert f"was started with other contents of {name} {code}; leave out --resume" in capsys.readouterr().err
    code.write_text(DROPOUT)
    assert cli.main([*arguments, "-o", str(tmp_path / "run"), "--resume"]) == 0


def test_a_run_that_was_killed_while_images_were_distilled_begins_again(tmp_path, digits_teacher, monkeypatch):
    def die(*arguments, **settings):
        raise KilledError

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(image_sources, "distil_images", die)
        run_until_killed(*RUNS["zeroq-kd"], "-o", str(folder))
    assert (folder / "config.json").exists()
    assert cli.main([*RUNS["zeroq-kd"], "-o", str(folder), "--resume"]) == 0
    assert (folder / "result.json").exists()


def test_what_a_run_depends_on_is_not_replaced(tmp_path, digits_teacher, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    genotype, other = folder / "genotype.json", folder / "loss.png"
    Genotype(uniform_choices("conv_3x3"), width=3, latent_dim=5).save(genotype)
    other.write_text("mine")
    before = genotype.read_text()
    arguments = ["compress", *SMALL, *STUDENT, *PHASES, "--genotype", str(genotype), "--force"]
    assert cli.main([*arguments, "-o", str(folder)]) == 2
    assert f"genotype {genotype} would be replaced by results; choose another folder" in capsys.readouterr().err
    assert (genotype.read_text(), other.read_text()) == (before, "mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "student.pt").write_text("mine")
    assert cli.main([*arguments, "-o", str(tmp_path / "run")]) == 0
    assert genotype.read_text() == before
    assert (tmp_path / "run" / "student.pt").read_text() == "mine"  # no earlier run has left it there


def test_a_run_of_another_command_is_not_resumed(unfinished, capsys):
    assert cli.main([*RUNS["search"], "-o", str(unfinished), "--resume"]) == 2
    assert "holds a run of compress, not of search" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["nothing", "finished"])
def test_where_nothing_is_unfinished_nothing_is_resumed(folder, unfinished, tmp_path, capsys):
    if folder == "finished":
        assert cli.main([*RUNS["gdfq"], "-o", str(unfinished), "--resume"]) == 0
        shutil.move(unfinished, tmp_path / "finished")
    capsys.readouterr()
    assert cli.main([*RUNS["gdfq"], "-o", str(tmp_path / folder), "--resume"]) == 2
    assert "holds no unfinished run" in capsys.readouterr().err


def test_resume_needs_a_folder(capsys):
    assert cli.main([*RUNS["gdfq"], "--resume"]) == 2
    assert "give it with --output" in capsys.readouterr().err


def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch, capsys):
    def none(*arguments, **settings):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(runs.FileLock, "acquire", none)
    assert cli.main([*RUNS["gdfq"], "-o", str(tmp_path / "run")]) == 2
    assert "has no locks; choose a place on another" in capsys.readouterr().err


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_folder_is_for_one_process_at_a_time(epochs, unfinished, capsys, caplog):
    if epochs == 0:
        (unfinished / SNAPSHOT).unlink()
    with (unfinished / LOCK).open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        before = _bytes(unfinished)
        for flags in (["--resume"], ["--force"]):
            assert cli.main([*RUNS["gdfq"], "-o", str(unfinished), *flags]) == 2
            assert "another process works in" in capsys.readouterr().err
        assert _bytes(unfinished) == before
        threading.Timer(0.5, fcntl.flock, (other, fcntl.LOCK_UN)).start()
        with RunFolder(unfinished, "trial") as run:  # a trial's: it waits
            assert run.earlier("compress", CompressConfig(seed=5)) is None
    assert "waiting for it to end" in caplog.text


def test_resuming_in_the_first_epoch_of_another_process_leaves_it_its_results(tmp_path):
    config, path = CompressConfig(), tmp_path / "run"
    with RunFolder(path) as first:
        first.start("compress", config, device="cpu")
        with RunFolder(path, "resume") as second, pytest.raises(InputError, match="another process works in"):
            second.earlier("compress", config)
        first.write_result({"agreement": 1.0})
    with RunFolder(path, "resume") as third, pytest.raises(InputError, match="holds no unfinished run"):
        third.earlier("compress", config)
    assert (path / "result.json").exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_snapshot_is_said_to_be_one(damage, unfinished, capsys, caplog):
    path = unfinished / SNAPSHOT
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes({"truncated": content[:-100], "flipped": content, "empty": b""}[damage])
    assert cli.main([*RUNS["gdfq"], "-o", str(unfinished), "--resume"]) == 2
    assert f"{SNAPSHOT} is damaged" in caplog.text
    assert capsys.readouterr().err.count("\n") == 2  # the warning and the error
    with RunFolder(unfinished, "trial") as run:
        assert run.earlier("compress", CompressConfig()) is None


def test_a_trial_starts_anew_where_it_cannot_go_on(unfinished):
    run = RunFolder(unfinished, "trial")
    assert run.earlier("compress", CompressConfig(seed=5)) is None
    assert run.rows == []


def test_what_is_saved_is_data_only(tmp_path):
    save_snapshot(tmp_path / "s", {"x": torch.ones(2), "n": [1, {"a": "b"}]})
    assert load_snapshot(tmp_path / "s")["n"] == [1, {"a": "b"}]
    assert load_snapshot(tmp_path / "absent") is None
    with pytest.raises(InputError, match="cannot write"):
        save_snapshot(tmp_path / "s" / "below", {})
