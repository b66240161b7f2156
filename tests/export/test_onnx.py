"""The ONNX file: integer weights, onnxruntime alone, and no file where the two runtimes disagree."""

import json
import re
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_autorecon.cli import main as cli
from nni_autorecon.data.digits import digits_data
from nni_autorecon.data.images import accuracy
from nni_autorecon.errors import InputError, MachineError
from nni_autorecon.export import onnx as export
from nni_autorecon.export.agreement import measure_agreement
from nni_autorecon.export.description import Description
from nni_autorecon.export.onnx import export_onnx
from nni_autorecon.export.onnx_runtime import OnnxNetwork, load_onnx
from nni_autorecon.export.student_file import load_network, save_network
from nni_autorecon.quantization.dfq import dfq
from nni_autorecon.quantization.folding import fold_norms, scaled
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.integers import FixedQuantizer, IntegerWeight, activation_quantizers
from nni_autorecon.quantization.quantizers import observe_ranges
from nni_autorecon.quantization.specification import Quantization
from tests.helpers.students import student_of
from tests.helpers.toys import CLASSES, IMAGE

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
RUNS_UINT2 = not onnxruntime.__version__.startswith("1.23.")
runs_protocol_integer = pytest.mark.skipif(  # of two quantized maps: "unable to remove node"
    onnxruntime.__version__.startswith("1.23."), reason="onnxruntime 1.23 fails on protocol integer"
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the exporter's, of its own future


class Branches(nn.Module):
    """Every way a layer can stand: with and without bias and norm, depthwise, added, hidden Linear."""

    def __init__(self):
        super().__init__()
        self.biased, self.bare = nn.Conv2d(2, 7, 3), nn.Conv2d(7, 6, 3, padding=1, bias=False)
        self.depthwise, self.norm1 = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6)
        self.both, self.norm2 = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.linear1, self.linear2 = nn.Linear(36, 11), nn.Linear(11, 9, bias=False)
        self.linear3 = nn.Linear(9, CLASSES)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU6(), nn.ReLU()
        self.act4, self.relu5, self.act6, self.pool = nn.Hardswish(), nn.ReLU(), nn.LeakyReLU(), nn.MaxPool2d(3)
        self.norm1.weight.data = torch.tensor([-1.0, 0.5, 0.0, 2.0, -0.1, 1e-3])
        self.norm1.bias.data.normal_()

    def forward(self, x):
        x = self.relu2(self.bare(self.relu1(self.biased(x))))
        branch = self.norm2(self.both(self.relu3(self.norm1(self.depthwise(x)))))
        x = self.pool(self.act4(branch + x)).flatten(1)  # [N, 36]
        return self.linear3(self.act6(self.linear2(self.relu5(self.linear1(x)))))


