"""Tables sort the operations of a network for quantization: layers, norms, activations, and those that move values.

The regular expressions match the whole name that :func:`.tracing.called` gives an operation.
"""

from __future__ import annotations

import re

from torch import fx, nn

from .tracing import QUANTIZED, called, is_in_place

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Tanhshrink, nn.Softplus),
    *(nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.GLU),
)


EXPECTED = (*QUANTIZED, *NORMS, *ACTIVATIONS, fx.GraphModule)
"""A module of any other class that has parameters of its own computes in floating point."""


# ``called`` gives classes, functions and methods one name: MaxPool2d and max_pool2d agree, as do ReLU and relu.
ACTIVATION = re.compile(f"({'|'.join(activation.__name__.lower() for activation in ACTIVATIONS)})_?")


PRODUCT = re.compile(r"(bi)?linear|conv(transpose)?[123]d|matmul|(add|b|baddb)?mm|einsum|embedding|.*attention.*")


SAME_VALUES = re.compile(  # the result has the values of the first input, possibly with zeros added
    r"identity|\w*dropout[123]?d?|stochasticdepth|(un)?flatten|reshape|view|permute|transpose|(un)?squeeze|expand"
    r"|contiguous|clone|detach|chunk|split|getitem|(adaptive)?maxpool[123]d|pixel(un)?shuffle|\w*pad([123]d)?"
)


ORIGINS = {"placeholder": "network input", "add": "addition", "iadd": "addition", "cat": "concatenation"}
"""Reports give these operations another name; all others keep theirs."""


FLOAT_BY_PROTOCOL = re.compile(  # GDFQ leaves these in floating point; a product may be a squeeze-and-excitation gate
    "network input|addition|concatenation|linear bottleneck|i?mul|mean|.*pool.*|interpolate|upsample.*|.*norm.*"
)


ADDITION, CONCATENATION = re.compile("i?add"), re.compile("cat|concat")


STORED = re.compile(  # an integer engine stores these results, beside those of activations, layers and norms
    rf"placeholder|{ADDITION.pattern}|i?sub|i?mul|{CONCATENATION.pattern}|mean|(adaptive)?avgpool[123]d"
    "|interpolate|upsample.*"
)


SIZES = {"size", "dim", "numel", "getattr"}
"""These calls return sizes, not values."""


TRANSPARENT = {"torch", "_operator", "builtins", "math"}  # a graph shows the functions of these modules as they are


def is_activation(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if the node calls an activation function."""
    return ACTIVATION.fullmatch(called(traced, node)[1]) is not None


def is_addition(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if the node adds one computed value to another."""
    return len(node.all_input_nodes) == 2 and ADDITION.fullmatch(called(traced, node)[1]) is not None


def changes_its_input(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if an activation changes its input in place: later users of that input then see its output."""
    return is_activation(traced, node) and is_in_place(traced, node)
