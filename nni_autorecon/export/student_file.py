"""A quantized network is one safetensors file: codes packed at their bit width, scales, zero points, a description."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, fx, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from ..accel.memory import in_usual_layout
from ..errors import InputError, named, one_line, shown
from ..files import parse_json, write_atomically
from ..quantization.calls import QUANTIZED
from ..quantization.folding import folded
from ..quantization.insertion import quantize_network
from ..quantization.integer_arithmetic import with_integer_arithmetic
from ..quantization.integers import (
    IntegerWeight,
    activation_quantizers,
    pack,
    quantized_layers,
    to_inference_form,
    unpack,
)
from ..shapes import ImageShape
from ..teacher.checkpoint import settle_lazy_layers
from ..teacher.examination import copied
from ..teacher.factories import unwrap_parts, unwrapped
from ..teacher.inputs import as_teacher
from ..teacher.loading import IN_MEMORY
from ..teacher.sources import names_code
from ..version import __version__
from .description import Description
from .saved_network import SavedNetwork

FORMAT = 4
"""Counted up whenever an earlier version could no longer read the file."""
READABLE = (1, 2, 3, FORMAT)
"""The formats that this version reads. Protocol ``integer`` was another one before format 3, and all layers but the
first and the last had the same bits before format 4."""
_METADATA = "nni-autorecon"
"""The metadata of the file have this one key; safetensors would write several keys in any order."""


def save_network(path: str | Path, student: nn.Module, description: Description) -> None:
    """Write ``student`` as one safetensors file, replacing ``path``.

    The student is a result of ``quantize_network`` whose ranges have been observed. The file holds, for each quantized
    weight, ``NAME.weight.codes`` (packed by ``integers.pack``), ``.scale`` (float32) and ``.zero_point`` (uint8), both
    per output channel, and its bias in float32, rounded as it is in integers. It holds ``NAME.scale`` and
    ``NAME.zero_point`` for each activation quantizer, and every other parameter and buffer as it is, except
    BatchNorm's counts of training batches. The rest is JSON in the metadata.

    Raises InputError if the file cannot be written or a weight is not finite, RuntimeError if no activation quantizer
    has a range yet.
    """
    content = student_bytes(student, description)
    write_atomically(Path(path), lambda file: file.write(content))


def student_bytes(student: nn.Module, description: Description) -> bytes:
    """Return the content of the file that :func:`save_network` writes."""
    weights = {name: IntegerWeight.of(layer) for name, layer in quantized_layers(student)}
    quantizers = dict(activation_quantizers(student))
    replaced = tuple([f"{name}.parametrizations." for name in weights] + [f"{name}." for name in quantizers])
    tensors = {name: tensor for name, tensor in _tensors(student).items() if not name.startswith(replaced)}
    for name, layer in quantized_layers(student):
        if parametrize.is_parametrized(layer, "bias"):
            tensors[f"{name}.bias"] = layer.bias
    for name, weight in weights.items():
        tensors[f"{name}.weight.codes"] = pack(weight.codes, weight.bits)
        tensors[f"{name}.weight.scale"], tensors[f"{name}.weight.zero_point"] = weight.scale, weight.zero_point
    observed = any(quantizer.observations for quantizer in quantizers.values())
    for name, quantizer in quantizers.items():
        never_called = observed and not quantizer.observations  # an untraced network may have modules it does not use
        scale, zero_point = (torch.ones(()), torch.zeros(())) if never_called else quantizer.qparams()
        tensors[f"{name}.scale"], tensors[f"{name}.zero_point"] = scale, zero_point.byte()
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = {
        "description": dataclasses.asdict(description),
        "weights": {name: {"bits": each.bits, "shape": list(each.codes.shape)} for name, each in weights.items()},
        "versions": {"nni-autorecon": __version__, **{name: metadata.version(name) for name in ("torch", "numpy")}},
    }
    known = {"format": FORMAT, "sha256": _digest(header, tensors), **header}
    return save(tensors, {_METADATA: json.dumps(known, allow_nan=False)})


def load_network(path: str | Path, *, teacher: str | nn.Module | None = None) -> SavedNetwork:
    """Return the network that ``save_network`` wrote, on the CPU; ``simulated`` is the student, bit for bit.

    The structure is built anew from the teacher's specification in the file, without weights. Where that is
    ``module:factory``, code would be imported and run that a file has no business to name: ``teacher`` must name it.
    A network that was handed over in Python must be handed over again as ``teacher``.

    Raises InputError if the file is missing, damaged, of another format, or does not fit the structure.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read saved network {path}: {error.strerror or error}; check the path") from error
    return network_of_bytes(content, str(path), teacher)