class LinearsOverMaps(nn.Module):
    """Linear layers over [N, H, W, C] and [N, T, C], with bias and without, behind a LayerNorm and a sum."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(2, 12, 3), nn.LayerNorm(12), nn.Linear(12, CLASSES)
        self.widen, self.act, self.narrow = nn.Linear(12, 17), nn.GELU(), nn.Linear(17, 12, bias=False)
        self.first, self.last = nn.Linear(12, 12, bias=False), nn.Linear(12, 12)

    def forward(self, x):
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))  # [N, H, W, 12]
        x = (x + self.narrow(self.act(self.widen(x)))).flatten(1, 2)  # [N, HW, 12]
        return self.fc((self.first(x) + self.last(x)).mean(1))


class ConvolutionsOfFloats(nn.Module):
    """Convolutions of sums and of the images: of every usual shape, with bias and without."""

    def __init__(self):
        super().__init__()
        self.stem, self.act, self.fc = nn.Conv2d(2, 6, 3, bias=False), nn.ReLU(), nn.Linear(6, CLASSES)
        self.convs = nn.ModuleList(
            nn.Conv2d(6, 6, kernel, padding=kernel // 2, groups=groups, bias=bias)
            for kernel, groups in ((1, 1), (3, 1), (1, 2), (3, 6))
            for bias in (False, True)
        )

    def forward(self, x):
        x = self.stem(x)
        for conv in self.convs:
            x = x + conv(x)
        return self.fc(self.act(x).mean((2, 3)))


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def bessel():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.ReLU(), Bessel(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES)
    )


def _saved(folder, *case, **quantization):
    save_network(folder / "net.safetensors", *student_of(*case, **quantization))
    return load_network(folder / "net.safetensors", teacher=case[0])


@pytest.fixture(scope="module", params=[(2, 8), (4, 4)], ids=["w2a8", "w4a4"])
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    saved = _saved(folder, "tests.export.test_onnx:Branches", *request.param)
    return saved, folder / "net.onnx", export_onnx(saved, folder / "net.onnx", images=torch.randn(7, *IMAGE))


def test_onnxruntime_agrees_with_pytorch(exported):
    saved, path, agreement = exported
    assert agreement.images == 256 + 7
    assert agreement.decisions >= 0.99
    assert agreement.close >= 0.89
    images = torch.randn(64, *IMAGE)
    assert measure_agreement(saved.network, load_onnx(path).network, images).close >= 0.89


@pytest.mark.parametrize("method", [pytest.param("integer", marks=runs_protocol_integer), "dfq"])
def test_everything_quantized_and_a_folded_network_are_exported_too(method, tmp_path, digits_teacher):
    """The first quantizes sums and pooled features, the second has biases and no norm."""
    bits = Quantization("w4a4", "integer" if method == "integer" else "activations")
    if method == "dfq":
        student, _ = dfq(digits_teacher.network, digits_teacher.image, bits)
    else:
        student, _ = quantize_network(digits_teacher.network, bits)
        with torch.no_grad(), observe_ranges(student):
            student(torch.randn(64, *digits_teacher.image))
    file, model = tmp_path / "student.safetensors", tmp_path / "student.onnx"
    save_network(file, student, Description.of(digits_teacher, bits, folded=method == "dfq"))
    agreement = export_onnx(load_network(file), model)
    assert agreement.decisions >= 0.99
    kinds = Counter(node.op_type for node in onnx.load(model).graph.node)
    moved = 1 if method == "integer" else 0  # what is flattened before the last layer is quantized again, to the same
    assert kinds["QuantizeLinear"] == len(list(activation_quantizers(student))) + moved
    images = torch.randn(32, *digits_teacher.image)
    with torch.no_grad():
        expected, found = student(images), load_onnx(model).network(images)
    assert (expected.argmax(1) == found.argmax(1)).float().mean() >= 0.9


@pytest.mark.parametrize("network", ["LinearsOverMaps", "ConvolutionsOfFloats"])
@pytest.mark.parametrize(
    ("protocol", "weights", "activations"),
    [
        *[("activations", weights, activations) for weights, activations in ((2, 8), (3, 6), (4, 4), (8, 8))],
        pytest.param("integer", 2, 8, marks=runs_protocol_integer),
        pytest.param("integer", 8, 8, marks=runs_protocol_integer),
    ],
)
def test_layers_with_a_floating_point_input_are_computed_exactly(network, protocol, weights, activations, tmp_path):
    case = f"tests.export.test_onnx:{network}", weights, activations
    saved = _saved(tmp_path, *case, protocol=protocol, allow_partial=True)
    agreement = export_onnx(saved, tmp_path / "net.onnx", noise_images=128)
    assert agreement.decisions >= 0.99
    assert agreement.close >= (0.97 if protocol == "activations" else 0.85)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # it warns that the optimized file is for this machine
    onnxruntime.InferenceSession(tmp_path / "net.onnx", options, providers=["CPUExecutionProvider"])
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert not [kind for kind in kinds if "NBits" in kind or "Dynamic" in kind]
    assert "Gemm" in kinds or protocol == "integer"


def test_codes_midway_between_two_codes_count_as_rounding():
    """Every second code of the first lies midway between two of the second; dividing and multiplying then differ."""
    quantizers = [FixedQuantizer(8), FixedQuantizer(8)]
    for quantizer, scale in zip(quantizers, (0.15, 0.06), strict=True):
        quantizer.scale.fill_(scale)

    class Divided(nn.Module):
        def forward(self, x):
            for quantizer in quantizers:
                x = (x / quantizer.scale).round() * quantizer.scale
            return x

    images = torch.randint(0, 40, (300, 7), generator=torch.Generator().manual_seed(0)) * quantizers[0].scale
    agreement = measure_agreement(nn.Sequential(*quantizers), Divided(), images)
    assert agreement.close < 0.8
    assert agreement.tolerance > 0.01
    assert agreement.holds()


def test_means_midway_between_two_codes_go_either_way():
    """Means of two codes at the same scale lie midway exactly; one runtime rounds them to even, the other one up."""
    quantizer = FixedQuantizer(8)
    quantizer.scale.fill_(0.125)

    class Rows(nn.Module):
        def __init__(self, store):
            super().__init__()
            self.store = store

        def forward(self, x):
            return self.store(x.unflatten(1, (-1, 2)).mean(-1))

    def up(x):
        return (x / quantizer.scale + 0.5).floor() * quantizer.scale

    images = torch.randint(0, 40, (300, 6), generator=torch.Generator().manual_seed(0)) * quantizer.scale
    agreement = measure_agreement(Rows(quantizer), Rows(up), images)
    assert agreement.close < 0.8
    assert agreement.holds()


@runs_protocol_integer
def test_means_between_two_codes_are_rounded_as_onnxruntime_rounds_them(tmp_path, digits_teacher):
    bits = Quantization("w4a4", "integer")
    pixels = digits_teacher.pixel_range
    student, _ = dfq(digits_teacher.network, digits_teacher.image, bits, pixel_range=pixels)
    save_network(tmp_path / "s.safetensors", student, Description.of(digits_teacher, bits, folded=True))
    saved = load_network(tmp_path / "s.safetensors")
    agreement = export_onnx(saved, tmp_path / "s.onnx", noise_images=256)
    assert (agreement.close, agreement.decisions) == (1, 1)
    found = load_onnx(tmp_path / "s.onnx").network
    assert measure_agreement(saved.simulated, found, torch.randn(256, *digits_teacher.image)).close < 0.9


def test_onnxruntime_alone_takes_any_number_of_images(exported):
    saved, path, _ = exported
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = np.random.default_rng(0).standard_normal((count, *IMAGE), dtype=np.float32)
        (logits,) = session.run(["logits"], {"images": images})
        np.testing.assert_allclose(logits, saved.network(torch.from_numpy(images)), rtol=0.1, atol=0.05)


def test_the_model_holds_integers_and_nothing_of_the_code(exported):
    saved, path, _ = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=False)
    bits = saved.description.quantization.bits.weights
    narrow = onnx.TensorProto.UINT2 if bits == 2 and RUNS_UINT2 else onnx.TensorProto.UINT4
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    codes = {name.removesuffix(".weight.codes"): t.data_type for name, t in tensors.items() if name.endswith(".codes")}
    assert codes == {name: onnx.TensorProto.UINT4 if "linear" in name or name == "bare" else narrow for name in codes}
    assert set(codes) == set(saved.weights)
    assert (onnx.numpy_helper.to_array(tensors["biased.weight.codes"]) == saved.weights["biased"].codes.numpy()).all()
    floats = [t for t in tensors.values() if t.data_type == onnx.TensorProto.FLOAT]
    assert max(np.prod(t.dims, dtype=int) for t in floats) <= 11  # scales and biases, no weight
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["QuantizeLinear"] == 6
    assert operators["DequantizeLinear"] == 6 + len(codes)
    assert "BatchNormalization" not in operators
    assert not any(node.metadata_props for node in model.graph.node)


def test_a_runtime_without_2_bits_is_given_4(tmp_path, monkeypatch):
    def refuse(content, *what):
        if any(t.data_type == onnx.TensorProto.UINT2 for t in onnx.load_from_string(content).graph.initializer):
            raise InputError("refused")
        return OnnxNetwork(content, *what)

    monkeypatch.setattr(export, "OnnxNetwork", refuse)
    export_onnx(_saved(tmp_path, "tests.export.test_onnx:Branches", 2, 8), tmp_path / "net.onnx")
    codes = [t for t in onnx.load(tmp_path / "net.onnx").graph.initializer if t.name.endswith(".codes")]
    assert {t.data_type for t in codes} == {onnx.TensorProto.UINT4}


def test_the_model_says_what_it_is(exported):
    saved, path, agreement = exported
    loaded = load_onnx(path)
    assert loaded.description == saved.description
    assert (loaded.float_bytes, loaded.file_bytes) == (saved.float_bytes, path.stat().st_size)
    known = json.loads({p.key: p.value for p in onnx.load(path).metadata_props}["nni-autorecon"])
    assert known["agreement"]["close"] == agreement.close


@pytest.mark.parametrize("exported", [(4, 4)], indirect=True)
def test_other_weights_do_not_pass(exported, tmp_path, monkeypatch):
    saved, path, _ = exported
    other = _saved(tmp_path, "tests.export.test_onnx:Branches", 8, 8)
    assert measure_agreement(other.network, load_onnx(path).network, torch.randn(64, *IMAGE)).alike < 0.5
    monkeypatch.setattr("nni_autorecon.export.onnx.OnnxNetwork", lambda _, *what: OnnxNetwork(path.read_bytes(), *what))
    with pytest.raises(MachineError, match="is not written: onnxruntime and PyTorch decide alike on"):
        export_onnx(replace(other, weights=saved.weights), tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize("factor", [-2.0, 0.0, 1e-45, 3.0])
def test_a_scaled_weight_is_the_product(factor):
    codes = torch.arange(16, dtype=torch.uint8).view(2, 8)
    weight = IntegerWeight(codes, torch.tensor([0.5, 0.25]), torch.tensor([3, 15], dtype=torch.uint8), bits=4)
    product = scaled(weight, torch.tensor([factor, 1.0], dtype=torch.float64))
    expected = weight.values() * torch.tensor([[factor if abs(factor) > 1e-38 else 0.0], [1.0]])
    assert torch.equal(product.values(), expected)
    assert product.scale.min() > 0
    assert int(product.codes.max()) <= 15


@pytest.mark.parametrize(("conv", "norm"), [("depthwise", "norm1"), ("both", "norm2")])
def test_folding_keeps_the_function(conv, norm, tmp_path):
    saved = _saved(tmp_path, "tests.export.test_onnx:Branches", 4, 8)
    weights, layer, maps = dict(saved.weights), saved.network.get_submodule(conv), torch.randn(5, 6, 7, 9)
    expected = saved.network.get_submodule(norm)(layer(maps))
    fold_norms(saved.network, weights)
    layer.weight.data = weights[conv].values()
    torch.testing.assert_close(layer(maps), expected)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in saved.network.modules())


class Pooled(nn.Module):
    """The largest values of cells that overlap, and of some of their rows, with positions that nobody asks for."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(2, 5, 3), nn.ReLU(), nn.AdaptiveMaxPool2d((3, 2))
        self.halve, self.fc = nn.MaxPool2d((1, 2), return_indices=True), nn.Linear(5, CLASSES)

    def forward(self, images):
        maps, _ = self.halve(self.pool(self.relu(self.conv(images))))  # [N, 5, 3, 1]
        return self.fc(F.adaptive_max_pool2d(maps, 1, return_indices=True)[0].flatten(1))


