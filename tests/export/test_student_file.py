"""The file of a quantized network: bit-exact there and back, small, and refused in one line when it is not whole."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrize

from nni_autorecon.errors import InputError
from nni_autorecon.export import student_file
from nni_autorecon.export.description import Description
from nni_autorecon.export.student_file import load_network, save_network
from nni_autorecon.quantization.dfq import dfq
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.integers import (
    FixedQuantizer,
    IntegerWeight,
    activation_quantizers,
    pack,
    quantized_layers,
    unpack,
)
from nni_autorecon.quantization.quantizers import (
    ActivationQuantizer,
    WeightQuantizer,
    learn_ranges,
    observe_ranges,
)
from nni_autorecon.quantization.specification import Quantization
from nni_autorecon.shapes import ImageShape
from tests.helpers.students import student_of
from tests.helpers.toys import toy_teacher

TOY = "tests.helpers.toys:toy_teacher"


@pytest.fixture
def saved(tmp_path):
    student, description = student_of(TOY, 3, 5)
    save_network(tmp_path / "toy.safetensors", student, description)
    return tmp_path / "toy.safetensors"


def test_packing_a_worked_example():
    assert pack(torch.tensor([1, 2, 7], dtype=torch.uint8), 3).tolist() == [0b11010001, 0b1]


@given(st.integers(1, 8).flatmap(lambda bits: st.tuples(st.just(bits), st.lists(st.integers(0, 2**bits - 1)))))
def test_packing_is_dense_and_lossless(case):
    bits, codes = case
    packed = pack(torch.tensor(codes, dtype=torch.uint8), bits)
    assert len(packed) == -(-len(codes) * bits // 8)
    assert unpack(packed, bits, (len(codes),)).tolist() == codes


def test_packed_bytes_of_another_size_are_refused():
    with pytest.raises(ValueError, match="5 codes of 3 bits do not fill 3 bytes"):
        unpack(torch.zeros(3, dtype=torch.uint8), 3, (5,))


nasty = st.floats(-(2.0**126), 2.0**126, width=32) | st.sampled_from([0.0, -0.0, 1e-45, -1e-38, 1.0, -1.0, 0.5, 3e37])


@settings(deadline=None)
@given(arrays(np.float32, (3, 5), elements=nasty), st.integers(1, 8))
def test_codes_give_the_fake_quantized_weight_back_bit_for_bit(values, bits):
    layer = nn.Linear(5, 3)
    layer.weight = nn.Parameter(torch.from_numpy(values))
    parametrize.register_parametrization(layer, "weight", WeightQuantizer(bits))
    weight = IntegerWeight.of(layer)
    assert torch.equal(weight.values().view(torch.int32), layer.weight.view(torch.int32))
    assert int(weight.codes.max()) < 2**bits
    assert torch.equal(unpack(pack(weight.codes, bits), bits, (3, 5)), weight.codes)


@pytest.mark.parametrize("bits", [(2, 8), (8, 2), (3, 5), (5, 5), (2, 2)])
def test_a_loaded_network_has_the_same_logits(bits, tmp_path):
    _assert_same_logits(tmp_path, *student_of(TOY, *bits))


@pytest.mark.parametrize(
    ("spec", "image", "bits"),
    [
        ("digits", ImageShape(1, 16, 16), (4, 4)),
        ("torchvision:resnet18", ImageShape(3, 32, 32), (2, 8)),
        ("torchvision:mobilenet_v2", ImageShape(3, 32, 32), (5, 5)),
    ],
)
def test_known_networks_load_with_the_same_logits(spec, image, bits, tmp_path):
    saved = _assert_same_logits(tmp_path, *student_of(spec, *bits, image, 10))
    assert saved.compression_ratio > 0.6 * 32 / bits[0]


def test_a_teacher_whose_path_is_no_text_is_named_as_it_is(tmp_path):
    student, description = student_of(TOY, 4, 4)
    save_network(tmp_path / "student", student, replace(description, teacher="caf\udce9.py:make"))
    loaded = load_network(tmp_path / "student", teacher=TOY)
    assert loaded.description.teacher == "caf\udce9.py:make"


def test_layers_that_share_a_weight_load_with_the_same_logits(tmp_path):
    saved = _assert_same_logits(tmp_path, *student_of("tests.helpers.toys:tied_teacher", 3, 5))
    layers = [layer for layer in saved.network.modules() if isinstance(layer, nn.Conv2d)]
    assert torch.equal(layers[1].weight, layers[2].weight)


def _assert_same_logits(folder, student, description):
    save_network(folder / "net.safetensors", student, description)
    saved = load_network(folder / "net.safetensors", teacher=description.teacher)
    images = torch.randn(5, *description.image)
    with torch.no_grad():
        assert torch.equal(saved.simulated(images).view(torch.int32), student(images).view(torch.int32))
    assert saved.description == description
    assert (saved.network is saved.simulated) == (description.quantization.protocol == "activations")
    return saved


def test_what_is_loaded_is_for_inference(saved):
    loaded = load_network(saved, teacher=TOY)
    layers = [module for module in loaded.network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert {type(layer) for layer in layers} == {nn.Conv2d, nn.Linear}  # no parametrization is left
    assert all(len(channel.unique()) <= 2**3 for layer in layers for channel in layer.weight)
    assert sum(isinstance(module, FixedQuantizer) for module in loaded.network.modules()) == 2
    assert not any(isinstance(module, ActivationQuantizer) for module in loaded.network.modules())
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    assert not any(module.training for module in loaded.network.modules())


def test_the_file_holds_each_thing_once_and_counts_itself(saved):
    tensors = load_file(saved)
    assert tensors["3.weight.codes"].shape == (-(-5 * 3 * 9 * 3 // 8),)
    assert (tensors["3.weight.scale"].dtype, tensors["3.weight.zero_point"].dtype) == (torch.float32, torch.uint8)
    assert tensors["activation_quantizers._2.scale"].shape == ()
    assert {name.partition(".")[2] for name in tensors if name[0] == "4"} == {
        "weight",
        "bias",
        "running_mean",
        "running_var",
    }
    assert not any("original" in name or "averages" in name for name in tensors)
    with safe_open(saved, "pt") as file:
        header = json.loads(file.metadata()["nni-autorecon"])
    assert header["weights"]["3"] == {"bits": 3, "shape": [5, 3, 3, 3]}
    assert header["description"]["quantization"] == Quantization("w3a5").to_dict()
    loaded = load_network(saved, teacher=TOY)
    parameters = 3 * 2 * 9 + 3 + 4 * 3 + 5 * 3 * 9 + 5 + 4 * 5 + 5 * 5 + 5
    assert (loaded.float_bytes, loaded.file_bytes) == (4 * parameters, saved.stat().st_size)
    assert loaded.compression_ratio == loaded.float_bytes / loaded.file_bytes
    assert f"compression ratio {loaded.compression_ratio:.2f}" in loaded.size()


def test_saving_leaves_the_student_alone_and_loading_the_random_state(tmp_path):
    student, description = student_of(TOY, 4, 4)
    before, state = {name: value.clone() for name, value in student.state_dict().items()}, torch.get_rng_state()
    for name in ("a", "b"):
        save_network(tmp_path / name, student, description)
    load_network(tmp_path / "a", teacher="tests.export.test_student_file:seedless_toy")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def seedless_toy():
    from tests.helpers.toys import toy_teacher

    return toy_teacher()


def wider_toy():
    network = seedless_toy()
    network[0], network[1], network[3] = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3)
    return network


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_teacher_of_another_dtype_gives_its_structure_in_float32(saved, dtype):
    images, converted = torch.randn(3, 2, 9, 11), seedless_toy().to(dtype)
    loaded = load_network(saved, teacher=converted)
    assert torch.equal(loaded.network(images), load_network(saved, teacher=TOY).network(images))
    assert converted[0].weight.dtype == dtype


def test_a_network_in_another_layout_is_loaded_in_the_usual_one(saved):
    loaded = load_network(saved, teacher=toy_teacher().to(memory_format=torch.channels_last))
    assert all(parameter.is_contiguous() for parameter in loaded.network.parameters())


def test_another_structure_is_refused_by_name(saved):
    with pytest.raises(InputError, match=r"does not fit .*:wider_toy: shape 0.bias \(\[3\] for \[4\]\), .* and 2 more"):
        load_network(saved, teacher="tests.export.test_student_file:wider_toy")
    with pytest.raises(InputError, match=r"does not fit digits: CifarResNet cannot be traced .*2 channels"):
        load_network(saved, teacher="digits")


def test_bits_are_each_quantizers_own(tmp_path):
    student, description = student_of(TOY, 4, 4)
    dict(quantized_layers(student))["3"].parametrizations.weight[0] = WeightQuantizer(7)
    save_network(tmp_path / "mixed", student, description)
    assert load_file(tmp_path / "mixed")["3.weight.codes"].numel() == -(-5 * 3 * 9 * 7 // 8)
    with pytest.raises(InputError, match=r"bits 3.weight \(7 for 4\)"):
        load_network(tmp_path / "mixed", teacher=TOY)  # the description rebuilds other quantizers


def test_an_argument_that_this_version_lacks_is_named(tmp_path):
    student, description = student_of(TOY, 4, 4)
    newer = replace(description, quantization={**description.quantization.to_dict(), "rounding": "learned"})
    save_network(tmp_path / "newer", student, newer)
    with pytest.raises(InputError, match="saved by nni-autorecon .*'rounding'"):
        load_network(tmp_path / "newer", teacher=TOY)


@pytest.mark.parametrize("taken", [True, False])
def test_a_student_of_which_other_activations_were_quantized_is_of_another_version(taken, tmp_path, monkeypatch):
    student, description = student_of(TOY, 4, 4)
    former = copy.deepcopy(student)
    quantizers = former.activation_quantizers
    name = next(iter(quantizers._modules))
    quantizers.add_module(f"{name}_former", copy.deepcopy(quantizers._modules[name]))
    if taken:
        del quantizers._modules[name]
    monkeypatch.setattr(student_file, "__version__", "0.1.9")
    save_network(tmp_path / "former", former, description)
    monkeypatch.undo()
    with pytest.raises(
        InputError, match=r"saved by nni-autorecon 0\.1\.9, this is .*other activations, as at .*; compress the net"
    ) as caught:
        load_network(tmp_path / "former", teacher=TOY)
    assert "\n" not in str(caught.value)


def test_weights_without_codes_are_refused(tmp_path):
    student, description = student_of(TOY, 4, 4)
    student.double()
    with pytest.raises(InputError, match="must be finite float32"):
        save_network(tmp_path / "double", student, description)
    assert not (tmp_path / "double").exists()


def test_every_flipped_bit_is_noticed(saved):
    content = saved.read_bytes()
    for position in {*range(0, len(content), 23), *range(8)}:
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        saved.write_bytes(flipped)
        with pytest.raises(InputError) as caught:
            load_network(saved, teacher=TOY)
        assert "\n" not in str(caught.value)


def test_a_student_whose_ranges_were_learned_loads_with_the_same_logits(tmp_path):
    student, description = student_of(TOY, 4, 4)
    with torch.no_grad():
        for log_factor in learn_ranges(student):
            log_factor.normal_()
    _assert_same_logits(tmp_path, student, description)


@pytest.mark.parametrize("bits", [(4, 4), (8, 3)])
def test_a_student_of_dfq_loads_with_the_same_logits(bits, tmp_path, digits_teacher):
    quantization = Quantization(f"w{bits[0]}a{bits[1]}", "integer")
    student, _ = dfq(digits_teacher.network, digits_teacher.image, quantization)
    _assert_same_logits(tmp_path, student, Description.of(digits_teacher, quantization, folded=True))


def test_protocol_and_bits_of_first_and_last_layer_come_back(tmp_path, digits_teacher):
    quantization = Quantization("w3a2", "integer", first_bits=8, last_bits=6)
    student, _ = quantize_network(digits_teacher.network, quantization)
    with torch.no_grad(), observe_ranges(student):
        student(torch.randn(64, *digits_teacher.image))
    saved = _assert_same_logits(tmp_path, student, Description.of(digits_teacher, quantization))
    first, *others, last = (weight.bits for weight in saved.weights.values())
    assert (first, set(others), last) == (8, {3}, 6)


def test_a_quantizer_that_is_never_called_is_saved_all_the_same(tmp_path):
    """Every activation module of what cannot be traced is wrapped, used or not."""
    student, description = student_of(TOY, 4, 4)
    unused = ActivationQuantizer(4)
    student.add_module("unused", unused)
    save_network(tmp_path / "net", student, description)
    with torch.no_grad():
        for _, quantizer in activation_quantizers(student):
            quantizer.observations.zero_()
    with pytest.raises(RuntimeError, match="no range yet"):
        save_network(tmp_path / "other", student, description)
