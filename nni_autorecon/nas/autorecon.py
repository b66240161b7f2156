"""Stage 1 of Algorithm 1 is an NNI one-shot strategy: it searches α and W of one supernet by gradient."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import torch
from nni.nas.evaluator.pytorch import LightningModule
from nni.nas.oneshot.pytorch.differentiable import GumbelDartsLightningModule
from nni.nas.strategy import GumbelDARTS
from torch import Tensor, nn

from ..accel.cuda_graphs import Recorded
from ..accel.optimizers import adam, clear_gradients
from ..config.search import SearchConfig
from ..generator.genotype import repair
from ..losses.reconstruction import ReconstructionLoss
from ..runs.snapshots import State
from .gumbel import temperature_at
from .mixed_edge import GumbelSample, MixedEdge
from .opponent import Opponent
from .penalties import ExpectedMacs, confidence, indecision
from .space import GeneratorSpace, choices_of
from .supernet import EpochCallback, SupernetModule, SupernetStrategy


class AutoReConStrategy(SupernetStrategy, GumbelDARTS):
    """AutoReCon's gradient search (Zhu et al., 2021, § 3.2): one supernet, with α and W updated in two phases an epoch.

    An ``opponent`` adds AdaDFQ's game to the objective of both.
    """

    def __init__(self, config: SearchConfig, *, opponent: Opponent | None = None, **arguments: Any) -> None:
        super().__init__(config, **arguments)
        self.opponent = opponent

    def configure_softmax(self) -> nn.Module:
        """Return the module that samples an edge's weights; NNI asks for it."""
        return GumbelSample(self.config.relaxation, hard=self.config.sampling == "hard")

    def configure_oneshot_module(self, training_module: LightningModule) -> AutoReConModule:
        """Return the Lightning module that searches; NNI asks for it."""
        return AutoReConModule(training_module, self.config, self.on_epoch, self.initial_state, self.opponent)

    def default_mutation_hooks(self) -> list[Any]:
        """Return NNI's hooks, after the hook that makes mixed edges."""
        return [MixedEdge.mutate, *super().default_mutation_hooks()]

    def mutate_model(self, model: GeneratorSpace) -> GeneratorSpace:
        """Return the supernet of a space, with α drawn from N(0, architecture_init²)."""
        supernet = super().mutate_model(model)
        for alpha in self._arch_parameters.values():
            nn.init.normal_(alpha, std=self.config.architecture_init)
        return supernet

    def derive(self) -> tuple[dict[str, str], list[str]]:
        """Return argmax α on every edge, dead nodes repaired, and the labels of the edges that the repair changed."""
        return repair(choices_of(self.oneshot_module.export()), self.probabilities())

    def probabilities(self) -> dict[str, dict[str, float]]:
        """Return p = softmax(α) (eq. 4) by edge label and operation."""
        return {edge.edge.label: edge.probabilities() for edge in self.oneshot_module.mixed_edges()}


