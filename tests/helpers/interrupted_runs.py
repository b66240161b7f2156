"""Small runs of every kind, how they are killed, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from nni_autorecon.cli import main as cli
from nni_autorecon.files import SEAL
from nni_autorecon.runs.folder import RunFolder
from nni_autorecon.runs.log_file import LOG
from nni_autorecon.runs.snapshots import load_snapshot

SMALL = ["--batch-size", "6", "--latent-dim", "5", "--threads", "1"]
STEPS = ["--weight-steps", "2", "--architecture-steps", "1", "--validation-steps", "1", "--final-steps", "2"]
STUDENT = ["--steps", "2", "--agreement-steps", "1", "--width", "3"]
PHASES = ["--method", "gdfq", "--epochs", "6", "--warmup-epochs", "1", "--range-epochs", "2"]
IMAGES = ["--image-count", "12", "--image-steps", "2"]
SEARCH = ["search", *SMALL, *STEPS, "--epochs", "4", "--width", "3"]
GDFQ = ["compress", *SMALL, *STUDENT, *PHASES, "--generator", "gdfq"]
REFINEMENTS = "--losses hast --mixed-share .5 --low-pass 0.5 --flip-share 0.01 --adaptability-weight 1 --range-lr 0.01"
PIXELS = ["compress", "--batch-size", "6", *STUDENT[:4], *PHASES, "--warmup-epochs", "0", *IMAGES]
RUNS = {
    "search": SEARCH,
    "hard search": [*SEARCH, "--sampling", "hard", "--tournament", "2", "--tournament-steps", "2"],
    "opponent": [*SEARCH, "--adaptability-weight", "1"],
    "enas": [*SEARCH, "--strategy", "enas", "--architecture-steps", "2", "--inherit-weights"],
    **{name: [*SEARCH, "--candidate-steps", "2", "--strategy", name] for name in ("random", "evolution", "tpe")},
    "gdfq": GDFQ,
    "refined": [*GDFQ, *REFINEMENTS.split()],
    "zeroq-kd": [*PIXELS, "--method", "zeroq-kd", "--size", "40kB"],
    "distill": ["distill", *SMALL, *STUDENT, "--epochs", "4", "--generator", "gdfq", "--student", "{student}"],
}
"""Commands that are over at once, after some epochs; ``{student}`` is for a small network's factory."""

STAGES = {
    "search": RUNS["search"],
    "compress": RUNS["gdfq"],
    "distill": [*RUNS["distill"][:-1], "nni_autorecon.networks:digits_student"],
}
"""One command of each stage, which needs no file."""


class KilledError(BaseException):
    """An end as sudden as a signal's."""


def run_until_killed(*arguments: str) -> None:
    """Run the command, which something patched kills with a KilledError."""
    with pytest.raises(KilledError):
        cli.main([*arguments])


def kill_after_two_epochs(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run the command, killed as soon as the snapshot of its second epoch is written."""
    save = RunFolder.save

    def save_and_die(run: RunFolder, *rest: Any) -> None:
        save(run, *rest)
        if len(run.rows) == 2:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", save_and_die)
        run_until_killed(*arguments)


def results_of(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for the time it took and pictures."""
    results: dict[str, Any] = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".csv", ".json", ".safetensors")
    }
    if "result.json" in results:
        results["result.json"] = {**json.loads(results["result.json"]), "seconds": None, SEAL: None}
    return results


def assert_whole(folder: Path) -> None:
    """Every file in the folder is what its name says, and no part of another."""
    for path in folder.iterdir():
        content = path.read_bytes()
        match path.suffix:
            case ".json":
                json.loads(content)
            case ".csv":
                assert not pd.read_csv(path).empty
            case ".png":
                assert content.endswith(b"IEND\xaeB`\x82")
            case ".safetensors":
                load_file(path)
            case ".pt":
                torch.load(path, weights_only=True)
            case ".npz":
                assert np.load(path)["images"].ndim == 4
            case ".bin":
                assert load_snapshot(path)
            case _:
                assert path.name in (".lock", LOG)
