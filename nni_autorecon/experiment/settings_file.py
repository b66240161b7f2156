"""An experiment's settings are checked for what NNI would report late, at length, or never."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shlex
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nni.common.hpo_utils.validation import common_search_space_types
from nni.experiment.config import ExperimentConfig, utils
from nni.tools.package_utils import get_algo_meta, get_all_algo_meta

from ..config.reading import read_names_and_values
from ..errors import InputError, one_line
from .reading import EXAMPLE

BROKEN_TUNERS = {"GP", "Metis", "NetworkMorphism"}  # their code fails on today's numpy and scipy
REMEDY = "choose TPE, Random, Evolution or GridSearch"


def check_experiment(content: Mapping[str, Any], file: Path | str, folder: Path) -> ExperimentConfig:
    """Return the settings as NNI understands them, paths absolute. Raises InputError for settings that NNI cannot use.

    ``file`` names the file in errors. Relative paths begin at ``folder``.
    """
    utils.set_base_path(folder)
    try:
        config = ExperimentConfig(**content)
        if config.experiment_type != "hpo":
            raise InputError(f"{file} is of type {config.experiment_type}; start and resume such with NNI's Python API")
        space, source = _search_space(config, file, folder)
        if isinstance(config.training_service, list) and config.nni_manager_ip is None:
            raise InputError(f"{file} has several training services, so NNI needs nniManagerIp; 127.0.0.1 may do")
        config = config.canonical_copy()
    except InputError:
        raise
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        fault = one_line(error) or traceback.extract_tb(error.__traceback__)[-1].line  # bare assertions say nothing
        raise InputError(f"NNI does not take {file}: {fault}") from error
    finally:
        utils.unset_base_path()
    _check_algorithm("tuner", config.tuner)
    _check_algorithm("assessor", config.assessor)
    if config.tuner.name:  # a tuner of the person's own may have types of its own
        _check_space(space, source)
    for service in training_services(config):
        _check_command(service.trial_command, Path(service.trial_code_directory), file)
    return config


def training_services(config: ExperimentConfig) -> list[Any]:
    """Return the training services on which the trials run."""
    return config.training_service if isinstance(config.training_service, list) else [config.training_service]


def _search_space(config: ExperimentConfig, file: Path | str, folder: Path) -> tuple[Any, Path | str]:
    """Return the search space and the file that holds it."""
    if config.search_space_file is None:
        return config.search_space, file
    path = folder / os.path.expanduser(config.search_space_file)
    return read_names_and_values(path, "search space", remedy="map names to entries with _type and _value"), path


def _check_space(space: Any, source: Path | str) -> None:
    if not isinstance(space, Mapping):
        raise InputError(f"the search space in {source} must map names to entries with _type and _value")
    for name, entry in space.items():
        name = " ".join(str(name).split())  # it is shown in one line
        if not isinstance(entry, Mapping) or not {"_type", "_value"} <= entry.keys():
            raise InputError(f"search space {source}: {name} needs _type and _value")
        if entry["_type"] not in common_search_space_types:
            known = ", ".join(common_search_space_types)
            raise InputError(
                f"search space {source}: {name} has an unknown _type {entry['_type']!r}; NNI knows {known}"
            )
        if not isinstance(entry["_value"], list) or not entry["_value"]:
            raise InputError(f"search space {source}: the _value of {name} must be a list with something in it")
        for choice in entry["_value"]:
            if isinstance(choice, Mapping) and "_name" in choice:
                _check_space({f"{name}.{key}": inner for key, inner in choice.items() if key != "_name"}, source)


def _check_algorithm(kind: str, algorithm: Any) -> None:
    """Raise InputError if NNI has no such tuner or assessor, or cannot make it with these arguments."""
    if algorithm is None or not algorithm.name:
        return
    known = [meta for meta in get_all_algo_meta() if meta.algo_type == kind]
    meta = get_algo_meta(algorithm.name)
    if meta not in known:
        raise InputError(f"NNI has no {kind} {algorithm.name!r}; it has {', '.join(meta.name for meta in known)}")
    if meta.name in BROKEN_TUNERS:
        raise InputError(f"NNI's tuner {meta.name} fails on today's numpy and scipy; {REMEDY}")
    module, _, name = meta.class_name.rpartition(".")
    try:
        make = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise InputError(f"NNI's {kind} {meta.name} cannot be loaded ({error}); install that, or {REMEDY}") from error
    try:
        inspect.signature(make).bind(**{**(meta.class_args or {}), **(algorithm.class_args or {})})
    except TypeError as error:
        raise InputError(f"{kind} {meta.name}, classArgs: {error}; mend them") from error


def _check_command(command: str, folder: Path, file: Path | str) -> None:
    """Raise InputError if the command is empty or runs a script that is not in ``folder``."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"trialCommand in {file} cannot be read: {error}") from error
    if not words:
        raise InputError(f"trialCommand in {file} is empty; {EXAMPLE}")
    while words and (words[0] == "exec" or re.fullmatch(r"\w+=.*", words[0])):
        words.pop(0)
    if len(words) < 2 or not re.fullmatch(r"python[\d.]*", words[0]) or not words[1].endswith(".py"):
        return
    if not (folder / words[1]).is_file():
        raise InputError(f"trialCommand in {file} runs {words[1]}, which is not in {folder}; see trialCodeDirectory")
