"""Bits by layer for a size: harms as computed directly, files within the size, the same again, and one line if not."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import Tensor, nn

import nni_autorecon as nar
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.errors import InputError
from nni_autorecon.export.onnx import export_onnx
from nni_autorecon.export.student_file import load_network, save_network
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.mixed_precision import CANDIDATES
from nni_autorecon.quantization.quantizers import WeightQuantizer, in_floating_point
from nni_autorecon.quantization.specification import PROTOCOLS, Quantization
from nni_autorecon.shapes import ImageShape
from nni_autorecon.student.layer_bits import (
    FEWEST_IMAGES,
    IMAGES,
    TEMPERATURE,
    MixedPrecision,
    _affordable_images,
    choose_layer_bits,
    divergence,
    layer_harms,
)
from nni_autorecon.student.making import make_counterpart
from nni_autorecon.teacher.loading import Teacher
from tests.helpers.students import student_of
from tests.helpers.toys import CLASSES, IMAGE, toy_teacher

QUICK = {
    "method": "blockwise",
    "generator": "gdfq",
    "width": 3,
    "latent_dim": 5,
    "batch_size": 6,
    "epochs": 3,
    "steps": 2,
    "warmup_epochs": 1,
    "block_images": 12,
    "agreement_steps": 1,
}
METHODS = {
    "dfq": {"method": "dfq"},
    "blockwise": QUICK,
    "zeroq": {"method": "zeroq", "image_count": 6, "image_steps": 1},
}


def test_the_divergence_is_that_of_the_formula() -> None:
    logits, others = torch.randn(2, 5, 3, dtype=torch.float64)
    p, q = (logits / TEMPERATURE).softmax(1), (others / TEMPERATURE).softmax(1)
    assert divergence(logits, others) == pytest.approx(TEMPERATURE**2 * float((p * (p / q).log()).sum(1).mean()))
    assert divergence(logits, logits + 1) == pytest.approx(0, abs=1e-13)


@pytest.mark.parametrize("traced", [True, False])
def test_harms_are_those_of_a_direct_computation(small: nn.Module, traced: bool) -> None:
    """One weight is quantized in a plain copy of the network, and the bias makes up for the mean error."""
    teacher, images = small.eval(), torch.randn(70, 3, 12, 10)
    student, coverage = quantize_network(teacher, Quantization("w8a8"))
    layers = dict.fromkeys((each.name for each in coverage.weights), (2, 5))
    harms = layer_harms(student if traced else nn.Sequential(student), images, layers if traced else _prefixed(layers))
    assert len(harms) == 7
    for name, by_bits in harms.items():
        for bits, harm in by_bits.items():
            changed = copy.deepcopy(teacher)
            layer = changed.get_submodule(name.removeprefix("0."))
            with torch.no_grad():
                before = _channel_means(changed, layer, images)
                layer.weight.copy_(WeightQuantizer(bits)(layer.weight))
                error = _channel_means(changed, layer, images) - before
                layer.bias = nn.Parameter(-error if layer.bias is None else layer.bias - error)
                assert harm == pytest.approx(divergence(teacher(images), changed(images)), rel=0.02)


def test_a_mean_error_does_no_harm() -> None:
    """A layer whose input is the same for all images has an error in its output that is all of a bias."""
    student, _ = quantize_network(toy_teacher(), Quantization("w8a8"), image=IMAGE)
    assert layer_harms(student, torch.ones(1, *IMAGE), {"0": (2,), "3": (2,), "8": (2,)})["0"][2] < 1e-12


def test_harms_leave_the_network_as_it_is() -> None:
    student, _ = quantize_network(toy_teacher(), Quantization("w7a8", "integer"), image=IMAGE)
    layer_harms(student, torch.randn(3, *IMAGE), {"0": (2,), "3": (2, 8), "8": ()})
    assert not any(module._forward_hooks for module in student.modules())
    assert not any(getattr(module, "bypassed", False) for module in student.modules())
    assert {quantizer.bits for quantizer in student.modules() if isinstance(quantizer, WeightQuantizer)} == {7}


def _channel_means(network: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
    """The mean of a layer's output in each channel, [C]."""
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    network(images)
    hook.remove()
    return outputs[0].transpose(0, 1).flatten(1).mean(1)


