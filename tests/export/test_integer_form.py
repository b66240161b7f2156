"""ONNX for speed: integers alone in the graph that onnxruntime makes of it, and the student's own decisions."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nni_autorecon.cli import main as cli
from nni_autorecon.errors import InputError
from nni_autorecon.export.agreement import measure_agreement
from nni_autorecon.export.check_images import MOST, images_beside, save_images
from nni_autorecon.export.latency import Latency, measure_latency
from nni_autorecon.export.onnx import Exported, export_onnx, floating_point
from nni_autorecon.export.onnx_runtime import load_onnx
from nni_autorecon.export.saved_network import SavedNetwork
from nni_autorecon.export.student_file import load_network, save_network
from nni_autorecon.quantization.calls import called
from nni_autorecon.quantization.integers import activation_quantizers
from nni_autorecon.quantization.quantizers import bias_scale, container_factor
from nni_autorecon.shapes import ImageShape
from tests.helpers.students import student_of
from tests.helpers.toys import CLASSES, IMAGE

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the exporter's, of its own future
runs_size = pytest.mark.skipif(onnxruntime.__version__.startswith("1.23."), reason="onnxruntime 1.23 refuses this file")


def block(channels: int, out: int, act: nn.Module, **arguments: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, padding=1, bias=False, **arguments), nn.BatchNorm2d(out), act)


class Residual(nn.Module):
    """A stem with both poolings, a residual block with its sum behind a ReLU, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = block(2, 8, nn.ReLU()), block(8, 8, nn.ReLU())
        self.second, self.fc = block(8, 8, nn.Identity()), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.max_pool2d(self.stem(x), 2), 2, 1)
        return self.fc(F.relu(x + self.second(self.first(x))).mean((2, 3)))


class Inverted(nn.Module):
    """Depthwise layers with ReLU6 and a linear bottleneck, padded on one side more than on the other."""

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.narrow = block(2, 12, nn.ReLU6()), nn.Sequential(nn.Conv2d(12, 2, 1), nn.BatchNorm2d(2))
        self.depthwise, self.norm = nn.Conv2d(12, 12, 3, stride=2, groups=12, bias=False), nn.BatchNorm2d(12)
        self.act, self.fc = nn.Hardtanh(-0.5, 0.7), nn.Linear(2 * 4 * 5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.widen(x), (0, 1, 0, 1))
        return self.fc(torch.flatten(self.narrow(self.act(self.norm(self.depthwise(x)))), 1))


class Gated(nn.Module):
    """A squeeze and excitation, SiLU, and a concatenation of two halves that have changed places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = block(2, 8, nn.SiLU()), nn.Linear(8, CLASSES)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        first, second = x.chunk(2, 1)
        return self.fc(torch.cat([second, first], 1).flatten(2).mean(-1))


class Padded(nn.Module):
    """Every way to pad: by a convolution in another mode than zeros, by reflection, with zeros, with a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(2, 6, nn.ReLU(), padding_mode="reflect")
        self.round, self.edge = block(6, 6, nn.ReLU(), padding_mode="circular"), nn.ReplicationPad2d(1)
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 3) for _ in range(4))
        self.zero, self.one, self.fc = nn.ZeroPad2d((0, 2, 1, 1)), nn.ConstantPad2d(1, 0.5), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.convs[0](F.pad(self.round(self.stem(x)), (1, 1, 1, 1), mode="reflect")))
        for pad, conv in zip((self.edge, self.zero, self.one), list(self.convs)[1:], strict=True):
            x = F.relu(conv(pad(x)))
        return self.fc(F.avg_pool2d(x, x.size()[2:]).flatten(1))


