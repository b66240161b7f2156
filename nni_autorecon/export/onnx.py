"""A quantized network is exported to ONNX here: for speed, to be run in integers, or for size, with packed weights."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, MachineError
from ..files import write_atomically
from ..runs.progress import said_if_slow
from ..shapes import ImageShape
from .agreement import Agreement, measure_agreement
from .integer_form import integer_form
from .onnx_runtime import INPUT, METADATA, OUTPUT, OnnxNetwork
from .packed_form import PackedWeight, packed_form
from .purposes import PURPOSES
from .saved_network import SavedNetwork

NOISE_IMAGES = 256


def default_purpose(saved: SavedNetwork) -> str:
    """Return the purpose of a student's file that is fastest: speed if an engine can compute it in integers."""
    quantization = saved.description.quantization
    return "speed" if quantization is not None and quantization.protocol == "integer" else "size"


@said_if_slow("the student is exported to ONNX, and compared with the result")
def export_onnx(
    saved: SavedNetwork,
    path: str | Path,
    *,
    purpose: str | None = None,
    images: Tensor | None = None,
    noise_images: int | None = None,
    seed: int = 0,
) -> Agreement:
    """Write ``saved`` as ONNX, replacing ``path``, if onnxruntime then agrees with PyTorch; return how well it does.

    The model takes ``images`` (normalized, float32 [N, C, H, W], any N) and returns ``logits`` [N, K]. A BatchNorm
    after a convolution is folded into it. The two are compared on ``images`` [N, C, H, W] and on ``noise_images``
    images of standard normal noise, drawn with ``seed``; None means as many of 256 as the time of the export allows.

    purpose: a key of ``PURPOSES``; None means ``default_purpose``.

    Raises InputError if the extra ``onnx`` is not installed, the network has a part that ONNX lacks or that is not
    there for this purpose, or the file cannot be written, and MachineError if the runtimes disagree.
    """
    started = time.perf_counter()
    exported = Exported.of(saved, purpose=purpose)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(
        NOISE_IMAGES if noise_images is None else noise_images, *saved.description.image, generator=generator
    )
    agreement = measure_agreement(
        saved.network if exported.purpose == "speed" or saved.simulated is None else saved.simulated,
        exported.network,
        noise if images is None else torch.cat([images.cpu(), noise]),
        seconds=time.perf_counter() - started if noise_images is None else None,
    )
    if not agreement.holds():
        raise MachineError(f"{path} is not written: {agreement.summary()}; use the .safetensors file, and report this")
    content = exported.content(saved, agreement)
    write_atomically(Path(path), lambda file: file.write(content))
    return agreement


@dataclass(frozen=True, eq=False)
class Exported:
    """A student as a program of ONNX, and the same in onnxruntime; it is compared with nothing yet."""

    program: Any
    """A ``torch.onnx.ONNXProgram``."""
    network: OnnxNetwork
    purpose: str

    @classmethod
    def of(cls, saved: SavedNetwork, *, purpose: str | None = None) -> Exported:
        """Export a student for a purpose, a key of ``PURPOSES``.

        Raises InputError if the extra ``onnx`` is not installed, the purpose is unknown, the network has a part that
        ONNX lacks or that is not there for this purpose, or onnxruntime refuses the result.
        """
        require_extra()
        purpose = purpose or default_purpose(saved)
        if purpose not in PURPOSES:
            raise InputError(f"purpose {purpose!r} is unknown; choose one of {', '.join(PURPOSES)}")
        if purpose == "speed" and default_purpose(saved) != "speed":
            raise InputError(
                "protocol activations leaves sums, means and images in floating point, so that no file of this student "
                "is fast; compress with --protocol integer, or write it --for size"
            )
        if purpose == "speed":
            return cls(*_exported(integer_form(saved), saved), purpose)
        try:
            return cls(*_exported(packed_form(saved, narrowest=2), saved), purpose)
        except InputError:
            if all(weight.bits > 2 for weight in saved.weights.values()):
                raise
            # onnxruntime 1.23, the last for Python 3.10, lacks UINT2
            return cls(*_exported(packed_form(saved, narrowest=4), saved), purpose)

    def content(self, saved: SavedNetwork, agreement: Agreement) -> bytes:
        """Return the file's content, which says what it is and how well it agreed."""
        known = {
            "description": dataclasses.asdict(saved.description),
            "float_bytes": saved.float_bytes,
            "purpose": self.purpose,
            "agreement": dataclasses.asdict(agreement),
        }
        self.program.model.metadata_props[METADATA] = json.dumps(known, ensure_ascii=False)
        return bytes(self.program.model_proto.SerializeToString())


