"""State dicts from files: unwrapped, loaded, or refused with every misfit named."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nni_autorecon.errors import InputError
from nni_autorecon.teacher.checkpoint import load_checkpoint
from tests.helpers.checkpoints import save
from tests.helpers.toys import snapshot, toy_teacher

State = dict[str, Tensor]


def blank() -> nn.Module:
    """The toy with other weights."""
    network = toy_teacher()
    for tensor in network.state_dict().values():
        tensor.zero_()
    return network


def has(network: nn.Module, state: State) -> bool:
    return all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())


def refusal(content: object, folder: Path) -> str:
    """The one line with which the toy refuses ``content``."""
    with pytest.raises(InputError) as caught:
        load_checkpoint(blank(), save(content, folder), "toy")
    assert "\n" not in str(caught.value)
    return str(caught.value)


WRAPS: dict[str, Callable[[State], object]] = {
    "as it is": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {}},
    "nested": lambda state: {"model": {"state_dict": state, "best": 0.5}},
    "DataParallel": lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
    "Lightning": lambda state: {"state_dict": {f"model.{key}": tensor for key, tensor in state.items()}},
    "both": lambda state: {"model": {f"module.model.module.{key}": tensor for key, tensor in state.items()}},
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_what_is_wrapped_is_unwrapped(wrap: Callable[[State], object], tmp_path: Path) -> None:
    state, network = snapshot(toy_teacher()), blank()
    load_checkpoint(network, save(wrap(state), tmp_path), "toy")
    assert has(network, state)


def test_a_prefix_that_the_network_has_too_stays(tmp_path: Path) -> None:
    state, network = snapshot(nn.DataParallel(toy_teacher())), nn.DataParallel(blank())
    load_checkpoint(network, save(state, tmp_path), "wrapped")
    assert has(network, state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("1.running_var"), "weights.pt does not fit toy: missing: 1.running_var; give"),
        (lambda state: state.update({"fc.bias": torch.ones(2)}), "toy: unexpected: fc.bias; give"),
        (lambda state: state.update({"8.bias": torch.ones(3)}), "toy: wrong shape: 8.bias ([3] for [5]); give"),
        (
            lambda state: [state.update({f"x{i}": torch.ones(1)}) for i in range(5)],
            "toy: unexpected: x0, x1, x2, x3, x4; give",
        ),
        (
            lambda state: [state.update({f"x{i}": torch.ones(1)}) for i in range(7)],
            "toy: unexpected: x0, x1, x2, x3, x4 and 2 more; give",
        ),
        (
            lambda state: (state.pop("0.bias"), state.update({"a": torch.ones(1), "1.bias": torch.ones(2)})),
            "toy: missing: 0.bias; unexpected: a; wrong shape: 1.bias ([2] for [3]); give",
        ),
    ],
)
def test_a_checkpoint_of_another_network(change: Callable[[State], object], message: str, tmp_path: Path) -> None:
    state = snapshot(toy_teacher())
    change(state)
    assert message in refusal(state, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "net": {"0.weight": torch.ones(1)}}, "no state_dict but epoch, net; give one, alone or"),
        ([torch.ones(1)], "no state_dict but list"),
        ({"state_dict": {}}, "no state_dict but nothing"),
        ({"args": argparse.Namespace(lr=1), "state_dict": {}}, "holds argparse.Namespace, which could run code"),
        (nn.Linear(2, 3), "holds torch.nn.modules.linear.Linear, which could run code; give torch.save"),
    ],
)
def test_a_checkpoint_without_a_state_dict(content: object, message: str, tmp_path: Path) -> None:
    assert message in refusal(content, tmp_path)