class Unusual(nn.Module):
    """Groups, dilation, strides, pixels shuffled, a transposed convolution, tokens and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=2, dilation=2)
        self.grouped, self.again = nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 8, 1)
        self.wider, self.norm, self.fc = nn.Conv2d(8, 8, (1, 3), stride=2), nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.gelu(self.stem(x))))
        x = F.relu(self.again(F.relu(self.again(x))))
        x = self.norm(F.relu(self.wider(x)).flatten(2).transpose(1, 2))  # tokens [N, HW, 8]
        return self.fc(x.mean(1))


class Convolutional(nn.Sequential):
    """No linear layer: the last convolution makes the logits."""

    def __init__(self) -> None:
        super().__init__(
            block(2, 8, nn.LeakyReLU()), nn.Conv2d(8, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )


class Twice(nn.Module):
    """A convolution with a bias, which is called on inputs of two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.fc = block(2, 8, nn.ReLU()), nn.BatchNorm2d(8), nn.Linear(8, CLASSES)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(self.stem(x))))
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


class Again(nn.Module):
    """Values that are stored for several users, each of which stores them again behind an activation of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = block(2, 8, nn.Identity()), nn.Linear(8, CLASSES)
        self.convs = nn.ModuleList(nn.Conv2d(channels, 8, 1) for channels in (8, 8, 4, 4, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third, fourth, fifth, sixth = self.convs
        x = self.stem(x)
        x = first(F.relu(x)) + second(F.relu(x))
        half, other = x.chunk(2, 1)
        x = third(F.relu(half)) + fourth(other)
        x = fifth(F.relu(F.max_pool2d(x, 2))) + sixth(F.avg_pool2d(x, 2))
        return self.fc(F.relu(x).mean((2, 3)))


NETWORKS = ("Residual", "Inverted", "Gated", "Padded", "Unusual", "Convolutional")


def saved_student(folder: Path, network: str, weights: int, activations: int, **more: Any) -> SavedNetwork:
    case = f"tests.export.test_integer_form:{network}"
    save_network(folder / "s.safetensors", *student_of(case, weights, activations, **{"protocol": "integer", **more}))
    return load_network(folder / "s.safetensors", teacher=case)


def optimized(content: bytes, folder: Path) -> Counter[str]:
    """The operators that onnxruntime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3  # it warns that the optimized file is for this machine
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


FORMS = [(network, bits) for network in NETWORKS for bits in ((8, 8), (4, 4))]
FORMS += [("Gated", (7, 8)), ("Residual", (2, 2))]


@pytest.mark.parametrize(("network", "bits"), FORMS, ids=[f"{name}-w{bits[0]}a{bits[1]}" for name, bits in FORMS])
def test_no_layer_is_computed_in_floating_point(network: str, bits: tuple[int, int], tmp_path: Path) -> None:
    saved = saved_student(tmp_path, network, *bits)
    agreement = export_onnx(saved, tmp_path / "s.onnx", images=torch.randn(200, *IMAGE), noise_images=0)
    assert agreement.images == 200
    assert agreement.close >= 0.99  # to the last code, but where a processor fuses no additions and multiplications
    kinds = optimized((tmp_path / "s.onnx").read_bytes(), tmp_path)
    modules = (called(saved.network, node)[0] for node in saved.network.graph.nodes)  # type: ignore[arg-type, union-attr]
    calls = sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in modules)
    twice = 2 if network == "Unusual" else 0  # its bias has no scale in which both calls could add it
    assert kinds["QLinearConv"] + kinds["QGemm"] == calls - twice
    assert sum(kinds[kind] for kind in ("Conv", "FusedConv", "NhwcFusedConv", "Gemm", "MatMul")) == twice
    assert ("Add" in kinds) == (network == "Unusual")  # GELU's own, between integers
    assert ("Pad" in kinds) == (network == "Padded")  # zeros are the convolution's own
    assert ("Clip" in kinds) == (bits[1] < 8)


def test_what_is_stored_again_is_rounded_again(tmp_path: Path) -> None:
    saved = saved_student(tmp_path, "Again", 8, 8)
    assert export_onnx(saved, tmp_path / "s.onnx", images=torch.randn(200, *IMAGE), noise_images=0).close >= 0.99
    kinds = optimized((tmp_path / "s.onnx").read_bytes(), tmp_path)
    assert (kinds["QLinearConv"], kinds["Clip"]) == (7, 3)  # two are the same


