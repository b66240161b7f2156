"""Stage 1 of Algorithm 1: phases, gradients, temperature, export, penalty."""

import re
from types import SimpleNamespace

import pytest
import torch
from nni.nas.evaluator.pytorch import Lightning, Trainer
from nni.nas.space import RawFormatModelSpace
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from nni_autorecon.accel.convolution import summed
from nni_autorecon.config.search import FINAL_VALIDATION_STEPS, TEMPERATURES
from nni_autorecon.errors import DivergenceError
from nni_autorecon.generator.costs import generator_macs
from nni_autorecon.generator.genotype import check_choices
from nni_autorecon.generator.operations import Features
from nni_autorecon.generator.searched import derived_generator
from nni_autorecon.generator.topology import CANDIDATES, CROSS, EDGES, NONE
from nni_autorecon.losses.reconstruction import ReconstructionLoss
from nni_autorecon.nas import search
from nni_autorecon.nas.autorecon import AutoReConModule, AutoReConStrategy
from nni_autorecon.nas.gumbel import temperature_at
from nni_autorecon.nas.mixed_edge import GumbelSample
from nni_autorecon.nas.penalties import indecision
from nni_autorecon.nas.space import GeneratorSpace, choices_of, sample_of
from nni_autorecon.nas.supernet import ReconstructionModule
from nni_autorecon.runs.folder import RunFolder
from nni_autorecon.teacher.loading import Teacher
from tests.helpers.recordings import record_on_the_cpu
from tests.helpers.searches import CONFIG, run_search
from tests.helpers.toys import GENERATOR, IMAGE, snapshot, toy_objective, toy_source, toy_teacher


def _module(config=CONFIG):
    """The supernet and its one-shot module, not yet trained."""
    torch.manual_seed(0)
    strategy = AutoReConStrategy(config)
    supernet = strategy.mutate_model(GeneratorSpace(**GENERATOR))
    training_module = ReconstructionModule(config, toy_objective())
    training_module.set_model(supernet)
    return supernet, AutoReConModule(training_module, config, lambda metrics: None)


@pytest.fixture
def phases(monkeypatch):
    """Return for every training step the parameters of the phase, "W" or "alpha", and the names that changed."""
    steps = []
    step = AutoReConModule.training_step

    def recorded(self, batch, batch_idx):
        before = {name: value.clone() for name, value in self.named_parameters()}
        step(self, batch, batch_idx)
        changed = {name for name, value in self.named_parameters() if not torch.equal(value, before[name])}
        steps.append({name.rsplit(".", 1)[-1] == "alpha" for name in changed})

    monkeypatch.setattr(AutoReConModule, "training_step", recorded)
    return steps


def test_each_phase_changes_only_its_own_parameters_and_in_order(phases):
    run_search()
    assert phases == ([{False}] * 3 + [{True}] * 2) * 3  # T1 updates of W, then V1 of alpha, every epoch


def test_gradients_reach_every_alpha_and_weight_and_none_the_teacher():
    teacher = toy_teacher()
    before = snapshot(teacher)
    supernet, module = _module()
    z, labels = next(toy_source().batches("search", 0, 1))
    toy_objective(teacher)(supernet(z, labels), labels).total.backward()
    assert len(module.arch_parameters()) == 33
    for name, parameter in supernet.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or name.endswith(".bias"), name  # a norm may cancel a bias
    run_search(objective=toy_objective(teacher))
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_each_epoch_reports_what_the_web_ui_shows():
    rows = []
    run_search(on_epoch=rows.append)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for epoch, row in enumerate(rows):
        assert set(row) == {
            "epoch",
            "loss",
            "class_loss",
            "bns_loss",
            "train_loss",
            "temperature",
            "confidence",
            "expected_macs",
        }
        assert row["loss"] == pytest.approx(row["class_loss"] + 0.1 * row["bns_loss"], rel=1e-5)
        assert row["temperature"] == temperature_at(epoch, 3, start=4.0, end=1.0, schedule="exponential")
        assert 1 / 7 < row["confidence"] < 1


@pytest.mark.parametrize("schedule", TEMPERATURES)
def test_the_temperature_follows_the_schedule_that_was_chosen(schedule):
    rows = []
    run_search(CONFIG.override({"temperature_schedule": schedule}), on_epoch=rows.append)
    expected = [temperature_at(epoch, 3, start=4.0, end=1.0, schedule=schedule) for epoch in range(3)]
    assert [row["temperature"] for row in rows] == expected


