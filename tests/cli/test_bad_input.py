"""Whatever a person gives that cannot be used: one line that names it and the remedy, and nothing written."""

from __future__ import annotations

import io
import json
import os
import pickle
import shlex
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nni
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save

from nni_autorecon.cli import main as cli
from nni_autorecon.cli import stages
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.config.search import SearchConfig
from nni_autorecon.export import student_file as saving
from nni_autorecon.export.description import Description
from nni_autorecon.export.student_file import save_network
from nni_autorecon.files import unsealed
from nni_autorecon.generator.genotype import Genotype, uniform_choices
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.quantizers import observe_ranges
from nni_autorecon.quantization.specification import Quantization
from nni_autorecon.teacher.loading import Teacher

Content = str | bytes | Callable[[Path], object] | None
"""A file holds this; None makes a folder."""

TOY = (
    "--width 2 --latent-dim 5 --batch-size 4 --epochs 2 --weight-steps 2 --architecture-steps 1 "
    "--validation-steps 1 --final-steps 2"
)
STUDENT_TOY = (
    "--generator gdfq --width 2 --batch-size 4 --epochs 3 --steps 2 --warmup-epochs 1 --agreement-steps 1 --method gdfq"
)


@dataclass(frozen=True)
class Case:
    """``command`` among ``files`` must be refused, with ``thing`` and ``remedy`` in the line."""

    command: str
    thing: str
    remedy: str
    files: dict[str, Content]

    def __str__(self) -> str:
        return f"{self.command.partition(' --width 2')[0]} {self.thing}"[:90]


def case(command: str, thing: str, remedy: str, files: dict[str, Content] | None = None) -> Case:
    return Case(command, thing, remedy, files or {})


