"""A network is examined before anything is trained or written: its weights, its answers and their gradient."""

from __future__ import annotations

import itertools
import logging
import math
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import InputError, named
from ..quantization.tracing import detach_computed_weights
from ..shapes import ImageShape
from .factories import unwrap_parts
from .hooks import copied_with_hooks, let_hooks_be_copied
from .locating import (
    described,
    end_of_gradient,
    end_of_sound_gradient,
    equal_within,
    first_difference,
    first_not_finite,
    raising_layer,
)

BATCH = 4
"""The network is asked for one image alone, and for so many at once."""
REPEATS = 16
"""A network that draws random numbers is asked so often whether its answer depends on them."""

_log = logging.getLogger(__name__)


def copied(network: nn.Module, name: str) -> nn.Module:
    """Return a deep copy. Raises InputError if the network cannot be copied, as when it keeps results of a pass."""
    detach_computed_weights(network)
    try:
        twin = copied_with_hooks(network)
        if not network.training:
            twin.eval()  # a copy of torchvision's extracted features is in training mode
        return twin
    except Exception as error:  # the person's code may raise anything
        raise InputError(
            f"teacher {name} cannot be copied: {named(error)}; let it keep no results of a forward pass, and no files, "
            "locks or TorchScript"
        ) from error


def frozen(network: nn.Module, device: torch.device | None, name: str) -> nn.Module:
    """Freeze ``network`` in eval mode, in float32 and on ``device`` (None: where it is), in place, and return it.

    A warning names other dtypes. Raises InputError if it has no parameters, or if weights are missing or not sound.
    """
    for path, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"teacher {name}: layer {path}" if path else f"teacher {name}"
            raise InputError(
                f"{where} is TorchScript, which cannot be quantized; give it in Python, without jit.script"
            )
    tensors = dict(itertools.chain(network.named_parameters(), network.named_buffers()))
    if not any(True for _ in network.parameters()):
        raise InputError(f"teacher {name} has no parameters, so there is nothing to quantize; give a trained network")
    for key, tensor in tensors.items():
        if is_lazy(tensor):
            raise InputError(f"teacher {name}: {key} has no shape yet; give the network after a first forward pass")
        if tensor.is_meta:
            raise InputError(f"teacher {name}: {key} is on the meta device, without values; build the network on a CPU")
    unwrap_parts(network).requires_grad_(False)
    let_hooks_be_copied(network)
    _evaluate(network, name)
    others = {key: _dtype(t) for key, t in tensors.items() if t.is_floating_point() and t.dtype != torch.float32}
    if others:
        kinds = " and ".join(dict.fromkeys(others.values()))
        first, *more = others
        named_tensors = f"{first} and {len(more)} more" if more else first
        _log.warning("teacher %s is converted to float32 from %s (%s)", name, kinds, named_tensors)
    network.float().to(device)
    _require_sound_weights(network, name)
    return network


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _evaluate(network: nn.Module, name: str) -> None:
    """Put ``network`` into eval mode. Raises InputError if its own eval() or train() keeps a layer from it."""
    nn.Module.train(network, False)
    answered = network.eval()  # its own may do something else, and copies of it will be asked again
    asked = answered if isinstance(answered, nn.Module) else network  # a function set on a copy may know the original
    if stubborn := [path for path, module in asked.named_modules() if module.training]:
        where = described(asked, stubborn[0]) if stubborn[0] else "it"
        raise InputError(
            f"teacher {name}: {where} stays in training mode after eval(); leave out what overrides eval() or train()"
        )
    if answered is not network:
        raise InputError(f"teacher {name}: its eval() does not return the network itself; leave out what overrides it")


def _require_sound_weights(network: nn.Module, name: str) -> None:
    """Raise InputError if a tensor holds NaN or infinity, or a norm a negative variance; it names the tensor.

    A buffer may hold -inf, as attention masks do, unless it is a statistic of a norm.
    """
    parameters = {key for key, _ in network.named_parameters()}
    for key, tensor in itertools.chain(network.named_parameters(), network.named_buffers()):
        is_statistic = key.rpartition(".")[2] in ("running_mean", "running_var")
        values = tensor if key in parameters or is_statistic else tensor[tensor != -math.inf]
        if not _is_finite(values):
            kind = "NaN" if values.isnan().any() else "infinity"
            raise InputError(f"teacher {name}: {key} holds {kind}; {_SOUND}")
        if key.rpartition(".")[2] == "running_var" and (tensor < 0).any():
            raise InputError(f"teacher {name}: {key} holds a negative variance ({tensor.min():.3g}); {_SOUND}")


