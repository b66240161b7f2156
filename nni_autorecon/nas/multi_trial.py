"""NNI's multi-trial strategies search the generator's space: each candidate is trained a little and measured."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import nni
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.execution import SequentialExecutionEngine
from nni.nas.space import RawFormatModelSpace
from nni.nas.strategy import TPE, Random, RegularizedEvolution
from nni.nas.strategy.base import Strategy

from ..config.search import SearchConfig
from ..errors import AutoReConError
from ..generator.genotype import repair
from ..generator.topology import EDGES
from ..runs.snapshots import State
from .space import GeneratorSpace, sample_of

MeasureCandidate = Callable[[Mapping[str, str]], dict[str, float]]
"""A function that takes the choices of a candidate and returns the L_r of its generator and the parts of L_r."""


class CandidateSearch:
    """A search that measures ``config.candidates`` candidates, in this process, one after another.

    One of NNI's strategies asks for the candidates. A candidate with dead nodes is repaired, then ``measure`` is
    called. ``on_candidate`` receives its number, the best L_r so far with its parts, and the candidate's own L_r.

    With the :meth:`state` of an earlier search, the strategy is asked again from the first candidate on, and is told
    what was measured then. As its seed is the same, it continues as if there had been no interruption.
    """

    def __init__(
        self,
        config: SearchConfig,
        measure: MeasureCandidate,
        *,
        on_candidate: Callable[[dict[str, float]], object],
        state: State | None = None,
    ) -> None:
        self.config = config
        self.measure = measure
        self.on_candidate = on_candidate
        self._known: list[dict[str, Any]] = list(state["candidates"]) if state else []
        self._asked = 0

    def run(self, space: GeneratorSpace) -> None:
        """Run the search. Raises AutoReConError if a resumed strategy asks for another candidate than before."""
        first = max(2, self.config.candidates // 4)  # so many are drawn before the strategy learns from them
        strategy = NNIS_STRATEGIES[self.config.strategy](first, self.config.seed)
        candidates = RawFormatModelSpace(space, FunctionalEvaluator(self._evaluate))
        strategy(candidates, SequentialExecutionEngine(max_model_count=self.config.candidates))

    def state(self) -> State:
        """Return the measured candidates, with which a new search continues."""
        return {"candidates": self._known}

    def derive(self) -> tuple[dict[str, str], list[str]]:
        """Return the choices of the best candidate, and the labels of the edges that its repair changed."""
        best = self._best()
        return dict(best["choices"]), list(best["repaired"])

    def probabilities(self) -> None:
        """Return None, because a search of single candidates has no probabilities."""

    def _best(self) -> dict[str, Any]:
        return min(self._known, key=lambda candidate: candidate["loss"]["loss"])

    def _evaluate(self, space: GeneratorSpace) -> None:
        """Measure one candidate and report it, as NNI's trial; NNI maximizes the reported value, -L_r."""
        index, self._asked = self._asked, self._asked + 1
        choices, repaired = repair(space.generator.choices, _any_order(f"{self.config.seed} {index}"))
        if index == len(self._known):
            self._known.append({"choices": choices, "repaired": repaired, "loss": self.measure(choices)})
            self._report()
        elif self._known[index]["choices"] != choices:
            raise AutoReConError(
                f"strategy {self.config.strategy} asks for another candidate {index + 1} than when the run began, so "
                "that it cannot go on; begin it again without --resume"
            )
        nni.report_final_result(-self._known[index]["loss"]["loss"])

    def _report(self) -> None:
        best, last = self._best()["loss"], self._known[-1]["loss"]
        self.on_candidate({"candidate": len(self._known), **best, "candidate_loss": last["loss"]})


def _any_order(seed: str) -> dict[str, dict[str, float]]:
    """Return random numbers in place of probabilities, so that a repair prefers no edge or operation."""
    generator = random.Random(seed)
    return {edge.label: {name: generator.random() for name in edge.candidates} for edge in EDGES}


class EdgeTPE(TPE):
    """NNI's TPE without three faults.

    NNI's strategy cannot describe an ``InputChoice`` to its tuner, and it sleeps a second after every candidate. After
    one repeated candidate, its tuner would change to grid search, which would not get far within a search.
    """

    def _run(self) -> None:
        space = {edge.label: {"_type": "choice", "_value": list(edge.candidates)} for edge in EDGES}
        self.tuner.update_search_space(space)
        self.tuner.dedup = lambda parameters: parameters
        while self.engine.budget_available():
            choices = self.tuner.generate_parameters(self._model_count)
            model = self.model_space.freeze(sample_of(choices))
            self._model_to_id[model] = self._model_count
            self._model_count += 1
            self.engine.submit_models(model)


NNIS_STRATEGIES: dict[str, Callable[[int, int], Strategy]] = {
    "random": lambda first, seed: Random(seed=seed),
    "evolution": lambda first, seed: RegularizedEvolution(
        population_size=first, sample_size=max(2, first // 2), seed=seed
    ),
    "tpe": lambda first, seed: EdgeTPE(optimize_mode="maximize", seed=seed, tpe_args={"n_startup_jobs": first}),
}
"""What makes each of NNI's strategies of the count of candidates that it first draws, and a seed."""
