"""ENAS (Pham et al., 2018) searches the generator's space with a supernet of shared weights and a controller."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from nni.nas.evaluator.pytorch import LightningModule
from nni.nas.oneshot.pytorch.sampling import EnasLightningModule
from nni.nas.strategy import ENAS
from tianshou.data import Batch, ReplayBuffer
from tianshou.policy import PGPolicy
from torch import Tensor

from ..config.search import SearchConfig
from ..generator.costs import generator_macs
from ..generator.genotype import repair
from ..generator.topology import EDGE_BY_LABEL
from ..losses.reconstruction import MeanLoss, require_finite
from ..runs.snapshots import State
from .space import choices_of, sample_of
from .supernet import SupernetModule, SupernetStrategy

sys.modules.setdefault("gym", gymnasium)  # NNI imports gym, the unmaintained predecessor of gymnasium
from nni.nas.strategy._rl_impl import Actor, Preprocessor, TuningEnvironment  # noqa: E402

HIDDEN = 64
"""The controller's LSTM has so many units, NNI's default."""
DRAWN = 16
"""The controller draws so many architectures at the end, and the best of them is the result."""


class EnasStrategy(SupernetStrategy, ENAS):
    """NNI's one-shot ENAS, in which T1 batches of every epoch update W, and then V1 batches reward the controller."""

    def configure_oneshot_module(self, training_module: LightningModule) -> EnasModule:
        return EnasModule(training_module, self.config, self.on_epoch, self.initial_state)

    def val_dataloader(self, train_dataloader_fn: Callable[[], Any], val_dataloader_fn: Callable[[], Any]) -> Any:
        self._validation = val_dataloader_fn()
        return self._validation

    def derive(self) -> tuple[dict[str, str], list[str]]:
        """Return the architecture with the least validation L_r on the shared weights, among ``DRAWN`` draws.

        The second result lists the labels of the edges that were repaired. This is § 2.3 of the ENAS paper; NNI exports
        the first architecture that is drawn.
        """
        return self._found.choices, self._found.repaired

    def probabilities(self) -> dict[str, dict[str, float]]:
        """Return the controller's probabilities by edge label and operation when it drew the architecture found.

        Those of an edge are conditional on the choices of the edges before it.
        """
        return self._found.probabilities

    @cached_property
    def _found(self) -> Drawn:
        module = cast(EnasModule, self.oneshot_module).to(self._validation.source.device)  # Lightning moved it away
        measured = [(module.draw(), module.measure(self._validation)) for _ in range(DRAWN)]
        return min(measured, key=lambda pair: pair[1])[0]


@dataclass(frozen=True)
class Drawn:
    """An architecture that the controller drew."""

    choices: dict[str, str]
    """The operations by edge label, after dead nodes were repaired."""
    repaired: list[str]
    """The labels of the edges that the repair changed."""
    probabilities: dict[str, dict[str, float]]
    """The probability of each operation by edge label when it was drawn."""