def network_of_bytes(content: bytes, path: str, teacher: str | nn.Module | None) -> SavedNetwork:
    """Return the network in a file's ``content``, as :func:`load_network` does; errors call the file ``path``."""
    header, tensors = _read(content, path)
    try:
        description = Description.from_dict(header["description"])
        if header["format"] < 3 and description.quantization and description.quantization.protocol == "integer":
            raise ValueError("protocol integer had biases in floating point then")
        stored = {str(name): (int(each["bits"]), tuple(each["shape"])) for name, each in header["weights"].items()}
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise _other_version(path, header, error) from error
    spec = teacher if isinstance(teacher, str) else description.teacher
    if teacher is None:
        require_trusted(description.teacher, path)
    with torch.random.fork_rng(devices=[]):  # drawing initial weights must not change the caller's random numbers
        source = teacher if isinstance(teacher, nn.Module) else spec
        structure = _structure(description, source, _stored_shapes(stored, tensors), f"{path} does not fit {spec}")
        float_bytes = float_size(structure)
        if description.folded:
            structure = folded(structure, image=description.image)[0]
        try:
            if description.quantization is None:
                raise ValueError("it does not say how it was quantized")
            network, _ = quantize_network(structure, description.quantization, image=description.image)
        except InputError as error:
            fault = one_line(error).partition(";")[0]
            raise InputError(f"{path} does not fit {spec}: {fault}; name the network it was made of") from error
        except (TypeError, ValueError, KeyError) as error:
            raise _other_version(path, header, error) from error
    built = {f"{name}.weight": layer.parametrizations.weight[0].bits for name, layer in quantized_layers(network)}
    saved = {f"{name}.weight": bits for name, (bits, _) in stored.items()}
    _require_equal(f"{path} does not fit {spec}: bits", saved, built)
    to_inference_form(network)
    for name, layer in network.named_modules():
        if not isinstance(layer, QUANTIZED):
            continue
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)  # two layers may share one
        if layer.bias is None and (bias := tensors.get(f"{name}.bias")) is not None:  # bias correction has added it
            layer.bias = nn.Parameter(torch.empty_like(bias), requires_grad=False)
    try:
        weights = {name: _take_weight(tensors, f"{name}.weight", *each) for name, each in stored.items()}
        tensors |= {f"{name}.weight": weight.values() for name, weight in weights.items()}
    except (TypeError, ValueError, KeyError, RuntimeError) as error:  # RuntimeError comes from shapes that do not fit
        raise _other_version(path, header, error) from error
    targets = _tensors(network)
    others = tensors.keys() ^ targets.keys()
    if others and all(name.startswith("activation_quantizers.") for name in others):
        place = min(others).split(".")[1]
        raise _other_version(path, header, ValueError(f"it quantizes other activations, as at {place}"))
    _require_equal(f"{path} does not fit {spec}: shape", _shapes(tensors), _shapes(targets))
    for name, target in targets.items():
        target.data.copy_(tensors[name])
    runs = network
    if description.quantization.protocol == "integer" and isinstance(network, fx.GraphModule):
        runs = with_integer_arithmetic(network, weights)
    return SavedNetwork(runs, description, float_bytes, len(content), weights, network)


def _structure(
    description: Description, source: str | nn.Module, shapes: Mapping[str, Sequence[int]], fault: str
) -> nn.Module:
    """Return the teacher without its wrappers, in float32: built anew by the name ``source``, or a copy of it.

    ``shapes`` settle its lazy layers. Raises InputError, which may begin with ``fault``, if it cannot be built.
    """
    if isinstance(source, nn.Module):
        structure = copied(unwrapped(source), type(source).__name__).cpu()
    else:
        structure = description.structure(source)
        settle_lazy_layers(structure, shapes)
    unwrap_parts(structure)
    structure = as_teacher(in_usual_layout(structure.float()), description.image)
    _settle_folded(structure, description.image, fault)
    return structure