class Code:
    """Pickled code: a file appears if it is ever run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


# Genotypes

VALID = unsealed(json.loads(Genotype(uniform_choices("conv_3x3"), 5, 7).to_json()))
UP, NORMAL = "B1-N1 > B1-N2", "B1-N2 > B1-N4"


def genotype(**changes: Any) -> str:
    return json.dumps({**VALID, **changes})


def edges(**changes: Any) -> str:
    return genotype(edges={name: op for name, op in {**VALID["edges"], **changes}.items() if op is not None})


GENOTYPES = [
    case("show g.json", f"g.json: {thing}" if thing[0] != "g" else thing, remedy, {"g.json": content})
    for thing, remedy, content in [
        (f"edge '{UP}' is missing", "give it one of nearest", edges(**{UP: None})),
        ("unknown edge 'B1-N1 > B1-N9'", "edges are named like", edges(**{"B1-N1 > B1-N9": "none"})),
        (f"edge '{NORMAL}': unknown operation 'conv_9x9'", "use one of conv_1x1", edges(**{NORMAL: "conv_9x9"})),
        (f"edge '{NORMAL}': unknown operation 'nearest'", "use one of conv_1x1", edges(**{NORMAL: "nearest"})),
        (f"edge '{UP}': unknown operation 'conv_3x3'", "use one of nearest", edges(**{UP: "conv_3x3"})),
        (f"edge '{UP}': unknown operation ['nearest']", "use one of nearest", edges(**{UP: ["nearest"]})),
        ("edges must map each", "write it again", genotype(edges=[["nearest"]])),
        (
            "node B1-N4 is dead",
            "give 'B1-N2 > B1-N4' or 'B1-N3 > B1-N4' one of conv_1x1",
            edges(**{NORMAL: "none", "B1-N3 > B1-N4": "none"}),
        ),
        ("width = True is not a whole number", "correct it", genotype(width=True)),
        ("width = '64' is not a whole number", "correct it", genotype(width="64")),
        ("width = 6.5 is not a whole number", "correct it", genotype(width=6.5)),
        ("width = 1000000000 is not a whole number from 1 to", "correct it", genotype(width=10**9)),
        ("width = <a number of 3322 bits>", "correct it", genotype(width=10**1000)),
        ("latent_dim = None", "correct it", genotype(latent_dim=None)),
        ("g.json has version 7", "this release reads version 1", genotype(version=7)),
        ("genotype g.json is not JSON", "give one that search or best-genotype wrote", genotype(width=float("nan"))),
        (
            "genotype g.json is not JSON ('width' stands there twice",
            "give one that search or best-genotype wrote",
            genotype().replace("{", '{"width": 5,', 1),
        ),
        ("genotype g.json is not JSON", "give one that search or best-genotype wrote", '{"width": ' + "9" * 5000 + "}"),
        ("genotype g.json is not JSON", "give one that search or best-genotype wrote", "[" * 100_000),
        ("genotype g.json is not JSON", "give one that search or best-genotype wrote", ""),
        ("genotype g.json is not JSON", "give one that search or best-genotype wrote", genotype()[:-40]),
        ("genotype g.json is not a genotype", "give one that search or best-genotype wrote", "[]"),
        ("genotype g.json: it is larger than 1 MiB", "give text in UTF-8", b"junk" * 2_500_000),
        ("genotype g.json: it is not a text file", "give text in UTF-8", genotype().encode("utf-16")),
        ("genotype g.json: Is a directory", "check the path", None),
    ]
] + [
    case("show none.json", "genotype none.json does not exist", "check the path"),
    case("show published:cifar", "no published genotype 'cifar'", "there are cifar10-resnet20"),
    case("diff published:cifar10-resnet20 g.json", "edge", "give it one of", {"g.json": edges(**{UP: None})}),
    case(
        f"compress --genotype g.json {STUDENT_TOY[17:]} -o run", UP, "give it one of", {"g.json": edges(**{UP: None})}
    ),
]

# Settings

CONFIGS = [
    case(f"search --config c.yml {TOY} -o run", thing, remedy, {"c.yml": content})
    for thing, remedy, content in [
        ("c.yml: unknown setting 'epoch'", "did you mean 'epochs'", "epoch: 3"),
        ("c.yml: unknown setting 7", "known settings:", "7: 3"),
        ("c.yml: preset = 'papers' is not one of paper", "choose one of them", "preset: papers"),
        ("c.yml: preset = 3 is not text", "give text", "preset: 3"),
        ("c.yml: seed = 'five' is not a whole number", "give a whole number", "seed: five"),
        ("c.yml: seed = 2.5 is not a whole number", "give a whole number", "seed: 2.5"),
        ("c.yml: seed = None is not a whole number", "give a whole number", "seed:"),
        ("c.yml: threads = 0 is too small", "the least is 1", '{"threads": 0}'),
        ("c.yml: threads = <a number of 800 bits> is too large", "the most is 2147483647", f"threads: 0x{'f' * 200}"),
        ("c.yml: weight_lr = inf is not finite", "give an ordinary number", f'{{"weight_lr": 1{"0" * 400}}}'),
        ("c.yml: teacher = 'a\\x00b' holds characters", "leave them out", '{"teacher": "a\\u0000b"}'),
        ("c.yml: teacher = '\\ud800' holds characters", "leave them out", '{"teacher": "\\ud800"}'),
        ("c.yml is neither JSON nor YAML", "give a line for each setting", "epochs: ["),
        ("c.yml is neither JSON nor YAML: 'seed' stands twice", "give a line", "seed: 3\nepochs: 3\nseed: 4"),
        ("c.yml is neither JSON nor YAML: 'seed' stands twice", "give a line", '{"seed": 3, "seed": 4}'),
        (
            "c.yml is neither JSON nor YAML: could not determine a constructor",
            "give a line",
            "seed: !!python/object/apply:os.mkdir [pwned]",
        ),
        (
            "c.yml is neither JSON nor YAML: it holds more than 10000 values",
            "give a line",
            "\n".join(
                f"x{i + 1}: &x{i + 1} [{', '.join([f'*x{i}'] * 9)}]" if i else "x1: &x1 [lol]" for i in range(30)
            ),
        ),
        ("c.yml is neither JSON nor YAML", "give a line", "seed: " + "[" * 5000),
        ("c.yml is neither JSON nor YAML", "give a line", "seed: 2001-99-99"),
        ("c.yml: teacher = [[[...]]] is not text", "give text", "teacher: [[[[[[[[a]]]]]]]]"),
        ("c.yml: expected names and values, got list", "give a line", "- epochs: 3"),
        ("c.yml: expected names and values, got str", "give a line", "some words"),
        ("config file c.yml: it is not a text file", "give text in UTF-8", "seed: 3".encode("utf-16")),
        ("config file c.yml: it is larger than 1 MiB", "give text in UTF-8", "a" * 10_000_000),
        ("config file c.yml: Is a directory", "check the path", None),
    ]
] + [
    case(f"search --config none.yml {TOY} -o run", "config file none.yml does not exist", "check the path"),
    case("start none.yml", "experiment file none.yml does not exist", "check the path"),
]

# Teachers and checkpoints

NETWORKS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, norm=True, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3) if norm else nn.Identity()
        self.relu = nn.ReLU()
        self.linear = nn.Linear(3, classes)

    def forward(self, images):
        return self.linear(self.relu(self.norm(self.conv(images))).mean((2, 3)))

class Weird(Net):
    def forward(self, images):
        return images.add_(1).resize_(7)

class Branching(Net):
    def forward(self, images):
        return super().forward(images if images.mean() < 9 else -images)

class Pair(Net):
    def forward(self, images):
        return images, images

def make(): return Net()
def plain(): return Net(norm=False)
def fails(): raise RuntimeError("no\\nluck")
def ends(): raise SystemExit(3)
def number(): return 3
def needs(size): return Net()
"""


