"""Stage 1 for one teacher, by AutoReCon or another strategy, turns settings into genotype, history and figures."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..config.rules import MULTI_TRIAL
from ..config.search import SearchConfig
from ..errors import DivergenceError, InputError
from ..figures.architecture import plot_genotype, plot_probabilities
from ..figures.canvas import save_figure
from ..figures.curves import plot_loss_curves
from ..figures.images import plot_images
from ..files import write_json
from ..generator.costs import generator_macs
from ..generator.genotype import Genotype, repair
from ..generator.latent import LatentSource
from ..generator.searched import Generator, derived_generator
from ..generator.training import (
    Objective,
    evaluate_generator,
    images_per_class,
    measure_generator,
    objective_for,
    train_generator,
)
from ..networks import parameter_count
from ..runs.beginning import taken_up
from ..runs.folder import RunFolder
from ..runs.progress import Show, progress_bar
from ..teacher.loading import Teacher
from .autorecon import AutoReConStrategy
from .engine import run_strategy
from .multi_trial import CandidateSearch
from .opponent import Opponent
from .space import sample_of
from .supernet import SupernetStrategy

DIVERGED = 1e30
"""The L_r of a candidate whose training went to NaN or infinity; strategies and files take finite values alone."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchResult:
    """The genotype found, L_r of its generator after the final training, and the costs of the search.

    Example:
        >>> found = nar.search("digits", epochs=1, weight_steps=1, architecture_steps=1, final_steps=1, progress=False)
        >>> found.genotype.save("genotype.json")
        >>> found.updates, sorted(found.loss)
        (2, ['bns_loss', 'class_loss', 'loss'])
    """

    genotype: Genotype
    """The architecture of the generator; ``compress`` and ``distill`` take it."""
    loss: Mapping[str, float]
    """L_r (eq. 1) as ``loss``, and its two terms: ``class_loss`` and, before its weight, ``bns_loss``."""
    probabilities: Mapping[str, Mapping[str, float]] | None
    """The genotype was derived from these: softmax(α) or the controller's; None if candidates were tried singly."""
    updates: int
    """The batches of the search, which updated W or α, or rewarded a controller."""
    seconds: float
    """The seconds of search and final training."""
    device: str = ""
    """The device on which the search ran."""

    def to_dict(self) -> dict[str, Any]:
        """Return L_r and its parts, the costs and the device, as result.json holds them."""
        details = self.genotype.details
        costs = {"generator_macs": details["macs"], "generator_parameters": details["parameters"]}
        return {**self.loss, **costs, "updates": self.updates, "seconds": self.seconds, "device": self.device}

    def summary(self) -> str:
        """Return the lines that a person reads at the end; the first one says what was made."""
        loss, details = self.loss, self.genotype.details
        return (
            f"generator of {details['macs'] / 1e6:.1f} MMACs, {details['parameters'] / 1e3:.0f} k parameters\n"
            f"L_r {loss['loss']:.4f} (class {loss['class_loss']:.4f}, BN statistics {loss['bns_loss']:.4f})"
        )

    def metrics(self) -> dict[str, Any]:
        """Return a trial's final result: NNI minimizes ``default``; ``genotype`` is the JSON itself."""
        values = self.to_dict()
        return {
            "default": values.pop("loss"),
            **{name: value for name, value in values.items() if name != "device"},
            "genotype": self.genotype.to_json(indent=None),
        }


def run_search(
    config: SearchConfig,
    run: RunFolder,
    teacher: Teacher | None = None,
    *,
    on_epoch: Callable[[dict[str, float]], object] = lambda metrics: None,
    on_step: Callable[[], object] = lambda: None,
    progress: Show = False,
) -> SearchResult:
    """Search a generator for ``teacher``, or for the configured one, or go on with a search; keep all in ``run``.

    ``on_epoch`` receives each epoch's metrics; ``on_step`` is called with every batch. Raises InputError for errors
    that the person can mend, and DivergenceError if a loss is no longer finite.
    """
    config.require_consistent()
    if config.strategy == "enas":
        _enas_strategy()  # it is refused before a teacher is loaded
    teacher, state = taken_up(run, "search", config, teacher)
    if teacher.untraceable is not None:
        log.warning("teacher %s: %s", teacher.name, teacher.untraceable)
    objective = objective_for(teacher.observed, config)
    source = LatentSource(
        config.batch_size, config.latent_dim, teacher.num_classes, config.seed, teacher.device, on_batch=on_step
    )
    run.start("search", config, device=teacher.device_name)
    started = time.perf_counter() - (state["seconds"] if state else 0)
    torch.manual_seed(config.seed)

    with progress_bar("search", config.updates + config.final_steps, progress) as bar:

        def report(metrics: dict[str, float]) -> None:
            run.log(metrics)
            run.save("search", config, {**strategy.state(), "seconds": time.perf_counter() - started})
            on_epoch(metrics)
            bar.set_postfix_str(f"L_r {metrics['loss']:.3f}", refresh=False)
            bar.update(steps)

        strategy: SupernetStrategy | CandidateSearch
        if config.strategy in MULTI_TRIAL:
            steps = config.candidate_steps
            measure = partial(_measure_candidate, config, teacher, objective, source, steps=config.candidate_steps)
            strategy = CandidateSearch(config, measure, on_candidate=report, state=state)
        else:
            steps = config.epoch_steps
            strategy = _supernet_strategy(config, teacher, on_epoch=report, state=state)
        bar.begin(steps * len(run.rows))
        run_strategy(strategy, config, teacher, objective, source, run)
        bar.set_description_str("training the found generator", refresh=False)
        choices, repaired = strategy.derive()
        probabilities = strategy.probabilities()
        if config.tournament and probabilities:
            train = partial(_measure_candidate, config, teacher, objective, source, steps=config.tournament_steps)
            entrants = [(choices, repaired), *_drawn(probabilities, config.tournament, config.seed)]
            choices, repaired = min(entrants, key=lambda entrant: train(entrant[0])["loss"])
            bar.update(config.tournament_updates)
        generator = _found_generator(config, teacher, strategy, choices)
        loss = evaluate_generator(generator, objective, source, config, on_step=bar.update)

    details = _details(config, teacher, generator, choices, loss, repaired)
    genotype = Genotype(choices, config.width, config.latent_dim, details)
    result = SearchResult(genotype, loss, probabilities, config.updates, time.perf_counter() - started, run.device)
    if run.keeps:
        genotype.save(run / "genotype.json")
        run.write_result(result.to_dict())
        if result.probabilities:
            write_json(run / "probabilities.json", result.probabilities)
        _draw(run, result, generator, source)
    return result


