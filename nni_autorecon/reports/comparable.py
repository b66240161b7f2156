"""Runs get settings that can be compared: one name for a generator over all seeds, and no settings without effect."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.generator_spec import GeneratorSpec
from ..config.rules import COMPRESS_RULES, GENERATOR_METHODS, SEARCH_RULES
from ..config.stages import STAGES
from ..errors import InputError
from ..runs.records import LOSS_SETTINGS, Run

SCALE, EQUAL_MACS, SEED = "generator_scale", "gdfq@equal-macs", "{seed}"
NOT_USED = "–"
EXECUTION = ("threads", "device", "onnx")
NO_ROW = {"seed", "bits", "size", SCALE, "protocol", *EXECUTION}
"""These settings make no row: they make columns and tables, or say where a run was computed."""
SAME_IN_SEARCHES = (
    *LOSS_SETTINGS,
    "batch_size",
    "width",
    "latent_dim",
    "validation_steps",
    "final_steps",
    "weight_lr",
    "weight_schedule",
    "weight_beta1",
    "weight_beta2",
    "weight_decay",
)
"""L_r depends on these settings beside the architecture: they change the loss or the final training."""


@dataclass(frozen=True)
class Entry:
    """A run and its comparable settings, in which its generator has one name over all seeds.

    ``pattern`` spells that name out: "searched" may be ``searched:digits/seed-{seed}.json``.
    """

    run: Run
    settings: Mapping[str, Any]
    pattern: str


def comparable_entries(runs: Sequence[Run]) -> list[Entry]:
    """Return ``runs`` with comparable settings.

    If NNI's record lacks a setting, it takes the value of the other runs, if these agree. A method without a generator
    gets none, whatever the setting says; so it is with other settings that a method or strategy does not use. If
    settings differ just as presets do, only the preset stays. The bits of a student within a size are its name,
    ``1.5MB a8``.
    """
    names = dict.fromkeys(name for run in runs for name in run.settings)
    given = [{name: _plain(value) for name, value in run.settings.items()} for run in runs]
    known = {name: {settings[name] for settings in given if name in settings} for name in names}
    shared = {name: next(iter(values)) if len(values) == 1 else None for name, values in known.items()}
    filled = [
        {**(shared if run.command is None else dict.fromkeys(names)), **settings}
        for run, settings in zip(runs, given, strict=True)
    ]
    for settings in filled:
        if settings.get("size") is not None:
            settings["bits"] = f"{settings['size']} a{str(settings['bits']).rpartition('a')[2]}"
    generators = _generator_names(filled)
    genotypes = _patterns([(f"searched:{settings.get('genotype')}", settings.get("seed")) for settings in filled])
    for settings, genotype in zip(filled, genotypes, strict=True):
        # If only the generator's own name refers to the genotype, that name holds it.
        matters = settings.get("genotype") and _has_width_of_genotype(settings)
        settings["genotype"] = genotype.partition(":")[2] if matters else None
    rules = SEARCH_RULES if any("strategy" in one for one in filled) else COMPRESS_RULES
    ruled = {name for rule in rules for name in rule.names} - {"generator", "genotype"}  # these have names of their own
    uses = {name: [all(r.holds(one) for r in rules if name in r.names) for one in filled] for name in ruled}
    for name in ruled:
        _level_unless_used(filled, name, uses[name])
    _level_unless_used(filled, "genotype", [_has_width_of_genotype(one) for one in filled])
    for stage in STAGES.values():
        for preset, meanings in stage.config.PRESETS.items():
            _level_what_presets_say(filled, preset, meanings)
    return [
        Entry(run, {**settings, "generator": name}, pattern)
        for run, settings, (name, pattern) in zip(runs, filled, generators, strict=True)
    ]


def _level_unless_used(settings: Sequence[dict[str, Any]], name: str, uses: Sequence[bool]) -> None:
    """Give runs that do not use a setting the one value of those that do, or –, so that it makes no row."""
    used = {one.get(name) for one, use in zip(settings, uses, strict=True) if use}
    for one, use in zip(settings, uses, strict=True):
        if used and not use:
            one[name] = next(iter(used)) if len(used) == 1 else NOT_USED


def _level_what_presets_say(
    settings: Sequence[dict[str, Any]], preset: str, meanings: Mapping[str, Mapping[str, Any]]
) -> None:
    """Remove the settings whose differences between runs follow from the runs' presets.

    If some runs name a preset, a run whose values are those of a preset counts as if it named that preset.
    """
    if not any(one.get(preset) in meanings for one in settings):
        return
    for one in settings:
        for name, meaning in meanings.items():
            if one.get(preset) is None and all(one.get(key) == value for key, value in meaning.items()):
                one[preset] = name
    if any(one.get(preset) not in meanings for one in settings):
        return
    for name in dict.fromkeys(name for meaning in meanings.values() for name in meaning):
        said = [(one.get(name), meanings[one[preset]].get(name)) for one in settings]
        if len(set(said)) > 1 and all(value in (None, meant) for value, meant in said):
            for one in settings:
                one.pop(name, None)


def _has_width_of_genotype(settings: Mapping[str, Any]) -> bool:
    spec = _spec(settings.get("generator"))
    return spec is not None and not spec.needs_genotype and spec.uses_genotype(settings.get("width"))


def varying(entries: Sequence[Entry], *, among: Iterable[str] | None = None) -> list[str]:
    """Return the settings in which ``entries`` differ."""
    names = entries[0].settings if among is None else among
    return [name for name in names if len({entry.settings.get(name) for entry in entries}) > 1]


def row_settings(entries: Sequence[Entry], stage: str) -> tuple[str, ...]:
    """Return the settings that tell rows apart: for searches, the strategy and others.

    For students the method comes first and the generator last, with the others between; the generator is always there.
    """
    names = [name for name in varying(entries) if name not in NO_ROW | {"strategy", "method", "generator"}]
    if stage == "search":
        return ("strategy", *names)
    ends = varying(entries, among=("method", "generator"))
    return (*(["method"] if "method" in ends else []), *names, *(["generator"] if ends != ["method"] else []))


def _plain(value: Any) -> Any:
    """Return a value that can be compared and printed; NNI's record may hold anything."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _generator_names(settings: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the generators' names and patterns over all seeds.

    Worked example: ``random:0`` of seed 0 and ``random:1`` of seed 1 are one generator, ("random", "random:{seed}");
    files are treated alike. If there are several of a kind, the pattern is the name. A generator that runs of several
    seeds share keeps its name.
    """
    patterns = _patterns([(_spelled(one), one.get("seed")) for one in settings])
    kinds = Counter(kind_of(pattern) for pattern in set(patterns) if SEED in pattern)
    return [
        (kind if SEED in pattern and kinds[kind] == 1 else pattern, pattern)
        for pattern, kind in ((pattern, kind_of(pattern)) for pattern in patterns)
    ]


def _patterns(generators: Sequence[tuple[str, int | None]]) -> list[str]:
    """Replace the run's seed in each generator by ``{seed}``, unless several seeds share the generator."""
    alone = {text for text, times in Counter(text for text, _ in set(generators)).items() if times == 1}
    return [_with_placeholder(text, seed) if text in alone else text for text, seed in generators]


