"""NNI's multi-trial strategies: budget, best candidate, repair, determinism, settings."""

import json
from collections import Counter

import pandas as pd
import pytest
import torch

from nni_autorecon.cli import main as cli
from nni_autorecon.config.rules import MULTI_TRIAL
from nni_autorecon.config.search import SearchConfig
from nni_autorecon.errors import AutoReConError, DivergenceError, InputError
from nni_autorecon.generator.genotype import check_choices, dead_nodes
from nni_autorecon.nas import search
from nni_autorecon.nas.multi_trial import NNIS_STRATEGIES, CandidateSearch
from nni_autorecon.nas.search import DIVERGED
from nni_autorecon.nas.space import GeneratorSpace
from tests.helpers.toys import GENERATOR

CONFIG = SearchConfig(epochs=2, weight_steps=6, architecture_steps=4, candidate_steps=3)  # 20 updates: 6 candidates


def _convolutions(choices):
    """A loss that is least without convolutions."""
    return {"loss": float(sum("conv" in name for name in choices.values())), "class_loss": 0.0, "bns_loss": 0.0}


def _search(config, measure=_convolutions, state=None):
    rows = []
    search = CandidateSearch(config, measure, on_candidate=rows.append, state=state)
    search.run(GeneratorSpace(**GENERATOR))
    return search, rows


@pytest.fixture(params=MULTI_TRIAL)
def config(request):
    return CONFIG.override({"strategy": request.param})


def test_a_setting_names_each_of_nnis_strategies():
    assert tuple(NNIS_STRATEGIES) == MULTI_TRIAL


def test_as_many_candidates_as_the_budget_allows_and_the_best_is_taken(config):
    measured = []
    search, rows = _search(config, lambda choices: measured.append(choices) or _convolutions(choices))
    assert (config.candidates, config.updates) == (6, 18)
    assert [row["candidate"] for row in rows] == list(range(1, 7))
    losses = [_convolutions(choices)["loss"] for choices in measured]
    assert [row["candidate_loss"] for row in rows] == losses
    assert [row["loss"] for row in rows] == [min(losses[: n + 1]) for n in range(6)]
    assert search.derive()[0] == measured[losses.index(min(losses))]


