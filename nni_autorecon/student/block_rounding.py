"""A block's weights are rounded together, and its biases corrected for what that does to the mean of real inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..quantization.calls import BATCHNORMS, called
from ..quantization.equalization import add_to_bias, constant_response
from ..quantization.integers import quantized_layers
from ..quantization.rounding import MOST_COLUMNS, SAMPLES_PER_COLUMN, columns, round_together
from .block_features import outputs


@torch.no_grad()
def round_block(block: fx.GraphModule, inputs: Tensor, means: Mapping[nn.Module, Tensor]) -> None:
    """Round the weights of each layer together, in the order of execution, and correct the layer's bias.

    So each layer makes up for what the rounding of those before it has done to its inputs.

    inputs: [N, ...]; means: the mean of each channel of a layer's input over real images, [C], where it is known.
    """
    known: set[nn.Parameter] = set()
    for node, layer in _layers(block):
        parametrization: Any = layer.parametrizations
        weight, quantizer = parametrization.weight.original, parametrization.weight[0]
        if weight in known:  # layers may share it
            continue
        known.add(weight)
        exact = weight.detach().clone()
        if weight[0].numel() <= MOST_COLUMNS:
            products = _products(block, layer, inputs)
            if not products.isfinite().all():
                return  # so will be the block's error, which ends the run
            groups = len(products)
            scale, zero_point = (value.view(groups, -1) for value in quantizer.qparams(weight))
            rounded = round_together(
                weight.reshape(groups, len(weight) // groups, -1),
                products,
                scale=scale,
                zero_point=zero_point,
                largest_code=quantizer.largest_code,
            )
            weight.copy_(rounded.view_as(weight))
        if layer in means:
            error = constant_response(layer.weight - exact, means[layer].to(exact))
            _shift(block, node, layer, -error)


def _layers(block: fx.GraphModule) -> Iterator[tuple[fx.Node, nn.Module]]:
    """Yield the first call of each layer with a quantized weight, in the order of execution."""
    quantized = dict.fromkeys(layer for _, layer in quantized_layers(block))
    for node in block.graph.nodes:
        layer = called(block, node)[0]
        if layer is not None and layer in quantized:
            del quantized[layer]
            yield node, layer


def _products(block: fx.GraphModule, layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return the products of the columns of a layer's inputs with each other, [groups, columns, columns]."""
    weight: Tensor = layer.parametrizations.weight.original  # type: ignore[union-attr, assignment]
    samples = -(-SAMPLES_PER_COLUMN * weight[0].numel() // len(inputs))  # of an image
    generator = torch.Generator().manual_seed(0)
    products: Tensor | None = None

    def add(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal products
        found = columns(layer, given[0], most=samples * len(given[0]), generator=generator)  # type: ignore[arg-type]
        own = found.transpose(1, 2) @ found
        products = own if products is None else products + own

    hook = layer.register_forward_pre_hook(add)
    try:
        outputs(block, inputs)
    finally:
        hook.remove()
    assert products is not None
    return products


def _shift(block: fx.GraphModule, node: fx.Node, layer: nn.Module, change: Tensor) -> None:
    """Add ``change`` [out] to what a layer gives, in its bias or in the mean that the norm after it subtracts."""
    following = called(block, next(iter(node.users)))[0] if len(node.users) == 1 else None
    if isinstance(following, BATCHNORMS) and following.running_mean is not None:
        following.running_mean -= change
    elif layer.bias is not None:
        add_to_bias(layer, change)