class Reinforce(PGPolicy):
    """The controller and its policy gradient (REINFORCE), whose returns are the standardized rewards of one update.

    The paper's baseline, a moving average, lags behind L_r, which falls from epoch to epoch; within one update W is
    fixed. NNI's default, PPO, learned far less from so few rewards in a test on an objective with a known optimum.
    """

    def process_fn(self, batch: Batch, buffer: ReplayBuffer, indices: Any) -> Batch:
        rewards = batch.rew[batch.done]  # one for each architecture
        standardized = (rewards - rewards.mean()) / (rewards.std() + self._eps)
        batch.returns = np.repeat(standardized, len(batch.rew) // len(rewards))  # one for each choice that was drawn
        return batch

    def _compile(self) -> None:
        """Do nothing, as tianshou would spend seconds on compiling functions that only other policies need."""


def make_controller(environment: TuningEnvironment, config: SearchConfig) -> Reinforce:
    """Make a controller of NNI's LSTM with Adam.

    NNI's own function gives Adam the parameters as a set, whose order differs between processes.
    """
    actor = Actor(environment.action_space, Preprocessor(environment.observation_space, HIDDEN))
    optimizer = torch.optim.Adam(
        actor.parameters(),
        config.architecture_lr,
        betas=(config.architecture_beta1, config.architecture_beta2),
        weight_decay=config.architecture_decay,
    )
    return Reinforce(
        actor, optimizer, torch.distributions.Categorical, discount_factor=1.0, action_space=environment.action_space
    )


class EnasModule(SupernetModule, EnasLightningModule):
    """NNI's ENAS module with another training step, because NNI's also updates the controller on batches for W.

    Every batch has an architecture of its own. Its dead nodes are repaired before it is trained or measured.
    """

    def __init__(self, training_module: LightningModule, config: SearchConfig, *rest: Any) -> None:
        super().__init__(
            training_module,
            config,
            *rest,
            policy_fn=partial(make_controller, config=config),
            batches_per_update=config.architecture_steps,
            reward_metric_name="loss",
        )
        self._drawn: list[Drawn] = []

    def state(self) -> State:
        return {**super().state(), "controller": self.policy.state_dict()}

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.initial_state is not None:
            self.policy.load_state_dict(self.initial_state["controller"])

    def configure_architecture_optimizers(self) -> torch.optim.Optimizer:
        return cast(torch.optim.Optimizer, self.policy.optim)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.draw()
        if batch_idx < self.config.weight_steps:
            loss = self.training_module.reconstruction_loss(batch)
            self.advance_optimization(loss.total, batch_idx)
        else:
            with torch.no_grad():
                loss = self.training_module.reconstruction_loss(batch)
            cost = loss.total.item()
            require_finite(cost, f"training L_r in epoch {self.epoch + 1}")  # a NaN would enter the controller
            self._replay_buffer.update(self.generator.send_reward(-cost))
            if batch_idx == self.config.epoch_steps - 1:
                self.update_controller()
        self._train_loss.add(loss)

    def update_controller(self) -> None:
        """Update the controller once, with the rewards of the epoch."""
        # tianshou shuffles with numpy's generator, but only torch's generator is in a snapshot.
        np.random.seed(int(torch.randint(2**32, ())))
        self.policy.train()
        self.policy.update(0, self._replay_buffer, batch_size=len(self._replay_buffer), repeat=1)

    def draw(self) -> Drawn:
        """Let the controller draw an architecture, and set the supernet to it."""
        with torch.no_grad():
            sample = self.generator.next_sample()
        probabilities = {
            label: dict(zip(EDGE_BY_LABEL[label].candidates, p, strict=True))
            for label, p in self.generator.sample_logits.items()  # NNI calls these probabilities logits
        }
        choices, repaired = repair(choices_of(sample), probabilities)
        for module in self.supernet_modules():
            module.resample(memo=sample_of(choices))
        return Drawn(choices, repaired, probabilities)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._drawn.append(self.draw())
        super().validation_step(batch, batch_idx)

    @torch.no_grad()
    def measure(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Return the mean L_r of the architecture drawn last. batches: z [N, latent_dim] and labels [N]."""
        mean = MeanLoss()
        for batch in batches:
            mean.add(self.training_module.reconstruction_loss(batch))
        return mean.result("validation L_r")["loss"]

    def architecture_metrics(self) -> dict[str, float]:
        """Return means over the architectures that were drawn for validation: largest probability and MACs."""
        drawn, self._drawn = self._drawn, []
        largest = [max(p.values()) for each in drawn for p in each.probabilities.values()]
        generator = self.model.generator
        macs = partial(generator_macs, width=generator.width, image=generator.image, latent_dim=generator.latent_dim)
        return {
            "confidence": float(np.mean(largest)),
            "expected_macs": float(np.mean([macs(each.choices) for each in drawn])),
        }
