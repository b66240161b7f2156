"""What the operations of a network are to quantization: layers, norms, activations, and what passes values on."""

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


# Classes, functions and methods meet under one name, see called: MaxPool2d and max_pool2d, ReLU and relu.
ACTIVATION = re.compile(f"({'|'.join(activation.__name__.lower() for activation in ACTIVATIONS)})_?")


PRODUCT = re.compile(r"(bi)?linear|conv(transpose)?[123]d|matmul|(add|b|baddb)?mm|einsum|embedding|.*attention.*")


SAME_VALUES = re.compile(  # the result has the values of the first input, possibly with zeros added
    r"identity|\w*dropout[123]?d?|stochasticdepth|(un)?flatten|reshape|view|permute|transpose|(un)?squeeze|expand"
    r"|contiguous|clone|detach|chunk|split|getitem|(adaptive)?maxpool[123]d|pixel(un)?shuffle|\w*pad([123]d)?"
)


ORIGINS = {"placeholder": "network input", "add": "addition", "iadd": "addition", "cat": "concatenation"}


FLOAT_BY_PROTOCOL = re.compile(  # what GDFQ leaves in floating point; a product may be a squeeze-and-excitation gate
    "network input|addition|concatenation|linear bottleneck|i?mul|mean|.*pool.*|interpolate|upsample.*|.*norm.*"
)


ADDITION, CONCATENATION = re.compile("i?add"), re.compile("cat|concat")


STORED = re.compile(  # what an integer engine keeps, beside activations, layers and normalizations
    rf"placeholder|{ADDITION.pattern}|i?sub|i?mul|{CONCATENATION.pattern}|mean|(adaptive)?avgpool[123]d"
    "|interpolate|upsample.*"
)


SIZES = {"size", "dim", "numel", "getattr"}


TRANSPARENT = {"torch", "_operator", "builtins", "math"}  # modules whose functions fx shows as they are


def is_activation(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node calls an activation function."""
    return ACTIVATION.fullmatch(called(traced, node)[1]) is not None


def is_addition(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node adds one computed value to another."""
    return len(node.all_input_nodes) == 2 and ADDITION.fullmatch(called(traced, node)[1]) is not None


def changes_its_input(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an activation changes its input, so that whoever uses that from here on sees the activation, too."""
    return is_activation(traced, node) and is_in_place(traced, node)
