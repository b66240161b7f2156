"""The experiments that are shipped: valid for NNI, and as many trials as they say."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from nni.experiment.config import ExperimentConfig

from nni_autorecon.experiment.gpus import refuse_unmeetable_request
from tests.helpers import grids

ROOT = Path(__file__).parents[2]
EXPERIMENTS = [ROOT / "experiment.yml", *sorted((ROOT / "experiments").glob("*.yml"))]


@pytest.fixture(autouse=True)
def ssh_key(tmp_path, monkeypatch):
    """The key that experiments/remote.yml names: NNI looks whether it is there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_ed25519").touch()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_nni_takes_the_file(path):
    config = ExperimentConfig.load(path)
    config.validate()
    assert config.tuner.name == "GridSearch"
    assert config.trial_concurrency == 1  # see experiment.yml


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_trials_differ_and_are_as_many_as_announced(path):
    trials = grids.trials(path)
    assert len({json.dumps(trial, sort_keys=True) for trial in trials}) == len(trials)
    if announced := re.search(r"\((\d+) trials\)", path.read_text()):
        assert len(trials) == int(announced[1])


@pytest.mark.parametrize("platform", ["frameworkcontroller", "kubeflow"])
def test_nni_takes_the_settings_for_kubernetes(platform, tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "remote.md").read_text(), re.DOTALL)
    (block,) = (block for block in blocks if f"platform: {platform}\n" in block)
    here = yaml.safe_load((ROOT / "experiments" / "remote.yml").read_text())
    for name in ("trialCommand", "trialCodeDirectory"):
        del here[name]
    folder = tmp_path / "experiments"
    folder.mkdir()
    (tmp_path / "search_spaces").symlink_to(ROOT / "search_spaces")
    (folder / "kubernetes.yml").write_text(yaml.safe_dump(here | yaml.safe_load(block)))
    config = ExperimentConfig.load(folder / "kubernetes.yml")
    config.validate()
    service = config.training_service
    role = service.task_roles[0] if platform == "frameworkcontroller" else service.master
    assert (ROOT / shlex.split(role.command)[1]).is_file()


@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_the_gpu_experiment_runs_on_one_gpu_and_on_many(gpus):
    settings = yaml.safe_load((ROOT / "experiments" / "gpu.yml").read_text())
    assert settings["trainingService"]["trialGpuNumber"] == 1
    refuse_unmeetable_request(settings, gpus)


def test_the_gpu_experiment_without_one_line_needs_none(tmp_path):
    text = (ROOT / "experiments" / "gpu.yml").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("<<")]
    assert len(lines) == len(text.splitlines()) - 1
    (tmp_path / "cpu.yml").write_text("\n".join(lines).replace("..", str(ROOT)))
    ExperimentConfig.load(tmp_path / "cpu.yml").validate()
    refuse_unmeetable_request(yaml.safe_load("\n".join(lines)), 0)


def test_table_5_crosses_generators_with_gdfqs_method_alone():
    trials = grids.trials(ROOT / "experiments" / "table5.yml")
    assert {(trial["method"], trial.get("generator")) for trial in trials} == {
        ("dfq", None),
        ("zeroq", None),
        ("zeroq-kd", None),
        ("dfc", None),
        ("gdfq", "gdfq"),
        ("gdfq", "searched"),
    }


def test_table_4_has_dfads_objective_l_r_in_its_place_and_all_terms():
    names = ("reconstruction_weight", "adversarial_weight", "balance_weight")
    objectives = {tuple(trial[name] for name in names) for trial in grids.trials(ROOT / "experiments" / "table4.yml")}
    assert objectives == {(0, 1, 0), (1, 0, 0), (1, 1, 1)}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_flags_and_search_spaces_name_known_settings_and_values(path):
    for config in grids.configs(path):
        config.require_consistent()


def test_strategies_are_compared_at_equal_cost():
    path = ROOT / "experiments" / "strategies.yml"
    (updates,) = {config.updates for config in grids.configs(path)}
    assert f"batches, {updates}, over" in path.read_text()