def test_candidates_differ_have_no_dead_nodes_and_depend_on_the_seed_alone(config):
    first, again, other = (_search(config.override({"seed": seed}))[0].state()["candidates"] for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len({tuple(candidate["choices"].values()) for candidate in first}) == 6
    for candidate in first:
        check_choices(candidate["choices"])


def test_dead_candidates_are_repaired_before_they_are_measured():
    candidates = _search(CONFIG.override({"strategy": "random", "epochs": 8}))[0].state()["candidates"]
    repaired = [candidate for candidate in candidates if candidate["repaired"]]
    assert repaired
    for candidate in repaired:
        assert dead_nodes({**candidate["choices"], **dict.fromkeys(candidate["repaired"], "none")})


def test_a_repair_prefers_no_operation():
    config = CONFIG.override({"strategy": "random", "epochs": 16})
    candidates = _search(config)[0].state()["candidates"]
    repaired = Counter(candidate["choices"][label] for candidate in candidates for label in candidate["repaired"])
    assert repaired.total() > 8
    assert max(repaired.values()) < repaired.total() / 3


def test_a_candidate_that_diverges_loses(monkeypatch, digits_teacher, tmp_path):
    measured = []

    def measure(*arguments, **settings):
        measured.append(None)
        if len(measured) in (1, 3):
            raise DivergenceError("L_r became nan")
        return {"loss": 9.0 - len(measured), "class_loss": 0.5, "bns_loss": 0.5}

    monkeypatch.setattr(search, "measure_generator", measure)
    arguments = "search --strategy random --batch-size 6 --epochs 4 --weight-steps 2 --architecture-steps 2 --width 2"
    arguments += " --latent-dim 5 --candidate-steps 4 --validation-steps 1 --final-steps 2 --threads 1"
    assert cli.main([*arguments.split(), "-o", str(tmp_path / "run")]) == 0
    rows = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert rows["candidate_loss"].tolist() == [DIVERGED, 7.0, DIVERGED, 5.0]
    assert rows["loss"].tolist() == [DIVERGED, 7.0, 7.0, 5.0]


@pytest.mark.parametrize("strategy", ["evolution", "tpe"])
def test_a_strategy_that_learns_finds_better_candidates_than_it_began_with(strategy):
    _, rows = _search(CONFIG.override({"strategy": strategy, "epochs": 15}))
    losses = [row["candidate_loss"] for row in rows]
    assert sum(losses[-12:]) / 12 < sum(losses[:12]) / 12 - 1


@pytest.mark.parametrize("known", [0, 3, 6])
def test_a_search_that_goes_on_measures_the_rest_alone(config, known):
    whole = _search(config)[0]
    measured = []
    state = {"candidates": whole.state()["candidates"][:known]}
    search, rows = _search(config, lambda choices: measured.append(choices) or _convolutions(choices), state)
    assert len(measured) == len(rows) == 6 - known
    assert search.state() == whole.state()


def test_a_search_does_not_go_on_with_anothers_candidates(config):
    other = _search(config.override({"seed": 5}))[0]
    with pytest.raises(AutoReConError, match=f"strategy {config.strategy} asks for another candidate 1 "):
        _search(config, state=other.state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "tpe", "relaxation": "paper"}, "strategy is tpe, so that relaxation would do nothing; leave"),
        (
            {"strategy": "random", "inherit_weights": True, "mac_penalty": 1.0},
            "so that mac_penalty, inherit_weights",
        ),
        (
            {"strategy": "enas", "sampling": "hard", "mac_penalty": 1.0},
            "enas, so that sampling, mac_penalty",
        ),
        ({"strategy": "enas", "architecture_steps": 1}, "enas compares .*; give architecture_steps 2 or more"),
        ({"candidate_steps": 4}, "strategy is autorecon, so that candidate_steps would do nothing"),
        ({"strategy": "evolution", "candidate_steps": 300}, r"candidate_steps \(300\) exceeds .* \(256\); lower it"),
    ],
)
def test_settings_that_a_strategy_does_not_use_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        SearchConfig().override(settings).require_consistent()


def test_each_strategy_takes_what_it_uses():
    for strategy in MULTI_TRIAL:
        SearchConfig(strategy=strategy, candidate_steps=256).require_consistent()
    SearchConfig(mac_penalty=1.0, inherit_weights=True).require_consistent()
    SearchConfig().override(
        {"preset": "paper", "strategy": "random"}
    ).require_consistent()  # its relaxation is not ours
    SearchConfig(strategy="enas", architecture_lr=1.0, inherit_weights=True).require_consistent()


def test_the_command_refuses_before_it_writes(tmp_path, capsys):
    assert cli.main(["search", "--strategy", "tpe", "--mac-penalty", "1", "-o", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_command_leaves_what_a_search_leaves(digits_teacher, tmp_path):
    flags = "--strategy evolution --width 2 --latent-dim 5 --batch-size 4 --epochs 2 --weight-steps 4".split()
    flags += "--architecture-steps 2 --candidate-steps 2 --final-steps 2 --validation-steps 1".split()
    torch.manual_seed(9)
    assert cli.main(["search", *flags, "-o", str(tmp_path / "run")]) == 0
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "config.json",
        "genotype.json",
        "result.json",
        "metrics.csv",
        "loss.png",
        "genotype.png",
        "images.png",
        "log.txt",
    }
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    genotype = json.loads((tmp_path / "run" / "genotype.json").read_text())
    assert result["updates"] == 12
    assert (result["loss"], result["generator_macs"]) == (genotype["loss"]["loss"], genotype["macs"])
