"""A search runs in this process, on NNI's sequential engine and Lightning's trainer."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning
import torch
from nni.nas.evaluator.pytorch import Lightning, Trainer
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.space import RawFormatModelSpace

from ..config.search import SearchConfig
from ..generator.latent import LatentLoader, LatentSource
from ..generator.training import Objective
from ..runs.folder import RunFolder
from ..teacher.loading import Teacher
from .multi_trial import CandidateSearch
from .space import GeneratorSpace
from .supernet import ReconstructionModule, SupernetStrategy


def run_strategy(
    strategy: SupernetStrategy | CandidateSearch,
    config: SearchConfig,
    teacher: Teacher,
    objective: Objective,
    source: LatentSource,
    run: RunFolder,
) -> None:
    """Run ``strategy`` on NNI's sequential engine for the epochs or candidates that have no row in ``run`` yet."""
    space = GeneratorSpace(
        image=teacher.image, num_classes=teacher.num_classes, width=config.width, latent_dim=config.latent_dim
    )
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)  # Lightning sets it, and each step of Adam asks the driver
    with _quiet():
        if isinstance(strategy, CandidateSearch):
            strategy.run(space)
            torch.manual_seed(config.seed)  # a resumed run has drawn fewer random numbers than an uninterrupted one
        else:
            _train_supernet(strategy, space, config, objective, source, run)


def _train_supernet(
    strategy: SupernetStrategy,
    space: GeneratorSpace,
    config: SearchConfig,
    objective: Objective,
    source: LatentSource,
    run: RunFolder,
) -> None:
    """Run a one-shot strategy for the epochs that have no row yet. Raises KeyboardInterrupt at Ctrl-C."""
    first = len(run.rows)
    trainer = Trainer(
        max_epochs=config.epochs - first,
        accelerator="gpu" if source.device.type == "cuda" else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=run.path if run.keeps else None,
    )
    epoch = lambda: first + trainer.current_epoch  # noqa: E731
    evaluator = Lightning(
        ReconstructionModule(config, objective),
        trainer,
        LatentLoader(source, "search", config.epoch_steps, epoch),
        LatentLoader(source, "validation", config.validation_steps, lambda: 0),
    )
    answer = signal.getsignal(signal.SIGINT)
    try:
        strategy(RawFormatModelSpace(space, evaluator), SequentialExecutionEngine())
    except SystemExit as stop:  # Lightning answers Ctrl-C by ending the process with another exit code
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, answer)  # Lightning ignores it from then on
        raise KeyboardInterrupt from stop


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep useless messages off the screen: Lightning's hardware report and hints, and NNI's copies of our errors."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "nni")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=pytorch_lightning.__name__)
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