def test_the_temperature_reaches_every_edge(monkeypatch):
    seen = set()
    step = AutoReConModule.training_step

    def recorded(self, batch, batch_idx):
        seen.add(tuple(edge.sample.temperature.item() for edge in self.mixed_edges()))
        step(self, batch, batch_idx)

    monkeypatch.setattr(AutoReConModule, "training_step", recorded)
    run_search()
    assert seen == {(4.0,) * 33, (2.0,) * 33, (1.0,) * 33}


@pytest.mark.parametrize("hard", [False, True])
def test_a_recorded_sample_sees_the_temperature_change(hard):
    sample, alpha = GumbelSample("logits", hard=hard), torch.randn(7, requires_grad=True)
    gradient = lambda alpha: torch.autograd.grad(sample(alpha).square().sum(), alpha)[0]  # noqa: E731
    recorded = make_fx(gradient)(alpha)  # its operations; what is no tensor is part of them
    drawn = []
    for temperature in (1.0, 0.1):
        sample.temperature.fill_(temperature)
        for form in (gradient, recorded):
            torch.manual_seed(0)
            drawn.append(form(alpha))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[2], drawn[3])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("settings", "times"), [({}, (1, 1)), ({"mac_penalty": 0.1}, (1, 1)), ({"entropy_penalty": 0.1}, (1, 3))], ids=str
)
def test_steps_are_recorded_anew_only_where_an_epoch_is_another_number(monkeypatch, settings, times):
    recorded = record_on_the_cpu(monkeypatch)
    run_search(CONFIG.override({**settings, "architecture_steps": 3}))
    assert (recorded.count("the update of W"), recorded.count("the update of α")) == times


def test_both_steps_are_recorded_anew_when_the_opponent_begins_to_play():
    _, module = _module()
    module.opponent = SimpleNamespace(plays=lambda epoch: epoch >= 1)
    keys = []
    for module.epoch in range(3):
        keys.append([step.depends_on() for step in module._steps])
    assert keys[0] != keys[1] == keys[2]


def test_the_search_is_reproducible_from_its_seed():
    first, second, other = run_search(seed=1), run_search(seed=1), run_search(seed=2)
    assert first.probabilities() == second.probabilities()
    assert first.probabilities() != other.probabilities()
    weights = zip(first.supernet.parameters(), second.supernet.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


@pytest.mark.parametrize("sampling", ["soft", "hard"])
@pytest.mark.parametrize("relaxation", ["paper", "logits"])
def test_every_form_of_sampling_searches(sampling, relaxation):
    strategy = run_search(CONFIG.override({"sampling": sampling, "relaxation": relaxation}))
    choices, _ = strategy.derive()
    check_choices(choices)
    start = AutoReConStrategy(CONFIG)
    torch.manual_seed(0)
    start.mutate_model(GeneratorSpace(**GENERATOR))
    assert any(
        (a - b).abs().max() > 0.05
        for a, b in zip(start._arch_parameters.values(), strategy._arch_parameters.values(), strict=True)
    )


def test_probabilities_are_softmax_alpha_and_the_argmax_is_derived():
    strategy = run_search()
    probabilities = strategy.probabilities()
    for edge in strategy.oneshot_module.mixed_edges():
        p = edge.alpha.detach().softmax(-1)
        assert list(probabilities[edge.edge.label].values()) == pytest.approx(p.tolist())
        assert p.sum().item() == pytest.approx(1)
    assert strategy.oneshot_module.export_probs() == probabilities
    choices, repaired = strategy.derive()
    argmax = {label: max(p, key=p.get) for label, p in probabilities.items()}
    assert {label for label in choices if choices[label] != argmax[label]} == set(repaired)


def test_dead_nodes_are_repaired_at_derivation():
    supernet, module = _module()
    strategy = AutoReConStrategy(CONFIG)
    for edge in module.mixed_edges():
        if NONE in edge.edge.candidates:
            edge.alpha.data[edge.edge.candidates.index(NONE)] = 9.0
    strategy._mutated_model_space = RawFormatModelSpace(supernet, Lightning(module, Trainer(logger=False)))
    choices, repaired = strategy.derive()
    check_choices(choices)
    assert repaired
    assert all(choices[label] != NONE for label in repaired)


def test_export_freeze_and_list_models_work_as_in_nni():
    strategy = run_search()
    sample = strategy.oneshot_module.export()
    frozen = strategy.supernet.freeze(sample)
    (listed,) = strategy.list_models()
    derived = derived_generator(choices_of(sample), **GENERATOR)
    derived.load_state_dict(frozen.generator.state_dict())
    z, labels = torch.randn(6, 7), torch.arange(6) % 5
    assert torch.equal(derived(z, labels), frozen(z, labels))
    assert torch.equal(derived(z, labels), listed.executable_model()(z, labels))


def test_a_frozen_supernet_shares_no_storage_with_it():
    strategy = run_search()
    frozen = strategy.supernet.freeze(sample_of(strategy.derive()[0]))
    before = snapshot(strategy.supernet)
    with torch.no_grad():
        for parameter in frozen.parameters():
            parameter.add_(1)
    assert all(torch.equal(before[name], value) for name, value in strategy.supernet.state_dict().items())


def test_a_one_hot_supernet_is_the_derived_generator():
    supernet, module = _module()
    choices = {edge.label: edge.candidates[0] for edge in EDGES}
    for edge in module.mixed_edges():
        weights = torch.eye(len(edge.edge.candidates))[edge.edge.candidates.index(choices[edge.edge.label])]
        edge.sample = _Fixed(weights)
    derived = supernet.freeze(sample_of(choices))
    z, labels = torch.randn(6, 7), torch.arange(6) % 5
    torch.testing.assert_close(supernet(z, labels), derived(z, labels), rtol=1e-4, atol=1e-4)


class _Fixed(torch.nn.Module):
    hard = False

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, alpha):
        return self.weights