def _is_finite(values: Tensor) -> bool:
    """Return True if no value is NaN or infinite; the extremes tell, in a fraction of the time for large tensors."""
    if values.is_complex() or not values.numel():
        return bool(values.isfinite().all())
    return bool(torch.stack(values.aminmax()).isfinite().all())


_SOUND = "give sound weights, such as a checkpoint saved in float32"


@contextmanager
def images_to_try(count: int, image: ImageShape, device: torch.device, whose: str) -> Iterator[Tensor]:
    """Yield images [count, C, H, W] for the network that ``whose`` names.

    They are noise of different brightness, the same in every call. Their values go from -10 to 10, as far as those of
    any normalized image. Raises InputError at the end if the network has changed them.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.stack([torch.rand(*image, generator=generator) for _ in range(count)]) * 2 - 1  # [N, C, H, W]
    brightness = 2 * torch.arange(0.0, 2 * count, 2).cos().view(-1, 1, 1, 1)  # between -2 and 2
    images = (8 * noise**3 + brightness).to(device)
    given = images.clone()
    yield given
    if not torch.equal(images, given):
        raise InputError(
            f"{whose} changes its images in place, and others use them, too; change a copy, as in "
            "x = (x - mean) / std, or leave out inplace=True"
        )


def failure(network: nn.Module, name: str, when: str, error: Exception, remedy: str) -> InputError:
    """Return the one line for an ``error`` of the network's forward; it names the layer, and a dtype to which it casts.

    ``when`` continues "teacher NAME fails", as in "on a 3×32×32 image".
    """
    where = described(network, raising_layer(network, error))
    casts = re.search(r"(?i)type.*\b(bfloat16|half|float16|double|float64)", str(error))
    if casts:
        kind = {"half": "float16", "double": "float64"}.get(casts[1].lower(), casts[1].lower())
        remedy = f"images and weights are float32 here; take the cast to or from {kind} out of its code"
    reason = named(error).partition(" Hint:")[0].rstrip(".")
    return InputError(f"teacher {name} fails {when}, in {where}: {reason}; {remedy}")


def require_logits(network: nn.Module, images: Tensor, logits: object, name: str, *, count: int) -> Tensor:
    """Return ``logits`` of ``count`` = N images [N, C, H, W], if nothing has changed them in place meanwhile.

    Raises InputError unless they are [N, K], K > 1, and finite.
    """
    asked, form = ("one image", "[1, classes]") if count == 1 else (f"{count} images", f"[{count}, classes]")
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != count or logits.shape[1] < 2:
        got = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        rest = "" if count == 1 else ", for any number of images"
        if not isinstance(logits, Tensor):
            rest += ", alone or as a field called logits"
        elif logits.shape == (count, 1):
            rest += "; for two classes let it return torch.cat([0 * x, x], 1) of its one logit x"
        raise InputError(f"teacher {name} returns {got} for {asked}; it must return logits {form}{rest}")
    if not logits.is_floating_point():
        raise InputError(f"teacher {name} returns {_dtype(logits)} for {asked}; it must return logits, not decisions")
    if not logits.isfinite().all():
        where = described(network, first_not_finite(network, images))
        raise InputError(
            f"teacher {name} returns NaN or infinity for an image, which begins in {where}; its weights are damaged"
        )
    return logits


def examine(network: nn.Module, image: ImageShape, logits: Tensor, name: str) -> None:
    """Examine a frozen network, whose answer to the first of ``images_to_try`` is ``logits`` [1, K].

    Raises InputError if it answers the same image differently each time, does not take a batch, or gives no gradient to
    its images. Warns if an answer depends on the other images in the batch.
    """
    device = logits.device
    exact, rounding = (1e-5, 1e-3) if device.type == "cpu" else (1e-3, 2e-2)  # a GPU may multiply in TF32
    with torch.no_grad(), images_to_try(BATCH, image, device, f"teacher {name}") as images:
        one = images[:1]
        if _varies(network, one, logits, exact):
            found = (first_difference(network, one, one, exact) for _ in range(REPEATS))
            where = described(network, next((layer for layer in found if layer is not None), ""))
            raise InputError(
                f"teacher {name} answers the same image differently each time, from {where} on; let it keep no "
                "state, and draw in training only, as in F.dropout(x, training=self.training)"
            )
        in_batch = _answer_with_gradient(network, images, name)  # [N, K]
        if not equal_within(logits, in_batch[:1], rounding):
            where = described(network, first_difference(network, one, images, rounding) or "")
            _log.warning(
                "teacher %s answers an image differently alone than in a batch, from %s on; "
                "its accuracy and its students depend on the batch size",
                name,
                where,
            )


def _varies(network: nn.Module, one: Tensor, logits: Tensor, tolerance: float) -> bool:
    """Return True if the network does not answer ``logits`` [1, K] again. Rare draws, as for a skipped layer, count."""
    before = _random_states(one.device)
    if not equal_within(logits, network(one), tolerance):
        return True
    draws = _random_states(one.device) != before
    return draws and not all(equal_within(logits, network(one), tolerance) for _ in range(REPEATS))


def _random_states(device: torch.device) -> tuple[object, ...]:
    """Return the states of the generators from which a network may draw."""
    gpu = torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else None
    own = np.random.get_state(legacy=False)["state"]
    return torch.get_rng_state().tolist(), gpu, random.getstate(), own["pos"], own["key"].tolist()


def _answer_with_gradient(network: nn.Module, images: Tensor, name: str) -> Tensor:
    """Return the logits [N, K] of a batch. Raises InputError if it fails or gives no gradient to its images.

    A copy is asked, for the network may keep a part of the graph, and could not be copied afterwards.
    """
    twin = copied(network, name)
    leaf = images.clone().requires_grad_()
    with torch.enable_grad():
        try:
            answer = twin(leaf.clone())  # images of a generator are no leaves, either
        except Exception as error:  # the person's code may raise anything
            raise _failure_on_batch(network, twin, images, name, error) from error
        logits = require_logits(network, images, answer, name, count=BATCH)
        # A softmax sums to 1, whatever it takes, over classes or over images.
        weights = torch.linspace(-1, 2, logits.numel(), device=logits.device).square().view_as(logits)
        _require_gradient(twin, leaf, logits, weights, name)
    return logits.detach()


def _failure_on_batch(network: nn.Module, twin: nn.Module, images: Tensor, name: str, error: Exception) -> InputError:
    """Return the one line for a batch that ``twin`` did not take with a gradient: is it the batch, or the gradient?"""
    count = len(images)
    try:
        network(images)
    except Exception as of_batch:  # the person's code may raise anything
        when = f"on {count} images, though it takes one"
        return failure(network, name, when, of_batch, "let it take [N, C, H, W] with any number N of images")
    return failure(twin, name, "where its images need a gradient", error, _DIFFERENTIABLE)


_DIFFERENTIABLE = "leave out detach(), .data, numpy(), no_grad, rounding and in-place operations there"


def _require_gradient(twin: nn.Module, leaf: Tensor, logits: Tensor, weights: Tensor, name: str) -> None:
    """Raise InputError if no gradient of ``logits`` [N, K], by these weights, comes back to the images ``leaf``."""
    if not logits.requires_grad:
        raise _no_gradient(name, described(twin, end_of_gradient(twin, leaf.clone())))
    try:
        (logits * weights).sum().backward()  # autograd.grad would not do for a part that is computed again
        gradient = leaf.grad
    except Exception as error:  # an operation may have no derivative, or the person's own may raise anything
        raise failure(twin, name, "where its images need a gradient", error, _DIFFERENTIABLE) from error
    # Where all answers are the same, as of weights that are 0, a gradient of 0 is right.
    if gradient is None or (not gradient.any() and (logits != logits[0]).any()):
        end = end_of_sound_gradient(twin, leaf.clone(), weights, lambda gradient: bool(gradient.any()))
        raise _no_gradient(name, described(twin, end))
    if not gradient.isfinite().all():
        end = end_of_sound_gradient(twin, leaf.clone(), weights, lambda gradient: bool(gradient.isfinite().all()))
        raise InputError(
            f"teacher {name} gives NaN or infinity as the gradient of its images, from {described(twin, end)} on; "
            "keep its code from the root, the logarithm and the quotient of 0"
        )


def _no_gradient(name: str, where: str) -> InputError:
    return InputError(f"teacher {name} gives no gradient to its images: it ends in {where}; {_DIFFERENTIABLE}")
