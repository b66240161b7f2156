"""Each quantized layer has two costs: the distance of its output from the teacher's, and its bytes of the file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ..quantization.coverage import Coverage
from ..quantization.folding import normed_layers
from ..quantization.integers import quantized_layers, weight_bytes
from ..quantization.quantizers import in_floating_point
from ..shapes import measured_at_once

IMAGES = 8
"""Outputs are compared on so many images."""
FINEST = 140.0
"""The largest SQNR in dB: a smaller error is lost in float32."""


class OutputError(NamedTuple):
    """The error of an output."""

    mse: float
    """The mean squared error."""
    cosine: float
    """The cosine of the angle to what the output should be."""
    sqnr: float
    """The signal-to-quantization-noise ratio in dB, from -140 to 140."""


@dataclass(frozen=True)
class LayerCost:
    """The error of a layer's output, and the bytes of its weight in the student's file."""

    name: str
    kind: str
    bits: int
    bytes: int
    mse: float
    cosine: float
    sqnr: float


def layer_costs(
    student: nn.Module, counterpart: nn.Module, coverage: Coverage, images: Tensor
) -> tuple[LayerCost, ...] | None:
    """Return what each quantized layer costs, in the order of their calls; None for a network that is not traced.

    Outputs are compared behind the BatchNorm that alone reads them, if there is one, as training may move scales
    between the two. The student's carry the errors of all layers before.

    counterpart: the student's network with the teacher's weights, which computes here in floating point.
    images: [N, C, H, W].
    """
    if not isinstance(student, fx.GraphModule) or not isinstance(counterpart, fx.GraphModule):
        return None
    errors = output_errors(student, counterpart, images)
    return tuple(
        LayerCost(each.name, each.kind, each.bits, weight_bytes(each.shape or (), each.bits), *errors[each.name])
        for each in coverage.weights
    )


@torch.no_grad()
def output_errors(student: fx.GraphModule, counterpart: fx.GraphModule, images: Tensor) -> dict[str, OutputError]:
    """Return the error of each quantized layer's output by its path, over all its calls and images [N, C, H, W]."""
    sums: dict[str, Tensor] = {}
    for batch in images.split(measured_at_once(images.shape[1:])):
        with in_floating_point(counterpart), _outputs_kept(counterpart) as expected:
            counterpart(batch)
        with _outputs_kept(student) as found:
            student(batch)
        for name, outputs in found.items():
            for ours, theirs in zip(outputs, expected[name], strict=True):
                sums[name] = sums.get(name, 0) + error_sums(ours, theirs)
    return {name: output_error(each) for name, each in sums.items()}


def error_sums(output: Tensor, expected: Tensor) -> Tensor:
    """Return [5] in float64: the count of values, and the sums of x², y², xy and (x - y)².

    output, expected: x and y, of one shape; what is not finite counts as the largest number, or 0 if it is none.
    """
    largest = torch.finfo(torch.float32).max
    x, y = (each.double().nan_to_num(0, largest, -largest).flatten() for each in (output, expected))
    return torch.stack([x.new_tensor(x.numel()), x @ x, y @ y, x @ y, (x - y) @ (x - y)])


def output_error(sums: Tensor) -> OutputError:
    """Return the error of an output from :func:`error_sums`, which add up over batches.

    Worked example: (3, 4) for (3, 3) has MSE 1/2, cosine 21 / √(25 · 18) and SQNR 10 log10(18) dB.
    """
    count, own, power, product, error = sums.tolist()
    if error == 0:
        return OutputError(0.0, 1.0, FINEST)
    ratio = 10 * math.log10(power / error) if power else -FINEST
    cosine = product / math.sqrt(own * power) if own * power else 0.0
    return OutputError(error / count, cosine, min(max(ratio, -FINEST), FINEST))


@contextmanager
def _outputs_kept(network: fx.GraphModule) -> Iterator[Mapping[str, list[Tensor]]]:
    """Keep the outputs of each quantized layer within the block, by its path, behind the BatchNorm that follows it."""
    outputs: dict[str, list[Tensor]] = {name: [] for name, _ in quantized_layers(network)}
    last: dict[str, Any] = dict(quantized_layers(network))
    last |= {str(each.node.target): each.norm for each in normed_layers(network) if each.node.target in last}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: outputs[name].append(output)

    hooks = [module.register_forward_hook(keep(name)) for name, module in last.items()]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
