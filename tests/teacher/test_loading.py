"""Finding, loading and checking a frozen network: what comes out, and one line for everything that goes wrong."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.data.digits import digits_data
from nni_autorecon.errors import InputError, MachineError
from nni_autorecon.losses.batchnorm import ObservedBatchNorm2d, record_bn_statistics
from nni_autorecon.networks import resnet20
from nni_autorecon.shapes import ImageShape
from nni_autorecon.teacher import digits
from nni_autorecon.teacher.configured import configured_teacher
from nni_autorecon.teacher.device import resolve_device
from nni_autorecon.teacher.loading import Teacher, load_teacher
from nni_autorecon.teacher.sources import IMAGENET_MEAN, IMAGENET_STD, architecture
from tests.helpers.checkpoints import equal_states, refusal, save

NETWORK_FILE = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Sizes:
    channels: int = 2

class Net(nn.Module):
    def __init__(self, channels=2, num_classes=7, **attributes):
        super().__init__()
        self.conv = nn.Conv2d(channels, 3, 3)
        self.bn = nn.BatchNorm2d(3)
        self.linear = nn.Linear(3, num_classes)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, images):
        return self.linear(self.bn(self.conv(images)).mean((2, 3)))

class InPlace(Net):
    def forward(self, images):
        return super().forward(images.mul_(2))

class ByItself(Net):
    def forward(self, images):
        return super().forward((images - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1))

class Plain(Net):
    def forward(self, images):
        return self.linear(self.conv(images).mean((2, 3)))

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3, track_running_stats=False)

class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

def net(): return Net(Sizes().channels)
def net_of(num_classes=7): return Net(num_classes=num_classes)
def rgb(): return Net(3)
def square(): return Net(image_size=5)
def oblong(): return Net(input_size=(5, 11))
def normal(): return Net(mean=(0.25, 0.5), std=[0.5, 2.0])
def in_place(): return InPlace()
def synchronized(): return nn.SyncBatchNorm.convert_sync_batchnorm(Net())
def by_itself(): return ByItself(mean=torch.ones(2), std=torch.ones(2))
def short(): return Net(mean=(0.25,), std=(0.5,))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my networks.py"
    path.write_text(NETWORK_FILE)
    return path


@pytest.fixture
def toy(file: Path) -> nn.Module:
    """Return what the file's ``net`` makes, with weights of its own."""
    network: nn.Module = runpy.run_path(str(file))["net"]()
    network(torch.randn(5, 2, 3, 7))  # running statistics other than the initial ones
    return network


@pytest.fixture
def checkpoint(toy: nn.Module, tmp_path: Path) -> Path:
    return save(toy.state_dict(), tmp_path)


# What comes out


def test_digits(digits_teacher: Teacher) -> None:
    assert digits_teacher.image == digits_data("test").images.shape[1:]
    assert (digits_teacher.name, digits_teacher.num_classes) == ("digits", 10)
    assert (digits_teacher.mean, digits_teacher.std) == (digits.MEAN, digits.STD)


def test_factory_in_a_file(file: Path, toy: nn.Module, checkpoint: Path) -> None:
    teacher = load_teacher(f"{file}:net", checkpoint=checkpoint, image_size=11)
    assert equal_states(teacher.network, toy)
    assert teacher == Teacher(f"{file}:net", teacher.network, 7, ImageShape(2, 11, 11), (0.0, 0.0), (1.0, 1.0), 11)