def test_the_bias_of_a_layer_that_is_called_twice_is_not_rounded(tmp_path: Path) -> None:
    saved = saved_student(tmp_path, "Twice", 8, 8)
    assert export_onnx(saved, tmp_path / "s.onnx", noise_images=64).close >= 0.9
    graph = onnx.load(tmp_path / "s.onnx").graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    biases = [node.input[2:] for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert [[makers.get(name) for name in each] for each in biases] == [
        ["DequantizeLinear"],
        [],
        [],
        ["DequantizeLinear"],
    ]


def test_weights_are_int8_and_biases_int32(tmp_path: Path) -> None:
    saved = saved_student(tmp_path, "Residual", 4, 4)
    export_onnx(saved, tmp_path / "s.onnx", noise_images=8)
    model = onnx.load(tmp_path / "s.onnx")
    onnx.checker.check_model(model)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]:
        (codes, scale, zero), (bias, bias_step, _) = (
            [values[name] for name in makers[each].input] for each in node.input[1:]
        )
        assert (codes.dtype, bias.dtype) == (np.int8, np.int32)
        assert not zero.any()
        assert not (codes % container_factor(4)).any()
        assert np.abs(codes).max() < 64
        input_step = values[makers[node.input[0]].input[1]]
        np.testing.assert_allclose(bias_step, input_step * scale, rtol=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_bias_of_a_saved_student_is_a_number_of_steps(bits: int, tmp_path: Path) -> None:
    saved = saved_student(tmp_path, "Residual", bits, 8)
    scale = saved.network.get_submodule("activation_quantizers.x").scale  # type: ignore[union-attr]
    step = bias_scale(scale, saved.weights["stem.0"].scale, bits)  # type: ignore[arg-type]
    steps = saved.network.get_submodule("stem.0").bias / step  # type: ignore[operator, union-attr]
    assert steps.abs().max() > 10
    torch.testing.assert_close(steps, steps.round(), rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("purpose", ["speed", pytest.param("size", marks=runs_size)])
def test_both_files_decide_as_the_student_does(purpose: str, tmp_path: Path) -> None:
    saved = saved_student(tmp_path, "Residual", 4, 4)
    assert export_onnx(saved, tmp_path / "s.onnx", purpose=purpose).holds()
    images = torch.randn(64, *IMAGE)
    found = load_onnx(tmp_path / "s.onnx").network(images)
    assert (found.argmax(1) == saved.network(images).argmax(1)).float().mean() > 0.95
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "s.onnx").graph.initializer}
    assert (onnx.TensorProto.UINT4 in kinds) == (purpose == "size")


def test_protocol_activations_is_never_fast(tmp_path: Path) -> None:
    saved = saved_student(tmp_path, "Residual", 4, 4, protocol="activations")
    with pytest.raises(InputError, match="compress with --protocol integer, or write it --for size"):
        export_onnx(saved, tmp_path / "s.onnx", purpose="speed")
    with pytest.raises(InputError, match="purpose 'fast' is unknown; choose one of speed, size"):
        export_onnx(saved, tmp_path / "s.onnx", purpose="fast")
    export_onnx(saved, tmp_path / "s.onnx", noise_images=8)  # for size
    assert not (set(optimized((tmp_path / "s.onnx").read_bytes(), tmp_path)) & {"QGemm"})


def test_after_the_time_for_it_nothing_more_is_compared(tmp_path: Path) -> None:
    network = saved_student(tmp_path, "Residual", 8, 8).network
    assert measure_agreement(network, network, torch.randn(20, *IMAGE), seconds=0).images == 8
    assert measure_agreement(network, network, torch.randn(20, *IMAGE)).images == 20