def test_the_mixed_edge_is_eq_8():
    _, module = _module()
    edge = next(edge for edge in module.mixed_edges() if edge.edge.kind == CROSS)
    weights = torch.tensor([0.2, 0.3, 0.5])
    edge.sample = _Fixed(weights)
    x, labels = torch.randn(6, 3, 3, 3), torch.arange(6) % 5
    operations, features = edge.operations, Features(x)
    expected = 0.2 * operations["nearest"](features, labels) + 0.3 * operations["bilinear"](features, labels)
    torch.testing.assert_close(summed([edge(features, labels)]), expected)


def test_an_update_that_fails_leaves_every_parameter_learning(monkeypatch):
    """This is so where it cannot be recorded, and is then called."""
    failures = iter([False, False, True, False])
    backward, step = AutoReConModule.manual_backward, AutoReConModule._update

    def failing(self, loss):
        if next(failures, False):
            raise RuntimeError("no recording")
        return backward(self, loss)

    def again(self, *arguments):
        try:
            return step(self, *arguments)
        except RuntimeError:
            return step(self, *arguments)

    monkeypatch.setattr(AutoReConModule, "manual_backward", failing)
    monkeypatch.setattr(AutoReConModule, "_update", again)
    run_search()
    assert next(failures, "all were asked for") == "all were asked for"


def test_every_batch_is_announced_and_none_after_the_result(digits_teacher, tmp_path):
    config, folder, late = CONFIG.override({"epochs": 2, "final_steps": 3, "threads": 1}), tmp_path / "run", []
    with RunFolder(folder) as run:
        search.run_search(config, run, on_step=lambda: late.append((folder / "result.json").exists()))
    by_epoch = config.weight_steps + config.architecture_steps + config.validation_steps
    assert late == [False] * (2 * by_epoch + config.final_steps + FINAL_VALIDATION_STEPS)


def test_a_search_for_a_network_that_cannot_be_traced_says_what_compress_will_need(tmp_path, caplog):
    class Branching(nn.Sequential):
        def forward(self, x):
            return super().forward(x if x.mean() < 1e9 else -x)

    teacher = Teacher.of(Branching(*toy_teacher()), IMAGE)
    with RunFolder(tmp_path / "run") as run:
        search.run_search(CONFIG.override({"epochs": 1, "final_steps": 1}), run, teacher)
    (warning,) = (message for message in caplog.messages if "traced" in message)
    assert re.search(r"Branching cannot be traced .* in test_autorecon.py:\d+\); to compress it, .*", warning)


