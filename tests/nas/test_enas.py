"""ENAS: phases, shared weights, rewards, derivation; its dependency."""

import sys

import pytest
import torch

from nni_autorecon.cli import main as cli
from nni_autorecon.config.search import SearchConfig
from nni_autorecon.errors import DivergenceError
from nni_autorecon.generator.costs import generator_macs
from nni_autorecon.generator.genotype import check_choices, dead_nodes
from nni_autorecon.losses.reconstruction import ReconstructionLoss
from nni_autorecon.nas.enas import DRAWN, EnasModule, EnasStrategy
from nni_autorecon.nas.space import GeneratorSpace, sample_of
from nni_autorecon.nas.supernet import ReconstructionModule
from tests.helpers.searches import run_search
from tests.helpers.toys import GENERATOR, IMAGE, toy_objective, toy_source

CONFIG = SearchConfig(
    strategy="enas",
    width=3,
    latent_dim=7,
    batch_size=6,
    epochs=2,
    weight_steps=3,
    architecture_steps=2,
    validation_steps=1,
)


def _search(config=CONFIG, **rest):
    return run_search(config, kind=EnasStrategy, **rest)


def _module(config=CONFIG):
    """The supernet's one-shot module, not yet trained."""
    torch.manual_seed(0)
    supernet = EnasStrategy(config).mutate_model(GeneratorSpace(**GENERATOR))
    module = EnasModule(ReconstructionModule(config, toy_objective()), config, lambda metrics: None, None)
    module.set_model(supernet)
    return module


@pytest.fixture
def rigged(monkeypatch):
    """L_r is the number of edges with a convolution, in the architecture that the supernet runs."""

    def loss(self, batch):
        drawn = [module._sampled for module in self.model.modules() if hasattr(module, "_sampled")]
        convolutions = sum("conv" in name for name in drawn if isinstance(name, str))
        total = float(convolutions) + 0 * sum(parameter.sum() for parameter in self.parameters())
        return ReconstructionLoss(total, class_=total, bns=0 * total, logits=total)

    monkeypatch.setattr(ReconstructionModule, "reconstruction_loss", loss)


def test_weights_and_controller_are_updated_in_their_own_phases(monkeypatch):
    steps = []
    step = EnasModule.training_step

    def recorded(self, batch, batch_idx):
        before = {name: value.clone() for name, value in self.named_parameters()}
        step(self, batch, batch_idx)
        changed = {name for name, value in self.named_parameters() if not torch.equal(value, before[name])}
        steps.append({name.split(".")[0] for name in changed})

    monkeypatch.setattr(EnasModule, "training_step", recorded)
    _search()
    assert steps == ([{"training_module"}] * 3 + [set(), {"_policy"}]) * 2  # rewards are gathered, then used at once


def test_a_search_costs_what_autorecons_costs():
    assert CONFIG.updates == SearchConfig(epochs=2, weight_steps=3, architecture_steps=2).updates == 10


def test_each_batch_trains_the_operations_that_were_drawn_alone():
    module = _module()
    z, labels = next(toy_source().batches("search", 0, 1))
    drawn = module.draw()
    frozen = module.model.freeze(sample_of(drawn.choices))
    assert torch.equal(module.model(z, labels), frozen(z, labels))
    module.training_module.reconstruction_loss((z, labels)).total.backward()
    trained = sum(parameter.grad is not None for parameter in module.model.parameters())
    assert trained <= len(list(frozen.parameters())) < len(list(module.model.parameters()))


def test_the_controller_learns_which_operations_are_rewarded(rigged):
    rows = []
    config = CONFIG.override(
        {"epochs": 6, "weight_steps": 1, "architecture_steps": 8, "validation_steps": 4, "architecture_lr": 0.02}
    )
    strategy = _search(config, on_epoch=rows.append)
    assert rows[-1]["loss"] < rows[0]["loss"] - 3
    assert rows[-1]["confidence"] > rows[0]["confidence"] + 0.1
    assert rows[-1]["expected_macs"] < rows[0]["expected_macs"]
    convolutions = [p for ps in strategy.probabilities().values() for name, p in ps.items() if "conv" in name]
    assert sum(convolutions) < 0.8 * 15 * 5 / 7  # of as many edges when all is equally likely


