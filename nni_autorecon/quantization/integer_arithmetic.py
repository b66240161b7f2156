"""A saved student of protocol ``integer`` computes here as integer runtimes do, to the last code.

In training a student computes in floating point what it rounds. A runtime adds products of codes without any rounding,
and multiplies the sum by one float32 number before it is rounded, so that what lies midway between two codes may go the
other way; a few hundred values of a network for images of 224×224 pixels do. The order of the steps is that of
onnxruntime's kernels for ``QLinearConv``, ``QGemm``, ``QLinearAdd``, ``QLinearMul``, ``QLinearGlobalAveragePool`` and
``QLinearAveragePool``; all other operations are computed in float32, and ``QuantizeLinear`` divides.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from .calls import QUANTIZED, called, child_name
from .integers import FixedQuantizer, IntegerWeight, replace_modules
from .operators import CLAMP, Lengths, averaged_axes, is_addition, is_spatial, pooled_windows, sides, source_of
from .quantizers import bias_scale


def with_integer_arithmetic(network: fx.GraphModule, weights: Mapping[str, IntegerWeight]) -> fx.GraphModule:
    """Return a network that computes as integer runtimes do; it shares its layers with ``network``, which stays.

    network: a graph whose quantizers are ``FixedQuantizer``s.  weights: those of its layers, by their names.
    """
    form = fx.GraphModule(network, copy.deepcopy(network.graph), type(network).__name__)
    made = [operation for node in form.graph.nodes if (operation := _operation(form, node, weights)) is not None]
    for name, module, source, arguments in reversed(made):  # the last first, for its arguments are replaced later
        form.add_submodule(name, module)
        with form.graph.inserting_after(source):
            exact = form.graph.call_module(name, arguments)
        (user,) = (user for user in source.users if user is not exact)
        user.replace_input_with(source, exact)
        if isinstance(called(form, user)[0], FixedQuantizer):
            user.replace_all_uses_with(exact)  # the codes are known; only limits between need to be stored again
    form.graph.eliminate_dead_code()
    quantizers = [module for module in form.modules() if isinstance(module, FixedQuantizer)]
    replace_modules(form, {quantizer: Dividing(quantizer) for quantizer in quantizers})
    form.recompile()
    return form.eval()


_Operation = tuple[str, nn.Module, fx.Node, tuple[Any, ...]]
"""The name of a new module, the module, the node whose result it gives exactly, and its arguments."""


def _operation(form: fx.GraphModule, node: fx.Node, weights: Mapping[str, IntegerWeight]) -> _Operation | None:
    """Return what computes the codes that ``node`` stores; None if it stores none, or if they come from float32."""
    quantizer, _ = called(form, node)
    if not isinstance(quantizer, FixedQuantizer):
        return None
    source = node.all_input_nodes[0]
    while CLAMP.fullmatch(called(form, source)[1]) and len(source.users) == 1:
        source = source.all_input_nodes[0]  # limits of values are limits of codes
    given = [called(form, source_of(form, each))[0] for each in source.all_input_nodes]
    inputs = [each for each in given if isinstance(each, FixedQuantizer)]
    if len(source.users) != 1 or not isinstance(given[0] if given else None, FixedQuantizer):
        return None
    layer, kind = called(form, source)
    first = source.all_input_nodes[0]
    module: nn.Module
    if isinstance(layer, QUANTIZED):
        calls = sum(called(form, other)[0] is layer for other in form.graph.nodes)
        weight = weights.get(str(source.target))
        if weight is None or (calls > 1 and layer.bias is not None):
            return None
        arguments: tuple[Any, ...] = (source,)
        module = _Requantized(quantizer, inputs[0], weight, maps=isinstance(layer, nn.Conv2d))
    elif len(inputs) == 2 and is_addition(form, source) and not source.kwargs:
        arguments, module = tuple(source.all_input_nodes), _Added(quantizer, *inputs)
    elif len(inputs) == len(given) == 2 and kind in ("mul", "multiply"):
        arguments, module = tuple(source.all_input_nodes), _Multiplied(quantizer, *inputs)
    elif axes := averaged_axes(form, source):
        arguments, module = (first,), _Averaged(quantizer, inputs[0], *axes)
    elif windows := pooled_windows(form, source):
        arguments, module = (first, *windows), _Pooled(quantizer, inputs[0])
    else:
        return None
    return f"integer_operations.{child_name(source)}", module, source, arguments


class Dividing(nn.Module):
    """An activation quantizer that divides by ``factor`` times its scale, where PyTorch multiplies by the inverse."""

    scale: Tensor  # []
    zero_point: Tensor  # float32 []

    def __init__(self, quantizer: FixedQuantizer) -> None:
        super().__init__()
        self.factor, self.largest_code = 1.0, quantizer.largest_code
        self.register_buffer("scale", quantizer.scale)
        self.register_buffer("zero_point", quantizer.zero_point.float())

    def extra_repr(self) -> str:
        return f"bits={self.largest_code.bit_length()}, ranges=fixed"

    def forward(self, activation: Tensor) -> Tensor:
        return self.values(activation / (self.factor * self.scale))

    def values(self, steps: Tensor) -> Tensor:
        """Return the values of the nearest codes. steps: codes less the zero point, which are rounded in place."""
        return steps.round_().clamp_(-self.zero_point, self.largest_code - self.zero_point).mul_(self.scale)

    def values_with_zero_point(self, codes: Tensor) -> Tensor:
        """Return the values of the nearest codes, which are rounded in place with their zero point."""
        return codes.round_().clamp_(0, self.largest_code).sub_(self.zero_point).mul_(self.scale)

    def steps(self, values: Tensor) -> Tensor:
        """Return the codes less the zero point that values have."""
        return (values / self.scale).round_()


class _Requantized(Dividing):
    """The output [N, out, H, W] or [..., out] of a layer, first rounded to its sums of products of integers."""

    sum_scale: Tensor  # [out, 1, 1] for maps, else [out]

    def __init__(self, quantizer: FixedQuantizer, given: FixedQuantizer, weight: IntegerWeight, *, maps: bool) -> None:
        super().__init__(quantizer)
        scale = bias_scale(given.scale, weight.scale, weight.bits)
        self.register_buffer("sum_scale", scale.view(-1, 1, 1) if maps else scale)

    def forward(self, output: Tensor) -> Tensor:
        return self.values((output / self.sum_scale).round_().mul_(self.sum_scale / self.scale))


class _Added(nn.Module):
    """The sum of two quantized values of shapes that broadcast, by two fused multiplications and additions."""

    def __init__(self, quantizer: FixedQuantizer, one: FixedQuantizer, other: FixedQuantizer) -> None:
        super().__init__()
        self.result, self.one, self.other = Dividing(quantizer), Dividing(one), Dividing(other)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        ratio, other_ratio = self.one.scale / self.result.scale, self.other.scale / self.result.scale
        shift = _fused(ratio, self.one.zero_point, other_ratio * self.other.zero_point)
        codes = self.one.steps(one).add_(self.one.zero_point)
        other_codes = self.other.steps(other).add_(self.other.zero_point)
        partial = _fused(other_ratio, other_codes, self.result.zero_point - shift)
        return self.result.values_with_zero_point(_fused(ratio, codes, partial))


def _fused(factor: Tensor, value: Tensor, term: Tensor) -> Tensor:
    """Return factor · value + term in float32, rounded once. All are float32, and value has no more than 8 bits."""
    return (factor.double() * value.double() + term.double()).float()


class _Multiplied(nn.Module):
    """The product of two quantized values of shapes that broadcast."""

    def __init__(self, quantizer: FixedQuantizer, one: FixedQuantizer, other: FixedQuantizer) -> None:
        super().__init__()
        self.result, self.one, self.other = Dividing(quantizer), Dividing(one), Dividing(other)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        ratio = self.one.scale * self.other.scale / self.result.scale
        return self.result.values(self.one.steps(one) * self.other.steps(other) * ratio)


class _Averaged(nn.Module):
    """The mean of quantized values; over the whole of each map [N, C, ...] it is that of a sum of integers."""

    def __init__(self, quantizer: FixedQuantizer, given: FixedQuantizer, axes: tuple[int, ...], keeps: bool) -> None:
        super().__init__()
        self.result, self.given, self.axes, self.keeps = Dividing(quantizer), Dividing(given), axes, keeps

    def forward(self, activation: Tensor) -> Tensor:
        if not is_spatial(self.axes, activation):
            return self.result(activation.mean(self.axes, self.keeps))
        ratio = self.given.scale / (self.result.scale * activation.shape[2:].numel())
        return self.result.values(self.given.steps(activation).sum(self.axes, self.keeps) * ratio)


class _Pooled(nn.Module):
    """The mean of each window of maps [N, C, H, W]: of a sum of integers if it is the whole map, else of float32."""

    def __init__(self, quantizer: FixedQuantizer, given: FixedQuantizer) -> None:
        super().__init__()
        self.result, self.whole = Dividing(quantizer), _Averaged(quantizer, given, (-2, -1), keeps=True)

    def forward(self, activation: Tensor, kernel: Lengths, stride: Lengths) -> Tensor:
        height, width = sides(kernel)
        if (height, width) == activation.shape[2:]:
            return self.whole(activation)
        down, right = sides(stride)
        windows = activation.unfold(2, height, down).unfold(3, width, right)
        first, *others = windows.flatten(-2).unbind(-1)
        total = first.clone()
        for each in others:  # row by row
            total += each
        codes = total.div_(height * width).div_(self.result.scale).add_(self.result.zero_point)
        return self.result.values_with_zero_point(codes)