def test_expected_macs_of_a_decided_alpha_are_those_of_its_genotype():
    _, module = _module()
    choices = {edge.label: edge.candidates[1] for edge in EDGES}
    for edge in module.mixed_edges():
        edge.alpha.data.fill_(-50)
        edge.alpha.data[1] = 50
    exact = generator_macs(choices, width=3, image=IMAGE, latent_dim=7)
    assert module.expected_macs(module.arch_parameters()).item() == pytest.approx(exact)


def test_expected_macs_at_the_start_are_the_unit_of_the_penalty():
    _, module = _module(CONFIG.override({"architecture_init": 0.0}))
    assert module.expected_macs(module.arch_parameters()).item() == pytest.approx(module.expected_macs.uniform)


def test_the_mac_penalty_has_a_gradient_and_makes_generators_cheaper():
    _, module = _module()
    module.expected_macs(module.arch_parameters()).backward()
    assert all(alpha.grad.abs().max() > 0 for alpha in module.arch_parameters() if len(alpha) > 2)
    macs = []
    for penalty in (0.0, 100.0):
        rows = []
        run_search(CONFIG.override({"mac_penalty": penalty}), on_epoch=rows.append)
        macs.append(rows[-1]["expected_macs"])
    assert macs[1] < 0.9 * macs[0]


def test_penalties_are_added_at_their_weights():
    config = CONFIG.override({"mac_penalty": 3.0, "entropy_penalty": 6.0, "epochs": 4, "architecture_init": 1.0})
    _, module = _module(config)
    macs, undecided = (
        module.expected_macs(module.arch_parameters()).item() / module.expected_macs.uniform,
        indecision(module.arch_parameters()).item(),
    )
    for module.epoch, share in ((0, 0.25), (3, 1.0)):
        assert module.penalized(torch.tensor(2.0)).item() == pytest.approx(2 + 3 * macs + 6 * share * undecided)


def test_the_entropy_penalty_decides_edges():
    _, module = _module(CONFIG.override({"architecture_init": 0.0}))
    assert indecision(module.arch_parameters()).item() == pytest.approx(1)
    for alpha in module.arch_parameters():
        alpha.data[0] = 50
    assert indecision(module.arch_parameters()).item() == pytest.approx(0, abs=1e-6)
    confidences = []
    for penalty in (0.0, 100.0):
        rows = []
        run_search(CONFIG.override({"entropy_penalty": penalty, "architecture_init": 0.1}), on_epoch=rows.append)
        confidences.append(rows[-1]["confidence"])
    assert confidences[1] > confidences[0] + 0.02


def test_alpha_that_is_no_number_is_divergence():
    with pytest.raises(DivergenceError):
        run_search(CONFIG.override({"entropy_penalty": 1.0, "architecture_steps": 3}), objective=_never_finite)


def _never_finite(images, labels):
    return ReconstructionLoss(*(images.mean() * float("nan") for _ in range(4)))


def test_alpha_is_initialized_as_configured():
    _supernet, module = _module(CONFIG.override({"architecture_init": 2.0}))
    values = torch.cat([alpha.detach() for alpha in module.arch_parameters()])
    assert len(values) == sum(len(CANDIDATES[edge.kind]) for edge in EDGES)
    assert values.std() == pytest.approx(2.0, rel=0.3)


def test_optimizers_take_their_settings():
    weights = {"weight_lr": 0.5, "weight_beta1": 0.1, "weight_beta2": 0.2, "weight_decay": 0.3}
    alpha = {"architecture_lr": 0.6, "architecture_beta1": 0.4, "architecture_beta2": 0.7, "architecture_decay": 0.8}
    _, module = _module(CONFIG.override({**weights, **alpha}))
    (weights,), (architecture,) = (optimizer.param_groups for optimizer in module.configure_optimizers())
    assert (weights["lr"], weights["betas"], weights["weight_decay"]) == (0.5, (0.1, 0.2), 0.3)
    assert (architecture["lr"], architecture["betas"], architecture["weight_decay"]) == (0.6, (0.4, 0.7), 0.8)
    shared = {id(p) for p in weights["params"]} & {id(p) for p in architecture["params"]}
    assert not shared


def test_nan_stops_the_search_with_a_clear_error():
    def objective(images, labels):
        loss = toy_objective()(images, labels)
        return loss._replace(total=loss.total * float("nan"))

    with pytest.raises(DivergenceError, match="training L_r in epoch 1 became nan; lower the learning rate"):
        run_search(objective=objective)
