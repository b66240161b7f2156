"""A quantized network is exported to ONNX here, with integer weights, QuantizeLinear and DequantizeLinear.

The graph is made for onnxruntime and avoids four faults of version 1.32. First, onnxruntime rounds a bias between
quantizers to int32 at the product of their scales, which is coarse at few bits; biases are Add nodes here. Second, it
fails on activations of fewer than 8 bits; their codes are UINT8 behind a Clip here. Third, it fuses a Gemm, or a
convolution without bias, with the quantizers around it to an operator that cannot have 2-bit weights; only the weights
of convolutions with a bias (or a folded norm) are UINT2 here. Fourth, it fuses a MatMul with the dequantizer of its
weight to an operator that also rounds the activations; linear layers are Gemms of rows here.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import InputError, MachineError
from ..files import write_atomically
from ..quantization.folding import fold_norms
from ..quantization.integers import FixedQuantizer, IntegerWeight, replace_modules
from .agreement import Agreement, measure_agreement
from .onnx_runtime import INPUT, METADATA, OUTPUT, OnnxNetwork
from .student_file import SavedNetwork


def export_onnx(
    saved: SavedNetwork, path: str | Path, *, images: Tensor | None = None, noise_images: int = 256, seed: int = 0
) -> Agreement:
    """Write ``saved`` as ONNX, replacing ``path``, if onnxruntime then agrees with PyTorch; return how well it does.

    The model takes ``images`` (normalized, float32 [N, C, H, W], any N) and returns ``logits`` [N, K]. A BatchNorm
    after a convolution is folded into it. The two are compared on ``noise_images`` images of standard normal noise,
    drawn with ``seed``, and on ``images`` [N, C, H, W].

    Raises InputError if the extra ``onnx`` is not installed, the network has a part that ONNX lacks, the runtimes
    disagree, or the file cannot be written.
    """
    try:
        import onnx_ir  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"ONNX needs {error.name}; pip install -e '.[onnx]'") from error
    try:
        program, exported = _exported(saved, narrowest=2)
    except InputError:
        if all(weight.bits > 2 for weight in saved.weights.values()):
            raise
        program, exported = _exported(saved, narrowest=4)  # onnxruntime 1.23, the last for Python 3.10, lacks UINT2
    noise = torch.randn(noise_images, *saved.description.image, generator=torch.Generator().manual_seed(seed))
    agreement = measure_agreement(
        saved.network,
        exported,
        noise if images is None else torch.cat([noise, images.cpu()]),
    )
    if not agreement.holds():
        raise MachineError(f"{path} is not written: {agreement.summary()}; use the .safetensors file, and report this")
    known = {
        "description": dataclasses.asdict(saved.description),
        "float_bytes": saved.float_bytes,
        "agreement": dataclasses.asdict(agreement),
    }
    program.model.metadata_props[METADATA] = json.dumps(known, ensure_ascii=False)
    content = program.model_proto.SerializeToString()
    write_atomically(Path(path), lambda file: file.write(content))
    return agreement


def _exported(saved: SavedNetwork, *, narrowest: int) -> tuple[Any, OnnxNetwork]:
    """Return the network as ``torch.onnx.ONNXProgram``, and the same loaded into onnxruntime.

    Raises InputError if the program cannot be made, or if onnxruntime refuses it.
    """
    program = _translate(_onnx_form(saved, narrowest), torch.zeros(2, *saved.description.image))
    _narrow_weights(program.model.graph)
    _strip(program.model.graph)
    remedy = "use another onnxruntime, or the .safetensors file"
    return program, OnnxNetwork(program.model_proto.SerializeToString(), "the exported network", remedy)


def _onnx_form(saved: SavedNetwork, narrowest: int) -> nn.Module:
    """Return a copy of the network whose quantizers and weights are ONNX operators; it is only good for tracing.

    Weights have 8, 4 or ``narrowest`` bits.
    """
    form, weights = copy.deepcopy(saved.network), dict(saved.weights)
    fold_norms(form, weights)
    replaced: dict[nn.Module, nn.Module] = {
        module: _QuantizeDequantize(module) for module in form.modules() if isinstance(module, FixedQuantizer)
    }
    for name, weight in weights.items():
        layer: Any = form.get_submodule(name)
        parametrize.register_parametrization(layer, "weight", _Dequantize(name, weight, layer, narrowest), unsafe=True)
        parts: list[nn.Module] = [_Rows(layer) if isinstance(layer, nn.Linear) else layer]
        if layer.bias is not None:
            parts.append(_Bias(layer.bias, is_map=isinstance(layer, nn.Conv2d)))
            layer.bias = None
        replaced[layer] = nn.Sequential(*parts)
    replace_modules(form, replaced)
    return form.eval()


class _Dequantize(nn.Module):
    """A parametrization that makes a weight by DequantizeLinear from its codes."""

    def __init__(self, name: str, weight: IntegerWeight, layer: nn.Module, narrowest: int) -> None:
        super().__init__()
        has_bias = isinstance(layer, nn.Conv2d) and layer.bias is not None
        bits = 8 if weight.bits > 4 else 4 if weight.bits > 2 or not has_bias else narrowest
        self.note = {"weight": f"{name}.weight", "type": f"UINT{bits}"}  # _narrow_weights reads it in the graph
        for part in ("codes", "scale", "zero_point"):
            self.register_buffer(part, getattr(weight, part))

    def forward(self, weight: Tensor) -> Tensor:
        inputs, result = (self.codes, self.scale, self.zero_point), {"dtype": torch.float32, "shape": weight.shape}
        return _onnx_operator("DequantizeLinear", inputs, {"axis": 0}, metadata_props=self.note, **result)


class _QuantizeDequantize(nn.Module):
    """An activation quantizer as ONNX operators: Clip to the range of the codes, QuantizeLinear, DequantizeLinear."""

    def __init__(self, quantizer: FixedQuantizer) -> None:
        super().__init__()
        ends = torch.tensor([0, quantizer.largest_code]) - quantizer.zero_point
        self.low, self.high = (ends * quantizer.scale).tolist()
        self.register_buffer("scale", quantizer.scale)
        self.register_buffer("zero_point", quantizer.zero_point.byte())

    def forward(self, activation: Tensor) -> Tensor:
        inputs, shape = (activation.clamp(self.low, self.high), self.scale, self.zero_point), activation.shape
        codes = _onnx_operator("QuantizeLinear", inputs, dtype=torch.uint8, shape=shape)
        return _onnx_operator("DequantizeLinear", (codes, *inputs[1:]), dtype=torch.float32, shape=shape)


class _Rows(nn.Module):
    """A linear layer as a product of two matrices, whatever the shape [..., in] of its input."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, activation: Tensor) -> Tensor:
        if activation.ndim == 2:
            return self.layer(activation)
        rows = self.layer(activation.flatten(0, -2))  # [M, out]
        return rows.view(*activation.shape[:-1], -1)


