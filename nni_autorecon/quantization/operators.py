"""Tables sort the operations of a network for quantization: layers, norms, activations, and those that move values.

The regular expressions match the whole name that :func:`.calls.called` gives an operation.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, fx, nn

from .calls import QUANTIZED, called

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Tanhshrink, nn.Softplus),
    *(nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.GLU),
)
EXPECTED = (*QUANTIZED, *NORMS, *ACTIVATIONS, fx.GraphModule)
"""A module of any other class that has parameters of its own computes in floating point."""


# ``called`` gives classes, functions and methods one name: MaxPool2d and max_pool2d agree, as do ReLU and relu.
ACTIVATION = re.compile(
    "|".join([*(activation.__name__.lower() for activation in ACTIVATIONS), "pointwiseactivation|maximum|minimum"])
)
CLAMP = re.compile("relu6?|hardtanh")
"""These activations only limit values, which the quantizer of their result does anyway, or its codes."""
MATRIX_PRODUCT = re.compile("matmul|b?mm|einsum")
PRODUCT = re.compile(r"(bi)?linear|conv(transpose)?[123]d|matmul|(add|b|baddb)?mm|einsum|embedding|.*attention.*")
CASTS = re.compile("to|type|typeas|float|double|half|bfloat16|cpu|cuda")
"""These calls change the dtype or the device."""
SAME_VALUES = re.compile(  # the result has the values of the first input, possibly with zeros added
    r"identity|\w*dropout[123]?d?|stochasticdepth|(un)?flatten|ravel|reshape(as)?|view(as)?|permute|t|transpose"
    r"|swap(axes|dims)|move(dim|axis)|(un)?squeeze|expand(as)?|broadcastto|repeat(interleave)?|tile|contiguous|clone|detach"
    rf"|{CASTS.pattern}|chunk|(tensor|[hvd])?split|splitwithsizes|unbind|getitem|narrow|select|indexselect|take|gather"
    r"|flip|flip(lr|ud)|roll|rot90|unfold|(adaptive)?maxpool[123]d(withindices)?|a?(max|min)|median|topk|sort|channelshuffle"
    r"|pixel(un)?shuffle|\w*pad([123]d)?"
)
KEEPS_ORDER = re.compile(
    rf"identity|\w*dropout[123]?d?|(un)?flatten|reshape(as)?|view(as)?|permute|transpose|contiguous|{CASTS.pattern}"
    "|(adaptive)?maxpool[12]d|channelshuffle|pixel(un)?shuffle"
)
"""What limits values commutes with these: they only rearrange values, or take the largest of several."""
SCALING = re.compile("add|r?sub|subtract|mul|multiply|div|divide|truediv|truedivide|neg|pos")
"""These functions of one value and of numbers are linear, and so no activations by themselves."""
BENDING = re.compile("clamp(min|max)?|clip|minimum|maximum|abs")
"""These functions of one value and of numbers are activations, although no module has their names."""
PAD = re.compile(r"\w*pad([123]d)?")
CONSTANT_PADS = (nn.modules.padding._ConstantPadNd, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)
ORIGINS = {
    "placeholder": "network input",
    "add": "addition",
    **dict.fromkeys(("cat", "concat", "stack", "setitem"), "concatenation"),
}
"""Reports give these operations another name; all others keep theirs."""
DIVISOR = "divisor"
"""Reports give this name to what is divided by, and to what enters a root or a logarithm."""
FLOAT_BY_PROTOCOL = re.compile(  # GDFQ leaves these in floating point; a product may be a squeeze-and-excitation gate
    "network input|addition|concatenation|linear bottleneck|mean|sum|.*pool.*|interpolate|upsample.*|.*norm.*"
    rf"|.*pad([123]d)?|{SCALING.pattern}|{MATRIX_PRODUCT.pattern}"
)
ADDITION, CONCATENATION = re.compile("add"), re.compile("cat|concat|stack|setitem")
STORED = re.compile(  # an integer engine stores these results, beside those of activations, layers and norms
    rf"placeholder|{SCALING.pattern}|{CONCATENATION.pattern}|{MATRIX_PRODUCT.pattern}|mean|sum|softmax"
    "|(adaptive)?avgpool[123]d|interpolate|upsample.*"
)
PREPARING = re.compile("|".join(each.pattern for each in (SCALING, BENDING, SAME_VALUES, CONCATENATION)))
"""These operations standardize or rearrange the images before the first layer; they stay what they are."""
SIZES = {"size", "dim", "numel", "getattr"}
"""These calls return sizes, not values."""
CONSTANT = re.compile("(new)?(zeros|ones|full|empty)(like)?")
"""The results of these calls are constants, whatever the images are."""
TRANSPARENT = {
    "torch",
    "_operator",
    "builtins",
    "math",
    "nni_autorecon",
}  # a graph shows the functions of these modules as they are


def is_real(node: fx.Node) -> bool:
    """Return False for a node that is known to compute no real numbers, but a mask, indices or complex numbers."""
    dtype = node.meta.get("dtype")
    return dtype is None or bool(dtype.is_floating_point)


def is_activation(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if the node calls an activation function."""
    return ACTIVATION.fullmatch(called(traced, node)[1]) is not None


