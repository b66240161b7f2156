"""The student learns block by block: each block is fitted to the teacher's on a fixed set of images.

The idea is BRECQ's (Li et al., ICLR 2021), the mixed inputs are QDrop's (Wei et al., ICLR 2022), and that synthetic
images are enough is GENIE's (Jeon et al., CVPR 2023). Those learn which way each weight is rounded. Here a block's
weights are first rounded together (GPTQ), and its biases corrected for what that does to the mean of real inputs, which
BatchNorms remember (DFQ). Then the weights themselves learn, with the straight-through gradient.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ..config.common import SCHEDULES
from ..errors import DivergenceError, InputError
from ..quantization.blocks import blocks
from ..quantization.calls import BATCHNORMS
from ..quantization.integers import quantized_layers
from ..quantization.quantizers import ActivationQuantizer, in_floating_point, learn_ranges, observe_ranges
from .block_features import Coins, at_once, outputs, picked
from .block_rounding import round_block

TOLERANCE = 1.1
"""A rounded block may have an error larger by this factor, as biases are corrected for real images, not for these."""


class Rates(NamedTuple):
    """Learning rates of Adam, each in a unit of the network's own, so that they hold for any network."""

    weights: float = 0.02
    """The rate of a weight, in steps of its quantization."""
    outputs: float = 1e-3
    """The rate of a bias and of a norm's parameters, in standard deviations of the layer's output, where nothing
    corrects them: learned on synthetic images, they lose what the correction by statistics of real ones has gained."""
    weight_scales: float = 1e-3
    """The rate of the logarithm of a weight's scale."""
    activation_scales: float = 3e-3
    """The rate of the logarithm of an activation's scale."""


class BlockError(NamedTuple):
    """The mean squared error of a block's output over the mean square of the teacher's, before and after learning."""

    before: float
    after: float


class Reconstruction:
    """The blocks of a quantized student, and those of the same network in floating point, its teacher.

    student: a graph with quantizers, as ``quantize_network`` makes it of the teacher. Its blocks learn in place, in
        order, from ``begin`` on, when the ranges of its activations must be set.
    means: the mean of each channel of a layer's input over real images, [C], by the layer's path, where it is known.
    Raises InputError if the student is no graph.
    """

    def __init__(self, student: nn.Module, means: Mapping[str, Tensor] | None = None) -> None:
        if not isinstance(student, fx.GraphModule):
            raise InputError("a network that cannot be traced has no blocks to reconstruct; choose method gdfq")
        learn_scales(student)
        self._means = {student.get_submodule(path): mean for path, mean in (means or {}).items()}
        self.blocks = blocks(student)
        self._teacher = copy.deepcopy(student)
        self._teacher_blocks = blocks(self._teacher)
        self._features: Tensor | None = None

    @property
    def has_begun(self) -> bool:
        """Return True once there are images."""
        return self._features is not None

    def images_within(self, memory: int, image: Tensor) -> int:
        """Return for how many images, at least 2, features fit into ``memory`` bytes. image: any one, [1, C, H, W]."""
        sizes = [image.nbytes]
        for block in self._teacher_blocks:
            with in_floating_point(self._teacher):
                image = outputs(block, image)
            sizes.append(image.nbytes)
        largest = max(2 * (before + after) for before, after in itertools.pairwise(sizes))
        return max(memory // largest, 2)

    def block_seconds(self, images: Tensor) -> list[float]:
        """Return how long each block takes for ``images`` [N, C, H, W] in floating point, in seconds.

        Multiply-accumulates would not tell: the first blocks of a network have few for the memory that they go through.
        """
        found = []
        for block in self._teacher_blocks:
            spent, features = [], images
            for _ in range(2):  # the first one is slow
                started = time.perf_counter()
                with in_floating_point(self._teacher):
                    images = outputs(block, features)
                images.flatten()[-1].item()  # a GPU is waited for
                spent.append(time.perf_counter() - started)
            found.append(min(spent))
        return found

    def begin(self, images: Tensor, *, learned: int = 0) -> None:
        """Take the images [N, C, H, W] that the student sees; go past ``learned`` blocks that have learned before."""
        self._features = self._teacher_features = images
        for index in range(learned):
            self._features = outputs(self.blocks[index], self._features)
            self._teacher_features = self._target(index)

    def _target(self, index: int) -> Tensor:
        with in_floating_point(self._teacher):
            return outputs(self._teacher_blocks[index], self._teacher_features)

    def learn(
        self,
        index: int,
        *,
        steps: int,
        batch_size: int,
        rates: Rates,
        seed: int,
        on_step: Callable[[], object] = lambda: None,
    ) -> BlockError:
        """Round block ``index``, the next one, let it learn for ``steps`` batches, and return its errors.

        The ranges of its activations are first tracked anew, over what the blocks before it, which have learned, give.
        Each element of a batch comes from the teacher's features or from the student's, by a coin (QDrop). A block that
        is no better afterwards is put back, as it was or as it was rounded. Raises DivergenceError if its output is not
        finite.
        """
        if self._features is None:
            raise RuntimeError("the reconstruction has no images yet; call begin first")
        block, inputs, target = self.blocks[index], self._features, self._target(index)
        best = _Best(block, inputs, target)
        before = best.error
        if not math.isfinite(before):
            raise DivergenceError(
                f"block {index + 1} of the student returns values that are not finite; check the teacher"
            )
        _track_ranges(block, inputs.split(batch_size))
        best.settle()
        round_block(block, inputs, self._means)
        best.settle(TOLERANCE)

        rates = rates._replace(outputs=0.0) if self._means else rates
        optimizer = torch.optim.Adam(_groups(block, inputs[:batch_size], rates))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: SCHEDULES["cosine"](k / max(steps, 1)))
        random = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(random[0] >> 1))
        coins = Coins(inputs[:1], generator)
        parts = best.together if inputs.device.type == "cpu" else batch_size
        for _ in range(steps):
            chosen = torch.randint(len(target), (batch_size,), generator=generator)
            optimizer.zero_grad()
            for these in chosen.split(parts):  # gradients are summed over parts of a batch
                mixed = coins.mix(picked(inputs, these), picked(self._teacher_features, these))
                loss = F.mse_loss(block(mixed), picked(target, these)) / best.power
                (loss * (len(these) / batch_size)).backward()
            optimizer.step()
            schedule.step()
            on_step()
        if steps:
            best.settle()
        self._features, self._teacher_features = outputs(block, inputs), target
        return BlockError(before, best.error)