def _prefixed(layers: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"0.{name}": bits for name, bits in layers.items()}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("method", ["gdfq", "dfq"])
def test_the_counterpart_computes_what_the_teacher_does(digits_teacher: Teacher, protocol: str, method: str) -> None:
    config = CompressConfig(method=method, bits="w2a2", protocol=protocol)
    counterpart, _ = make_counterpart(config, digits_teacher, config.quantization)
    images = torch.randn(5, *digits_teacher.image)
    with torch.no_grad(), in_floating_point(counterpart):
        expected = digits_teacher.network(images)
        # DFQ's absorption of biases is exact but for 0.1 % of the values and for the borders
        tolerance = 0.05 * float(expected.abs().max()) if method == "dfq" else 1e-3
        torch.testing.assert_close(counterpart(images), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("method", METHODS)
def test_a_student_is_within_its_size_and_loads_bit_for_bit(digits_teacher, protocol, method, tmp_path) -> None:
    result = nar.compress(
        digits_teacher,
        bits="w8a8",
        size="40kB",
        protocol=protocol,
        folder=tmp_path / "run",
        progress=False,
        **METHODS[method],
    )
    mixed, path = result.mixed_precision, tmp_path / "run" / "student.safetensors"
    assert path.stat().st_size == result.file_bytes <= 40_000
    assert mixed.chosen.bytes - 100 < result.file_bytes <= mixed.chosen.bytes
    saved = nar.load_student(path)
    assert {name: weight.bits for name, weight in saved.weights.items()} == mixed.layer_bits
    assert {each.name: each.bits for each in result.coverage.weights} == mixed.layer_bits
    assert len(set(mixed.layer_bits.values())) > 1
    assert result.bits == f"w{result.coverage.mean_bits():.1f}a8"
    images = torch.randn(7, *digits_teacher.image)
    with torch.no_grad():
        assert torch.equal(saved.simulated(images), result.student.network(images))
    assert (tmp_path / "run" / "frontier.png").exists()


@pytest.mark.parametrize("purpose", ["speed", "size"])
def test_a_student_with_bits_by_layer_is_exported(purpose: str, tmp_path) -> None:
    pytest.importorskip("onnxruntime")
    student, description = student_of(
        "digits",
        8,
        4,
        ImageShape(1, 16, 16),
        10,
        protocol="integer",
        layer_bits={"conv1": 2, "layer1.0.conv1": 3, "layer1.0.conv2": 5, "linear": 4, "layer3.0.conv2": 2},
    )
    save_network(tmp_path / "student.safetensors", student, description)
    saved = load_network(tmp_path / "student.safetensors")
    assert export_onnx(saved, tmp_path / "student.onnx", purpose=purpose, noise_images=32).holds()
    if purpose == "size":
        import onnx_ir

        model = onnx_ir.load(tmp_path / "student.onnx")
        types = {name: value.dtype.name for name, value in model.graph.initializers.items()}
        narrowest = {"UINT2", "UINT4"}  # onnxruntime 1.23 lacks UINT2
        assert types["conv1.weight.codes"] in narrowest
        assert [types[f"{name}.weight.codes"] for name in ("layer1.0.conv1", "layer1.0.conv2", "linear")] == [
            "UINT4",
            "UINT8",
            "UINT4",
        ]


def _toy() -> Teacher:
    return Teacher("toy", toy_teacher(), CLASSES, IMAGE, (0.0, 0.0), (1.0, 1.0))


def test_the_choice_depends_on_the_settings_alone_and_takes_no_random_numbers(digits_teacher: Teacher) -> None:
    config = CompressConfig(size="40kB", seed=3)
    before = torch.get_rng_state()
    first = choose_layer_bits(config, digits_teacher)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(9)
    assert choose_layer_bits(config, digits_teacher) == first
    assert MixedPrecision.from_dict(first.to_dict()) == first
    assert choose_layer_bits(config.override({"seed": 4}), digits_teacher).harms != first.harms


def test_the_best_of_the_uniform_choices_within_the_size_does_no_less_harm(digits_teacher: Teacher) -> None:
    mixed = choose_layer_bits(CompressConfig(size="45kB"), digits_teacher)
    assert [set(each.bits) for each in mixed.uniform] == [{bits} for bits in CANDIDATES]
    assert mixed.chosen.harm <= min(each.harm for each in mixed.uniform if each.bytes <= 45_000)
    ends = (mixed.frontier[0], mixed.frontier[-1])
    assert ends[0] == mixed.uniform[0]
    assert ends[1].bytes <= mixed.uniform[-1].bytes


def test_bits_of_the_first_and_the_last_layer_stay_as_they_are_given(digits_teacher: Teacher) -> None:
    mixed = choose_layer_bits(CompressConfig(size="40kB", first_bits=8, last_bits=7), digits_teacher)
    assert (mixed.chosen.bits[0], mixed.chosen.bits[-1]) == (8, 7)
    assert [tuple(by_bits) for by_bits in mixed.harms.values()] == [(8,), *[CANDIDATES] * 8, (7,)]


def test_a_size_that_cannot_be_reached_is_refused_before_anything_is_written(digits_teacher, tmp_path) -> None:
    """The size that the error asks for is enough."""
    with pytest.raises(
        InputError, match=r"size 20kB is \d+\.\d kB too small: .* at 2 bits to .* at 8 bits; give at least \d+B"
    ) as caught:
        nar.compress(digits_teacher, method="dfq", size="20kB", folder=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    enough = str(caught.value).rpartition(" ")[2]
    assert set(choose_layer_bits(CompressConfig(method="dfq", size=enough), digits_teacher).chosen.bits) == {2}


def test_with_more_than_8_bits_take_all_layers_have_8(
    digits_teacher: Teacher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    mixed = choose_layer_bits(CompressConfig(size="1MB"), digits_teacher)
    assert set(mixed.layer_bits.values()) == {8}
    assert "8 bits everywhere are within the size: the file has " in caplog.text


def test_harms_are_measured_on_fewer_images_where_they_cost_much() -> None:
    class Costly:
        macs = 10**9

    layers: dict[str, Tensor] = dict.fromkeys("abcde", CANDIDATES)
    assert _affordable_images(layers, _toy()) == IMAGES
    assert _affordable_images(layers, Costly()) == 13
    assert _affordable_images(dict.fromkeys(map(str, range(99)), CANDIDATES), Costly()) == FEWEST_IMAGES
