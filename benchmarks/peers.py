"""Other tools that quantize without data, beside this one, on a ResNet-20 for CIFAR-10: docs/results/peers.md.

    python benchmarks/peers.py --output docs/results/peers --networks FOLDER

Compared are Sony's model-compression-toolkit (MCT) on images that it generates, ``quantize_static`` of onnxruntime on
noise that this package has refined, and students of this package, protocol ``integer``. A tool that is not installed is
left out. MCT's images are kept in the cache folder. An hour on one CPU core for each seed.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from teachers import FASHION, Bench, cifar10, given, spread
from torch import Tensor, nn

import nni_autorecon as nar
from nni_autorecon.cache import cache_folder
from nni_autorecon.cli.exits import report_errors
from nni_autorecon.data.test_sets import load_evaluation_data
from nni_autorecon.export.onnx import Exported, float_content
from nni_autorecon.export.onnx_runtime import OnnxNetwork
from nni_autorecon.export.student_file import network_of_bytes, student_bytes
from nni_autorecon.files import require_absent, write_text
from nni_autorecon.networks import parameter_count
from nni_autorecon.quantization.specification import Bits
from nni_autorecon.student.noise import pixel_noise
from nni_autorecon.student.refined_images import refined

BITS = tuple(map(Bits, ("w8a8", "w4a8", "w4a4")))
IMAGES, BATCH = 256, 32
MCT_STEPS, REFINE_STEPS, GPTQ_EPOCHS = 200, 30, 40
AS_OURS = " as ours"


@dataclass(frozen=True)
class Made:
    """A quantized network, and what it took."""

    network: nn.Module
    activations: Counter[int]
    """It counts the activations of each bit width."""
    minutes: float
    """Minutes of CPU time, images included."""
    image_minutes: float
    """The minutes of the images alone are NaN where they cannot be told apart."""
    run_bytes: int
    """The size of the file that a runtime runs."""
    smallest_bytes: int
    """The size of the smallest file that the tool writes."""


def main(argv: Sequence[str] | None = None) -> None:
    names = f"default: {', '.join(METHODS)}"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="NAME", help="write NAME.md and NAME.csv")
    parser.add_argument("--force", action="store_true", help="replace them if they exist")
    parser.add_argument("--networks", type=Path, required=True, help="a folder with models.py and cifar10/")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=tuple(METHODS), metavar="NAME", help=names)
    parser.add_argument("--bits", nargs="+", type=Bits, choices=BITS, default=BITS, help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("settings", nargs="*", help="of blockwise, behind --")
    arguments = parser.parse_args(argv)
    for suffix in (".md", ".csv"):
        require_absent(arguments.output.with_suffix(suffix), force=arguments.force)
    torch.set_num_threads(arguments.threads)
    chosen = list(cases(arguments.methods, arguments.bits))
    bench = Bench(FASHION, arguments.networks, cache_folder() / "teachers")
    bench.folder.mkdir(parents=True, exist_ok=True)
    settings = cifar10(bench)
    test_data = settings.pop("test_data")
    teacher = nar.load_teacher(settings.pop("teacher"), **settings)
    data = load_evaluation_data(test_data, num_classes=teacher.num_classes, image=teacher.image)
    own = teacher.accuracy(teacher.network, data)
    rows: list[dict[str, Any]] = []
    for name, bits in chosen:
        for seed in arguments.seeds:
            more = given(arguments.settings) if name == "blockwise" else {}
            made = METHODS[name].make(teacher, bench.folder, name, bits, seed, **more)
            row = {"tool": METHODS[name].tool, "method": name, "bits": bits, "seed": seed, **described(made)}
            rows.append(row | {"teacher accuracy": own, "accuracy": teacher.accuracy(made.network.eval(), data)})
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
            frame = pd.DataFrame(rows)  # it is written after each, for a run may be ended early
            write_text(arguments.output.with_suffix(".csv"), frame.to_csv(index=False, float_format="%.4f"))
            text = to_markdown(frame, arguments.settings, parameters=parameter_count(teacher.network))
            write_text(arguments.output.with_suffix(".md"), text)


def cases(methods: Sequence[str], bits: Sequence[Bits]) -> Iterator[tuple[str, Bits]]:
    """Yield each method with the bits that it is tried at; a line names each tool that is not installed."""
    missing = [package for package in REMEDIES if importlib.util.find_spec(package) is None]
    for package in missing:
        print(f"there is no {package}, so that its rows are left out; pip install {REMEDIES[package]}", file=sys.stderr)
    for name in methods:
        if METHODS[name].package not in missing:
            yield from ((name, each) for each in bits if each in METHODS[name].bits)


def described(made: Made) -> dict[str, Any]:
    return {
        "activations": ", ".join(f"{count} at {bits}" for bits, count in sorted(made.activations.items())),
        "minutes": made.minutes,
        "of these for images": made.image_minutes,
        "kB to run": made.run_bytes / 1000,
        "kB at least": made.smallest_bytes / 1000,
    }


def by_onnxruntime(teacher: nar.Teacher, folder: Path, method: str, bits: Bits, seed: int) -> Made:
    """Return what ``quantize_static`` makes on refined noise."""
    import onnx
    from latency import quantized_by_onnxruntime

    started = time.process_time()
    images = refined(teacher, pixel_noise(teacher, IMAGES, seed=seed), steps=REFINE_STEPS)
    image_minutes = (time.process_time() - started) / 60
    content = quantized_by_onnxruntime(float_content(teacher.network, teacher.image), images.numpy())
    minutes = (time.process_time() - started) / 60
    graph = onnx.load_from_string(content).graph
    activations = Counter({8: sum(node.op_type == "QuantizeLinear" for node in graph.node)})
    network = OnnxNetwork(content, "what quantize_static has made", "use another onnxruntime")
    return Made(network, activations, minutes, image_minutes, len(content), len(content))


def by_us(teacher: nar.Teacher, folder: Path, method: str, bits: Bits, seed: int, **settings: Any) -> Made:
    """Return a student of protocol ``integer``."""
    settings |= {"method": method, "bits": bits, "protocol": "integer", "seed": seed}
    started = time.process_time()
    result = nar.compress(teacher, **settings, threads=torch.get_num_threads(), progress=False)
    minutes = (time.process_time() - started) / 60
    student = result.student
    assert student is not None
    file = student_bytes(student.network, student.description)
    exported = Exported.of(network_of_bytes(file, "the student", student.teacher))
    content = exported.program.model_proto.SerializeToString()
    activations = Counter(each.bits for each in result.coverage.activations)
    return Made(student.network, activations, minutes, float("nan"), len(content), len(file))


def by_mct(teacher: nar.Teacher, folder: Path, method: str, bits: Bits, seed: int) -> Made:
    """Return the network of MCT by PTQ or GPTQ, as the method's name begins, on images that MCT has generated."""
    import model_compression_toolkit as mct

    images, image_minutes = images_of_mct(teacher, folder / f"mct-cifar10-{seed}.pt", seed)
    batches = [[batch] for batch in images.split(BATCH)]
    torch.manual_seed(seed)
    started = time.process_time()
    core, platform = platform_of_mct(bits, as_ours=method.endswith(AS_OURS))
    arguments: dict[str, Any] = {"core_config": core, "target_platform_capabilities": platform}
    quantize = mct.ptq.pytorch_post_training_quantization
    if method.startswith("GPTQ"):
        quantize = mct.gptq.pytorch_gradient_post_training_quantization
        arguments["gptq_config"] = mct.gptq.get_pytorch_gptq_config(GPTQ_EPOCHS, use_hessian_sample_attention=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network, _ = quantize(teacher.network, lambda: iter(batches), **arguments)
    minutes = image_minutes + (time.process_time() - started) / 60
    size = size_of_mct(network, batches)
    return Made(network, activations_of_mct(network), minutes, image_minutes, size, size)


def images_of_mct(teacher: nar.Teacher, path: Path, seed: int) -> tuple[Tensor, float]:
    """Return the images [N, C, H, W] that MCT generates, and the minutes that it took, which ``path`` keeps."""
    from model_compression_toolkit import data_generation

    if not path.exists():
        torch.manual_seed(seed)
        started = time.process_time()
        config = data_generation.get_pytorch_data_generation_config(n_iter=MCT_STEPS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = data_generation.pytorch_data_generation_experimental(
                teacher.network, IMAGES, tuple(teacher.image[1:]), config
            )
        minutes = (time.process_time() - started) / 60
        torch.save({"images": torch.cat([each.detach() for each in made]), "minutes": minutes}, path)
    kept = torch.load(path)
    return kept["images"], kept["minutes"]


def platform_of_mct(bits: Bits, *, as_ours: bool) -> tuple[Any, Any]:
    """Return MCT's settings, and a platform of these bits; ``as_ours`` keeps images, terms of sums, logits at 8."""
    from model_compression_toolkit.core import CoreConfig, CustomOpsetLayers, QuantizationConfig
    from model_compression_toolkit.core.pytorch.reader.node_holders import DummyPlaceHolder
    from model_compression_toolkit.target_platform_capabilities.constants import KERNEL_ATTR
    from model_compression_toolkit.target_platform_capabilities.schema import mct_current_schema as schema
    from model_compression_toolkit.target_platform_capabilities.tpc_models.imx500_tpc.v1_0 import tpc

    linear, _, others = tpc.get_op_quantization_configs()
    kept = 8 if as_ours else bits.activations
    weights = {KERNEL_ATTR: {"weights_n_bits": bits.weights}}
    linear = linear.clone_and_edit(attr_to_edit=weights, activation_n_bits=kept)  # where no ReLU is fused with it
    images = schema.QuantizationConfigOptions(
        quantization_configurations=(others.clone_and_edit(activation_n_bits=kept),)
    )
    platform = tpc.generate_tpc(others.clone_and_edit(activation_n_bits=bits.activations), linear, [linear], "peers")
    operators = (*platform.operator_set, schema.OperatorsSet(name="images", qc_options=images))
    custom = QuantizationConfig(custom_tpc_opset_to_layer={"images": CustomOpsetLayers([DummyPlaceHolder])})
    return CoreConfig(custom), platform.model_copy(update={"operator_set": operators})


def activations_of_mct(network: nn.Module) -> Counter[int]:
    from mct_quantizers import PytorchActivationQuantizationHolder as Holder

    return Counter(each.activation_holder_quantizer.num_bits for each in network.modules() if isinstance(each, Holder))


def size_of_mct(network: nn.Module, batches: list[list[Tensor]]) -> int:
    """Return the bytes of MCT's TorchScript file; its ONNX needs an exporter that PyTorch no longer calls."""
    from model_compression_toolkit import exporter

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "mct.pt"
        exporter.pytorch_export_model(
            network,
            str(path),
            lambda: iter(batches),
            serialization_format=exporter.PytorchExportSerializationFormat.TORCHSCRIPT,
            quantization_format=exporter.QuantizationFormat.FAKELY_QUANT,
        )
        return path.stat().st_size


@dataclass(frozen=True)
class Method:
    """A method of a tool, the package that it needs, the bits that it is tried at, and the function that runs it."""

    tool: str
    package: str
    bits: tuple[Bits, ...]
    make: Callable[..., Made]
    """It takes the teacher, the folder for images, the method's name, bits and seed, and settings."""


METHODS = {
    "quantize_static": Method("onnxruntime", "onnxscript", BITS[:1], by_onnxruntime),
    "dfq": Method("ours", "onnxscript", BITS, by_us),
    "blockwise": Method("ours", "onnxscript", BITS, by_us),
    "PTQ": Method("MCT", "model_compression_toolkit", BITS, by_mct),
    f"PTQ{AS_OURS}": Method("MCT", "model_compression_toolkit", BITS[2:], by_mct),
    "GPTQ": Method("MCT", "model_compression_toolkit", BITS[1:], by_mct),
    f"GPTQ{AS_OURS}": Method("MCT", "model_compression_toolkit", BITS[2:], by_mct),
}
REMEDIES = {"onnxscript": "'nni-autorecon[onnx]'", "model_compression_toolkit": "model-compression-toolkit"}
"""pip installs these packages, which methods need."""


def to_markdown(rows: pd.DataFrame, settings: Sequence[str], *, parameters: int) -> str:
    """Return the table for readers: a line for each network, mean ± standard deviation over seeds."""
    command = shlex.join(map(str, ("--seeds", *rows["seed"].unique(), *(["--", *settings] if settings else []))))
    names = ("nni-autorecon", "torch", "onnxruntime", "model-compression-toolkit")
    versions = ", ".join(f"{name} {version(name)}" for name in names if name.replace("-", "_") in sys.modules)
    heads = ["tool", "method", "bits", "activations quantized, at bits", "accuracy", "below the teacher", "minutes"]
    heads += ["of these for images", "file to run, kB", "smallest file, kB"]
    lines = [heads, ["---"] * len(heads)]
    for key, group in rows.groupby(["tool", "method", "bits"], sort=False):
        mean = group.mean(numeric_only=True)
        below = f"{100 * (mean['teacher accuracy'] - mean['accuracy']):.2f}"
        minutes = [f"{mean[name]:.2f}" for name in ("minutes", "of these for images")]
        sizes = [f"{mean[name]:.0f}" for name in ("kB to run", "kB at least")]
        texts = [*key, group["activations"].iloc[0], spread(100 * group["accuracy"]), below, *minutes, *sizes]
        lines.append(["–" if text == "nan" else text for text in texts])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    own = 100 * rows["teacher accuracy"].iloc[0]
    return f"""# Beside other tools

`python benchmarks/peers.py --networks FOLDER {command}`: a ResNet-20 for CIFAR-10, fine-tuned on JPEGs, with
{own:.2f} % of the 10,000 test images right and {4 * parameters / 1000:.0f} kB of weights in floating point.
{versions}.

{table}

* MCT has {IMAGES} images of its own ({MCT_STEPS} steps), and its default platform, whose ranges of activations are
  powers of two. GPTQ has {GPTQ_EPOCHS} epochs, and weights of layers by the Hessian. Files are TorchScript.
* onnxruntime has {IMAGES} images of smooth noise, which this package has refined ({REFINE_STEPS} steps).
* Ours is `--protocol integer`. It keeps images and the terms of sums at 8 bits, whatever `--bits` says; in the rows
  "as ours" MCT does so, too. The others quantize the logits, which are in floating point here.
* Minutes are of CPU time. Other programs ran on the same cores, so that they are no benchmark.
"""


if __name__ == "__main__":
    sys.exit(report_errors(main))
