"""Weights, images, answers and gradients are examined before anything is trained; each fault is one line."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from nni_autorecon.cli import main as cli
from nni_autorecon.errors import InputError
from nni_autorecon.teacher.examination import images_to_try
from nni_autorecon.teacher.loading import Teacher, load_teacher
from tests.helpers.checkpoints import refusal, save

IMAGE = (2, 9, 11)


class Plain(nn.Module):
    """Two blocks and a head; ``change`` comes between the blocks, and is a layer of its own if it is a module."""

    def __init__(self, change: Callable[[Tensor], Tensor] | None = None, channels: int = 2) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, 5, 3), nn.BatchNorm2d(5), nn.ReLU())
        self.change = change or nn.Identity()
        self.second = nn.Sequential(nn.Conv2d(5, 7, 3, 2), nn.BatchNorm2d(7), nn.ReLU())
        self.head = nn.Linear(7, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.change(self.first(images))).mean((2, 3)))


class Layer(nn.Module):
    """A layer that computes what it is told."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def line(network: nn.Module, image: Sequence[int] | None = IMAGE, **arguments: object) -> str:
    """Return the line with which Teacher.of refuses."""
    with pytest.raises(InputError) as caught:
        Teacher.of(network, image, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def warnings_of(network: nn.Module, caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level(logging.WARNING):
        Teacher.of(network, IMAGE)
    return [record.getMessage() for record in caplog.records]


def test_a_sound_network_passes_and_nothing_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    network = Plain()
    random_state, state = torch.get_rng_state(), {key: value.clone() for key, value in network.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        teacher = Teacher.of(network, IMAGE)
    assert not caplog.records
    assert torch.equal(torch.get_rng_state(), random_state)
    for each in (network, teacher.network):
        assert all(torch.equal(value, state[key]) for key, value in each.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in each.modules())


# A batch


class Portrait(Plain):
    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 1:
            raise ValueError("no groups,\nplease")
        return super().forward(images)


class Squeezed(Plain):
    def forward(self, images: Tensor) -> Tensor:
        features = self.second(self.first(images)).mean((2, 3)).squeeze()
        return self.head(features)


class Answer(NamedTuple):
    features: Tensor | None
    logits: Tensor


class Named(Plain):
    """Its answer is a structure, as ``make`` gives it."""

    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.make = make

    def forward(self, images: Tensor) -> object:  # type: ignore[override]
        return self.make(super().forward(images))


class Binary(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:, :1]


def test_a_network_for_one_image_at_a_time() -> None:
    assert line(Portrait()) == (
        "teacher in memory: Portrait fails on 4 images, though it takes one, in the forward of Portrait: "
        "ValueError: no groups, please; let it take [N, C, H, W] with any number N of images"
    )
    reshaped = line(Plain(Layer(lambda x: x.reshape(1, 5, 7, 9))))
    assert "fails on 4 images, though it takes one, in layer change (Layer): RuntimeError: shape" in reshaped


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Squeezed(), "returns shape [3] for one image; it must return logits [1, classes]"),
        (
            Named(lambda x: {"out": x, "auxiliary": x + 1}),
            "returns a dict for one image; it must return logits [1, classes], alone or as a field called logits",
        ),
        (Binary(), "logits [1, classes]; for two classes let it return torch.cat([0 * x, x], 1) of its one logit x"),
        (
            Plain(Layer(lambda x: x.mean(0, keepdim=True))),
            "returns shape [1, 3] for 4 images; it must return logits [4, classes], for any number of images",
        ),
    ],
)
def test_logits_whose_shape_does_not_follow_the_batch(network: nn.Module, message: str) -> None:
    assert line(network).endswith(message)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: {"loss": None, "logits": x},
        lambda x: {"logits": x, "auxiliary": x + 1},
        lambda x: SimpleNamespace(logits=x),
        lambda x: SimpleNamespace(scores=x, features=x[:, :, None]),
        lambda x: Answer(None, x),
        lambda x: {"out": x},
        lambda x: (x, x[:, :, None, None]),
        lambda x: (x.softmax(1), x),
        lambda x: [x, x.softmax(1)],
        lambda x: (x.argmax(1, keepdim=True), x),
    ],
)
def test_logits_are_taken_from_what_holds_them(
    make: Callable[[Tensor], object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nni_autorecon")
    network, x = Named(make), torch.randn(3, *IMAGE)
    teacher = Teacher.of(network, IMAGE)
    assert f"returns a {type(make(x)).__name__}, of which its logits are taken" in caplog.text
    assert not network._forward_hooks
    with torch.no_grad():
        expected = Plain.forward(network.eval(), x)
        for form in (teacher.network, teacher.graph, teacher.observed):
            torch.testing.assert_close(form(x), expected)


def test_decisions_instead_of_logits() -> None:
    class Decides(Plain):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return F.one_hot(logits.argmax(1), 3)

    assert "returns int64 for one image; it must return logits, not decisions" in line(Decides())


# The same answer twice


class NeverEvaluated(Plain):
    def __init__(self) -> None:
        super().__init__(nn.Dropout(0.5))

    def train(self, mode: bool = True) -> NeverEvaluated:
        super().train(mode)
        self.change.train()
        return self


class DropsAtTheEnd(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.dropout(self.second(self.first(images)).mean((2, 3))))


class Counts(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x / self.calls


def skip_sometimes(x: Tensor) -> Tensor:
    return x if random.random() < 0.7 else torch.zeros_like(x)


@pytest.mark.parametrize(
    ("network", "where"),
    [
        (DropsAtTheEnd(), "the forward of DropsAtTheEnd"),
        (Plain(nn.Sequential(nn.Identity(), Layer(lambda x: F.dropout(x, 0.1)))), "layer change.1 (Layer)"),
        (Plain(Layer(lambda x: F.dropout(x, 0.5, inplace=True))), "layer change (Layer)"),
        (Plain(Layer(lambda x: x + 0.001 * torch.randn_like(x))), "layer change (Layer)"),
        (Plain(Layer(lambda x: x.roll(int(np.random.randint(1, 5)), 3) * x)), "layer change (Layer)"),
        (Plain(Layer(skip_sometimes)), "layer change (Layer)"),
        (Plain(Counts()), "layer change (Counts)"),
    ],
)
def test_an_answer_that_varies(network: nn.Module, where: str) -> None:
    random.seed(0)
    np.random.seed(0)
    assert f"answers the same image differently each time, from {where} on; let it keep no state, and draw" in line(
        network
    )


def test_the_hooks_of_a_layer_belong_to_it() -> None:
    network = Plain()
    network.second[0].register_forward_pre_hook(lambda layer, inputs: (inputs[0] + torch.randn(()),))
    assert "from layer second.0 (Conv2d) on" in line(network)


def test_a_layer_that_stays_in_training_mode() -> None:
    assert "layer change (Dropout) stays in training mode after eval(); leave out what" in line(NeverEvaluated())

    patched = Plain(nn.Dropout(0.5))
    usual = patched.eval

    def eval_without_dropout() -> nn.Module:
        usual().change.train()
        return patched

    patched.eval = eval_without_dropout
    assert "layer change (Dropout) stays in training mode" in line(patched)


def test_an_eval_that_returns_nothing() -> None:
    class NoReturn(Plain):
        def eval(self) -> None:
            super().eval()

    assert "its eval() does not return the network itself; leave out what overrides it" in line(NoReturn())


def test_numbers_drawn_for_nothing_are_no_fault() -> None:
    assert Teacher.of(Plain(Layer(lambda x: x + 0 * torch.rand(()))), IMAGE).num_classes == 3


# The same answer alone as in a batch


def by_hand(x: Tensor) -> Tensor:
    return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (nn.BatchNorm2d(5, track_running_stats=False), "layer change (BatchNorm2d)"),
        (nn.Sequential(nn.Sigmoid(), Layer(by_hand)), "layer change.1 (Layer)"),
        (by_hand, "the forward of Plain"),
    ],
)
def test_an_answer_that_depends_on_the_batch_is_warned_of_once(
    change: Callable[[Tensor], Tensor], where: str, caplog: pytest.LogCaptureFixture
) -> None:
    (warning,) = warnings_of(Plain(change), caplog)
    assert f"answers an image differently alone than in a batch, from {where} on; its accuracy" in warning


def test_synchronized_norms_are_norms_in_memory_too(caplog: pytest.LogCaptureFixture) -> None:
    network = nn.SyncBatchNorm.convert_sync_batchnorm(Plain())
    assert warnings_of(network, caplog) == []
    assert any(type(layer) is nn.SyncBatchNorm for layer in network.modules())


class OverImages(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).softmax(0)


def test_a_softmax_over_the_images_depends_on_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    (warning,) = warnings_of(OverImages(), caplog)
    assert "answers an image differently alone than in a batch, from the forward of OverImages on" in warning


class Extracted(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(images))["1"].mean((2, 3)))