def _stored_shapes(
    weights: Mapping[str, tuple[int, tuple[int, ...]]], tensors: Mapping[str, Tensor]
) -> dict[str, Sequence[int]]:
    """Return the shapes of a file's quantized weights and of its other tensors, under the names of a state_dict."""
    quantized = {f"{name}.weight": shape for name, (_, shape) in weights.items()}
    return {**{name: tensor.shape for name, tensor in tensors.items()}, **quantized}


def _settle_folded(network: nn.Module, image: ImageShape, fault: str) -> None:
    """Settle lazy layers that were folded, and have no tensors in the file, by a forward pass.

    Raises InputError, which begins with ``fault``, if the network does not take such an image.
    """
    if not any(isinstance(layer, LazyModuleMixin) for layer in network.modules()):
        return
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, *image))
    except Exception as error:  # the person's code may raise anything
        raise InputError(f"{fault}: {named(error)}; name the network it was made of") from error


def require_trusted(spec: str, path: str | Path) -> None:
    """Raise InputError if a teacher's specification in a file may not be followed, or leads nowhere."""
    if spec.startswith(IN_MEMORY):
        raise InputError(
            f"{path} is a student of a network that was handed over in Python ({spec.removeprefix(IN_MEMORY)}); hand "
            "it over again, load_student(path, teacher=network), or name it with --teacher models.py:make"
        )
    if names_code(spec):
        raise InputError(
            f"{path} is a student of {spec}, code that loading would run; if it is yours, add --teacher {spec}"
        )


def _other_version(path: str | Path, header: Mapping[str, Any], error: Exception) -> InputError:
    """Return the error for a whole file that cannot be used; most likely another version of this package wrote it."""
    versions = header.get("versions")
    theirs = versions.get("nni-autorecon", "?") if isinstance(versions, dict) else "?"
    fault = f"{path} was saved by nni-autorecon {theirs}, this is {__version__}: {one_line(error)}"
    return InputError(f"{fault}; compress the network again")


def float_size(network: nn.Module) -> int:
    """Return the number of bytes of the network's floating-point parameters and buffers in float32."""
    return sum(4 * tensor.numel() for tensor in _tensors(network).values() if tensor.is_floating_point())


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a state_dict, each once, except BatchNorm's counts of training batches."""
    kept = network.state_dict().keys()
    each_once = dict(network.named_parameters()) | dict(network.named_buffers())
    return {name: tensor for name, tensor in each_once.items() if name in kept and "num_batches_tracked" not in name}


def _take_weight(tensors: dict[str, Tensor], name: str, bits: int, shape: Iterable[int]) -> IntegerWeight:
    """Remove the three tensors of a weight from ``tensors``, and return the weight with unpacked codes."""
    codes, scale, zero_point = (tensors.pop(f"{name}.{part}") for part in ("codes", "scale", "zero_point"))
    return IntegerWeight(unpack(codes, bits, tuple(shape)), scale, zero_point, bits)


def _read(content: bytes, path: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return header and tensors of a file that is whole. Raises InputError for any other."""
    try:
        tensors = load(content)
        header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")].decode())
        known = parse_json(header.get("__metadata__", {}).get(_METADATA, "{}"))
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"saved network {path} is damaged or no safetensors file; give the student.safetensors of a compression"
        ) from error
    if not isinstance(known, dict) or not known.keys() >= {"format", "sha256"}:
        raise InputError(f"{path} is damaged or not written by nni-autorecon; give the .safetensors file of a student")
    if (found := known.pop("format")) not in READABLE:
        raise InputError(f"{path} has format {shown(found)}, this version reads {FORMAT}; update nni-autorecon")
    if known.pop("sha256") != _digest(known, tensors):
        raise InputError(f"saved network {path} is damaged: its content does not match its checksum; copy it again")
    return {**known, "format": found}, tensors


def _json(header: Mapping[str, Any]) -> str:
    return json.dumps(header, allow_nan=False, ensure_ascii=False)


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the header and of all tensors with their names, types and shapes."""
    digest = hashlib.sha256(_json(header).encode(errors="surrogatepass"))
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _require_equal(what: str, saved: Mapping[str, object], built: Mapping[str, object]) -> None:
    """Raise InputError if values differ; it names the first few keys whose values differ, and both values."""
    wrong = [name for name in sorted({*saved, *built}) if saved.get(name) != built.get(name)]
    listed = ", ".join(f"{name} ({saved.get(name, 'none')} for {built.get(name, 'none')})" for name in wrong[:5])
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(f"{what} {listed}{more}; name the network it was made of")