def require_extra() -> None:
    """Raise InputError if a package of the extra ``onnx`` is not installed."""
    try:
        import onnx_ir  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"ONNX needs {error.name}; pip install 'nni-autorecon[onnx]'") from error


def float_content(network: nn.Module, image: ImageShape) -> bytes:
    """Return the content of an ONNX file of a network in floating point. Raises InputError if ONNX lacks a part."""
    require_extra()
    images = torch.zeros(2, *image)
    with torch.no_grad():
        network.eval()(images)  # lazy layers settle
    return bytes(_translate(network, images).model_proto.SerializeToString())


@said_if_slow("the network is exported in floating point, to compare with")
def floating_point(network: nn.Module, image: ImageShape) -> OnnxNetwork:
    """Return a network in floating point in onnxruntime. Raises InputError as :func:`float_content` does."""
    remedy = "leave out --onnx and --latency"
    return OnnxNetwork(float_content(network, image), "the network in floating point", remedy)


def _exported(form: nn.Module, saved: SavedNetwork) -> tuple[Any, OnnxNetwork]:
    """Return a form as a program, and the same in onnxruntime. Raises InputError if either cannot be."""
    program = _translate(form, torch.zeros(2, *saved.description.image))
    _narrow_weights(program.model.graph)
    _strip(program.model.graph)
    content = program.model_proto.SerializeToString()
    return program, OnnxNetwork(content, "the exported network", "use another onnxruntime, or the .safetensors file")


def _translate(form: nn.Module, images: Tensor) -> Any:
    """Translate ``form`` to a ``torch.onnx.ONNXProgram`` for any number of images.

    images: two images [2, C, H, W] to trace with.  Raises InputError, naming the layer, if a part cannot be translated.
    """
    types = {module.note["type"] for module in form.modules() if isinstance(module, PackedWeight)}
    try:
        with _silent():
            program = torch.export.export(form, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            if any(node.target in IN_OTHER_WORDS for node in program.graph.nodes):
                program = program.run_decompositions(dict(IN_OTHER_WORDS))
            return torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=25 if "UINT2" in types else 21 if types else 18,  # the first with UINT2 and with UINT4
            )
    except Exception as error:  # tracing runs the network's own code, and translation fails in many ways
        causes = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)  # type: ignore[arg-type]
        reason = next(line for line in str(causes[-1]).splitlines() if line)
        found = re.search(r"translating node %(\w+)", " ".join(map(str, causes)))
        where = f"{_layer(program, found[1])}: " if found else ""
        raise InputError(f"cannot export to ONNX: {where}{reason}; use the .safetensors file") from error


def _adaptive_max_pool(x: Tensor, size: Sequence[int]) -> Any:
    """Return the largest value in each cell of a grid of ``size`` over maps [..., H, W], whose cells may overlap.

    ONNX lacks this where ``size`` does not divide H and W. Positions, which a classifier has no use for, are all 0.
    """
    if not any(length % count for length, count in zip(x.shape[-2:], size, strict=True)):
        return NotImplemented  # ONNX has it
    for dim, count in zip((-2, -1), size, strict=True):
        length = x.shape[dim]
        cells = [(i * length // count, -(-(i + 1) * length // count)) for i in range(count)]
        x = torch.stack([x.narrow(dim, start, stop - start).amax(dim) for start, stop in cells], dim)
    return x, torch.zeros_like(x, dtype=torch.int64)


def _softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return the softmax of x, of any shape, in floating point.

    onnxruntime computes a Softmax between two quantizers from a table of integers, and may miss the code by one.
    """
    return torch.log_softmax(x, dim, dtype=dtype).exp()


IN_OTHER_WORDS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.adaptive_max_pool2d.default: _adaptive_max_pool,
    torch.ops.aten.softmax.int: _softmax,
}
"""What ONNX lacks, or its runtimes compute otherwise, is exported by other operations."""


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
