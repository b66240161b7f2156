"""A network is traced into a graph of calls that computes the same, and from which students are made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import InputError, one_line
from ..shapes import ImageShape
from .calls import QUANTIZED, called
from .pointwise import join_pointwise
from .proxies import line_of_code
from .tracer import Tracer

TOLERANCE = 1e-3
"""A graph computes the same as its network if no logit differs by more than this fraction of the largest."""
WEIGHT_HOOKS: Mapping[type, tuple[str, Callable[[nn.Module, str], nn.Module]]] = {
    WeightNorm: ("name", nn.utils.remove_weight_norm),
    SpectralNorm: ("name", nn.utils.remove_spectral_norm),
    prune.BasePruningMethod: ("_tensor_name", prune.remove),
}
"""Hooks of PyTorch that compute a weight: the attribute that has its name, and what makes it a parameter."""
WITHOUT_GRAPH = "change that code, or take --method gdfq --protocol activations --allow-partial"
"""This remedy is for a network that cannot be traced."""


class DifferentGraphError(InputError):
    """The graph of a network computes something else than the network."""


def trace(network: nn.Module, *, remedy: str, image: ImageShape | None = None) -> fx.GraphModule:
    """Return a copy of ``network`` in eval mode as a graph of calls, none of which changes a value in place.

    Hooks are part of the graph. Weights that are computed from parameters alone are parameters. A subclass of Conv2d,
    Linear or BatchNorm2d with a forward of its own becomes the layer and the calls around it. A graph that this
    function has returned is copied. Logits of half precision become float32.

    image: the shape of one image. Without it, code that asks for sizes cannot be traced, and the result is not compared
        with the network.

    Raises InputError, which ends in ``remedy``, if the network cannot be traced, and DifferentGraphError if the graph
    computes something else.
    """
    if isinstance(network, fx.GraphModule) and network.meta.get("traced"):
        return copy.deepcopy(network)
    detach_computed_weights(network)
    name, twin = name_of(network), copy.deepcopy(network).eval()
    _settle_weights(twin, name)
    like = next(twin.parameters(), torch.empty(0))
    batches = None if image is None else (_noise(2, image, like), _noise(3, image, like))
    tracer = Tracer(batches)
    try:
        with torch.random.fork_rng(devices=[]):
            graph = tracer.trace(twin)
    except Exception as error:  # tracing runs the network's own code on proxies, so any exception may come
        raise InputError(f"{name} cannot be traced ({one_line(error)}{line_of_code(error)}); {remedy}") from error
    for path, layer in tracer.layers.new.items():
        twin.add_module(path, layer)
    for node in graph.nodes:
        if node.meta.get("adds_nothing"):
            node.replace_all_uses_with(node.all_input_nodes[0])
    (output,) = (node for node in graph.nodes if node.op == "output")
    if output.args[0].meta.get("dtype") not in (None, torch.float32, torch.float64):
        with graph.inserting_before(output):
            output.args = (graph.call_method("float", (output.args[0],)),)
    traced = fx.GraphModule(twin, graph, class_name=name)
    traced.graph.eliminate_dead_code()
    used = {str(node.target) for node in traced.graph.nodes if node.op == "get_attr"}
    for path, layer in tracer.layers.replacements.items():
        former = traced.get_submodule(path)
        for child, module in former.named_children():
            layer.add_module(child, module)
        for own, parameter in former.named_parameters(recurse=False):
            if f"{path}.{own}" in used:
                layer.register_parameter(own, parameter)
        traced.set_submodule(path, layer)
    traced = fx.GraphModule(traced, traced.graph, class_name=name)  # without the parameters that went into weights
    _remove_hooks(traced)
    traced.delete_all_unused_submodules()
    join_pointwise(traced)
    traced.meta["traced"] = name
    if batches is not None:
        require_same(network, traced, batches[0])
    return traced


def name_of(network: nn.Module) -> str:
    """Return the class of a network, also of one that :func:`trace` has made a graph of."""
    return str(getattr(network, "meta", {}).get("traced") or type(network).__name__)


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
        f"{name_of(network)} computes something else when it is traced, from {where} on; "
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


def detach_computed_weights(network: nn.Module) -> None:
    """Let the weights that hooks compute anew in each forward pass be copied, although they have a gradient."""
    for module, tensor, _ in _computed_by_hooks(network):
        if tensor in vars(module):
            setattr(module, tensor, getattr(module, tensor).detach())


def _computed_by_hooks(network: nn.Module) -> Iterator[tuple[nn.Module, str, Callable[[nn.Module, str], nn.Module]]]:
    """Yield the tensors that PyTorch's hooks compute: the module, the name, and what makes it a parameter."""
    for module in network.modules():
        for hook in module._forward_pre_hooks.values():
            for kind, (attribute, remove) in WEIGHT_HOOKS.items():
                if isinstance(hook, kind):
                    yield module, getattr(hook, attribute), remove


def _settle_weights(network: nn.Module, name: str) -> None:
    """Make computed weights, as those of ``weight_norm`` and of pruned layers, parameters of their own, in place.

    Raises InputError for weights that a hook computes, unless it is one of PyTorch's.
    """
    for module, tensor, remove in list(_computed_by_hooks(network)):
        remove(module, tensor)
        module._state_dict_hooks.clear()  # those of spectral_norm stay in a copy
        module._load_state_dict_pre_hooks.clear()
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
                "make it one, as torch.nn.utils.prune.remove does"
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
