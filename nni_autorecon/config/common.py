"""These settings are shared by every stage; so are the schedules of learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..losses.forms import GAPS
from .settings import Settings, setting

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "step": lambda progress: 0.1 ** sum(progress >= quarter for quarter in (0.25, 0.5, 0.75)),
}
"""Each schedule maps the progress through training, in [0, 1), to the factor of a learning rate."""
NETWORK = ("teacher", "checkpoint", "checkpoint_key", "num_classes", "image_size", "mean", "std")
"""These settings name the network, and say what it cannot tell of itself."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings shared by every stage: the frozen network, the seed and the device."""

    teacher: str = setting(
        "digits",
        "trained network, which stays as it is: digits (built in), torchvision:NAME, timm:NAME, pytorchcv:NAME, "
        "lite:NAME, or FILE.py:FUNCTION or MODULE:FUNCTION that returns yours",
        symbol="M_p",
    )
    checkpoint: str | None = setting(None, "state_dict file for the teacher (default: its own weights)")
    checkpoint_key: str | None = setting(
        None, "key of the state_dict in the checkpoint, such as state_dict_ema, if there are several"
    )
    num_classes: int | None = setting(None, "number of classes, if the teacher cannot tell", low=2)
    image_size: int | None = setting(
        None, "height and width of the teacher's images, in pixels, if it cannot tell", low=8
    )
    mean: str | None = setting(
        None, "mean of the teacher's images per channel, of pixels from 0 to 1, as 0.485,0.456,0.406, if it cannot tell"
    )
    std: str | None = setting(
        None, "standard deviation of its images per channel, as 0.229,0.224,0.225, if it cannot tell"
    )
    seed: int = setting(0, "seed of everything random", low=0, high=2**32 - 1)
    device: str = setting("auto", "where to compute; auto takes a GPU if there is one", choices=("auto", "cpu", "cuda"))
    threads: int | None = setting(None, "CPU threads (default: torch's choice, one per core)", low=1)
    batch_size: int = setting(32, "images per batch", low=2)
    weight_lr: float = setting(1e-3, "Adam learning rate of the generator's weights W", low=0.0)
    weight_beta1: float = setting(0.5, "Adam beta 1 for W", low=0.0, high=0.9999)
    weight_beta2: float = setting(0.999, "Adam beta 2 for W", low=0.0, high=0.999999)
    weight_decay: float = setting(0.0, "Adam weight decay for W", low=0.0)
    bns_weight: float = setting(
        100.0,
        "weight of the gap in BatchNorm statistics in L_r, the loss of images (eq. 1), beside the teacher's "
        "cross-entropy; GDFQ's is 0.1, 100 suits the digits",
        low=0.0,
    )
    bns_form: str = setting(
        "var",
        "form of that gap: squared differences of means and of variances (var, as in GDFQ) or standard deviations "
        "(std), or KL divergences (kl)",
        choices=GAPS,
    )

    @property
    def files(self) -> dict[str, str]:
        """Return the files on whose contents a run depends, by setting: checkpoint, genotypes and the person's code."""
        return {**({"checkpoint": self.checkpoint} if self.checkpoint else {}), **code_file("teacher", self.teacher)}


def code_file(name: str, spec: str) -> dict[str, str]:
    """Return the file of a ``models.py:factory`` under the name of its setting; other networks have no file."""
    path, colon, _ = spec.rpartition(":")
    return {name: path} if colon and path.endswith(".py") else {}