@runs_protocol_integer
@pytest.mark.parametrize("purpose", ["speed", "size"])
def test_the_largest_values_of_overlapping_cells_are_exported(purpose, tmp_path):
    saved = _saved(tmp_path, "tests.export.test_onnx:Pooled", 8, 8, protocol="integer")
    agreement = export_onnx(saved, tmp_path / "net.onnx", purpose=purpose, noise_images=64)
    assert agreement.alike == 1
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node)
    assert kinds["ReduceMax"] + kinds["MaxPool"] >= 5


class Attentive(nn.Module):
    """Attention of a map's 64 places to each other."""

    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(2, 8, 3, padding=1), nn.Linear(8, CLASSES)
        self.query, self.key, self.value = (nn.Conv2d(8, 8, 1) for _ in range(3))
        nn.init.normal_(self.query.weight, std=4)

    def forward(self, images):
        maps = F.relu(self.stem(images))
        query, key, value = (layer(maps).flatten(2) for layer in (self.query, self.key, self.value))
        shares = torch.softmax(query.transpose(1, 2) @ key, -1)  # [N, places, places]
        return self.fc((value @ shares.transpose(1, 2)).mean(2))


@runs_protocol_integer
def test_onnxruntime_computes_a_softmax_in_floating_point(tmp_path):
    saved = _saved(tmp_path, "tests.export.test_onnx:Attentive", 8, 8, protocol="integer")
    assert export_onnx(saved, tmp_path / "net.onnx", purpose="speed", noise_images=64).close == 1


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.gate, self.conv = (nn.Conv2d(channels, 5, 3, padding=1) for channels in (2, 5, 5))
        self.fc = nn.Linear(5, CLASSES)

    def forward(self, images):
        maps = F.relu6(self.stem(images))
        maps = F.relu6(self.conv(maps) * torch.sigmoid(self.gate(maps)))
        return self.fc(F.relu(F.max_pool2d(sum([maps, self.conv(maps)]), 2)).amax((2, 3)))