def _spelled(settings: Mapping[str, Any]) -> str:
    """Return the generator with its genotype's file, or – for a method without a generator."""
    if settings.get("method") not in (None, *GENERATOR_METHODS):
        return NOT_USED
    genotype = settings.get("genotype")
    generator = settings.get("generator") or ("searched" if genotype else "gdfq")
    return f"{generator}:{genotype}" if genotype and _refers_to_genotype(generator) else str(generator)


def _with_placeholder(text: str, seed: int | None) -> str:
    """Replace the last whole number that equals the seed by ``{seed}``, if the name may hold a seed."""
    if SEED in text:
        return text
    kind, argument = kind_of(text), text.partition(":")[2]
    found = list(re.finditer(rf"(?<!\d){seed}(?!\d)", argument))
    if not (kind == "random" or _refers_to_genotype(kind)) or not found:
        return text
    return f"{kind}:{argument[: found[-1].start()]}{SEED}{argument[found[-1].end() :]}"


def _spec(generator: Any) -> GeneratorSpec | None:
    """Return the meaning of a generator's name, or None if the name is not valid."""
    try:
        return GeneratorSpec.parse(str(generator))
    except InputError:
        return None


def _refers_to_genotype(generator: Any) -> bool:
    spec = _spec(generator)
    return spec is not None and spec.needs_genotype


def kind_of(generator: str) -> str:
    """Return the part of a generator's name before the colon."""
    return generator.partition(":")[0]
