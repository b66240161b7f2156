"""Steps that a GPU can record, where there is none; what is recorded is tested in test_cuda.py."""

import copy
from collections import namedtuple

import pytest
import torch
from torch import nn

from nni_autorecon.accel.cuda_graphs import Recorded, _each
from nni_autorecon.accel.optimizers import adam, learning_rate, set_learning_rate, sgd

Pair = namedtuple("Pair", "first second")


def test_on_the_cpu_a_step_is_called():
    seen = []
    step = Recorded(lambda x: seen.append(x) or x + 1, "a step")
    inputs = [torch.full((2,), float(i)) for i in range(5)]
    assert [step(x).tolist() for x in inputs] == [[i + 1.0] * 2 for i in range(5)]
    assert all(known is given for known, given in zip(seen, inputs, strict=True))


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