def is_addition(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if the node adds one computed value to another."""
    return len(node.all_input_nodes) == 2 and ADDITION.fullmatch(called(traced, node)[1]) is not None


def is_product(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if the node multiplies computed values as matrices, as attention does."""
    factors = len(node.all_input_nodes) > 1 and all(each.op != "get_attr" for each in node.all_input_nodes)
    return factors and MATRIX_PRODUCT.fullmatch(called(traced, node)[1]) is not None


def source_of(traced: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return the node that computed the values of ``node``: it goes back through operations that only move values."""
    while moves_values(traced, node):
        node = node.all_input_nodes[0]
    return node


def moves_values(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if the node's result has the values of its first input, possibly with zeros added."""
    return SAME_VALUES.fullmatch(called(traced, node)[1]) is not None and not pads_other_values(traced, node)


def pads_other_values(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if the node pads with a constant other than 0, which need not be among the values of its input."""
    _, mode, value = padding(traced, node) or ((), "", 0)
    return mode == "constant" and value != 0


def padding(traced: fx.GraphModule, node: fx.Node) -> tuple[Any, ...]:
    """Return how a node pads: the numbers at each side, the mode, and the constant; () if it does not."""
    module, kind = called(traced, node)
    if not PAD.fullmatch(kind):
        return ()
    if module is not None:
        mode = "constant" if isinstance(module, CONSTANT_PADS) else kind
        return module.padding, mode, getattr(module, "value", None) or 0
    given = dict(zip(("pad", "mode", "value"), node.args[1:], strict=False)) | node.kwargs
    return given.get("pad"), given.get("mode", "constant"), given.get("value") or 0


def averaged_axes(traced: fx.GraphModule, node: fx.Node) -> tuple[tuple[int, ...], bool] | None:
    """Return the axes over which a node takes the mean, and True if the result keeps them; None for other nodes."""
    module, kind = called(traced, node)
    if kind == "mean" and "dtype" not in node.kwargs:
        given = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | node.kwargs
        axes: Any = given.get("dim", given.get("axis"))
        axes = (axes,) if isinstance(axes, int) else axes
        known = isinstance(axes, (tuple, list)) and all(type(axis) is int for axis in axes)
        return (tuple(axes), bool(given.get("keepdim", given.get("keepdims", False)))) if known else None
    if kind == "adaptiveavgpool2d":
        given = dict(zip(("output_size",), node.args[1:], strict=False)) | node.kwargs
        size = given["output_size"] if module is None else module.output_size
        return ((-2, -1), True) if size in (1, (1, 1), [1, 1]) else None
    return None


POOLING = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
"""The arguments of an average pooling, in the order of the function's."""


def pooled_windows(traced: fx.GraphModule, node: fx.Node) -> tuple[Any, Any] | None:
    """Return kernel and stride of an average pooling of maps without padding, as they are given; None for other nodes.

    Each is a number or two, or a node, where code computes it from the size of the maps.
    """
    module, kind = called(traced, node)
    if kind != "avgpool2d":
        return None
    if module is not None:
        given = {name: getattr(module, name) for name in POOLING}
    else:
        given = dict(zip(POOLING, node.args[1:], strict=False)) | node.kwargs
    if any(given.get(name) not in (None, 0, (0, 0), [0, 0], False) for name in ("padding", "ceil_mode", POOLING[-1])):
        return None
    return given["kernel_size"], given.get("stride") or given["kernel_size"]


def is_spatial(axes: tuple[int, ...], maps: Tensor) -> bool:
    """Return True if the axes are all of maps [N, C, ...] but the first two."""
    return maps.ndim > 2 and sorted(axis % maps.ndim for axis in axes) == [*range(2, maps.ndim)]


Lengths = int | list[int] | tuple[int, ...]
"""The height and the width of a window, or one number for both."""


def sides(lengths: Lengths) -> tuple[int, int]:
    """Return the height and the width of a window that is given by one number or two."""
    return (lengths, lengths) if isinstance(lengths, int) else (lengths[0], lengths[-1])
