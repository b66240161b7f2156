"""The layer to blame is found: in the calls of two passes, in a gradient, or in the traceback of an error."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

LARGEST_SAMPLE = 2**14
"""At most so many values of a tensor are kept for a comparison, evenly spaced."""

Read: TypeAlias = Callable[[list[Tensor]], Any]


class Call(NamedTuple):
    """One call of a layer, with what was read of the tensors that it took and of those that it returned."""

    layer: str
    """The path of the layer, such as ``body.1``; the network itself has an empty one."""
    inputs: Any
    outputs: Any


@contextmanager
def recorded_calls(network: nn.Module, before: Read, after: Read) -> Iterator[dict[tuple[str, int], Call]]:
    """Record the calls of all layers inside the block, in the order in which they end, inner ones before outer ones.

    ``before`` reads a layer's inputs, and ``after`` its outputs. Keys are the path and the number of the call. A call
    that raised an error is missing. When the block ends, no hook stays in the network.
    """
    calls: dict[tuple[str, int], Call] = {}
    begun: list[tuple[str, Any]] = []
    counts: Counter[str] = Counter()

    def begin(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        begun.append((path, before(list(_tensors((args, kwargs))))))

    def end(path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        while (entry := begun.pop())[0] != path:  # the network has caught the error of an inner layer
            pass
        calls[path, counts[path]] = Call(path, entry[1], after(list(_tensors(output))))
        counts[path] += 1

    handles: list[Any] = []
    try:
        for path, module in network.named_modules():
            # The layer's own hooks belong to it: ours run before and after them.
            handles.append(module.register_forward_pre_hook(partial(begin, path), prepend=True, with_kwargs=True))
            handles.append(module.register_forward_hook(partial(end, path), with_kwargs=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield all tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))


def described(network: nn.Module, path: str) -> str:
    """Return a layer for a message, as in ``layer body.1 (BatchNorm2d)``; an empty path is the network itself."""
    kind = type(network.get_submodule(path)).__name__
    return f"layer {path} ({kind})" if path else f"the forward of {kind}"


def equal_within(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Return True if no values differ by more than ``tolerance`` times the largest magnitude in ``one``.

    Infinities of one sign, as masks hold them, are equal. The tensors have one shape, else the result is False.
    """
    if one.shape != other.shape or not one.numel():
        return one.shape == other.shape
    gap = (one - other).abs().nan_to_num(nan=0.0, posinf=torch.inf)
    scale = one.nan_to_num(0.0, 0.0, 0.0).abs().max()
    return bool(gap.max() <= tolerance * scale)


def first_difference(network: nn.Module, one: Tensor, other: Tensor, tolerance: float) -> str | None:
    """Return the innermost layer that takes the same of the first image of both batches, and returns another answer.

    one, other: [N, C, H, W] and [M, C, H, W], with the same first image. Inputs count as the same if they differ by
    half the tolerance. Returns None if there is no such layer.
    """
    passes = []
    for images in (one, other):
        read = partial(_samples_of_first, count=len(images))
        with torch.no_grad(), recorded_calls(network, read, read) as calls:
            network(images)
        passes.append(calls)
    for key, call in passes[0].items():
        twin = passes[1].get(key)
        if (
            twin
            and _all_equal(call.inputs, twin.inputs, tolerance / 2)
            and not _all_equal(call.outputs, twin.outputs, tolerance)
        ):
            return call.layer
    return None


def _samples_of_first(tensors: Iterable[Tensor], count: int) -> list[tuple[torch.Size, Tensor]]:
    """Return shape and values, at most LARGEST_SAMPLE, of the part of each tensor that belongs to the first image.

    In a batch of ``count`` images that is the first of ``count`` equal parts along the first dimension.
    """
    samples = []
    for tensor in tensors:
        part = tensor.detach()[: max(1, len(tensor) // count)] if tensor.ndim else tensor.detach()
        real = torch.view_as_real(part.resolve_conj()) if part.is_complex() else part
        flat = real.reshape(-1)
        step = -(-max(1, flat.numel()) // LARGEST_SAMPLE)
        samples.append((part.shape, flat[::step].to(torch.float32, copy=True)))  # it may be changed in place later
    return samples


def _all_equal(one: list[tuple[torch.Size, Tensor]], other: list[tuple[torch.Size, Tensor]], tolerance: float) -> bool:
    return len(one) == len(other) and all(
        shape == other_shape and equal_within(values, other_values, tolerance)
        for (shape, values), (other_shape, other_values) in zip(one, other, strict=True)
    )


def first_not_finite(network: nn.Module, images: Tensor) -> str:
    """Return the innermost layer that takes finite values only and returns others; empty if none is found."""

    def all_finite(tensors: list[Tensor]) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in tensors)

    with torch.no_grad(), recorded_calls(network, all_finite, all_finite) as calls:
        network(images)
    return next((call.layer for call in calls.values() if call.inputs and not call.outputs), "")


def end_of_gradient(network: nn.Module, images: Tensor) -> str:
    """Return the innermost layer that takes values with a gradient and returns values without one.

    images: [N, C, H, W], which require a gradient. The result is empty if none is found but the network itself.
    """

    def enters(tensors: list[Tensor]) -> bool:
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)

    def leaves(tensors: list[Tensor]) -> bool:
        return any(tensor.requires_grad for tensor in tensors)

    with torch.enable_grad(), recorded_calls(network, enters, leaves) as calls:
        network(images)
    return _last_innermost([call.layer for call in calls.values() if call.inputs and not call.outputs])


def end_of_sound_gradient(
    network: nn.Module, images: Tensor, weights: Tensor, is_sound: Callable[[Tensor], bool]
) -> str:
    """Return the innermost layer whose outputs get a sound gradient, and whose inputs get none.

    The gradient is that of the sum of logits [N, K] times ``weights`` [K]. images: [N, C, H, W], which require one.
    """

    def watched(tensors: list[Tensor]) -> list[bool]:
        seen: list[bool] = []
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: seen.append(is_sound(gradient)))
        return seen

    with torch.enable_grad(), recorded_calls(network, watched, watched) as calls:
        logits = network(images)
        torch.autograd.grad((logits * weights).sum(), images, allow_unused=True)
    return _last_innermost([call.layer for call in calls.values() if any(call.outputs) and not any(call.inputs)])


def _last_innermost(layers: list[str]) -> str:
    """Return the last of ``layers`` that contains no other of them; a side branch may end before the main path does."""
    inner = [layer for layer in layers if not any(_contains(layer, other) for other in layers)]
    return inner[-1] if inner else ""


def _contains(layer: str, other: str) -> bool:
    return other.startswith(f"{layer}.") if layer else other != ""


def raising_layer(network: nn.Module, error: BaseException) -> str:
    """Return the innermost layer whose code an error went through, by its traceback; empty for the network itself."""
    paths = {id(module): path for path, module in network.named_modules()}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        found = paths.get(id(frame.f_locals.get("self")), found)
    return found