class _Bias(nn.Module):
    """A bias [C] as an addition of its own; ``is_map`` is True for activations [N, C, H, W]."""

    def __init__(self, bias: Tensor, *, is_map: bool) -> None:
        super().__init__()
        self.register_buffer("bias", bias.detach().view(-1, 1, 1) if is_map else bias.detach())

    def forward(self, activation: Tensor) -> Tensor:
        return activation + self.bias  # type: ignore[operator]


def _onnx_operator(name: str, *arguments: Any, **named: Any) -> Tensor:
    import torch.onnx.ops  # slow to import

    return torch.onnx.ops.symbolic(name, *arguments, **named)


def _translate(form: nn.Module, images: Tensor) -> Any:
    """Translate ``form`` to a ``torch.onnx.ONNXProgram`` for any number of images.

    images: two images [2, C, H, W] to trace with.  Raises InputError, naming the layer, if a part cannot be translated.
    """
    types = {module.note["type"] for module in form.modules() if isinstance(module, _Dequantize)}
    try:
        with _silent():
            program = torch.export.export(form, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            return torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=25 if "UINT2" in types else 21,  # these are the first with UINT2 and with UINT4
            )
    except Exception as error:  # tracing runs the network's own code, and translation fails in many ways
        causes = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)  # type: ignore[arg-type]
        reason = next(line for line in str(causes[-1]).splitlines() if line)
        found = re.search(r"translating node %(\w+)", " ".join(map(str, causes)))
        where = f"{_layer(program, found[1])}: " if found else ""
        raise InputError(f"cannot export to ONNX: {where}{reason}; use the .safetensors file") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the messages of PyTorch's exporter off the screen: it prints whole graphs before an error."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(max(before, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(before)


def _layer(program: torch.export.ExportedProgram, node_name: str) -> str:
    """Return the path and class of the innermost module that computes a node, or the node's name if no module does."""
    for node in program.graph.nodes:
        if node.name == node_name and (modules := list(node.meta.get("nn_module_stack", {}).values())):
            path, kind = modules[-1]
            return f"{path} ({kind.rpartition('.')[2]})" if path else node_name
    return node_name


def _narrow_weights(graph: Any) -> None:
    """Give the codes and zero points of weights their own ONNX type, and names that contain the layer's name."""
    import ml_dtypes  # it has numpy types of 2 and 4 bits, and onnx depends on it
    import onnx_ir as ir

    for node in graph:
        if "weight" in node.metadata_props:
            name, type_ = node.metadata_props["weight"], node.metadata_props["type"]
            for index, part in ((0, "codes"), (2, "zero_point")):
                codes = node.inputs[index].const_value.numpy()
                dtype = getattr(ml_dtypes, type_.lower(), codes.dtype)
                tensor = ir.Tensor(codes.astype(dtype), dtype=ir.DataType[type_], name=f"{name}.{part}")
                value = ir.Value(
                    name=tensor.name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype)
                )
                graph.register_initializer(value)
                node.replace_input_with(index, value)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]


def _strip(graph: Any) -> None:
    """Remove the exporter's notes about the Python code, which are half of a small file."""
    for node in graph:
        for noted in (node, *node.outputs):
            noted.metadata_props.clear()
    for value in graph.initializers.values():
        value.metadata_props.clear()