def learn_scales(student: nn.Module) -> None:
    """Let the scales of all weights and the ranges of all activations be trained from now on."""
    for _, layer in quantized_layers(student):
        layer.parametrizations.weight[0].learn_scale(layer.parametrizations.weight.original)
    learn_ranges(student)


class _Best:
    """The state of a block with the least error so far, which is in the block after :meth:`settle`.

    inputs, target: what the block is given and what it is to return, [N, ...].
    """

    def __init__(self, block: nn.Module, inputs: Tensor, target: Tensor) -> None:
        self._block, self._inputs, self._target = block, inputs, target
        self.together = at_once(block, inputs)
        mean_square = torch.linalg.vector_norm(target).square() / target.numel()
        self.power = mean_square.clamp(min=torch.finfo(target.dtype).tiny)
        self.error = self._error()
        self._state = copy.deepcopy(block.state_dict())

    def settle(self, tolerance: float = 1.0) -> None:
        """Keep the present state if its error is below ``tolerance`` times the least; else put the best one back."""
        if (now := self._error()) < tolerance * self.error:
            self.error, self._state = now, copy.deepcopy(self._block.state_dict())
        else:
            self._block.load_state_dict(self._state)

    @torch.no_grad()
    @parametrize.cached()
    def _error(self) -> float:
        """Return the mean squared error over the mean square of the target."""
        pairs = zip(self._inputs.split(self.together), self._target.split(self.together), strict=True)
        total = sum((self._block(part) - wanted).square().sum() for part, wanted in pairs)
        return float(total / self._target.numel() / self.power)


@torch.no_grad()
@parametrize.cached()
def _track_ranges(block: nn.Module, batches: Iterable[Tensor]) -> None:
    """Track the ranges of a block's activations over these inputs alone."""
    for module in block.modules():
        if isinstance(module, ActivationQuantizer):
            module.forget_range()
    with observe_ranges(block):
        for batch in batches:
            block(batch)


def _groups(block: nn.Module, inputs: Tensor, rates: Rates) -> list[dict[str, Any]]:
    """Return Adam's parameter groups for all that learns in a block, each with its rate."""
    groups: list[dict[str, Any]] = []
    known: set[nn.Parameter] = set()
    for _, layer in quantized_layers(block):
        quantizer, weight = layer.parametrizations.weight[0], layer.parametrizations.weight.original
        if weight not in known:  # layers may share it
            groups.append({"params": [weight], "lr": rates.weights * float(quantizer.scale.mean())})
        known.add(weight)
        groups.append({"params": [quantizer.log_factor], "lr": rates.weight_scales})
    for module, deviation in _deviations(block, inputs).items() if rates.outputs else ():
        values = [value for name, value in module.named_parameters(recurse=False) if name in ("weight", "bias")]
        if parametrize.is_parametrized(module, "bias"):
            values.append(module.parametrizations.bias.original)  # type: ignore[arg-type, union-attr]
        own = [value for value in values if value not in known]
        known.update(own)
        groups.append({"params": own, "lr": rates.outputs * deviation})
    ranges = [module.log_factor for module in block.modules() if isinstance(module, ActivationQuantizer)]
    groups.append({"params": ranges, "lr": rates.activation_scales})
    return [group for group in groups if group["params"]]


def _deviations(block: nn.Module, inputs: Tensor) -> dict[nn.Module, float]:
    """Return the standard deviation of the output of each quantized layer and norm."""
    found: dict[nn.Module, float] = {}

    def note(layer: nn.Module, _: object, output: Tensor) -> None:
        found[layer] = float(output.std())

    layers = [layer for _, layer in quantized_layers(block)]
    norms = [norm for norm in block.modules() if isinstance(norm, BATCHNORMS)]
    hooks = [layer.register_forward_hook(note) for layer in (*layers, *norms)]
    try:
        outputs(block, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found