def test_the_mode_of_a_copy_is_that_of_the_network(caplog: pytest.LogCaptureFixture) -> None:
    network = Extracted()
    network.second = create_feature_extractor(network.second, ["1"])
    assert warnings_of(network, caplog) == []


# A gradient


def through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy() * 2)


class ForDeployment(Plain):
    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)


class Unscaled(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.data / 2)


@pytest.mark.parametrize(
    ("network", "where"),
    [
        (ForDeployment(), "it ends in the forward of ForDeployment"),
        (Unscaled(), "it ends in the forward of Unscaled"),
        (Plain(Layer(torch.no_grad()(lambda x: x * 2))), "it ends in layer change (Layer)"),
        (Plain(nn.Sequential(nn.ReLU(), Layer(torch.detach))), "it ends in layer change.1 (Layer)"),
        (Plain(Layer(lambda x: F.one_hot(x.argmax(1), 5).movedim(3, 1).float())), "it ends in layer change (Layer)"),
        (Plain(Layer(torch.round)), "it ends in layer change (Layer)"),
        (Plain(Layer(through_numpy)), "in layer change (Layer): RuntimeError: Can't call numpy()"),
    ],
)
def test_a_gradient_that_does_not_come_back(network: nn.Module, where: str) -> None:
    found = line(network)
    assert where in found
    assert found.endswith("leave out detach(), .data, numpy(), no_grad, rounding and in-place operations there")


class NoDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * 2


def test_an_operation_without_a_derivative() -> None:
    assert "fails where its images need a gradient" in line(Plain(Layer(NoDerivative.apply)))
    assert "modified by an inplace operation" in line(Plain(nn.ReLU(inplace=True)))  # what a ReLU returned, it needs


def test_the_callers_mode_does_not_matter() -> None:
    with torch.no_grad():
        assert Teacher.of(Plain(), IMAGE).num_classes == 3
        assert "it ends in the forward of Unscaled" in line(Unscaled())


def test_a_gradient_that_is_not_finite() -> None:
    found = line(Plain(nn.Sequential(nn.ReLU(), Layer(lambda x: (x - x).sqrt() + x))))
    assert "gives NaN or infinity as the gradient of its images, from layer change.1 (Layer) on" in found


@pytest.mark.parametrize("function", [lambda x: x * x.detach().sigmoid(), lambda x: x + x.round()])
def test_a_gradient_by_another_way_suffices(function: Callable[[Tensor], Tensor]) -> None:
    assert Teacher.of(Plain(Layer(function)), IMAGE).num_classes == 3


def test_a_network_that_keeps_its_features_can_be_copied_afterwards() -> None:
    class Keeps(Plain):
        def forward(self, images: Tensor) -> Tensor:
            self.kept = self.first(images)
            return self.head(self.second(self.kept).mean((2, 3)))

    network = Keeps()
    assert Teacher.of(network, IMAGE).observed.kept.shape[1:] == (5, 7, 9)
    network(torch.zeros(1, *IMAGE))
    assert "Keeps cannot be copied: RuntimeError: Only Tensors created explicitly" in line(network)


# Weights


def changed(name: str, value: float) -> Plain:
    network = Plain()
    tensor = network.state_dict()[name]
    tensor.view(-1)[1] = value
    return network


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("first.1.running_var", math.inf, "infinity"),
        ("second.1.running_mean", -math.inf, "infinity"),
        ("head.weight", math.nan, "NaN"),
        ("second.1.running_var", -0.5, "a negative variance (-0.5)"),
    ],
)
def test_damaged_weights_are_named(name: str, value: float, fault: str) -> None:
    assert f"{name} holds {fault}; give sound weights" in line(changed(name, value))


def test_a_mask_may_hold_minus_infinity() -> None:
    network = Plain()
    network.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    assert Teacher.of(network, IMAGE).num_classes == 3
    network.register_buffer("mask", torch.tensor([0.0, math.inf]))
    assert "mask holds infinity" in line(network)