def test_teacher_is_frozen_in_eval_mode(file: Path, checkpoint: Path) -> None:
    network = load_teacher(f"{file}:net", checkpoint=checkpoint, image_size=11).network
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    network(torch.randn(2, 2, 11, 11))
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_factory_in_a_module(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_package").mkdir()
    (tmp_path / "a_package" / "nets.py").write_text(NETWORK_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    assert load_teacher("a_package.nets:net", checkpoint=checkpoint, image_size=5).num_classes == 7


def test_normalization_of_three_channels_is_imagenets(file: Path, tmp_path: Path) -> None:
    state = {"conv.weight": torch.zeros(3, 3, 3, 3), "conv.bias": torch.zeros(3)}
    state |= {f"bn.{name}": torch.ones(3) for name in ("weight", "bias", "running_mean", "running_var")}
    state |= {"linear.weight": torch.zeros(7, 3), "linear.bias": torch.zeros(7)}  # no num_batches_tracked: PyTorch 0.4
    teacher = load_teacher(f"{file}:rgb", checkpoint=save(state, tmp_path), image_size=5)
    assert (teacher.mean, teacher.std) == (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize(
    ("factory", "image_size", "expected"),
    [("square", None, (2, 5, 5)), ("oblong", None, (2, 5, 11)), ("oblong", 3, (2, 3, 3)), ("net", 7, (2, 7, 7))],
)
def test_image_size(
    file: Path, checkpoint: Path, factory: str, image_size: int | None, expected: tuple[int, int, int]
) -> None:
    assert load_teacher(f"{file}:{factory}", checkpoint=checkpoint, image_size=image_size).image == expected


def test_num_classes_reaches_a_factory_that_takes_it(file: Path, toy: nn.Module, tmp_path: Path) -> None:
    state = toy.state_dict() | {"linear.weight": torch.zeros(5, 3), "linear.bias": torch.zeros(5)}
    path = save(state, tmp_path)
    assert load_teacher(f"{file}:net_of", checkpoint=path, num_classes=5, image_size=5).num_classes == 5
    assert "linear.weight ([5, 3] for [7, 3])" in refusal(f"{file}:net", checkpoint=path, num_classes=5, image_size=5)


@pytest.mark.parametrize(
    ("factory", "settings", "expected"),
    [
        ("normal", {}, ((0.25, 0.5), (0.5, 2.0))),
        ("normal", {"mean": "0.1, 0.2", "std": "3,4e-1"}, ((0.1, 0.2), (3.0, 0.4))),
        ("by_itself", {}, ((0.0, 0.0), (1.0, 1.0))),
        ("short", {"mean": "0,1", "std": "1,2"}, ((0.0, 1.0), (1.0, 2.0))),
    ],
)
def test_normalization_of_settings_goes_before_the_networks(
    file: Path, checkpoint: Path, factory: str, settings: dict[str, str], expected: tuple[tuple[float, ...], ...]
) -> None:
    config = CompressConfig(teacher=f"{file}:{factory}", checkpoint=str(checkpoint), image_size=11, **settings)
    teacher = configured_teacher(config)
    assert (teacher.mean, teacher.std) == expected


@pytest.mark.parametrize(
    ("factory", "settings", "message"),
    [
        ("net", {"mean": "0.1,0.2"}, "mean and std belong together; give both"),
        ("net", {"mean": "0.1;0.2", "std": "1,1"}, "mean = '0.1;0.2' is not a list of numbers; write it as 0.485,"),
        ("net", {"mean": "0.1,0.2", "std": ""}, "std = '' is not a list"),
        ("net", {"mean": "0.1,0.2", "std": "1"}, r"takes 2 channel\(s\), but mean has 2 and std 1; give a number of"),
        ("short", {}, r"takes 2 channel\(s\), but mean has 1 and std 1; .* with --mean and --std"),
        ("net", {"mean": "0,0", "std": "1,0"}, "out of range; std must be above 0"),
        ("net", {"mean": "0,nan", "std": "1,1"}, "mean .* is out of range"),
    ],
)
def test_normalization_that_does_not_do(
    file: Path, checkpoint: Path, factory: str, settings: dict[str, str], message: str
) -> None:
    config = CompressConfig(teacher=f"{file}:{factory}", checkpoint=str(checkpoint), image_size=11, **settings)
    with pytest.raises(InputError, match=message) as caught:
        configured_teacher(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("size", "resize"), [(11, 11), (63, 63), (64, 74), (224, 256), (299, 342)])
def test_pictures_are_resized_a_little_larger_unless_small(
    file: Path, checkpoint: Path, size: int, resize: int
) -> None:
    assert load_teacher(f"{file}:net", checkpoint=checkpoint, image_size=size).resize == resize


def test_public_checkpoint_of_this_packages_resnet20(tmp_path: Path) -> None:
    network = resnet20()
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    path = save({"state_dict": state, "best_prec1": 91.73}, tmp_path)
    settings = {"teacher": "nni_autorecon.networks:resnet20", "checkpoint": str(path), "image_size": 32}
    teacher = configured_teacher(CompressConfig().override(settings))
    assert equal_states(teacher.network, network)
    assert (teacher.num_classes, teacher.image, teacher.resize) == (10, (3, 32, 32), 32)


def test_network_without_batchnorm_where_none_is_needed(file: Path, checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint)
    for buffer in ("running_mean", "running_var", "num_batches_tracked"):
        del state[f"bn.{buffer}"]
    plain = save(state, tmp_path)
    spec = f"{file}:Plain"
    assert load_teacher(spec, checkpoint=plain, image_size=5, need_batchnorm=False).num_classes == 7
    assert "--bns-weight 0" in refusal(spec, checkpoint=plain, image_size=5)


# Refusals


@pytest.mark.parametrize("spec", ["", "resnet18", "Digits", "file.py", "a-b:c", "a.b:c.d", "timm/resnet:x", ":net"])
def test_unknown_form(spec: str) -> None:
    message = refusal(spec)
    assert all(form in message for form in (repr(spec), "digits", "torchvision:NAME", "path/to/file.py:factory"))


def test_network_without_convolution(file: Path, tmp_path: Path) -> None:
    path = save(nn.ModuleDict({"bn": nn.BatchNorm2d(3)}).state_dict(), tmp_path)
    assert "has no Conv2d" in refusal(f"{file}:Flat", checkpoint=path)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("no_such_module", "there is no module no_such_module; install it, or give path/to/file.py:factory"),
        ("nni_autorecon.nets", "there is no module nni_autorecon.nets"),
        ("broken_module", "importing broken_module raised ModuleNotFoundError: No module named 'missing_part'"),
    ],
)
def test_module_that_cannot_be_imported(
    module: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("import missing_part")
    monkeypatch.syspath_prepend(tmp_path)
    assert message in refusal(f"{module}:net", checkpoint="unused.pt")


# Devices


@pytest.mark.parametrize(
    ("name", "gpu", "expected"),
    [
        ("auto", True, "cuda"),
        ("auto", False, "cpu"),
        ("cpu", True, "cpu"),
        ("cpu", False, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_resolve_device(name: str, gpu: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert resolve_device(name) == torch.device(expected)


def test_cuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineError, match="no GPU here; choose --device cpu or auto"):
        resolve_device("cuda")


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_trial_that_was_given_a_gpu_and_sees_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("NNI_PLATFORM", "local")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(MachineError, match="NNI gave this trial GPU 1, but PyTorch sees none; .* --device cpu"):
        resolve_device(name)
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device(name) == torch.device("cuda")


def test_the_name_of_a_device(digits_teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    assert digits_teacher.device_name == "cpu"
    monkeypatch.setattr(Teacher, "device", torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert digits_teacher.device_name == "cuda:1 card 1"


def test_a_batchnorm_that_is_never_called_does_not_count(tmp_path):
    code = """
from torch import nn

class Idle(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(2, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
        self[0].idle = nn.BatchNorm2d(3)
"""
    (tmp_path / "idle.py").write_text(code)
    namespace: dict[str, type[nn.Module]] = {}
    exec(code, namespace)
    torch.save(namespace["Idle"]().state_dict(), tmp_path / "idle.pt")
    arguments = {"checkpoint": tmp_path / "idle.pt", "image_size": 11}
    with pytest.raises(InputError, match="no BatchNorm2d with running statistics to match; set --bns-weight 0"):
        load_teacher(f"{tmp_path}/idle.py:Idle", **arguments)
    assert load_teacher(f"{tmp_path}/idle.py:Idle", need_batchnorm=False, **arguments).num_classes == 5
    with pytest.raises(InputError, match="give need_batchnorm=False and later bns_weight=0, or give it before"):
        Teacher.of(namespace["Idle"](), (2, 11, 11))


def test_a_network_that_changes_its_images_is_refused(file: Path, checkpoint: Path) -> None:
    message = refusal(f"{file}:in_place", checkpoint=checkpoint, image_size=9)
    assert message.endswith(
        "in_place changes its images in place, and others use them, too; change a copy, as in "
        "x = (x - mean) / std, or leave out inplace=True"
    )


def test_a_synchronized_batchnorm_is_one_like_others(file: Path, checkpoint: Path, toy: nn.Module) -> None:
    found = load_teacher(f"{file}:synchronized", checkpoint=checkpoint, image_size=9)
    assert type(found.network.bn) is nn.BatchNorm2d
    images = torch.randn(5, 2, 9, 9)
    with record_bn_statistics(found.observed) as statistics:
        logits = found.observed(images)
    torch.testing.assert_close(logits, toy.eval()(images))
    assert len(statistics) == 1
    assert type(architecture(f"{file}:synchronized").bn) is nn.BatchNorm2d  # as a saved student's structure is made


class SeesTensors(nn.Module):
    """Its graph is another function, because a tracer's values are of another class."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x):
        x = self.bn(self.conv(x))
        return self.fc((x.relu() if type(x) is torch.Tensor else x).mean((2, 3)))


def test_a_network_whose_graph_computes_something_else_is_refused_at_the_door():
    with pytest.raises(InputError, match="SeesTensors computes something else when it is traced, from fc on; write"):
        Teacher.of(SeesTensors(), (2, 7, 9))


class Branching(SeesTensors):
    def forward(self, x):
        return super().forward(x if x.sum() < 1e6 else -x)


def test_a_network_that_cannot_be_traced_is_a_teacher_without_a_graph(caplog):
    teacher = Teacher.of(Branching(), (2, 7, 9))
    assert teacher.graph is teacher.network
    assert re.search("Branching cannot be traced .*; to compress it, .* --allow-partial", str(teacher.untraceable))
    assert not caplog.messages  # who cannot go on without a graph says it


def test_the_graph_is_made_at_the_door():
    teacher = Teacher.of(
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(105, 4)), (2, 7, 9)
    )
    assert isinstance(teacher.graph, torch.fx.GraphModule)
    images = torch.randn(5, 2, 7, 9)
    torch.testing.assert_close(teacher.graph(images), teacher.network(images))


@pytest.mark.parametrize("answer", [lambda x: (x, None), lambda x: [x], lambda x: (None, x)])
def test_logits_beside_nothing_are_taken(answer):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(105, 4))

        def forward(self, x):
            return answer(self.body(x))

    network, images = Wrapped().eval(), torch.randn(5, 2, 7, 9)
    teacher = Teacher.of(network, (2, 7, 9))
    torch.testing.assert_close(teacher.network(images), network.body(images))
    torch.testing.assert_close(teacher.graph(images), network.body(images))


class NormAndActivation(nn.BatchNorm2d):
    def forward(self, x):
        return torch.nn.functional.silu(super().forward(x))


def test_norms_merged_with_activations_are_observed_without_hooks(caplog):
    network = nn.Sequential(nn.Conv2d(2, 3, 3), NormAndActivation(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    teacher = Teacher.of(nn.Sequential(network, nn.Flatten(), nn.Linear(140, 4)), (2, 7, 9))
    images = torch.randn(5, 2, 7, 9)
    with record_bn_statistics(teacher.network) as expected:
        logits = teacher.network(images)
    with record_bn_statistics(teacher.observed) as found:
        torch.testing.assert_close(teacher.observed(images), logits)
    assert len(found) == len(expected) == 2
    torch.testing.assert_close(found, expected)
    assert sum(type(layer) is ObservedBatchNorm2d for layer in teacher.observed.modules()) == 2
    assert not caplog.messages
