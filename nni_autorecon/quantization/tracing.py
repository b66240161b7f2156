"""A network is traced into a graph of calls that computes the same, and from which students are made."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ..errors import InputError, one_line
from ..shapes import ImageShape
from .calls import QUANTIZED, called
from .pointwise import join_pointwise
from .tracer import Tracer

TOLERANCE = 1e-3
"""A graph computes the same as its network if no logit differs by more than this fraction of the largest."""


class DifferentGraphError(InputError):
    """The graph of a network computes something else than the network."""


def trace(network: nn.Module, *, remedy: str, image: ImageShape | None = None) -> fx.GraphModule:
    """Return a copy of ``network`` in eval mode as a graph of calls, none of which changes a value in place.

    Hooks are part of the graph. Weights that are computed from parameters alone are parameters. A subclass of Conv2d,
    Linear or BatchNorm2d with a forward of its own becomes the layer and the calls around it. A graph that this
    function has returned is copied.

    image: the shape of one image. Without it, code that asks for sizes cannot be traced, and the result is not compared
        with the network.

    Raises InputError, which ends in ``remedy``, if the network cannot be traced, and DifferentGraphError if the graph
    computes something else.
    """
    if isinstance(network, fx.GraphModule) and network.meta.get("traced"):
        return copy.deepcopy(network)
    name, twin = type(network).__name__, copy.deepcopy(network).eval()
    _settle_weights(twin, name)
    like = next(twin.parameters(), torch.empty(0))
    batches = None if image is None else (_noise(2, image, like), _noise(3, image, like))
    tracer = Tracer(batches)
    try:
        with torch.random.fork_rng(devices=[]):
            graph = tracer.trace(twin)
    except Exception as error:  # tracing runs the network's own code on proxies, so any exception may come
        raise InputError(f"{name} cannot be traced ({one_line(error)}); {remedy}") from error
    traced = fx.GraphModule(twin, graph, class_name=name)
    traced.graph.eliminate_dead_code()
    for path, layer in tracer.replacements.items():
        for child, module in traced.get_submodule(path).named_children():
            layer.add_module(child, module)
        traced.set_submodule(path, layer)
    _remove_hooks(traced)
    traced.delete_all_unused_submodules()
    join_pointwise(traced)
    traced.meta["traced"] = True
    if batches is not None:
        require_same(network, traced, batches[0])
    return traced


@torch.no_grad()
def require_same(network: nn.Module, other: nn.Module, images: Tensor) -> None:
    """Raise DifferentGraphError unless two networks, in eval mode, give equal logits for images [N, C, H, W].

    Rounding may differ. The error names the first layer whose output differs.
    """
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            if _is_close(network(images.clone()), other(images.clone())):
                return
            where = next(_differing_layers(network, other, images), "what follows the last layer")
    finally:
        for module in training:
            module.training = True
    raise DifferentGraphError(
        f"{type(network).__name__} computes something else when it is traced, from {where} on; "
        "write what it does there in its forward"
    )


def _is_close(expected: Tensor, found: Tensor) -> bool:
    """Return True if two tensors are equal but for rounding."""
    if expected.shape != found.shape:
        return False
    largest = expected.abs().amax().clamp(min=torch.finfo(expected.dtype).tiny)
    return bool(((expected - found).abs().amax() <= TOLERANCE * largest) | expected.isnan().any())


def _differing_layers(network: nn.Module, other: nn.Module, images: Tensor) -> Iterator[str]:
    """Yield the paths of the layers with another output in ``other`` than in ``network``, in order of their calls."""
    outputs: list[dict[str, Tensor]] = []
    for each in (network, other):
        seen: dict[str, Tensor] = {}

        def keep(path: str, output: object, seen: dict[str, Tensor] = seen) -> None:
            if isinstance(output, Tensor):
                seen.setdefault(path, output.detach().clone())

        handles = [
            module.register_forward_hook(lambda _, inputs, output, path=path: keep(path, output))
            for path, module in each.named_modules()
            if path
        ]
        try:
            each(images.clone())
        finally:
            for handle in handles:
                handle.remove()
        outputs.append(seen)
    expected, found = outputs
    yield from (path for path in found if path in expected and not _is_close(expected[path], found[path]))


def _settle_weights(network: nn.Module, name: str) -> None:
    """Make parametrized weights, as those of ``weight_norm``, parameters of their own, in place.

    Raises InputError for weights that a hook computes, as those of ``spectral_norm``.
    """
    for path, module in list(network.named_modules()):
        if parametrize.is_parametrized(module):  # remove_parametrizations would change the class of the original, too
            weights = {tensor: getattr(module, tensor).detach().clone() for tensor in module.parametrizations}
            module.__class__ = type(module).__mro__[1]
            del module.parametrizations
            for tensor, weight in weights.items():
                module.register_parameter(tensor, nn.Parameter(weight))
        if isinstance(module, QUANTIZED) and "weight" not in module._parameters:
            raise InputError(
                f"{name}: the weight of {path} is no parameter of its own; "
                "make it one, as torch.nn.utils.remove_weight_norm and remove_spectral_norm do"
            )


def _remove_hooks(traced: fx.GraphModule) -> None:
    """Remove the hooks of the layers that a graph calls, because they are part of the graph, in place."""
    for node in traced.graph.nodes:
        module = called(traced, node)[0]
        if module is not None:
            for hooks in ("_forward_hooks", "_forward_pre_hooks"):
                getattr(module, hooks).clear()


def _noise(count: int, image: ImageShape, like: Tensor) -> Tensor:
    """Return ``count`` images of noise, [count, C, H, W], the same at each call, of the type and device of ``like``."""
    return torch.randn(count, *image, generator=torch.Generator().manual_seed(count)).to(like)