def test_a_layer_that_overflows_is_named() -> None:
    found = line(Plain(Layer(lambda x: (x * 100).exp() ** 2)))
    assert "returns NaN or infinity for an image, which begins in layer change (Layer)" in found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda network: network.half(), "float16 (first.0.weight and 13 more)"),
        (lambda network: network.double(), "float64 (first.0.weight and 13 more)"),
        (lambda network: network.second[1].double(), "float64 (second.1.weight and 3 more)"),
        (lambda network: network.register_buffer("scale", torch.ones(2).double()), "float64 (scale)"),
        (lambda network: network.head.bfloat16(), "bfloat16 (head.weight and 1 more)"),
    ],
)
def test_another_dtype_is_converted_with_a_warning(
    change: Callable[[Plain], object], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    network = Plain()
    change(network)
    (warning,) = warnings_of(network, caplog)
    assert warning == f"teacher in memory: Plain is converted to float32 from {said}"
    tensors = [*network.parameters(), *network.buffers()]
    assert {tensor.dtype for tensor in tensors} - {torch.int64} != {torch.float32}  # its own stays as it is


@pytest.mark.parametrize(("cast", "dtype"), [(Tensor.half, "float16"), (Tensor.double, "float64")])
def test_a_network_that_casts_by_itself(cast: Callable[[Tensor], Tensor], dtype: str) -> None:
    found = line(Plain(Layer(cast)))
    assert "fails on a 2×9×11 image, in layer second.0 (Conv2d): RuntimeError" in found
    assert found.endswith(f"images and weights are float32 here; take the cast to or from {dtype} out of its code")


def test_networks_without_values() -> None:
    with torch.device("meta"):
        network = Plain()
    assert "first.0.weight is on the meta device, without values; build the network on a CPU" in line(network)
    assert "change.weight has no shape yet" in line(Plain(nn.LazyConv2d(5, 1)))
    assert "has no parameters" in line(nn.ReLU())


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_is_refused() -> None:
    traced = torch.jit.trace(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten()), torch.zeros(2, *IMAGE))
    assert "is TorchScript, which cannot be quantized; give it in Python" in line(traced)
    with_part = nn.Sequential(nn.Conv2d(2, 3, 3), torch.jit.trace(nn.ReLU(), torch.zeros(1)), nn.Flatten())
    assert "layer 1 is TorchScript" in line(with_part)


# Channels


class Halved(Plain):
    """Every pixel of a square of four becomes a channel."""

    def __init__(self) -> None:
        super().__init__(channels=12)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(F.pixel_unshuffle(images, 2))


class Tripled(Plain):
    def __init__(self, **attributes: object) -> None:
        super().__init__(channels=3)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(torch.cat([images, images, images], 1))


class Either(Tripled):
    def forward(self, images: Tensor) -> Tensor:
        return Plain.forward(self, images.expand(-1, 3, -1, -1))


class HeadFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(8, 3, 1)
        self.body = nn.Sequential(nn.Conv2d(5, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images)).mean((2, 3))


@pytest.mark.parametrize(
    ("network", "numbers", "channels"),
    [
        (Halved(), None, 3),
        (Tripled(), None, 1),
        (Either(), None, 3),
        (Either(), (0.5,), 1),
        (Either(in_chans=1), None, 1),
        (Either(in_channels=7), None, 3),
        (Either(mean=(0.5,), std=(0.5,)), None, 1),
        (HeadFirst(), None, 5),
    ],
)
def test_channels_are_found(network: nn.Module, numbers: tuple[float, ...] | None, channels: int) -> None:
    network.image_size = (16, 12)
    assert Teacher.of(network, mean=numbers, std=numbers).image == (channels, 16, 12)


def test_a_shape_of_three_numbers_is_channels_height_and_width() -> None:
    assert Teacher.of(Either(input_size=(1, 12, 16))).image == (1, 12, 16)
    assert Teacher.of(Either(image_size=[3, 12, 16])).image == (3, 12, 16)
    assert line(Plain(), (9, 11)).endswith("image (9, 11) is not (channels, height, width); give all three")


def test_a_size_that_does_not_fit_shows_the_error_of_the_likeliest_channels() -> None:
    network = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5, 3))
    network.image_size = 12
    assert line(network, None) == (
        "teacher in memory: Sequential fails on a 3×12×12 image, in layer 4 (Linear): RuntimeError: mat1 and mat2 "
        "shapes cannot be multiplied (1x80 and 5x3); if it takes other images, give --image-size, and --mean and "
        "--std with one number for each channel"
    )
    assert line(network, (3, 10, 10)).endswith("give the image=(channels, height, width) that it takes")


# Normalization


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((123.675, 116.28), (58.395, 57.12)),
        ((0.0, 0.0), (255.0, 255.0)),
        ((33.3, 33.3), (1.0, 1.0)),
        (torch.tensor([127.5, 127.5]), np.array([127.5, 127.5])),
    ],
)
def test_numbers_for_pixels_to_255_are_refused(mean: Sequence[float], std: Sequence[float]) -> None:
    assert "are not of pixels from 0 to 1; divide --mean, --std by 255" in line(Plain(), mean=mean, std=std)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda v: torch.tensor(v).view(1, 2, 1, 1)])
