"""Networks of timm and torchvision are searched, compressed and exported: the table docs/results/families.md.

    python benchmarks/families.py --output docs/results/families

There is one network for each family of convolution, BatchNorm and activation. Their weights are random and their
BatchNorm statistics those of smooth noise, so that the table says what works and not how well. Every stage makes a step
or two. Some hours on one CPU core; ``--networks`` chooses some of them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

import nni_autorecon as nar
from nni_autorecon.cli.exits import report_errors
from nni_autorecon.errors import AutoReConError, InputError, one_line
from nni_autorecon.export.onnx import export_onnx
from nni_autorecon.files import require_absent, write_text
from nni_autorecon.teacher.sources import architecture

TIMM = (
    *("cs3darknet_s", "cspresnet50", "darknet17", "densenet121", "dla34", "dpn48b", "efficientnet_b0"),
    *("tf_efficientnet_lite0", "ese_vovnet19b_dw", "fbnetc_100", "fbnetv3_b", "gernet_s", "ghostnet_100"),
    *("hardcorenas_a", "hgnet_tiny", "hgnetv2_b0", "hrnet_w18_small", "inception_v3", "inception_v4", "lcnet_050"),
    *("legacy_seresnet18", "mixnet_s", "mnasnet_100", "mobilenetv1_100", "mobilenetv2_100", "mobilenetv3_large_100"),
    *("mobilenetv4_conv_small", "mobileone_s0", "nf_regnet_b0", "regnetx_004", "regnety_004", "regnetz_b16"),
    *("repghostnet_100", "repvgg_a0", "repvit_m0_9", "res2net50_26w_4s", "resnest14d", "resnet18", "resnet33ts"),
    *("resnet50d", "resnetv2_50", "resnext50_32x4d", "rexnet_100", "selecsls42", "semnasnet_100", "seresnet18"),
    *("skresnet18", "spnasnet_100", "starnet_s1", "tinynet_e", "tresnet_m", "vgg11_bn", "vovnet39a", "xception41"),
    *("eca_resnet33ts", "gcresnet33ts", "fastvit_t8"),
)
TORCHVISION = (
    *("densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5", "mobilenet_v2"),
    *("mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5"),
    *("vgg11_bn", "wide_resnet50_2"),
)
NETWORKS = (*(f"timm:{name}" for name in TIMM), *(f"torchvision:{name}" for name in TORCHVISION))
SIZES = (64, 107, 128, 299)
"""The first size that a network takes is used, in pixels; inception_v3 needs more than 64, torchvision's needs 299."""
GENERATOR: dict[str, Any] = {"width": 4, "batch_size": 4, "progress": False}
SHORT = {"epochs": 3, "warmup_epochs": 1, "steps": 1, "agreement_steps": 1, "generator": "random:0", **GENERATOR}
BLOCKS: dict[str, Any] = {"block_images": 8, "block_steps": 1, "refine_steps": 1, **SHORT}
DFQ: dict[str, Any] = {"method": "dfq", "agreement_steps": 1, "batch_size": 4, "progress": False}
COMPRESSIONS = {
    "blockwise": {"bits": "w4a8", **BLOCKS},
    "blockwise, integer": {"bits": "w4a8", "protocol": "integer", **BLOCKS},
    "dfq": {"bits": "w8a8", **DFQ},
}
"""These are tried, under their names in the table."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="NAME", help="write NAME.md and NAME.csv")
    parser.add_argument("--force", action="store_true", help="replace them if they exist")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    arguments = parser.parse_args(argv)
    for suffix in (".md", ".csv"):
        require_absent(arguments.output.with_suffix(suffix), force=arguments.force)
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    rows = []
    for name in arguments.networks:
        rows.append(attempt(name))
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        frame = pd.DataFrame(rows)  # it is written after each, for a run may be ended early
        write_text(arguments.output.with_suffix(".csv"), frame.to_csv(index=False))
        write_text(arguments.output.with_suffix(".md"), to_markdown(frame))


def attempt(name: str) -> dict[str, Any]:
    """Return the row of a network: ``yes`` for each stage that works, or the reason why not."""
    torch.manual_seed(0)
    network, size = with_statistics(name)
    row: dict[str, Any] = {"network": name, "size": size}
    started = time.perf_counter()
    try:
        teacher = nar.Teacher.of(network, (3, size, size))
    except InputError as error:
        return {**row, "search": one_line(error)}
    row["check, s"] = round(time.perf_counter() - started, 1)
    steps = {"epochs": 1, "weight_steps": 1, "architecture_steps": 1, "validation_steps": 1, "final_steps": 1}
    found = works(lambda: nar.search(teacher, **steps, **GENERATOR))
    row["search"] = found if isinstance(found, str) else "yes"
    for column, settings in COMPRESSIONS.items():
        row |= files(works(lambda settings=settings: nar.compress(teacher, **settings)), network, column)
    row["seconds"] = round(time.perf_counter() - started)
    return row


def works(stage: Callable[[], Any]) -> Any:
    """Return the result of a stage, or the line with which it refuses. Any other error is a line, too, and is named."""
    try:
        return stage()
    except AutoReConError as error:
        return one_line(error)
    except Exception as error:
        return f"ERROR {type(error).__name__}: {one_line(error)}"


def files(result: Any, network: nn.Module, name: str) -> dict[str, str]:
    """Return whether a student exists, whether its file loads to the same, and whether its ONNX file is right."""
    if isinstance(result, str):
        return {name: result}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student.safetensors"
        result.student.save(path)
        loaded = works(lambda: nar.load_student(path, teacher=network))
        if isinstance(loaded, str):
            return {name: "yes", f"{name}, loaded": loaded}
        images = torch.randn(2, *loaded.description.image)
        with torch.no_grad():
            same = torch.equal(loaded.network(images), result.student.network.cpu()(images))
        onnx = works(lambda: export_onnx(loaded, Path(folder) / "student.onnx", noise_images=32))
    agreed = onnx if isinstance(onnx, str) else "yes"
    return {name: "yes", f"{name}, loaded": "yes" if same else "other logits", f"{name}, ONNX": agreed}


def with_statistics(name: str) -> tuple[nn.Module, int]:
    """Return a network with random weights and BatchNorm statistics of smooth noise, and the size of its images."""
    network = architecture(name, 10)
    for size in SIZES:
        try:
            network.train()
            with torch.no_grad():
                for _ in range(3):
                    noise = torch.randn(4, 3, size, size) + torch.randn(4, 3, 1, 1) / 2
                    network(F.avg_pool2d(noise, 3, 1, 1) * 2)
                network.eval()(noise)
            return network, size
        except RuntimeError:
            if size == SIZES[-1]:
                raise
    raise AssertionError


def to_markdown(frame: pd.DataFrame) -> str:
    """Return the table, and how many networks passed each column."""
    stages = [column for column in frame if column not in ("network", "size", "check, s", "seconds")]
    counts = ", ".join(f"{stage} {(frame[stage] == 'yes').sum()}" for stage in stages)
    head = "| " + " | ".join(map(str, frame)) + " |\n|" + "---|" * len(frame.columns)
    rows = ["| " + " | ".join(str(value) for value in row) + " |" for row in frame.fillna("").itertuples(index=False)]
    versions = ", ".join(f"{package.__name__} {package.__version__}" for package in _libraries())
    return (
        f"`python benchmarks/families.py`, {versions}, random weights. Of {len(frame)} networks pass: {counts}.\n\n"
        + "\n".join([head, *rows])
        + "\n"
    )


def _libraries() -> list[Any]:
    import timm
    import torchvision

    return [torch, timm, torchvision]


if __name__ == "__main__":
    raise SystemExit(report_errors(main))
