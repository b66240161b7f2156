"""Every setting: its type, default, range and paper symbol; one way in for files, flags and the tuner."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from .errors import InputError
from .files import read_text

if TYPE_CHECKING:
    from typing_extensions import Self


def setting(
    default: Any,
    help: str,
    *,
    symbol: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    pattern: str | None = None,
) -> Any:
    """A dataclass field that knows its range (both ends included) and what it means."""
    metadata = {"help": help, "symbol": symbol, "low": low, "high": high, "choices": choices, "pattern": pattern}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings shared by every stage: the frozen network, the seed and the device."""

    teacher: str = setting(
        "digits", "frozen network: digits, torchvision:, timm: or pytorchcv:NAME, or module-or-file.py:factory",
        symbol="M_p",
    )  # fmt: skip
    checkpoint: str | None = setting(None, "state_dict file for the teacher (default: its own weights)")
    num_classes: int | None = setting(None, "number of classes, if the teacher cannot tell", low=2)
    image_size: int | None = setting(None, "height and width of its input, if the teacher cannot tell", low=8)
    mean: str | None = setting(None, "mean of its pixels per channel, as 0.485,0.456,0.406, if it cannot tell")
    std: str | None = setting(None, "their standard deviation per channel, as 0.229,0.224,0.225")
    seed: int = setting(0, "seed of everything random", low=0, high=2**32 - 1)
    device: str = setting("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    threads: int | None = setting(None, "CPU threads (default: torch's choice, one per core)", low=1)
    batch_size: int = setting(32, "images per batch", low=2)
    weight_lr: float = setting(1e-3, "Adam learning rate of the generator's weights W", low=0.0)
    weight_beta1: float = setting(0.5, "Adam beta 1 for W", low=0.0, high=0.9999)
    weight_beta2: float = setting(0.999, "Adam beta 2 for W", low=0.0, high=0.999999)
    weight_decay: float = setting(0.0, "Adam weight decay for W", low=0.0)
    bns_weight: float = setting(
        100.0, "weight of the BatchNorm-statistics loss in L_r (eq. 1); GDFQ's is 0.1, 100 suits the digits", low=0.0
    )

    def override(self, values: Mapping[str, Any], *, source: str = "settings") -> Self:
        """A copy with ``values`` replaced, each checked against its type and range.

        ``source`` says in errors where the values came from. Raises InputError for an unknown name, a wrong
        type or a value out of range. A whole float is taken for an int: NNI's ``quniform`` sends 4.0.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"{source}: expected names and values, got {type(values).__name__}; use key: value pairs")
        fields = {field.name: field for field in dataclasses.fields(self)}
        checked = {}
        for name, value in values.items():
            if name not in fields:
                raise InputError(f"{source}: unknown setting {name!r}{_suggestion(name, fields)}")
            checked[name] = _check(fields[name], type(self).field_type(name), value, source)
        return dataclasses.replace(self, **checked)

    @classmethod
    def load(cls, path: str | Path | None) -> Self:
        """Defaults overridden by a JSON or YAML file; the defaults alone if ``path`` is None."""
        if path is None:
            return cls()
        text = read_text(Path(path), "config file")
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"config file {path} is neither JSON nor YAML: {_one_line(error)}") from error
        return cls().override({} if values is None else values, source=f"config file {path}")

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """One flag per setting. Flags that are not given leave no trace, so that files and defaults show through."""
        group = parser.add_argument_group("settings", "each may also stand in the file given with --config")
        for field in dataclasses.fields(cls):
            meta = field.metadata
            flag = "--" + field.name.replace("_", "-")
            default = "" if field.default is None else f" (default: {field.default})"
            symbol = f" [{meta['symbol']}]" if meta["symbol"] else ""
            help_text = f"{meta['help']}{symbol}{default}".replace("%", "%%")
            if cls.field_type(field.name) is bool:
                action: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
            else:
                action = {"metavar": "|".join(meta["choices"]) if meta["choices"] else _metavar(field.name)}
            group.add_argument(flag, dest=field.name, default=argparse.SUPPRESS, help=help_text, **action)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """Defaults, then the file in ``arguments.config``, then the flags that were given."""
        names = {field.name for field in dataclasses.fields(cls)}
        given = {name: value for name, value in vars(arguments).items() if name in names}
        parsed = {
            name: _parse(cls.field_type(name), value) if isinstance(value, str) else value
            for name, value in given.items()
        }
        return cls.load(getattr(arguments, "config", None)).override(parsed, source="command line")

    @classmethod
    def field_type(cls, name: str) -> type:
        """The plain type of a setting: int, float, bool or str (``None`` may be allowed beside it)."""
        annotation = typing.get_type_hints(cls)[name]
        if isinstance(annotation, types.UnionType):
            annotation = next(member for member in typing.get_args(annotation) if member is not type(None))
        return typing.cast(type, annotation)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Config):
    """Stage 1 of Algorithm 1. The defaults search a generator for the digits teacher in about a minute."""

    weight_lr: float = setting(2e-3, "Adam learning rate of the generator's weights W", low=0.0)
    latent_dim: int = setting(100, "dimensions of the latent vector z", symbol="z", low=3)
    width: int = setting(16, "channels of every node (the paper's generators: 64)", symbol="C", low=1)
    epochs: int = setting(8, "search epochs", symbol="L1", low=1)
    weight_steps: int = setting(16, "batches per epoch that update W, alpha fixed", symbol="T1", low=1)
    architecture_steps: int = setting(8, "batches per epoch that update alpha, W fixed", symbol="V1", low=1)
    validation_steps: int = setting(8, "batches of the validation loss after each epoch", low=1)
    relaxation: str = setting(
        "logits", "Gumbel noise on log p (logits) or on p as eq. 7 prints it (paper)", choices=("logits", "paper")
    )
    sampling: str = setting(
        "soft", "mix candidates by their weights, or run one-hot samples with straight-through gradients",
        choices=("soft", "hard"),
    )  # fmt: skip
    temperature_start: float = setting(5.0, "temperature of the first epoch", symbol="τ", low=1e-3)
    temperature_end: float = setting(1.5, "temperature of the last epoch", symbol="τ", low=1e-3)
    temperature_schedule: str = setting(
        "exponential", "path between the two", choices=("constant", "linear", "exponential", "cosine")
    )
    architecture_lr: float = setting(0.02, "Adam learning rate of the architecture parameters", symbol="α", low=0.0)
    architecture_beta1: float = setting(0.5, "Adam beta 1 for alpha", low=0.0, high=0.9999)
    architecture_beta2: float = setting(0.999, "Adam beta 2 for alpha", low=0.0, high=0.999999)
    architecture_decay: float = setting(0.0, "Adam weight decay for alpha", low=0.0)
    architecture_init: float = setting(1e-3, "standard deviation of alpha at the start", low=0.0)
    mac_penalty: float = setting(
        0.0, "weight of the expected MACs (1 = those of uniform alpha) in the loss of alpha", low=0.0
    )
    inherit_weights: bool = setting(
        False, "start the final training of the found generator from the supernet's weights, not from scratch"
    )
    final_steps: int = setting(
        150, "batches that train the found generator; its L_r afterwards is the final metric", low=1
    )


@dataclass(frozen=True, kw_only=True)
class CompressConfig(Config):
    """Stage 2 of Algorithm 1: GDFQ's recipe with the generator of your choice."""

    latent_dim: int | None = setting(None, "dimensions of z (default: the genotype's, or 100)", symbol="z", low=3)
    test_data: str | None = setting(
        None, "images to measure on: digits, FILE.npz, a folder of class folders, or cifar10:, cifar100: or "
        "imagenet:FOLDER (default: digits for the digits teacher)",
    )  # fmt: skip
    download: bool = setting(False, "fetch test data cifar10 or cifar100 if its folder has none")
    generator: str = setting(
        "gdfq",
        "searched:FILE (a genotype), published:NAME, random:SEED, all:OPERATION, gdfq or gdfq-conditional",
        symbol="M_g",
    )
    width: int | None = setting(None, "channels of the generator (default: the genotype's; GDFQ: 128)", low=1)
    bits: str = setting("w4a4", "bit widths of weights and activations", pattern=r"w[2-8]a[2-8]")
    epochs: int = setting(14, "epochs in all, warm-up and range tracking included", symbol="L2", low=1)
    steps: int = setting(50, "batches per epoch", symbol="T2", low=1)
    warmup_epochs: int = setting(4, "first epochs: only the generator is trained", low=0)
    range_epochs: int = setting(1, "epochs after the warm-up in which activation ranges are tracked", low=1)
    generator_updates: str = setting(
        "always", "train the generator throughout (GDFQ) or only in the warm-up (Algorithm 1)",
        choices=("always", "warmup"),
    )  # fmt: skip
    weight_schedule: str = setting(
        "constant", "generator's learning rate over all epochs; step is GDFQ's x0.1 at 1/4, 1/2 and 3/4",
        choices=("constant", "cosine", "step"),
    )  # fmt: skip
    student_lr: float = setting(1e-3, "SGD learning rate of the student", low=0.0)
    student_momentum: float = setting(0.9, "Nesterov momentum of the student", low=0.0, high=0.9999)
    student_decay: float = setting(1e-4, "weight decay of the student", low=0.0)
    student_schedule: str = setting(
        "cosine", "learning rate over the student's epochs (step as above)",
        choices=("constant", "cosine", "step"),
    )  # fmt: skip
    student_clip: float | None = setting(None, "largest gradient norm of the student (default: no clipping)", low=1e-9)
    ce_weight: float = setting(1.0, "weight of the cross-entropy in L_S", low=0.0)
    kd_weight: float = setting(1.0, "weight of the distillation term in L_S", symbol="α", low=0.0)
    kd_temperature: float = setting(20.0, "temperature of the distillation term", symbol="T", low=1e-3)
    kd_reduction: str = setting(
        "mean", "mean also divides by the class count (as GDFQ does); batchmean does not",
        choices=("mean", "batchmean"),
    )  # fmt: skip
    allow_partial: bool = setting(False, "go on when parts of the network cannot be quantized")
    agreement_steps: int = setting(8, "fresh batches on which student and teacher are compared each epoch", low=1)

    def require_consistent(self) -> None:
        """Raise InputError if settings that are fine one by one do not go together."""
        if self.generator_updates == "warmup" and self.warmup_epochs == 0:
            raise InputError("generator_updates = warmup with warmup_epochs = 0 never trains it; raise warmup_epochs")
        if self.warmup_epochs + self.range_epochs >= self.epochs:
            raise InputError(
                f"epochs ({self.epochs}) must exceed warmup_epochs + range_epochs "
                f"({self.warmup_epochs} + {self.range_epochs}); raise epochs"
            )

    @property
    def weight_bits(self) -> int:
        return int(self.bits[1])

    @property
    def activation_bits(self) -> int:
        return int(self.bits[3])


def _check(field: dataclasses.Field[Any], kind: type, value: Any, source: str) -> Any:
    """``value`` as ``kind``, within the field's range, or InputError."""
    meta, where = field.metadata, f"{source}: {field.name}"
    if value is None and field.default is None:
        return None
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{where} = {value!r} is not {_ARTICLE[kind]}; give {_ARTICLE[kind]}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where} = {value!r} is not finite; give an ordinary number")
    if meta["choices"] and value not in meta["choices"]:
        raise InputError(f"{where} = {value!r} is not one of {', '.join(meta['choices'])}")
    if meta["pattern"] and not re.fullmatch(meta["pattern"], str(value)):
        raise InputError(f"{where} = {value!r} does not look like {field.default} (bits from 2 to 8)")
    if meta["low"] is not None and value < meta["low"]:
        raise InputError(f"{where} = {value} is too small; the least is {meta['low']:g}")
    if meta["high"] is not None and value > meta["high"]:
        raise InputError(f"{where} = {value} is too large; the most is {meta['high']:g}")
    return value


_ARTICLE = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _parse(kind: type, text: str) -> Any:
    """A flag's text as ``kind``; what cannot be read stays text, for ``_check`` to name."""
    if kind is str:
        return text
    try:
        return int(text) if kind is int else float(text)
    except ValueError:
        return text


def _metavar(name: str) -> str:
    named = {"checkpoint": "FILE", "bits": "wNaN", "mean": "N,N,N", "std": "N,N,N"}
    return named.get(name, "SPEC" if name in ("teacher", "generator", "test_data") else "N")


def _suggestion(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known settings: {', '.join(known)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