def test_only_differences_between_rewards_count():
    controllers = []
    for reward in (lambda k: k, lambda k: 100 * k - 5):
        module = _module()
        for k in (0, 1):
            module.draw()
            module._replay_buffer.update(module.generator.send_reward(reward(float(k))))
        before = module.policy.state_dict()["actor.linear.bias"].clone()
        module.update_controller()
        controllers.append(module.policy.state_dict())
        assert not torch.equal(before, controllers[-1]["actor.linear.bias"])
    for name, value in controllers[0].items():
        torch.testing.assert_close(value, controllers[1][name], rtol=1e-4, atol=1e-4)


def test_an_epoch_reports_what_was_drawn_for_validation(monkeypatch):
    drawn, rows = [], []
    draw = EnasModule.draw
    monkeypatch.setattr(EnasModule, "draw", lambda self: drawn.append(draw(self)) or drawn[-1])
    _search(CONFIG.override({"validation_steps": 2}), on_epoch=rows.append)
    assert [row["epoch"] for row in rows] == [1, 2]
    for row, seen in zip(rows, (drawn[5:7], drawn[12:14]), strict=True):
        assert set(row) == {
            "epoch",
            "loss",
            "class_loss",
            "bns_loss",
            "train_loss",
            "confidence",
            "expected_macs",
        }
        macs = [generator_macs(each.choices, width=3, image=IMAGE, latent_dim=7) for each in seen]
        assert row["expected_macs"] == sum(macs) / 2
        assert 1 / 7 < row["confidence"] < 1


def test_of_what_the_controller_draws_the_best_is_derived(rigged):
    strategy = _search()
    module = strategy.oneshot_module
    losses = []
    measure = module.measure
    module.measure = lambda batches: losses.append(measure(batches)) or losses[-1]
    choices, _ = strategy.derive()
    assert len(losses) == DRAWN
    assert sum("conv" in name for name in choices.values()) == min(losses) < max(losses)
    assert strategy.derive()[0] == choices
    for label, p in strategy.probabilities().items():
        assert sum(p.values()) == pytest.approx(1)
        assert choices[label] in p


def test_dead_nodes_are_repaired_before_anything_is_measured():
    module = _module()
    with torch.no_grad():
        module.policy.actor.linear.bias[6] = 4.0  # the controller likes `none` on normal edges
    drawn = [module.draw() for _ in range(3)]
    assert any(each.repaired for each in drawn)
    for each in drawn:
        check_choices(each.choices)
        if each.repaired:
            assert dead_nodes({**each.choices, **dict.fromkeys(each.repaired, "none")})


def test_nan_stops_the_search_before_it_enters_the_controller():
    def objective(images, labels):
        loss = toy_objective()(images, labels)
        return loss._replace(total=loss.total * float("nan"))

    with pytest.raises(DivergenceError, match="training L_r in epoch 1 became nan; lower the learning rate"):
        _search(objective=objective)


def test_the_controllers_optimizer_takes_its_settings():
    alpha = {"architecture_lr": 0.6, "architecture_beta1": 0.4, "architecture_beta2": 0.7, "architecture_decay": 0.8}
    module = _module(CONFIG.override(alpha))
    _, controller = module.configure_optimizers()
    (group,) = controller.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.6, (0.4, 0.7), 0.8)
    assert {id(p) for p in group["params"]} == {id(p) for p in module.policy.parameters()}


def test_without_tianshou_it_is_refused_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "nni_autorecon.nas.enas")
    monkeypatch.setitem(sys.modules, "tianshou.policy", None)
    assert cli.main(["search", "--strategy", "enas", "-o", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "strategy enas needs tianshou" in error
    assert "pip install 'nni-autorecon[enas]'" in error
    assert not (tmp_path / "run").exists()
