"""State dicts from files: unwrapped, loaded, or refused with every misfit named."""

from __future__ import annotations

import argparse
import gzip
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import nni_autorecon as nar
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
    """Return the line with which the toy refuses ``content``."""
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
    "net of a script": lambda state: {"net": {f"module.{key}": tensor for key, tensor in state.items()}, "acc": 9.5},
    "arguments": lambda state: {
        "args": argparse.Namespace(lr=1),
        "model_state_dict": state,
        "optimizer": {"state": {}},
    },
    "paths and a history": lambda state: {
        "hyper_parameters": {"root": Path("data"), "cache": PureWindowsPath("c:/data")},
        "history": defaultdict(list, loss=[0.5]),
        "state_dict": state,
    },
    "numbers of NumPy": lambda state: {"best": np.float64(9.5), **state},
    "averaged": lambda state: {"n_averaged": torch.tensor(3), **{f"module.{key}": state[key] for key in state}},
    "counted": lambda state: {**state, "total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)},
    "beside a loss": lambda state: {
        "state_dict": {**{f"net.{key}": state[key] for key in state}, "criterion.weight": torch.ones(5)}
    },
    "EMA alone": lambda state: {"model_ema": state},
    "both": lambda state: {"model": {f"module.model.module.{key}": tensor for key, tensor in state.items()}},
    "beside a number": lambda state: {"epoch": 3, "best": None, **state},
    "beside an EMA of a prefix": lambda state: {
        **{f"ema_model.{key}": torch.zeros_like(state[key]) for key in state},
        **{f"model.{key}": state[key] for key in state},
    },
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
        (
            lambda state: state.update({key: (9 * state[key]).to(torch.int8) for key in ("0.bias", "8.weight")}),
            "toy: no floating-point numbers: 0.bias (int8), 8.weight (int8); give",
        ),
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
        ({"epoch": 3, "net": {"lr": 0.1}}, "no state_dict but epoch, net; give one, alone or"),
        ([torch.ones(1)], "no state_dict but list"),
        ({"state_dict": {}}, "no state_dict but state_dict; give one"),
        ({}, "no state_dict but nothing"),
        ({"a": np.ones(3)}, "could run code; give torch.save(network.state_dict(), FILE)"),
        ({"a": 3, "b": None}, "no state_dict but a, b; give one"),
        (
            {"loss": torch.ones(1), "net": {"fc.bias": torch.ones(2), "a": torch.ones(1)}},
            "unexpected: fc.bias, a; give",
        ),
        (nn.Linear(2, 3), "holds torch.nn.modules.linear.Linear, which could run code; give torch.save"),
    ],
)
def test_a_checkpoint_without_a_state_dict(content: object, message: str, tmp_path: Path) -> None:
    assert message in refusal(content, tmp_path)


def several(state: State) -> dict[str, object]:
    """The weights as an EMA beside weights of zeros."""
    last = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    return {"epoch": 9, "state_dict": last, "state_dict_ema": state, "optimizer": {"state": {0: torch.ones(1)}}}


def two_prefixes(state: State) -> State:
    """A student of zeros and its teacher, as a distillation keeps them."""
    student = {f"student.{key}": torch.zeros_like(tensor) for key, tensor in state.items()}
    return {**student, **{f"teacher.{key}": tensor for key, tensor in state.items()}}


def test_two_that_fit_equally_are_refused_until_one_is_named(tmp_path: Path) -> None:
    state = snapshot(toy_teacher())
    message = refusal({"state_dict": two_prefixes(state)}, tmp_path)
    assert "state_dict.student and state_dict.teacher fit equally; choose with --checkpoint-key" in message
    network = blank()
    load_checkpoint(network, tmp_path / "weights.pt", "toy", key="state_dict.teacher")
    assert has(network, state)


def test_the_key_above_names_the_state_dict_within(tmp_path: Path) -> None:
    state, network = snapshot(toy_teacher()), blank()
    last = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    path = save({"model": last, "ema": {"decay": 0.9, "state_dict": state}}, tmp_path)
    load_checkpoint(network, path, "toy", key="ema")
    assert has(network, state)


def test_a_key_with_several_within_is_refused(tmp_path: Path) -> None:
    path = save({"nets": two_prefixes(snapshot(toy_teacher()))}, tmp_path)
    with pytest.raises(InputError, match=r"several state_dicts in 'nets', but nets.student, nets.teacher; choose"):
        load_checkpoint(blank(), path, "toy", key="nets")