def state(change: Callable[[dict[str, Any]], object] = lambda state: None, **how: Any) -> Callable[[Path], object]:
    """A checkpoint of ``Net``, changed."""

    def write(path: Path) -> None:
        namespace: dict[str, Any] = {}
        exec(NETWORKS, namespace)
        values = dict(namespace["Net"](**how).state_dict())
        change(values)
        torch.save(values, path)

    return write


def cut(write: Callable[[Path], object], end: int) -> Callable[[Path], object]:
    def write_less(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[:end])

    return write_less


def flipped(write: Callable[[Path], object]) -> Callable[[Path], object]:
    """The least bit of a weight turned over: a file that is read without a complaint, if nobody looks."""

    def write_damaged(path: Path) -> None:
        write(path)
        content = bytearray(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            weights = max((archive.read(name) for name in archive.namelist() if "/data/" in name), key=len)
        content[content.index(weights)] ^= 1
        path.write_bytes(content)

    return write_damaged


def teacher(spec: str, thing: str, remedy: str, weights: Content = b"", flags: str = "--image-size 9") -> Case:
    command = f"search --teacher {spec} --checkpoint w.pt {flags} {TOY} -o run"
    return case(command, thing, remedy, {"nets.py": NETWORKS, "ended.py": "exit(3)", "half.py": "def", "w.pt": weights})


MAKE = "nets.py:make"
TEACHERS = [
    case(f"search --teacher cat {TOY} -o run", "network 'cat' is not understood", "give digits, torchvision:NAME"),
    case(f"search --teacher torchvision:resnet1 {TOY} -o run", "'resnet1'", "did you mean resnet1"),
    case(f"search --num-classes 7 {TOY} -o run", "teacher digits has 10 classes, not 7", "correct --num-classes"),
    case(f"search --checkpoint w.pt {TOY} -o run", "the digits teacher has its own weights", "leave out --checkpoint"),
    case(
        f"search --teacher {MAKE} {TOY} -o run",
        f"{MAKE} has no weights of its own",
        "give its state_dict with",
        {"nets.py": NETWORKS},
    ),
    teacher("no_such_module:net", "there is no module no_such_module", "install it, or give"),
    teacher("none.py:net", "file none.py does not exist", "check the path"),
    teacher("nets.py:mak", "has no function or class 'mak'", "did you mean make"),
    teacher("half.py:net", "importing half.py raised SyntaxError", "repair the file"),
    teacher("ended.py:net", "importing ended.py raised SystemExit: 3", "repair the file"),
    teacher("nets.py:fails", "the factory raised RuntimeError: no luck", "it must work without arguments"),
    teacher("nets.py:ends", "the factory raised SystemExit: 3", "it must work without arguments"),
    teacher("nets.py:needs", "the factory raised TypeError", "it must work without arguments"),
    teacher("nets.py:number", "the factory returned int", "it must return an nn.Module"),
    teacher("nets.py:plain", "nets.py:plain has no BatchNorm2d", "set --bns-weight 0", state(norm=False)),
    teacher("nets.py:Weird", "nets.py:Weird returns shape [7]", "it must return logits [1, classes]", state()),
    teacher("nets.py:Pair", "nets.py:Pair returns a tuple", "it must return logits [1, classes]", state()),
    teacher(MAKE, f"{MAKE} has 3 classes, not 5", "correct --num-classes", state(), "--image-size 9 --num-classes 5"),
    teacher(MAKE, f"{MAKE} does not tell the size", "give --image-size", state(), ""),
    teacher(MAKE, "image_size = 2 is too small", "the least is 8", state(), "--image-size 2"),
    teacher(MAKE, f"{MAKE}: mean and std belong together", "give both", state(), "--image-size 9 --mean 1,1"),
    teacher(MAKE, "mean = '1;1' is not a list", "write it as 0.485", state(), "--image-size 9 --mean 1;1 --std 1,1"),
    teacher(MAKE, f"{MAKE}: conv.bias holds NaN", "give sound", state(lambda s: s["conv.bias"].fill_(torch.nan))),
    teacher(MAKE, "checkpoint w.pt does not fit", "give one of exactly this network", state(classes=5)),
    teacher(MAKE, "missing: linear.bias", "give one of exactly", state(lambda s: s.pop("linear.bias"))),
    teacher(MAKE, "unexpected: x", "give one of exactly", state(lambda s: s.update(x=torch.ones(1)))),
    teacher(MAKE, "w.pt holds no state_dict but 0", "give one", lambda path: torch.save({0: torch.ones(1)}, path)),
    teacher("x" * 300 + ".py:make", "cannot look into xx", "choose another place"),
    teacher(MAKE, "w.pt holds no state_dict but nothing", "give one, alone", lambda path: torch.save({}, path)),
    teacher(MAKE, "w.pt is empty", "give torch.save(", b""),
    teacher(MAKE, "w.pt is damaged or no PyTorch checkpoint", "give torch.save(", "GIF89a"),
    teacher(MAKE, "w.pt is damaged or no PyTorch checkpoint", "give torch.save(", cut(state(), 700)),
    teacher(MAKE, "w.pt is damaged or no PyTorch checkpoint", "give torch.save(", flipped(state())),
    teacher(MAKE, "w.pt holds posix.mkdir, which could run code", "give torch.save(", pickle.dumps(Code(), 2)),
    teacher(MAKE, "w.pt holds posix.mkdir, which could", "give torch.save(", lambda path: torch.save(Code(), path)),
    teacher(MAKE, "checkpoint w.pt: Is a directory", "check the path", None),
    case(
        f"search --teacher {MAKE} --checkpoint no.pt {TOY} -o run",
        "checkpoint no.pt: No such file",
        "check the path",
        {"nets.py": NETWORKS},
    ),
    case(
        f"distill {STUDENT_TOY.partition(' --epochs')[0]} --student nets.py:make -o run",
        "nets.py:make fails on",
        "give a network for such images",
        {"nets.py": NETWORKS},
    ),
    *(
        case(
            f"compress --teacher nets.py:Branching --checkpoint w.pt --image-size 9 {how} -o run",
            "Branching cannot be traced (control flow by values or by the number of images in nets.py:",
            "take --method gdfq --protocol activations --allow-partial",
            {"nets.py": NETWORKS, "w.pt": state()},
        )
        for how in ("", "--protocol integer", "--method dfq", "--size 2kB")
    ),
]

# Data

IMAGES, LABELS = np.zeros((3, 1, 16, 16), np.uint8), np.array([0, 9, 5])


def arrays(**values: Any) -> bytes:
    """An .npz with ``values``; pickles where they are objects."""
    buffer = io.BytesIO()
    np.savez(buffer, **values)
    return buffer.getvalue()


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("images.npy", content)
    return buffer.getvalue()


def picture(path: Path) -> None:
    Image.new("L", (16, 16)).save(path, "PNG")


def data(spec: str, thing: str, remedy: str, files: dict[str, Content] | None = None) -> Case:
    return case(f"compress --test-data {spec} {STUDENT_TOY} -o run", thing, remedy, files)


TEN = {f"pictures/{digit}/a.png": picture for digit in range(10)}
NPZ = "give an .npz with uint8 images"
DATA = [
    data("t.npz", thing, remedy, {"t.npz": content})
    for thing, remedy, content in [
        ("test data t.npz (", NPZ, b""),
        ("test data t.npz (", NPZ, arrays(images=IMAGES, labels=LABELS)[:-90]),
        ("test data t.npz (", NPZ, zipped(b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'shape': 7}")),
        ("test data t.npz (", NPZ, arrays(images=IMAGES)),
        ("test data t.npz (", NPZ, arrays(images=IMAGES, labels=np.array([Code(), 1, 2], object))),
        ("test data t.npz (", NPZ, arrays(images=IMAGES, labels=LABELS + 0.5)),
        ("test data t.npz (", NPZ, None),
        ("t.npz: images are float32", "give uint8", arrays(images=IMAGES.astype(np.float32), labels=LABELS)),
        ("t.npz: images are uint8 [3, 16, 16]", "give uint8", arrays(images=IMAGES[:, 0], labels=LABELS)),
        ("uint8 [3, 1, 0, 0], without a pixel", "give", arrays(images=IMAGES[..., :0, :0], labels=LABELS)),
        ("t.npz: 3 images and 2 labels", "give one label for every image", arrays(images=IMAGES, labels=LABELS[:2])),
        ("t.npz: the least label is -1", "number the classes from 0", arrays(images=IMAGES, labels=LABELS - 1)),
        ("labels go up to 10", "number the classes from 0", arrays(images=IMAGES, labels=LABELS + 1)),
        ("labels go up to 11", "measure on the classes", arrays(images=IMAGES, labels=LABELS + 2)),
        ("t.npz have 3 channel(s)", "store images of the kind", arrays(images=IMAGES.repeat(3, 1), labels=LABELS)),
    ]
] + [
    data("none.npz", "test data none.npz does not exist", "check the path"),
    data("x" * 300, "cannot look into xx", "choose another place"),
    data("cifar11:x", "test data 'cifar11:x' do not exist", "give digits, FILE.npz, a folder"),
    data("cifar10:x", "cannot read test data cifar10 in x", "check the path"),
    data("digits --download", "digits are not downloaded", "leave out --download"),
    data("pictures", "test data pictures have no class folders", "give a CSV", {"pictures": None}),
    data("pictures", "test data pictures have no class folders", "give a CSV", {"pictures/a.png": picture}),
    data("pictures", "test data pictures have 1 classes", "list the names", {"pictures/a": None}),
    data("pictures", "pictures have 1 classes, the teacher 10", "measure on", {"pictures/a/a.png": picture}),
    data(
        "pictures",
        "cannot read picture pictures/7/a.png",
        "repair or remove it",
        {**TEN, "pictures/7/a.png": b"\x89PNG\r\n\x1a\n and no more"},
    ),
]

# Command lines

MISUSE = [
    case("", "the following arguments are required: COMMAND", "see nni-autorecon --help"),
    case("serch", "'serch' is unknown", "did you mean search?"),
    case("make", "'make' is unknown", "choose from new, search"),
    case("to-onnx run/student.safetensors --for sped", "--for: 'sped' is unknown", "did you mean speed?"),
    case("search --nonsense 3", "unrecognized arguments: --nonsense", "see nni-autorecon search --help"),
    case("new x --checkpont=a.pt", "arguments: --checkpont=a.pt", "did you mean --checkpoint?; see nni-autorecon new"),
    case("search --epochs", "argument --epochs: expected one argument", "see nni-autorecon search --help"),
    case("search --epochs ten", "command line: epochs = 'ten' is not a whole number", "give a whole number"),
    case("search --device tpu", "device = 'tpu'", "choose one of them"),
    case(f"search --resume {TOY}", "--resume needs the folder", "give it with --output"),
    case(f"search --resume {TOY} -o run", "run holds no unfinished run", "leave out --resume"),
    case("compress --generator searched", "generator searched needs a genotype", "give --genotype FILE"),
    case("compress --generator gdfq --bits w1a4", "bits 'w1a4' are not understood", "write them as w4a8"),
    case("compress --generator cat -o run", "generator 'cat' is not known", "use one of"),
    case("compress --method zeroq --generator gdfq", "zeroq, so that generator would do nothing", "leave out gen"),
    case("compress --generator gdfq --size 1.5", "size '1.5' is not understood", "write it as 1.5MB"),
    case("compress --method dfq --size 9kB -o run", "size 9kB is", "kB too small: this student"),
    case("compress --generator gdfq --input-bits 4", "so that input_bits would do nothing", "leave out input_bits"),
    case(f"compress {STUDENT_TOY} --epochs 2 -o run", "epochs (2) must exceed", "raise"),
    case("distill --adversarial-weight -1", "adversarial_weight = -1.0 is too small", "the least is 0"),
    case("best-genotype --experiment none", "NNI knows no experiment 'none'", "it has:"),
    case("best-genotype --experiment none -o there", "there already exists", "pass --force", {"there": "mine"}),
    case("report -o t", "report takes either folders or --experiment", "give one of them"),
    case("report run -o .", "-o .", "must be a name for several files", {"run": None}),
    case("report run --html -o t.html", "-o t.html", "must be a name for several files", {"run": None}),
    case("report run --html -o t", "t.html already exists", "pass --force", {"t.html": "mine"}),
    case("report run -o t.md", "-o t.md", "must be a name for several files", {"run": None}),
    case("to-onnx . -o s.onnx", "cannot read", "check the path"),
    case(f"compress {STUDENT_TOY} --generator-scale 1e4 --width 999 -o run", "generator_scale 10000", "lower it"),
    case("compress --generator gdfq --kd-temperature 1e300", "kd_temperature = 1e+300 is too large", "the most is"),
    case(f"report {'x' * 300} -o t", "xxx", ""),
    case("report nowhere -o t", "no runs in nowhere", "a run's folder holds config.json"),
    case("report run -o t", "run/config.json is damaged", "run it again", {"run/config.json": "{"}),
    case(
        "report run -o t",
        "run/config.json: unknown setting 'epoch'",
        "did you mean",
        {"run/config.json": json.dumps({"command": "compress", "config": {"epoch": 3}})},
    ),
    case("show published:cifar10-resnet20 -o g.jpg", "g.jpg", "give a name that ends in .png"),
    case("show published:cifar10-resnet20 -o g.png", "g.png already exists", "pass --force", {"g.png": "mine"}),
    case(f"search {TOY} -o run", "run already exists", "choose another place", {"run/mine": "mine"}),
    case(f"search {TOY} -o run", "run already exists", "choose another place", {"run": "mine"}),
    case(f"search {TOY} -o run --force", "run is a file", "name a folder", {"run": "mine"}),
    case(f"search {TOY} -o file/run", "cannot write file/run", "choose a writable place", {"file": "mine"}),
    case(f"compress {STUDENT_TOY} -o /proc/run", "cannot write /proc/run", "choose a writable place"),
]


@pytest.fixture(scope="module")
def student(digits_teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of the digits teacher, as a file."""
    path = tmp_path_factory.mktemp("student") / "s.safetensors"
    bits = Quantization("w3a5")
    network, _ = quantize_network(digits_teacher.network, bits)
    with torch.no_grad(), observe_ranges(network):
        network(torch.randn(16, *digits_teacher.image))
    save_network(path, network, Description.of(digits_teacher, bits))
    return path


def spoiled(change: Callable[[Path], object]) -> Content:
    return change


def told(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """The student says something else of itself, and its checksum is right."""

    def rewrite(path: Path) -> None:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            known = json.loads(file.metadata()["nni-autorecon"])
        del known["sha256"]
        change(known)
        rest = {name: value for name, value in known.items() if name != "format"}
        known["sha256"] = saving._digest(rest, tensors)
        path.write_bytes(save(tensors, {"nni-autorecon": json.dumps(known)}))

    return rewrite


def bytes_of(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def of_description(**changes: Any) -> Callable[[Path], object]:
    return told(lambda known: known["description"].update(changes))


def of_format(number: int, **quantization: Any) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        told(lambda known: known["description"]["quantization"].update(quantization))(path)
        bytes_of(lambda b: b.replace(b'format\\": 4', f'format\\": {number}'.encode()))(path)

    return change


STUDENTS: list[tuple[Callable[[Path], object], str, str, str]] = [
    (lambda path: path.unlink(), "", "saved network s.safetensors: No such file", "check the path"),
    (bytes_of(lambda b: b""), "", "s.safetensors is damaged or no", "give the student.safetensors"),
    (bytes_of(lambda b: b[:-9]), "", "s.safetensors is damaged or no", "give the student.safetensors"),
    (bytes_of(lambda b: b[:40]), "", "s.safetensors is damaged or no", "give the student.safetensors"),
    (bytes_of(lambda b: b"\xff" * 7 + b[7:]), "", "s.safetensors is damaged or no", "give the student.safetensors"),
    (
        bytes_of(lambda b: b.replace(b'"data_offsets":[0,', b'"data_offsets":[9,')),
        "",
        "s.safetensors is damaged",
        "give",
    ),
    (bytes_of(lambda b: b[:-1] + bytes([b[-1] ^ 1])), "", "s.safetensors is damaged: its content", "copy it again"),
    (lambda path: path.write_bytes(save(load_file(path))), "", "not written by nni-autorecon", "give the .safetensors"),
    (bytes_of(lambda b: b.replace(b'format\\": 4', b'format\\": 9')), "", "s.safetensors has format 9", "update"),
    (
        of_format(2, protocol="integer"),
        "",
        "protocol integer had biases in floating point then",
        "compress the network",
    ),
    (told(lambda known: known.pop("weights")), "", "s.safetensors was saved by nni-autorecon", "compress the network"),
    (told(lambda known: known.update(weights=[1])), "", "s.safetensors was saved by", "compress the network again"),
    (told(lambda known: known.update(versions=3, description=3)), "", "s.safetensors was saved by", "compress"),
    (told(lambda known: known["weights"]["conv1"].update(bits=99)), "", "conv1.weight (99 for 3)", "name the network"),
    (told(lambda known: known["weights"]["conv1"].update(shape=[-1])), "", "s.safetensors was saved by", "compress"),
    (of_description(quantization={"weight_bits": 99, "activation_bits": 5}), "", "s.safetensors was saved", "compress"),
    (of_description(quantization=[3]), "", "s.safetensors was saved", "compress the network again"),
    (of_description(image=[1, 16]), "", "s.safetensors was saved", "compress the network again"),
    (of_description(num_classes="ten"), "", "s.safetensors was saved", "compress the network again"),
    (of_description(teacher="../pwned.py:make"), "", "s.safetensors is a student of ../pwned.py:make", "add --teacher"),
    (of_description(teacher="mine.networks:main"), "", "student of mine.networks:main", "add --teacher"),
    (lambda path: None, "--teacher torchvision:resnet18", "s.safetensors does not fit", "name the network it was made"),
    (lambda path: None, "--test-data none.npz", "test data none.npz does not exist", "check the path"),
]


@pytest.fixture
def folder(tmp_path: Path, digits_teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; what is beside it must not change either."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(tmp_path / "here")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python's own, beside a teacher's file
    return tmp_path / "here"


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.parent.rglob("*")}


def assert_refused(folder: Path, run: Callable[[], int], thing: str, remedy: str, capsys: Any) -> None:
    """One line on stderr that names the thing and the remedy, exit code 2, and nothing written."""
    before = contents(folder)
    try:
        code: Any = run()
    except SystemExit as ended:  # argparse's way
        code = ended.code
    printed = capsys.readouterr()
    assert (code, printed.out, printed.err.count("\n")) == (2, "", 1), printed
    assert printed.err.startswith("nni-autorecon")
    assert ": error: " in printed.err
    assert thing in printed.err
    assert remedy in printed.err.partition(thing)[2]
    assert len(printed.err) < 1000
    assert contents(folder) == before


CASES = [*GENOTYPES, *CONFIGS, *TEACHERS, *DATA, *MISUSE]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_input_is_one_line_and_leaves_everything_as_it_was(case: Case, folder: Path, capsys: Any) -> None:
    for name, content in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif callable(content):
            content(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert_refused(folder, lambda: cli.main(shlex.split(case.command)), case.thing, case.remedy, capsys)


@pytest.mark.parametrize(("spoil", "flags", "thing", "remedy"), STUDENTS)
def test_a_student_that_cannot_be_used(
    spoil: Callable[[Path], object], flags: str, thing: str, remedy: str, student: Path, folder: Path, capsys: Any
) -> None:
    (folder / "s.safetensors").write_bytes(student.read_bytes())
    spoil(folder / "s.safetensors")
    argv = ["evaluate", "s.safetensors", *flags.split()]
    assert_refused(folder, lambda: cli.main(argv), thing, remedy, capsys)


@pytest.mark.parametrize(
    ("command", "content", "thing", "remedy"),
    [
        ("evaluate s.onnx", b"", "onnxruntime", "give a file of nni-autorecon to-onnx"),
        ("evaluate s.onnx", b"cat", "s.onnx", "give a file of nni-autorecon to-onnx"),
        ("evaluate s.onnx", None, "cannot read s.onnx", "check the path"),
        ("evaluate s.onnx --teacher digits", b"", "an ONNX file holds its own structure", "leave out --teacher"),
        ("to-onnx s.onnx", b"", "s.onnx is ONNX already", "give the student.safetensors"),
        ("to-onnx none.safetensors", b"", "none.safetensors: No such file", "check the path"),
    ],
)
def test_an_onnx_file_that_cannot_be_used(
    command: str, content: bytes | None, thing: str, remedy: str, folder: Path, capsys: Any
) -> None:
    if content is not None:
        (folder / "s.onnx").write_bytes(content)
    assert_refused(folder, lambda: cli.main(command.split()), thing, remedy, capsys)


@pytest.mark.parametrize(
    ("stage", "parameters", "thing", "remedy"),
    [
        (SearchConfig, {"epoch": 3}, "tuner: unknown setting 'epoch'", "did you mean 'epochs'"),
        (SearchConfig, {"epochs": "three"}, "tuner: epochs = 'three' is not a whole number", "give a whole number"),
        (SearchConfig, {"epochs": 4.5}, "tuner: epochs = 4.5 is not a whole number", "give a whole number"),
        (SearchConfig, {"weight_lr": float("nan")}, "tuner: weight_lr = nan is not finite", "give an ordinary number"),
        (SearchConfig, {"relaxation": {"epochs": 3}}, "tuner: relaxation = {'epochs': 3} is not text", "give text"),
        (CompressConfig, {"method": {"_name": "magic"}}, "tuner: method = 'magic' is not one of", "choose one of them"),
        (CompressConfig, {"method": {"_name": "dfq", "x": 1}}, "tuner: unknown setting 'x'", "known settings"),
    ],
)
def test_a_tuners_parameters_that_cannot_be_used(
    stage: Any, parameters: Any, thing: str, remedy: str, folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NNI_PLATFORM", "local")
    monkeypatch.setattr(nni, "get_next_parameter", lambda: parameters)
    name, toy = ("search", TOY) if stage is SearchConfig else ("compress", STUDENT_TOY)
    flags = [*toy.split(), "-o", "run"]
    assert_refused(folder, lambda: stages.run_as_trial(name, flags), thing, remedy, capsys)
    assert_refused(folder, lambda: cli.main([name, *flags]), thing, remedy, capsys)


def test_a_genotype_with_a_byte_order_mark_is_read(folder: Path, capsys: Any) -> None:
    (folder / "g.json").write_text(genotype(), encoding="utf-8-sig")
    assert cli.main(["show", "g.json"]) == 0
    assert "width 5" in capsys.readouterr().out


def test_a_folder_whose_name_is_no_text_is_written_and_named(folder: Path, capsys: Any) -> None:
    name = os.fsdecode(b"caf\xe9")
    assert cli.main(["search", *TOY.split(), "-o", name]) == 0
    assert "caf\\udce9/genotype.json: generator of" in capsys.readouterr().out
    assert (folder / name / "genotype.json").exists()


def test_names_in_a_file_never_leave_the_folder(folder: Path) -> None:
    """What a genotype says of itself is kept, and no path is made of it."""
    names = {"teacher": "../../escaped", "output": "/escaped", "genotype": "../escaped.json", "../escaped": "x"}
    (folder / "g.json").write_text(genotype(**names))
    argv = ["compress", "--genotype", "g.json", *STUDENT_TOY.split()[4:], "-o", "run"]
    assert cli.main(argv) == 0
    assert {path.name for path in folder.iterdir()} == {"g.json", "run"}
    assert {path.name for path in folder.parent.iterdir()} == {"here"}
