"""Whole searches with the toys, without a run's folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from nni.nas.evaluator.pytorch import Lightning, Trainer
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.space import RawFormatModelSpace

from nni_autorecon.config.search import SearchConfig
from nni_autorecon.generator.latent import LatentLoader
from nni_autorecon.generator.training import Objective
from nni_autorecon.nas.autorecon import AutoReConStrategy
from nni_autorecon.nas.space import GeneratorSpace
from nni_autorecon.nas.supernet import ReconstructionModule
from tests.helpers.toys import GENERATOR, toy_objective, toy_source

CONFIG = SearchConfig(
    width=3,
    latent_dim=7,
    batch_size=6,
    epochs=3,
    weight_steps=3,
    architecture_steps=2,
    validation_steps=1,
    architecture_lr=0.1,
    temperature_start=4.0,
    temperature_end=1.0,
)
"""A search with the toys that is over at once has these settings."""


def run_search(
    config: SearchConfig = CONFIG,
    *,
    seed: int = 0,
    on_epoch: Callable[[dict[str, Any]], object] = lambda metrics: None,
    objective: Objective | None = None,
    kind: Callable[..., Any] = AutoReConStrategy,
) -> Any:
    """The strategy after a whole search on NNI's sequential engine."""
    torch.manual_seed(seed)
    strategy = kind(config, on_epoch=on_epoch)
    trainer = Trainer(
        max_epochs=config.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    source = toy_source(seed)
    steps = config.weight_steps + config.architecture_steps
    evaluator = Lightning(
        ReconstructionModule(config, objective or toy_objective()),
        trainer,
        LatentLoader(source, "search", steps, lambda: trainer.current_epoch),
        LatentLoader(source, "validation", config.validation_steps, lambda: 0),
    )
    strategy(RawFormatModelSpace(GeneratorSpace(**GENERATOR), evaluator), SequentialExecutionEngine())
    return strategy