def _supernet_strategy(config: SearchConfig, teacher: Teacher, **arguments: Any) -> SupernetStrategy:
    if config.strategy == "enas":
        return _enas_strategy()(config, **arguments)
    opponent = Opponent(config, teacher) if config.adaptability_weight else None
    return AutoReConStrategy(config, opponent=opponent, **arguments)


def _enas_strategy() -> type[SupernetStrategy]:
    """Return ENAS's strategy. Raises InputError if the extra ``enas`` is not installed."""
    try:
        from .enas import EnasStrategy
    except ImportError as error:
        raise InputError(f"strategy enas needs tianshou 0.5 ({error}); pip install 'nni-autorecon[enas]'") from error
    return EnasStrategy


def _measure_candidate(
    config: SearchConfig,
    teacher: Teacher,
    objective: Objective,
    source: LatentSource,
    choices: Mapping[str, str],
    *,
    steps: int,
) -> dict[str, float]:
    """Return L_r and its parts after ``steps`` updates, or ``DIVERGED`` if they are not finite.

    All candidates begin with the same seed and see the same batches.
    """
    torch.manual_seed(config.seed)
    generator = _fresh_generator(config, teacher, choices)
    train_generator(generator, objective, source, config, stream="search", steps=steps)
    try:
        return measure_generator(generator, objective, source, stream="validation", steps=config.validation_steps)
    except DivergenceError:
        return dict.fromkeys(("loss", "class_loss", "bns_loss"), DIVERGED)


def _drawn(
    probabilities: Mapping[str, Mapping[str, float]], count: int, seed: int
) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Draw architectures by ``probabilities``; repair dead nodes, and give the labels of the edges so changed."""
    generator = random.Random(seed)
    for _ in range(count):
        choices = {label: generator.choices(list(p), list(p.values()))[0] for label, p in probabilities.items()}
        yield repair(choices, probabilities)


def _found_generator(
    config: SearchConfig,
    teacher: Teacher,
    strategy: SupernetStrategy | CandidateSearch,
    choices: Mapping[str, str],
) -> Generator:
    """Return the generator of the found genotype, fresh or with the supernet's weights."""
    if config.inherit_weights and not isinstance(strategy, CandidateSearch):
        generator: Generator = strategy.supernet.freeze(sample_of(choices)).generator
        return generator.to(teacher.device)
    return _fresh_generator(config, teacher, choices)


def _fresh_generator(config: SearchConfig, teacher: Teacher, choices: Mapping[str, str]) -> Generator:
    generator = derived_generator(
        choices,
        image=teacher.image,
        num_classes=teacher.num_classes,
        width=config.width,
        latent_dim=config.latent_dim,
    )
    return generator.to(teacher.device)


def _details(
    config: SearchConfig,
    teacher: Teacher,
    generator: Generator,
    choices: Mapping[str, str],
    loss: Mapping[str, float],
    repaired: list[str],
) -> dict[str, Any]:
    """Return the details that the genotype's JSON holds beside the edges."""
    return {
        "teacher": teacher.name,
        "image": teacher.image._asdict(),
        "num_classes": teacher.num_classes,
        "loss": dict(loss),
        "macs": generator_macs(choices, width=config.width, image=teacher.image, latent_dim=config.latent_dim),
        "parameters": parameter_count(generator),
        "repaired_edges": repaired,
        "seed": config.seed,
        "config": config.to_dict(),
    }


def _draw(run: RunFolder, result: SearchResult, generator: Generator, source: LatentSource) -> None:
    x = "epoch" if "epoch" in run.rows[0] else "candidate"
    series = [
        name for name in run.rows[0] if name in ("loss", "class_loss", "bns_loss", "train_loss", "candidate_loss")
    ]
    curves = plot_loss_curves(run.rows, x=x, series=series, title="Search: reconstruction loss", log=True)
    save_figure(curves, run / "loss.png")
    if result.probabilities:
        save_figure(plot_probabilities(result.probabilities), run / "probabilities.png")
    save_figure(plot_genotype(result.genotype.choices, title="Found generator"), run / "genotype.png")
    images, labels = images_per_class(generator, source, count=8)
    save_figure(plot_images(images, labels, per_class=8), run / "images.png")