class AutoReConModule(SupernetModule, GumbelDartsLightningModule):
    """Algorithm 1, stage 1: in every epoch T1 batches update W with α fixed, then V1 batches update α with W fixed."""

    def __init__(
        self,
        training_module: LightningModule,
        config: SearchConfig,
        on_epoch: EpochCallback,
        state: State | None = None,
        opponent: Opponent | None = None,
    ) -> None:
        schedule = TemperatureSchedule(config, state["epoch"] if state else 0)
        super().__init__(training_module, config, on_epoch, state, schedule)
        self.opponent = opponent
        self._steps = [
            Recorded(
                partial(self._update, searching),
                f"the update of {'Wα'[searching]}",
                depends_on=partial(self._settled_by_epoch, searching),
            )
            for searching in (False, True)
        ]

    def on_train_epoch_start(self) -> None:
        """Set the temperature of the epoch, in place."""
        super().on_train_epoch_start()
        for module in self.modules():
            if isinstance(module, GumbelSample):
                module.temperature.fill_(module.tau)

    def on_fit_end(self) -> None:
        """Release the recorded steps."""
        super().on_fit_end()
        for step in self._steps:
            step.forget()

    def state(self) -> State:
        """Return the state of the search and of its opponent."""
        return {**super().state(), "opponent": self.opponent and self.opponent.state()}

    def on_fit_start(self) -> None:
        """Take up the saved state, if there is one."""
        super().on_fit_start()
        if self.opponent and self.initial_state is not None:
            self.opponent.load(self.initial_state["opponent"])

    def on_validation_epoch_end(self) -> None:
        """Report the epoch. Raises DivergenceError if a loss is no longer finite."""
        if self.opponent:
            self.opponent.require_finite()  # this comes before L_r, which the student's loss would have ruined too
        super().on_validation_epoch_end()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Update W in the first ``weight_steps`` batches of an epoch, and α in the others.

        batch: latent vectors [N, latent_dim] and labels [N].
        """
        searching = batch_idx >= self.config.weight_steps
        images, loss = self._steps[searching](*batch)
        self._train_loss.add(loss)
        if self.opponent and not searching:
            self.opponent.learn(self.epoch, images, loss.logits)

    def _update(self, searching: bool, z: Tensor, labels: Tensor) -> tuple[Tensor, ReconstructionLoss]:
        """Update α or W once; return the images and L_r from before the update."""
        weights, architecture = self.optimizers()
        optimizer = architecture if searching else weights
        self.toggle_optimizer(optimizer)  # the other phase's parameters need no gradient
        try:
            images, loss = self.training_module.images_and_loss((z, labels))
            total = self.penalized(loss.total) if searching else loss.total
            if self.opponent and self.opponent.plays(self.epoch):
                total = total + self.config.adaptability_weight * self.opponent.loss(images, loss.logits, labels)
            clear_gradients(optimizer)
            self.manual_backward(total)
            optimizer.step()
        finally:
            self.untoggle_optimizer(optimizer)
        return images.detach(), loss.detach()

    def _settled_by_epoch(self, searching: bool) -> object:
        """Return what no tensor tells a step: if the opponent plays, and the epoch if α's penalty grows with it."""
        plays = self.opponent is not None and self.opponent.plays(self.epoch)
        return plays, self.epoch if searching and self.config.entropy_penalty else None

    def penalized(self, total: Tensor) -> Tensor:
        """Add to ``total`` the other objectives of α: expected MACs and undecided edges, relative to uniform p."""
        config, alphas = self.config, self.arch_parameters()
        if config.mac_penalty:
            total = total + config.mac_penalty * self.expected_macs(alphas) / self.expected_macs.uniform
        if config.entropy_penalty:
            grown = config.entropy_penalty * (self.epoch + 1) / config.epochs
            total = total + grown * indecision(alphas)
        return total

    def architecture_metrics(self) -> dict[str, float]:
        """Return temperature, confidence and expected MACs."""
        return {
            "temperature": self.temperature_scheduler.step(self.trainer.current_epoch, self.trainer.max_epochs),
            "confidence": confidence(self.arch_parameters()),
            "expected_macs": self.expected_macs(self.arch_parameters()).item(),
        }

    def configure_architecture_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam for α, with the configured rates."""
        betas = (self.config.architecture_beta1, self.config.architecture_beta2)
        return adam(
            self.arch_parameters(),
            self.config.architecture_lr,
            betas=betas,
            weight_decay=self.config.architecture_decay,
        )

    def arch_parameters(self) -> list[nn.Parameter]:
        """Return α of every edge, in the order of the edges; NNI's own order differs from process to process."""
        return [edge.alpha for edge in self.mixed_edges()]

    def mixed_edges(self) -> list[MixedEdge]:
        """Return the edges of the supernet, in the order of their modules."""
        return [module for module in self.supernet_modules() if isinstance(module, MixedEdge)]

    @cached_property
    def expected_macs(self) -> ExpectedMacs:
        """The expected MACs of a generator, as a function of α."""
        generator = self.model.generator
        return ExpectedMacs(
            [mixed.edge for mixed in self.mixed_edges()],
            width=generator.width,
            image=generator.image,
            latent_dim=generator.latent_dim,
        )


class TemperatureSchedule:
    """The temperature τ by epoch, in the form that NNI's Gumbel module expects.

    ``current`` counts epochs from the ``first`` of a run.
    """

    def __init__(self, config: SearchConfig, first: int = 0) -> None:
        self.config = config
        self.first = first

    def step(self, current: int, total: int) -> float:
        """Return τ of epoch ``first + current``; ``total`` is NNI's, and the configured epochs count instead."""
        config = self.config
        return temperature_at(
            self.first + current,
            config.epochs,
            start=config.temperature_start,
            end=config.temperature_end,
            schedule=config.temperature_schedule,
        )
