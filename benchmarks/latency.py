"""Files for speed are timed beside the float network and onnxruntime's own quantization: docs/results/latency.md.

    python benchmarks/latency.py --output docs/results/latency

The networks have random weights, images have 224×224 pixels, batches one. What is compared runs in turns in one
process, in onnxruntime and, if it is installed, in OpenVINO. A few minutes on one core.
"""

from __future__ import annotations

import argparse
import logging
import platform
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import torch
from torch import Tensor, nn

from nni_autorecon.cli.exits import report_errors
from nni_autorecon.export.agreement import measure_agreement
from nni_autorecon.export.description import Description
from nni_autorecon.export.latency import in_turns
from nni_autorecon.export.onnx import Exported, float_content
from nni_autorecon.export.saved_network import SavedNetwork
from nni_autorecon.export.student_file import network_of_bytes, student_bytes
from nni_autorecon.files import require_absent, write_text
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.quantizers import observe_ranges
from nni_autorecon.quantization.specification import Quantization
from nni_autorecon.shapes import ImageShape
from nni_autorecon.teacher.sources import architecture

NETWORKS = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v2",
    "timm:tf_efficientnet_lite0",
    "timm:regnetx_002",
    "timm:regnety_002",
)
BITS = ("w8a8", "w4a8", "w4a4")
IMAGE = ImageShape(3, 224, 224)
INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
Run = Callable[[Tensor], object]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="NAME", help="write NAME.md and NAME.csv")
    parser.add_argument("--force", action="store_true", help="replace them if they exist")
    parser.add_argument(
        "--networks", nargs="+", default=NETWORKS, metavar="SPEC", help=f"default: {' '.join(NETWORKS)}"
    )
    parser.add_argument("--bits", nargs="+", default=BITS, help=f"default: {' '.join(BITS)}")
    parser.add_argument("--rounds", type=int, default=30, help="repetitions that count (default: 30)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    arguments = parser.parse_args(argv)
    for suffix in (".md", ".csv"):
        require_absent(arguments.output.with_suffix(suffix), force=arguments.force)
    torch.set_num_threads(arguments.threads)
    rows = [row for spec in arguments.networks for row in measured(spec, arguments.bits, arguments.rounds)]
    frame = pd.DataFrame(rows)
    write_text(arguments.output.with_suffix(".csv"), frame.to_csv(index=False))
    text = f"# Latency of files for speed\n\n{caption(arguments)}\n\n{table(frame)}\n"
    write_text(arguments.output.with_suffix(".md"), text)
    print(text, end="")


def measured(spec: str, bits: Sequence[str], rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each bit width of a network."""
    torch.manual_seed(0)
    network = architecture(spec).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training, unlike each other
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    content = float_content(network, IMAGE)
    noise = np.random.default_rng(0).standard_normal((8, *IMAGE), dtype=np.float32)
    static = quantized_by_onnxruntime(content, noise)
    for each in bits:
        started = time.perf_counter()
        saved = student(network, each)
        exported = Exported.of(saved)
        seconds = time.perf_counter() - started
        ours = exported.program.model_proto.SerializeToString()
        agreement = measure_agreement(saved.network, exported.network, torch.randn(16, *IMAGE))
        contents = {"float": content, "ours": ours, "static": static}
        runs = {f"{name} ms": in_onnxruntime(each) for name, each in contents.items()}
        runs |= {f"{name} in OpenVINO ms": in_openvino(contents[name]) for name in ("float", "ours") if has_openvino()}
        yield {
            "network": spec,
            "bits": each,
            **{name: 1000 * statistics.median(times) for name, times in in_turns(runs, IMAGE, rounds=rounds).items()},
            "MB": len(ours) / 1e6,
            "float MB": len(content) / 1e6,
            "float layers": float_layers(ours),
            "decisions alike": agreement.decisions,
            "export s": seconds,
        }


def student(network: nn.Module, bits: str) -> SavedNetwork:
    """Return a student of protocol integer whose ranges come from noise."""
    quantization = Quantization(bits, protocol="integer")  # type: ignore[arg-type]
    quantized, _ = quantize_network(network, quantization, image=IMAGE)
    with torch.no_grad(), observe_ranges(quantized):
        quantized(torch.randn(8, *IMAGE))
    description = Description("random weights", 1000, IMAGE, (0.0,) * 3, (1.0,) * 3, quantization)
    return network_of_bytes(student_bytes(quantized, description), "the student", network)


def quantized_by_onnxruntime(content: bytes, images: np.ndarray) -> bytes:
    """Return what ``quantize_static`` makes of a float model: QDQ, per channel, INT8 weights, UINT8 activations.

    images: float32 [N, C, H, W], which set the ranges of activations.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = list(np.split(images, len(images)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return {"images": self.left.pop()} if self.left else None

    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source, prepared, made = (Path(folder) / name for name in ("float.onnx", "prepared.onnx", "static.onnx"))
        source.write_bytes(content)
        quant_pre_process(source, prepared)
        quantize_static(
            prepared,
            made,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
        )
        return made.read_bytes()


def in_onnxruntime(content: bytes) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


def in_openvino(content: bytes) -> Run:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(content), "CPU", settings)
    return lambda images: compiled(images.numpy())


def has_openvino() -> bool:
    try:
        import openvino  # noqa: F401
    except ImportError:
        return False
    return True


def float_layers(content: bytes) -> int:
    """Return how many convolutions and products of matrices stay in floating point in onnxruntime's own graph."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        options.log_severity_level = 3
        onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        kinds = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    return sum(count for kind, count in kinds.items() if re.fullmatch(r"(Nhwc)?(Fused)?(Conv|Gemm|MatMul)", kind))


def table(frame: pd.DataFrame) -> str:
    """Return the rows as Markdown, with the ratios of the medians."""
    heads = ["network", "bits", "float ms", "ours ms", "times faster", "quantize_static ms", "ours over it"]
    heads += ["OpenVINO: float ms", "ours ms", "MB", "float MB", "layers in float", "decisions alike", "export s"]
    lines = [heads, ["---"] * len(heads)]
    for row in frame.to_dict("records"):
        missing = float("nan")
        openvino = [row.get(f"{name} in OpenVINO ms", missing) for name in ("float", "ours")]
        numbers = [row["float ms"], row["ours ms"], row["float ms"] / row["ours ms"], row["static ms"]]
        numbers += [row["ours ms"] / row["static ms"], *openvino, row["MB"], row["float MB"]]
        texts = ["–" if np.isnan(number) else f"{number:.2f}" for number in numbers]
        others = [str(row["float layers"]), f"{row['decisions alike']:.1%}", f"{row['export s']:.0f}"]
        lines.append([row["network"], row["bits"], *texts, *others])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def caption(arguments: argparse.Namespace) -> str:
    """Return where and how it was measured."""
    name, found = processor()
    runtimes = [f"onnxruntime {onnxruntime.__version__}"]
    if has_openvino():
        import openvino

        runtimes.append(f"OpenVINO {openvino.__version__.partition('-')[0]}")
    where = f"{arguments.threads} thread(s) of {name} ({', '.join(found) or 'no vector instructions'})"
    return (
        f"`python benchmarks/latency.py`: one image of 224×224 pixels, random weights, protocol integer, "
        f"{', '.join(runtimes)}, {where}, medians of {arguments.rounds} rounds in turns. quantize_static: "
        "onnxruntime's own, QDQ, per channel, INT8 weights, UINT8 activations. Decisions alike: of onnxruntime and "
        "PyTorch, 16 images of noise."
    )


def processor() -> tuple[str, list[str]]:
    """Return the processor's name, and those of its instruction sets that matter to integers."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), []
    name = re.search(r"model name\s*:\s*(.*)", text)
    flags = set(text.split())
    return name[1] if name else platform.machine(), [each for each in INSTRUCTIONS if each in flags]


if __name__ == "__main__":
    sys.exit(report_errors(main))