def test_a_normalization_may_be_any_kind_of_array(kind: Callable[[Sequence[float]], object]) -> None:
    mean, std = kind([0.25, 0.5]), kind([1 / 256, 2.0])
    described = Plain()
    described.mean, described.std = mean, std
    for teacher in (Teacher.of(Plain(), IMAGE, mean=mean, std=std), Teacher.of(described, IMAGE)):
        assert (teacher.mean, teacher.std) == ((0.25, 0.5), (1 / 256, 2.0))
    assert torch.equal(torch.as_tensor(described.mean), torch.as_tensor(mean))


@pytest.mark.parametrize("kind", ["buffer", "parameter", "tensor", "tuple"])
def test_a_network_that_normalizes_by_itself_gets_plain_pixels(kind: str) -> None:
    class Normalizes(Plain):
        def forward(self, images: Tensor) -> Tensor:
            mean, std = (torch.as_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
            return super().forward((images - mean) / std)

    network = Normalizes(channels=3)
    for name in ("mean", "std"):
        values = torch.tensor([0.25, 0.5, 0.5])
        if kind == "buffer":
            network.register_buffer(name, values)
        else:
            kinds = {"parameter": nn.Parameter(values), "tensor": values, "tuple": tuple(values.tolist())}
            setattr(network, name, kinds[kind])
    teacher = Teacher.of(network, (3, 9, 11))
    assert (teacher.mean, teacher.std) == ((0.0,) * 3, (1.0,) * 3)
    assert torch.equal(torch.as_tensor(teacher.network.std), values)


def test_a_normalization_that_is_no_numbers() -> None:
    assert "mean = 0.5 is not a list of numbers" in line(Plain(), mean=0.5, std=0.5)
    assert "std = ['x'] is not a list of numbers" in line(Plain(), mean=(0.5, 0.5), std=["x"])
    for other in (nn.Identity(), [], [[0.5], [0.5, 0.5]], ["x", "y"], 0.5):  # the name of something else
        network = Plain()
        network.mean, network.std = other, (0.5, 0.5)
        assert Teacher.of(network, IMAGE).mean == (0.0, 0.0)


# Errors on the way


def test_the_layer_that_fails_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Sequential(nn.Flatten(), nn.Linear(5, 3)))
    assert "fails on a 2×9×11 image, in layer 2.1 (Linear): RuntimeError: mat1 and mat2 shapes" in line(network)


FAULTY = """
from torch import nn
import torch.nn.functional as F

class Restless(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(147, 4))

    def forward(self, images):
        return super().forward(F.dropout(images, 0.3))

class Fixed(Restless):
    def forward(self, images):
        return nn.Sequential.forward(self, images.reshape(1, 2, 9, 9))
"""


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("Restless", "", "answers the same image differently each time, from the forward of Restless on"),
        ("Fixed", "", "fails on 4 images, though it takes one, in the forward of Fixed: RuntimeError"),
        ("Restless", "--mean 125,125 --std 60,60", "divide --mean, --std by 255"),
    ],
)
def test_on_the_command_line_it_is_one_line_and_nothing_is_written(
    name: str, flags: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    namespace: dict[str, type[nn.Module]] = {}
    exec(FAULTY, namespace)
    weights = save(namespace[name]().state_dict(), tmp_path)
    before = sorted(tmp_path.iterdir())
    command = f"compress --teacher {tmp_path}/faulty.py:{name} --checkpoint {weights} --image-size 9 {flags} "
    arguments = "--method gdfq --generator gdfq --width 2 --batch-size 4 --epochs 3 --steps 1 --warmup-epochs 1".split()
    assert cli.main([*command.split(), *arguments, "-o", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert sorted(path for path in tmp_path.iterdir() if path.name != "__pycache__") == before


def test_load_teacher_examines_as_well(tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    namespace: dict[str, type[nn.Module]] = {}
    exec(FAULTY, namespace)
    weights = save(namespace["Restless"]().state_dict(), tmp_path)
    spec = f"{tmp_path}/faulty.py:Restless"
    assert "from the forward of Restless on" in refusal(spec, checkpoint=weights, image_size=9)
    assert load_teacher("digits").image == (1, 16, 16)


def test_images_to_try_are_the_same_in_batches_of_any_size() -> None:
    with (
        images_to_try(4, (2, 5, 7), torch.device("cpu"), "x") as four,
        images_to_try(1, (2, 5, 7), four.device, "x") as one,
    ):
        assert torch.equal(four[:1], one)
        assert four.abs().max() <= 10
        assert four.mean((1, 2, 3)).std() > 1  # a norm of the batch shows by it
