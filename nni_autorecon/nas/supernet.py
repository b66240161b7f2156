"""All searches on one supernet share these parts: the strategy, the module to train, and the report of an epoch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, cast

import torch
from nni.nas.evaluator.pytorch import LightningModule
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from nni.nas.strategy.base import Strategy
from torch import Tensor

from ..config.search import SearchConfig
from ..generator.training import Objective, weight_optimizer
from ..losses.reconstruction import MeanLoss, ReconstructionLoss
from ..runs.snapshots import State, random_state, set_random_state

EpochCallback = Callable[[dict[str, float]], None]


class SupernetStrategy(Strategy):
    """A search on one supernet in epochs of T1 + V1 batches; subclasses also inherit one of NNI's one-shot strategies.

    It runs on NNI's sequential engine with a :class:`.space.GeneratorSpace` and a Lightning evaluator that holds a
    :class:`ReconstructionModule`. Afterwards, :meth:`derive` returns the architecture.
    ``on_epoch`` receives the metrics of each epoch. With the ``state`` after some epoch, only later epochs are run; the
    evaluator's trainer must be given their number.
    """

    def __init__(
        self, config: SearchConfig, *, on_epoch: EpochCallback = lambda metrics: None, state: State | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.on_epoch = on_epoch
        self.initial_state = state

    def train_dataloader(self, train_dataloader_fn: Callable[[], Any], val_dataloader_fn: Callable[[], Any]) -> Any:
        return train_dataloader_fn()  # this one loader has T1 + V1 batches

    def val_dataloader(self, train_dataloader_fn: Callable[[], Any], val_dataloader_fn: Callable[[], Any]) -> Any:
        return val_dataloader_fn()

    def state(self) -> State:
        """Return the state of the search at the end of an epoch."""
        return cast(SupernetModule, self.oneshot_module).state()

    @abstractmethod
    def derive(self) -> tuple[dict[str, str], list[str]]:
        """Return the architecture found, repaired so that no node is dead, and the labels of the edges so changed."""

    @abstractmethod
    def probabilities(self) -> dict[str, dict[str, float]]:
        """Return the probabilities from which the architecture was derived, by edge label and operation."""


class ReconstructionModule(LightningModule):
    """The module that NNI's evaluator trains: Adam minimizes L_r of the generator. The teacher is in ``objective``."""

    def __init__(self, config: SearchConfig, objective: Objective) -> None:
        super().__init__()
        self.config = config
        self.objective = objective

    def images_and_loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, ReconstructionLoss]:
        """Return images [N, C, H, W] and their L_r. batch: latent vectors [N, latent_dim] and labels [N]."""
        z, labels = batch
        images = self.model(z, labels)
        return images, self.objective(images, labels)

    def reconstruction_loss(self, batch: tuple[Tensor, Tensor]) -> ReconstructionLoss:
        """Return L_r of a batch: latent vectors [N, latent_dim] and labels [N]."""
        return self.images_and_loss(batch)[1]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.reconstruction_loss(batch).total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return weight_optimizer(self.parameters(), self.config)


class SupernetModule(BaseOneShotLightningModule):
    """A one-shot module that reports each epoch, and that can continue after one; subclasses train it."""

    def __init__(
        self,
        training_module: LightningModule,
        config: SearchConfig,
        on_epoch: EpochCallback,
        state: State | None,
        *arguments: Any,
        **settings: Any,
    ) -> None:
        super().__init__(training_module, *arguments, **settings)
        self.config = config
        self.on_epoch = on_epoch
        self.initial_state = state
        self.epoch: int = state["epoch"] if state else 0
        """The number of finished epochs."""
        self._train_loss, self._validation_loss = MeanLoss(), MeanLoss()

    def state(self) -> State:
        """Return the state that :meth:`on_fit_start` restores."""
        return {
            "epoch": self.epoch,
            "random": random_state(self.device),
            "supernet": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.trainer.optimizers],
        }

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.initial_state is None:
            return
        self.model.load_state_dict(self.initial_state["supernet"])
        for optimizer, state in zip(self.trainer.optimizers, self.initial_state["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        set_random_state(self.initial_state["random"], self.device)

    def on_validation_epoch_start(self) -> None:
        self.train()  # Lightning has set eval mode, but a generator is measured with batch statistics

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._validation_loss.add(self.training_module.reconstruction_loss(batch))

    def on_validation_epoch_end(self) -> None:
        """Report the epoch. Raises DivergenceError if a loss is no longer finite."""
        self.epoch += 1
        train = self._train_loss.result(f"training L_r in epoch {self.epoch}")
        validation = self._validation_loss.result(f"validation L_r in epoch {self.epoch}")
        self._train_loss, self._validation_loss = MeanLoss(), MeanLoss()
        self.on_epoch({"epoch": self.epoch, **validation, "train_loss": train["loss"], **self.architecture_metrics()})

    @abstractmethod
    def architecture_metrics(self) -> dict[str, float]:
        """Return the metrics of the architectures that are reported at the end of an epoch."""
