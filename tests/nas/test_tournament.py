"""The tournament at the end of a search: who competes, who wins, what it costs."""

import json

import pytest

from nni_autorecon.cli import main as cli
from nni_autorecon.config.search import SearchConfig
from nni_autorecon.errors import InputError
from nni_autorecon.generator.genotype import Genotype, dead_nodes, uniform_choices
from nni_autorecon.generator.topology import EDGES
from nni_autorecon.nas import search
from nni_autorecon.nas.search import _drawn
from tests.helpers.command_line import SEARCH

UNIFORM = {edge.label: dict.fromkeys(edge.candidates, 1 / len(edge.candidates)) for edge in EDGES}


def test_architectures_are_drawn_by_their_probabilities():
    edge = next(edge for edge in EDGES if len(edge.candidates) == 7)
    skewed = {**UNIFORM, edge.label: dict(zip(edge.candidates, [0.5, 0.3, 0.2, 0, 0, 0, 0], strict=True))}
    drawn = [choices[edge.label] for choices, repaired in _drawn(skewed, 600, seed=0) if edge.label not in repaired]
    shares = [drawn.count(name) / len(drawn) for name in edge.candidates]
    assert shares == pytest.approx([0.5, 0.3, 0.2, 0, 0, 0, 0], abs=0.08)  # four standard deviations


def test_those_who_compete_have_no_dead_nodes_and_depend_on_the_seed_alone():
    first, again, other = (list(_drawn(UNIFORM, 20, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert not any(dead_nodes(choices) for choices, _ in first)
    assert any(repaired for _, repaired in first)


def test_the_best_of_them_is_taken_and_their_training_is_counted(tmp_path, monkeypatch, digits_teacher):
    measured = []

    def measure(config, teacher, objective, source, choices, *, steps):
        measured.append(choices)
        return {"loss": float(sum("conv" in name for name in choices.values()))}

    monkeypatch.setattr(search, "_measure_candidate", measure)
    run = [*SEARCH, "--tournament", "3", "--tournament-steps", "5", "-o", str(tmp_path / "run")]
    assert cli.main(["search", *run]) == 0
    assert len(measured) == 4
    fewest = min(measured, key=lambda choices: sum("conv" in name for name in choices.values()))
    assert Genotype.load(tmp_path / "run" / "genotype.json").choices == fewest
    assert json.loads((tmp_path / "run" / "result.json").read_text())["updates"] == 2 * 3 + 4 * 5


def test_one_who_competes_is_trained_for_as_many_steps(digits_teacher):
    config = SearchConfig(width=2, latent_dim=5, batch_size=4, validation_steps=1)
    objective = search.objective_for(digits_teacher.observed, config)
    source = search.LatentSource(4, 5, digits_teacher.num_classes, 0)
    losses = [
        search._measure_candidate(config, digits_teacher, objective, source, uniform_choices("conv_3x3"), steps=steps)
        for steps in (1, 1, 40)
    ]
    assert losses[0] == losses[1]
    assert losses[2]["loss"] < losses[0]["loss"]


def test_without_a_tournament_its_steps_are_refused():
    with pytest.raises(InputError, match="tournament is 0, so that tournament_steps would do nothing"):
        SearchConfig(tournament_steps=5).require_consistent()
    with pytest.raises(InputError, match="strategy is enas, so that tournament would do nothing"):
        SearchConfig(strategy="enas", tournament=5).require_consistent()
