"""Steps that a GPU can record, where there is none; what is recorded is tested in test_cuda.py."""

import copy
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from nni_autorecon import accel
from nni_autorecon.accel.cuda_graphs import Recorded, _each, can_be_recorded
from nni_autorecon.accel.optimizers import adam, learning_rate, set_learning_rate, sgd
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.student.compression import Compression
from tests.helpers.recordings import record_on_the_cpu

Pair = namedtuple("Pair", "first second")


def test_on_the_cpu_a_step_is_called():
    seen = []
    step = Recorded(lambda x: seen.append(x) or x + 1, "a step")
    inputs = [torch.full((2,), float(i)) for i in range(5)]
    assert [step(x).tolist() for x in inputs] == [[i + 1.0] * 2 for i in range(5)]
    assert all(known is given for known, given in zip(seen, inputs, strict=True))


def _operations(step, inputs):
    """The operations of ``step``; as in a CUDA graph, what is no tensor is part of them."""
    return make_fx(step)(*inputs)


def test_a_step_begins_again_where_it_depends_on_something_else(monkeypatch):
    recorded, factor = record_on_the_cpu(monkeypatch, _operations), 1.0
    step = Recorded(lambda x: factor * x, "a step", depends_on=lambda: factor > 2)
    x = torch.ones(2)
    assert [step(i * x).tolist() for i in range(5)] == [[float(i)] * 2 for i in range(5)]
    assert recorded == ["a step"]
    factor = 2.0  # the key stays
    assert step(x).tolist() == [1.0] * 2
    factor = 3.0
    assert [step(x).tolist() for _ in range(2)] == [[3.0] * 2] * 2
    assert step._graph is None  # libraries and optimizers are made ready once more
    assert [step(x).tolist() for _ in range(2)] == [[3.0] * 2] * 2
    assert recorded == ["a step"] * 2


@pytest.mark.parametrize("other", [torch.ones(3), torch.ones(1, 2), torch.ones(2, dtype=torch.double)], ids=str)
def test_a_step_begins_again_for_arguments_of_another_shape_or_type(monkeypatch, other):
    recorded = record_on_the_cpu(monkeypatch, _operations)
    step = Recorded(lambda x, y: x + y, "a step")
    for x in (torch.ones(2), other):
        for count in range(5):
            assert torch.equal(step(x, x * count), x * (count + 1))
    assert recorded == ["a step"] * 2


def test_a_step_that_was_forgotten_is_recorded_at_once(monkeypatch):
    recorded = record_on_the_cpu(monkeypatch, _operations)
    step = Recorded(lambda x: 2 * x, "a step")
    for _ in range(4):
        step(torch.ones(1))
    step.forget()
    assert step._graph is None
    assert step(torch.ones(1)) == 2
    assert recorded == ["a step"] * 2


@pytest.mark.parametrize("updates", ["always", "warmup"])
def test_the_step_of_the_generator_begins_again_when_it_has_something_else_to_minimize(
    monkeypatch, updates, digits_teacher
):
    recorded = record_on_the_cpu(monkeypatch)
    config = CompressConfig(
        method="gdfq",
        generator="gdfq",
        width=2,
        batch_size=4,
        epochs=5,
        warmup_epochs=2,
        steps=3,
        agreement_steps=1,
        generator_updates=updates,
    )
    compression = Compression.start(config, digits_teacher)
    generators = []
    for epoch in range(len(compression.phases)):
        compression.run_epoch(epoch)
        generators.append(torch.cat([p.detach().flatten() for p in compression.images.generator.parameters()]))
    assert recorded.count("the step of the generator") == 2
    assert recorded.count("the update of the student") == 1
    assert not generators[1].equal(generators[0])
    assert generators[-1].equal(generators[-2]) == (updates == "warmup")


def test_nothing_is_recorded_when_nothing_is_accelerated(monkeypatch):
    monkeypatch.setattr(accel, "enabled", True)
    assert can_be_recorded(torch.device("cuda"))
    assert not can_be_recorded(torch.device("cpu"))
    monkeypatch.setattr(accel, "enabled", False)
    assert not can_be_recorded(torch.device("cuda"))


def test_tensors_within_tuples_keep_their_places():
    value = (torch.tensor(1.0), Pair(torch.tensor(2.0), (torch.tensor(3.0),)))
    doubled = _each(value, lambda x: 2 * x)
    assert isinstance(doubled[1], Pair)
    assert (doubled[0], doubled[1].first, doubled[1].second[0]) == (2.0, 4.0, 6.0)


def _trained(optimizer, weight, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    return weight.detach().clone()


@pytest.mark.parametrize(
    "make", [lambda w: adam([w], 0.1, betas=(0.5, 0.9)), lambda w: sgd([w], 0.1, momentum=0.9, weight_decay=0.01)]
)
def test_a_rate_that_changes_and_a_state_that_is_taken_up(make):
    weight = nn.Parameter(torch.ones(3))
    optimizer = make(weight)
    _trained(optimizer, weight, 2)
    set_learning_rate(optimizer, 0.01)
    state, before = copy.deepcopy(optimizer.state_dict()), weight.detach().clone()
    if "capturable" in state["param_groups"][0]:
        state["param_groups"][0]["capturable"] = True  # as a run on a GPU leaves it, with a rate that is a tensor
    state["param_groups"][0]["lr"] = torch.tensor(0.01)
    twin = nn.Parameter(before)
    resumed = make(twin)
    resumed.load_state_dict(state)
    assert learning_rate(resumed) == pytest.approx(0.01)
    assert isinstance(resumed.param_groups[0]["lr"], float)
    torch.testing.assert_close(_trained(resumed, twin, 3), _trained(optimizer, weight, 3))


def test_no_momentum_is_no_nesterov():
    assert not sgd([nn.Parameter(torch.ones(1))], 0.1, momentum=0.0, weight_decay=0.0).param_groups[0]["nesterov"]