def test_a_message_says_what_was_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "nni_autorecon")
    state = snapshot(toy_teacher())
    prefixed = {f"net.{key}": tensor for key, tensor in state.items()}
    path = save({"criterion.weight": torch.ones(5), "total_ops": torch.ones(1), "epoch": 3, **prefixed}, tmp_path)
    load_checkpoint(blank(), path, "toy")
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "criterion.weight, total_ops, epoch left out, beside the network's weights"
    ]


class WithExtraState(nn.Conv2d):
    """A layer that keeps a number in its state_dict."""

    scale = 1.0

    def get_extra_state(self) -> object:
        return {"scale": self.scale}

    def set_extra_state(self, state: Any) -> None:
        self.scale = state["scale"]


def test_extra_state_is_loaded(tmp_path: Path) -> None:
    network, again = nn.Sequential(WithExtraState(3, 4, 1)), nn.Sequential(WithExtraState(3, 4, 1))
    network[0].scale = 3.0
    load_checkpoint(again, save({"epoch": 1, "net": network.state_dict()}, tmp_path), "toy")
    assert again[0].scale == 3.0
    assert torch.equal(again[0].weight, network[0].weight)


class Versioned(nn.Sequential):
    """It asks for the version of its weights, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state: State, prefix: str, metadata: dict[str, Any], *others: Any) -> None:
        if metadata.get("version") != 2:
            raise ValueError(f"version {metadata.get('version')} is unknown")
        super()._load_from_state_dict(state, prefix, metadata, *others)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_layer_that_asks_for_its_version_is_told_that_of_today(prefix: str, tmp_path: Path) -> None:
    state = toy_teacher().state_dict()
    without_counters = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert len(without_counters) < len(state)
    file = save({f"{prefix}0.{name}": value for name, value in without_counters.items()}, tmp_path)
    network = Versioned(blank())
    load_checkpoint(network, file, "toy")
    assert has(network[0], state)


@pytest.mark.parametrize("parallel", [False, True])
def test_or_that_of_the_file(parallel: bool, tmp_path: Path) -> None:
    saved = Versioned(toy_teacher())
    saved._version = 3
    file = save({"model": (nn.DataParallel(saved) if parallel else saved).state_dict()}, tmp_path)
    with pytest.raises(InputError, match="version 3 is unknown"):
        load_checkpoint(Versioned(blank()), file, "toy")


def test_counters_may_be_taken_out_of_a_state_dict(tmp_path: Path) -> None:
    state = toy_teacher().state_dict()  # PyTorch's own, with the versions of layers
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert counters
    for name in counters:
        del state[name]
    network = blank()
    load_checkpoint(network, save(state, tmp_path), "toy")
    assert has(network, {**network.state_dict(), **state})


def test_a_layer_that_refuses_its_weights_is_a_line(tmp_path: Path) -> None:
    class Refusing(Versioned):
        _version = 3

    network = Refusing(toy_teacher())
    with pytest.raises(InputError, match="weights.pt cannot be loaded into toy: version 3 is unknown"):
        load_checkpoint(network, save(network.state_dict(), tmp_path), "toy")


def test_the_key_goes_from_the_teacher_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4),"
        " nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))\n"
    )
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(), nn.Sequential(), nn.Linear(4, 5))
    weights = {"last": {key: value * 2 for key, value in network.state_dict().items()}, "averages": snapshot(network)}
    arguments = {"checkpoint": save(weights, tmp_path), "image_size": 16}
    teacher = nar.load_teacher(f"{tmp_path}/net.py:make", checkpoint_key="averages", **arguments)
    assert has(teacher.network, snapshot(network))
    with pytest.raises(InputError, match="averages and last fit equally|last and averages fit equally"):
        nar.load_teacher(f"{tmp_path}/net.py:make", **arguments)


def test_a_message_says_which_of_several_was_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "nni_autorecon")
    state, network = snapshot(toy_teacher()), toy_teacher()
    load_checkpoint(network, save(several(state), tmp_path), "toy")
    assert not any(tensor.any() for tensor in network.state_dict().values())
    (message,) = caplog.messages
    assert "weights.pt: state_dict is taken; --checkpoint-key takes another, state_dict_ema" in message


def test_a_key_takes_another(tmp_path: Path) -> None:
    state, network = snapshot(toy_teacher()), blank()
    load_checkpoint(network, save({"models": several(state)}, tmp_path), "toy", key="models.state_dict_ema")
    assert has(network, state)
    with pytest.raises(InputError, match=r"no state_dict 'ema', but models.state_dict, models.state_dict_ema; choose"):
        load_checkpoint(network, tmp_path / "weights.pt", "toy", key="ema")


@pytest.mark.parametrize("listed", [False, True], ids=["by name", "a list"])
def test_an_average_of_parameters_alone_is_completed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, listed: bool
) -> None:
    caplog.set_level("INFO", "nni_autorecon")
    network = toy_teacher()
    average = {name: 2 * parameter.detach() for name, parameter in network.named_parameters()}
    kept = {"decay": 0.99, "shadow_params": [*average.values()]} if listed else average
    place = "ema.shadow_params" if listed else "ema"
    path = save({"net": snapshot(network), "ema": kept}, tmp_path)
    want, (buffer, *_) = snapshot(network), dict(network.named_buffers())

    load_checkpoint(taken := blank(), path, "toy")
    assert has(taken, want)
    assert f"net is taken; --checkpoint-key takes another, {place}" in caplog.text
    load_checkpoint(taken := blank(), path, "toy", key=place)
    assert has(taken, want | average)
    assert f"{place} has parameters alone; the rest, such as {buffer}, is that of net" in caplog.text


def test_lists_that_are_no_average_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "nni_autorecon")
    network = toy_teacher()
    momenta = [parameter.detach() for parameter in network.parameters()]
    path = save({"net": snapshot(network), "momenta": momenta, "ema_of_loss": momenta[1:]}, tmp_path)
    load_checkpoint(blank(), path, "toy")
    assert not caplog.messages


def test_what_fits_is_taken_before_what_is_usual(tmp_path: Path) -> None:
    state, network = snapshot(toy_teacher()), blank()
    load_checkpoint(network, save({"model": {"gan.weight": torch.ones(3)}, "classifier": state}, tmp_path), "toy")
    assert has(network, state)


def test_safetensors_are_read(tmp_path: Path) -> None:
    state, network = snapshot(toy_teacher()), blank()
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "weights.safetensors")
    load_checkpoint(network, tmp_path / "weights.safetensors", "toy")
    assert has(network, state)
    load_checkpoint(network, (tmp_path / "weights.safetensors").rename(tmp_path / "weights.pt"), "toy")
    assert has(network, state)
    (tmp_path / "weights.safetensors").write_bytes(b"nonsense" * 9)
    with pytest.raises(InputError, match=r"weights.safetensors is damaged or no PyTorch checkpoint; give torch.save"):
        load_checkpoint(network, tmp_path / "weights.safetensors", "toy")


def test_a_file_that_ends_too_early_is_damaged(tmp_path: Path) -> None:
    path = save(snapshot(toy_teacher()), tmp_path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(InputError, match="is damaged or no PyTorch checkpoint; give torch.save"):
        load_checkpoint(blank(), path, "toy")


FILES = {
    "git-lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "of git-lfs; fetch it with git lfs pull",
    ),
    "web page": (b" <!DOCTYPE html><html>Sign in</html>", "is a web page; download the file itself"),
    "web page with a mark": (b"\xef\xbb\xbf\n<html>Sign in</html>", "is a web page; download the file itself"),
    "web page with a comment": (b"<!-- saved --><html>Sign in</html>", "is a web page; download the file itself"),
    "JSON": (b'{"epoch": 3}', "is JSON or another text; give torch.save"),
    "gzip": (gzip.compress(b"weights"), "is compressed; unpack it and give the file within"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(30), "is a file of HDF5, as Keras writes it; give torch.save"),
    "nothing": (b"", "is empty; give torch.save"),
    "anything": (b"abc" * 100, "is damaged or no PyTorch checkpoint; give torch.save"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_checkpoint_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_checkpoint(blank(), path, "toy")


def test_files_of_other_libraries_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "weights.npz", a=np.ones(3))
    np.save(tmp_path / "weights.npy", np.ones(3))
    with zipfile.ZipFile(tmp_path / "weights.zip", "w") as archive:
        archive.writestr("weights.pt", "weights")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "main_graph", [x], [y])
    onnx.save(onnx.helper.make_model(graph, producer_name="pytorch"), tmp_path / "weights.onnx")
    for name, kind in (
        ("weights.npz", "NumPy's archive of arrays"),
        ("weights.npy", "an array of NumPy"),
        ("weights.zip", "an archive"),
        ("weights.onnx", "an ONNX model"),
    ):
        with pytest.raises(InputError, match=f"{name} is {kind}; give torch.save"):
            load_checkpoint(blank(), tmp_path / name, "toy")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_named(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 3)).save(tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"weights.pt is TorchScript; give its weights"):
        load_checkpoint(blank(), tmp_path / "weights.pt", "toy")