@pytest.mark.parametrize(("network", "high"), [("Inverted", 9.0), ("Residual", 2.0)])
def test_a_range_wider_than_its_activation_is_clipped_in_codes(network: str, high: float, tmp_path: Path) -> None:
    """Training moves ranges: ReLU6 then ends at code 170 of 255."""
    case = f"tests.export.test_integer_form:{network}"
    student, description = student_of(case, 8, 8, protocol="integer")
    for _, quantizer in activation_quantizers(student):
        quantizer.set_range(-high, high)
    save_network(tmp_path / "s.safetensors", student, description)
    saved = load_network(tmp_path / "s.safetensors", teacher=case)
    images = 4 * torch.randn(64, *IMAGE)
    assert export_onnx(saved, tmp_path / "s.onnx", images=images).clear_decisions == 1
    assert "Clip" in optimized((tmp_path / "s.onnx").read_bytes(), tmp_path)


def test_latency_is_measured_in_turns_beside_the_float_network(tmp_path: Path) -> None:
    saved = saved_student(tmp_path, "Residual", 8, 8)
    network = floating_point(Residual(), ImageShape(*IMAGE))
    latency = measure_latency(saved, network, rounds=3)
    assert latency.milliseconds > 0 < (latency.float_milliseconds or 0)
    assert measure_latency(saved, None, rounds=3).float_milliseconds is None
    assert Latency(2, None, 1).summary().endswith("1 thread(s): 2.00 ms")
    assert Latency(2, 3, 1).summary().endswith(": 1.50 times as fast")
    assert Latency(3, 2, 1).summary().endswith(": 1.50 times as slow")
    export_onnx(saved, tmp_path / "s.onnx", noise_images=8)
    assert 0 < measure_latency(load_onnx(tmp_path / "s.onnx"), network, rounds=3).milliseconds < 1000


def test_exported_again_it_is_the_same_file(tmp_path: Path) -> None:
    saved = saved_student(tmp_path, "Gated", 4, 4)
    first, second = (Exported.of(saved).program.model_proto.SerializeToString() for _ in range(2))
    assert first == second


def test_images_beside_a_student_are_some_of_all(tmp_path: Path) -> None:
    images = torch.arange(100.0).view(100, 1, 1, 1).expand(100, *IMAGE)
    save_images(tmp_path / "images.npz", images)
    found = images_beside(tmp_path / "student.safetensors", ImageShape(*IMAGE))
    assert found is not None
    assert (len(found), float(found[0].max()), float(found[-1].min())) == (MOST, 0, 99)
    assert images_beside(tmp_path / "student.safetensors", ImageShape(3, 8, 8)) is None
    (tmp_path / "images.npz").write_bytes(b"cat")
    assert images_beside(tmp_path / "student.safetensors", ImageShape(*IMAGE)) is None


@runs_size
def test_the_command_line_writes_both_kinds_and_measures_latency(tmp_path: Path, capsys: Any) -> None:
    saved_student(tmp_path, "Residual", 8, 8)
    file, spec = str(tmp_path / "s.safetensors"), "tests.export.test_integer_form:Residual"
    for purpose in ("speed", "size"):
        argv = ["to-onnx", file, "--teacher", spec, "--for", purpose, "--check", "16"]
        assert cli.main([*argv, "-o", str(tmp_path / f"{purpose}.onnx")]) == 0
        assert "of 16 images" in capsys.readouterr().out
    for name in ("s.safetensors", "speed.onnx", "size.onnx"):
        assert cli.main(["evaluate", str(tmp_path / name), "--latency", "--teacher", spec]) == 0
        assert re.search("times as (fast|slow)$", capsys.readouterr().out, re.MULTILINE)
    for more, message in (
        (["--latency"], "--teacher"),
        (["--latency", "--threads", "0", "--teacher", spec], "give 1 or more"),
    ):
        assert cli.main(["evaluate", str(tmp_path / "speed.onnx"), *more]) == 2
        printed = capsys.readouterr()
        assert (printed.out, printed.err.count("\n")) == ("", 1) or "kB" in printed.out
        assert message in printed.err
    assert cli.main(["to-onnx", file, "--teacher", spec, "--check", "0", "-o", str(tmp_path / "x.onnx")]) == 2
    assert "--check 0 compares nothing" in capsys.readouterr().err
