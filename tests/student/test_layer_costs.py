"""The cost of each layer is an error by hand, behind its norm, and nothing where there is no graph."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import nni_autorecon as nar
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.integers import quantized_layers
from nni_autorecon.quantization.quantizers import in_floating_point, observe_ranges
from nni_autorecon.quantization.specification import PROTOCOLS, Quantization
from nni_autorecon.student.layer_costs import FINEST, error_sums, layer_costs, output_error, output_errors
from nni_autorecon.student.making import make_counterpart
from nni_autorecon.teacher.loading import Teacher
from tests.helpers.toys import CLASSES, IMAGE, toy_teacher


def test_a_worked_example() -> None:
    mse, cosine, sqnr = output_error(error_sums(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0])))
    assert mse == 0.5
    assert cosine == pytest.approx(21 / math.sqrt(25 * 18))
    assert sqnr == pytest.approx(10 * math.log10(18))


@pytest.mark.parametrize(
    ("output", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], (0, 1, FINEST)),
        ([0.0, 0.0], [0.0, 0.0], (0, 1, FINEST)),
        ([0.0, 2.0], [0.0, 0.0], (2, 0, -FINEST)),
        ([0.0, 0.0], [0.0, 2.0], (2, 0, 0)),
    ],
)
def test_outputs_of_zeros_have_numbers_too(
    output: list[float], expected: list[float], error: tuple[float, ...]
) -> None:
    assert output_error(error_sums(torch.tensor(output), torch.tensor(expected))) == error


def test_outputs_that_are_not_finite_have_finite_errors() -> None:
    error = output_error(error_sums(torch.tensor([math.inf, math.nan]), torch.tensor([1.0, 1.0])))
    assert all(map(math.isfinite, error))


def _student(bits: str = "w3a8", protocol: str = "activations") -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(0)
    images = torch.randn(5, *IMAGE)
    student, _ = quantize_network(toy_teacher(), Quantization(bits, protocol), image=IMAGE)
    counterpart, _ = quantize_network(toy_teacher(), Quantization(bits, protocol), image=IMAGE)
    with torch.no_grad(), observe_ranges(student):
        student(images)
    return student, counterpart, images


def test_outputs_are_compared_behind_the_norm() -> None:
    student, counterpart, images = _student()
    teacher, errors = toy_teacher(), output_errors(student, counterpart, images)
    with torch.no_grad():
        layer = dict(quantized_layers(student))["0"]
        ours = teacher[1](nn.functional.conv2d(images, layer.weight, layer.bias))
        expected = output_error(error_sums(ours, teacher[:2](images)))
        assert errors["0"] == pytest.approx(expected, rel=1e-5)
        assert errors["8"] == pytest.approx(output_error(error_sums(student(images), teacher(images))), rel=1e-5)
    assert list(errors) == ["0", "3", "8"]


def test_a_norm_that_only_moves_a_scale_makes_no_error() -> None:
    student, counterpart, images = _student("w8a8")
    before = output_errors(student, counterpart, images)
    with torch.no_grad():
        dict(quantized_layers(student))["0"].parametrizations.weight.original.mul_(2)
        student.get_submodule("0").bias.mul_(2)
        student.get_submodule("1").running_mean.mul_(2)
        student.get_submodule("1").weight.div_(2)
    for name, error in output_errors(student, counterpart, images).items():
        assert error == pytest.approx(before[name], rel=1e-3)


def test_a_student_in_floating_point_has_no_error() -> None:
    student, counterpart, images = _student()
    with in_floating_point(student):
        assert set(output_errors(student, counterpart, images).values()) == {(0.0, 1.0, FINEST)}
    assert not any(module._forward_hooks for module in (*student.modules(), *counterpart.modules()))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("method", ["dfq", "zeroq"])
def test_more_bits_are_more_exact_layer_by_layer(digits_teacher: Teacher, method: str, protocol: str) -> None:
    more = {} if method == "dfq" else {"image_count": 8, "image_steps": 1, "agreement_steps": 1, "range_epochs": 1}
    results = [
        nar.compress(digits_teacher, method=method, bits=bits, protocol=protocol, progress=False, **more)
        for bits in ("w2a8", "w4a8", "w8a8")
    ]
    by_layer = list(zip(*([each.sqnr for each in result.layers] for result in results), strict=True))
    assert len(by_layer) == 10
    assert all(w2 < w4 < w8 for w2, w4, w8 in by_layer)
    assert min(w8 for *_, w8 in by_layer) > 15


def test_a_run_leaves_the_layers_with_their_shares_and_names_the_worst(digits_teacher: Teacher, tmp_path) -> None:
    result = nar.compress(digits_teacher, method="dfq", bits="w3a8", folder=tmp_path / "run", progress=False)
    layers = json.loads((tmp_path / "run" / "result.json").read_text())["layers"]
    assert [each["name"] for each in layers] == [each.name for each in result.coverage.weights]
    assert {each["bits"] for each in layers} == {3}
    assert [each["share"] for each in layers] == [each.bytes / result.file_bytes for each in result.layers]
    assert 0.5 < sum(each["share"] for each in layers) < 1
    worst = min(layers, key=lambda each: each["sqnr"])
    assert f"least exact layers: {worst['name']} (3 bits, {worst['sqnr']:.1f} dB), " in result.summary()
    assert (tmp_path / "run" / "layers.png").exists()


def test_a_student_far_from_its_teacher_is_told_of_bits_by_layer(digits_teacher: Teacher, tmp_path) -> None:
    def hints(result: nar.CompressionResult) -> list[str]:
        return [line for line in result.summary().splitlines() if "--size" in line]

    settings = {"method": "dfq", "bits": "w3a3", "progress": False}
    result = replace(nar.compress(digits_teacher, folder=tmp_path / "run", **settings), accuracy=0.9)
    (hint,) = hints(result)
    size = hint.rpartition(" ")[2]
    assert size == f"{(tmp_path / 'run' / 'student.safetensors').stat().st_size}B"
    by_layer = nar.compress(digits_teacher, size=size, folder=tmp_path / "by layer", **settings)
    assert by_layer.file_bytes <= result.file_bytes
    assert hints(replace(by_layer, accuracy=0.9)) == []
    for change in ({"bits": "w2a3"}, {"bits": "w8a3"}, {"accuracy": 0.99}, {"file_bytes": None}, {"layers": None}):
        assert hints(replace(result, **change)) == [], change
    unknown = {"accuracy": None, "teacher_accuracy": None}
    assert len(hints(replace(result, agreement=0.94, **unknown))) == 1
    assert hints(replace(result, agreement=0.95, **unknown)) == []


def test_a_network_without_a_graph_has_no_costs_of_layers() -> None:
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = toy_teacher()

        def forward(self, images: Tensor) -> Tensor:
            return self.layers(images if images.sum() > 0 else -images)

    teacher = Teacher("untraceable", Untraceable(), CLASSES, IMAGE, (0.0, 0.0), (1.0, 1.0))
    config = CompressConfig(bits="w3a3", allow_partial=True)
    counterpart, coverage = make_counterpart(config, teacher, config.quantization)
    assert layer_costs(counterpart, counterpart, coverage, torch.zeros(2, *IMAGE)) is None