@runs_protocol_integer
def test_onnxruntime_does_not_join_two_quantizers_around_an_activation(tmp_path):
    saved = _saved(tmp_path, "tests.export.test_onnx:Gated", 8, 8, protocol="integer")
    assert export_onnx(saved, tmp_path / "net.onnx", noise_images=128).close >= 0.97


class PaddedConv(nn.Conv2d):
    """A convolution whose padding is a layer of its own, as in efficientnet_pytorch."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, images):
        return F.conv2d(self.static_padding(images), self.weight, self.bias, self.stride, 0)


class DroppedLinear(nn.Linear):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.drop = nn.Dropout()

    def forward(self, features):
        return F.linear(self.drop(features), self.weight, self.bias)


class PartsOfLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = PaddedConv(2, 4, 2, bias=False), nn.BatchNorm2d(4)
        self.conv, self.fc = PaddedConv(4, 4, 2), DroppedLinear(4, CLASSES)

    def forward(self, images):
        maps = F.relu(self.conv(F.relu(self.norm(self.stem(images)))))
        return self.fc(maps.mean((2, 3)))


@pytest.mark.parametrize("protocol", ["activations", pytest.param("integer", marks=runs_protocol_integer)])
def test_layers_may_have_layers_of_their_own(protocol, tmp_path):
    saved = _saved(tmp_path, "tests.export.test_onnx:PartsOfLayers", 8, 8, protocol=protocol)
    assert export_onnx(saved, tmp_path / "net.onnx", noise_images=64).holds()


class InsistsOnFloat32(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Linear(3, CLASSES)

    def forward(self, images):
        return self.fc(self.relu(self.conv(images)).float().mean((2, 3)))


def test_a_network_that_computes_in_float32_alone_is_compared_in_it(tmp_path, capfd):
    saved = _saved(tmp_path, "tests.export.test_onnx:InsistsOnFloat32", 4, 4)
    assert export_onnx(saved, tmp_path / "net.onnx", noise_images=64).holds()
    assert capfd.readouterr() == ("", "")


class HalfLogits(InsistsOnFloat32):
    def forward(self, images):
        return super().forward(images).half()


class ShorterLogits(InsistsOnFloat32):
    def forward(self, images):
        return super().forward(images).bfloat16()


@pytest.mark.parametrize("network", ["HalfLogits", "ShorterLogits"])
def test_logits_of_half_precision_become_float32(network, tmp_path):
    saved = _saved(tmp_path, f"tests.export.test_onnx:{network}", 4, 4)
    assert export_onnx(saved, tmp_path / "net.onnx", noise_images=64).holds()
    images = torch.randn(3, *IMAGE)
    assert load_onnx(tmp_path / "net.onnx").network(images).dtype == saved.network(images).dtype == torch.float32


def test_a_layer_that_onnx_lacks_is_named(tmp_path):
    saved = _saved(tmp_path, "tests.export.test_onnx:bessel", 4, 4)
    with pytest.raises(InputError, match="cannot export to ONNX: .*bessel_j0") as caught:
        export_onnx(saved, tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "net.onnx").exists()


class Deciding(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES))

    def forward(self, images):
        return super().forward(images if images.sum() > 0 else -images)


def test_a_network_that_decides_by_values_is_one_line(tmp_path, capfd):
    saved = _saved(tmp_path, "tests.export.test_onnx:Deciding", 4, 4, allow_partial=True)
    with pytest.raises(InputError, match=r"cannot export to ONNX: .*use the \.safetensors file") as caught:
        export_onnx(saved, tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("package", ["onnx_ir", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_named(package, tmp_path, monkeypatch):
    saved = _saved(tmp_path, "tests.helpers.toys:toy_teacher", 4, 4)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'nni-autorecon\[onnx\]'"):
        export_onnx(saved, tmp_path / "net.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"", "refuses"), (b"cat", "refuses"), ("foreign", "not written by nni-autorecon")],
)
def test_another_file_is_one_line(content, message, tmp_path):
    path = tmp_path / "net.onnx"
    if content == "foreign":
        node = onnx.helper.make_node("Identity", ["images"], ["logits"])
        ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("images", "logits")]
        graph = onnx.helper.make_graph([node], "graph", ends[:1], ends[1:])
        content = onnx.helper.make_model(
            graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)]
        ).SerializeToString()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_onnx(path)
    assert "\n" not in str(caught.value)


def test_the_command_line_exports_and_measures(tmp_path, digits_teacher, capsys):
    bits = Quantization("w5a6")
    student, _ = quantize_network(digits_teacher.network, bits)
    with torch.no_grad(), observe_ranges(student):
        student(torch.randn(64, *digits_teacher.image))
    file, model = tmp_path / "student.safetensors", tmp_path / "student.onnx"
    save_network(file, student, Description.of(digits_teacher, bits))
    data = digits_data("test")
    right = accuracy(student, data, mean=digits_teacher.mean, std=digits_teacher.std, device="cpu")
    np.savez(tmp_path / "test.npz", images=data.images.numpy(), labels=data.labels.numpy())

    assert cli.main(["evaluate", str(file)]) == 0
    assert f"test accuracy {right:.2%} on {len(data)} images" in capsys.readouterr().out
    assert cli.main(["to-onnx", str(file)]) == 0
    assert "decide alike" in capsys.readouterr().out
    assert cli.main(["evaluate", str(model), "--test-data", str(tmp_path / "test.npz")]) == 0
    printed = capsys.readouterr().out
    assert float(re.search(r"test accuracy ([\d.]+)%", printed)[1]) == pytest.approx(100 * right, abs=0.5)
    assert f"compression ratio {load_onnx(model).compression_ratio:.2f}" in printed

    assert cli.main(["to-onnx", str(file), "-o", str(model)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert cli.main(["evaluate", str(model), "--teacher", "digits"]) == 2
    assert "leave out --teacher" in capsys.readouterr().err


def test_a_student_of_another_teacher_needs_test_data(tmp_path, capsys):
    _saved(tmp_path, "tests.helpers.toys:toy_teacher", 4, 4)
    assert cli.main(["evaluate", str(tmp_path / "net.safetensors")]) == 2
    assert "--teacher tests.helpers.toys:toy_teacher" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path / "net.safetensors"), "--teacher", "tests.helpers.toys:toy_teacher"]) == 2
    assert "name images to measure with --test-data" in capsys.readouterr().err
