"""A whole compression: what comes before its first epoch, its epochs, and what is left in its folder after the last."""

from __future__ import annotations

import copy
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from ..accel.memory import in_usual_layout
from ..config.compress import TRACKING, CompressConfig
from ..data.images import EvaluationData
from ..errors import InputError
from ..export.check_images import save_images
from ..export.description import require_same_structure
from ..export.latency import measure_latency
from ..export.onnx import floating_point
from ..export.onnx_runtime import OnnxNetwork, load_onnx
from ..export.student import Student
from ..export.student_file import float_size
from ..figures.canvas import save_figure
from ..figures.curves import plot_loss_curves
from ..figures.images import diversity, plot_images
from ..figures.layers import plot_frontier, plot_layers
from ..runs.beginning import taken_up
from ..runs.folder import RunFolder
from ..runs.progress import Show, progress_bar
from ..teacher.loading import Teacher
from .compression import LOSSES, Compression, EpochMetrics
from .forecast import Course
from .images import OnStep, distillation_steps
from .making import describe
from .results import CompressionResult, accuracy_of, evaluation_data, measured_accuracy

_log = logging.getLogger(__name__)


def run_compression(
    config: CompressConfig,
    run: RunFolder,
    teacher: Teacher | None = None,
    *,
    on_epoch: Callable[[EpochMetrics], object] = lambda metrics: None,
    on_step: OnStep = lambda: None,
    progress: Show = False,
) -> CompressionResult:
    """Compress ``teacher``, or the configured one, or go on with a run; leave result, student and figures in ``run``.

    The student is measured on ``test_data``, or on the held-out digits for the digits teacher, or not at all.
    ``on_epoch`` receives each epoch's metrics, and about how many ``seconds_left`` the epochs after it take. Raises
    InputError for errors that the person can mend, and DivergenceError if a loss is no longer finite.
    """
    config.require_consistent()
    teacher, state = taken_up(run, "compress", config, teacher)
    require_same_structure(teacher)
    float_network = _float_network(config, run, teacher)
    data = evaluation_data(config, teacher)
    teacher_accuracy = measured_accuracy(config, teacher, data, progress)
    updates = 0 if config.generator_spec or state else distillation_steps(config)
    with progress_bar("compress", 1, progress) as bar:
        course = Course(bar, updates=updates, update_cost=3.0 * config.batch_size * teacher.macs)

        def step() -> None:
            course.step()
            on_step()

        begin = partial(run.start, "compress", config, device=teacher.device_name)
        compression = Compression.start(config, teacher, step, state, begin)
        course.begin(compression)

        def report(metrics: EpochMetrics) -> None:
            run.log(metrics)
            run.save("compress", config, compression.state())
            on_epoch({**metrics, "seconds_left": course.seconds_left()})

        result = compress(
            compression,
            data,
            teacher_accuracy=teacher_accuracy,
            on_phase=course.enter,
            on_epoch=report,
            on_step=step,
            progress=progress,
        )
        bar.set_postfix_str("", refresh=False)
    return _kept(run, compression, result, float_network)


def compress(
    compression: Compression,
    data: EvaluationData | None,
    *,
    teacher_accuracy: float | None = None,
    on_phase: Callable[[int], object] = lambda epoch: None,
    on_epoch: Callable[[EpochMetrics], object] = lambda metrics: None,
    on_step: OnStep = lambda: None,
    progress: Show = False,
) -> CompressionResult:
    """Run the epochs left of stage 2; measure on ``data`` before the student's training and after the last epoch.

    ``on_phase`` is called with the number of each epoch before it begins, and with that of epochs before the student is
    measured at the end.  ``teacher_accuracy`` is measured by the caller, and only goes into the result.
    """
    config = compression.config
    last_ranges = max((epoch for epoch, phase in enumerate(compression.phases) if phase == TRACKING), default=None)
    for epoch in range(compression.epoch, len(compression.phases)):
        on_phase(epoch)
        compression.metrics = compression.run_epoch(epoch, on_step)
        if epoch == last_ranges:
            compression.ranges_only_accuracy = _accuracy(compression, data, progress)
            compression.by_ranges = copy.deepcopy(compression.student.state_dict())
        compression.epoch = epoch + 1
        on_epoch(compression.metrics)
    on_phase(len(compression.phases))
    settled = compression.settle()
    in_usual_layout(compression.student)  # a loaded file has this layout, so that both measure the same bit for bit
    accuracy = _accuracy(compression, data, progress)
    macs, parameters = compression.images.cost()
    return CompressionResult(
        bits=compression.bits,
        protocol=config.protocol,
        method=config.method,
        generator=None if config.generator_spec is None else str(config.generator_spec),
        agreement=settled.agreement,
        teacher_accuracy=teacher_accuracy,
        ranges_only_accuracy=compression.ranges_only_accuracy if compression.phases else accuracy,
        accuracy=accuracy,
        loss=compression.loss,
        generator_macs=macs,
        generator_parameters=parameters,
        seconds=time.perf_counter() - compression.started,
        coverage=compression.coverage,
        mixed_precision=compression.mixed,
        layers=compression.layer_costs(),
        ranges_only_agreement=settled.ranges_only_agreement,
        taken_back=settled.taken_back,
    )


def _accuracy(compression: Compression, data: EvaluationData | None, progress: Show) -> float | None:
    """Return the accuracy of the student as it is now, None without test images.

    One of protocol ``integer`` is measured as it computes from its file, as integer runtimes do.
    """
    network, teacher = compression.student, compression.teacher
    if data is not None and compression.config.protocol == "integer":
        network = _student(compression, bits=compression.bits).saved().network.to(teacher.device)
    return accuracy_of(network, teacher, data, progress)


def _float_network(config: CompressConfig, run: RunFolder, teacher: Teacher) -> OnnxNetwork | None:
    """Return the teacher in onnxruntime if student.onnx is to be written; what cannot be exported ends here.

    Raises InputError if it cannot, or if there is no folder to write into.
    """
    if not config.onnx:
        return None
    if not run.keeps:
        raise InputError("onnx writes student.onnx, but there is no folder for it; give folder")
    return floating_point(teacher.network, teacher.image)


def _kept(
    run: RunFolder, compression: Compression, result: CompressionResult, float_network: OnnxNetwork | None
) -> CompressionResult:
    """Return the result with the student and all that is known of its files, which are written if ``run`` keeps any.

    ``student.onnx`` is written, and its latency measured, if there is a ``float_network`` to compare it with.
    """
    student = _student(compression, bits=result.bits, accuracy=result.accuracy)
    images, labels = compression.to_show()
    result = replace(result, student=student, device=run.device, diversity=diversity(images, labels))
    if not run.keeps:
        return result
    run.write_result(result.to_dict())  # this comes before anything else can fail
    student.save(run / "student.safetensors")
    file_bytes = (run / "student.safetensors").stat().st_size
    ratio = float_size(compression.teacher.network) / file_bytes
    result = replace(result, file_bytes=file_bytes, compression_ratio=ratio)
    run.write_result(result.to_dict())
    save_images(run / "images.npz", images)
    _draw(run, result, images, labels)
    if float_network is not None:
        _log.info("%s", student.to_onnx(run / "student.onnx", images=images).summary())
        written = load_onnx(run / "student.onnx")
        latency = measure_latency(written, float_network)
        result = replace(result, onnx_bytes=written.file_bytes, latency=latency)
        run.write_result(result.to_dict())
    return result


def _student(compression: Compression, *, bits: str, accuracy: float | None = None) -> Student:
    """Return the student with the description for its file."""
    config, teacher, quantization = compression.config, compression.teacher, compression.quantization
    description = describe(config, teacher, quantization, bits=bits, accuracy=accuracy)
    return Student(compression.student, description, teacher.network)


def _draw(run: RunFolder, result: CompressionResult, images: Tensor, labels: Tensor) -> None:
    known = Counter(name for row in run.rows for name in row)
    least = 2 if known["block_error"] > 1 else 1  # images that nothing trains have one loss, which is no curve
    losses = [name for name in (*LOSSES, "student_loss", "block_error") if known[name] >= least]
    if run.rows:
        save_figure(plot_loss_curves(run.rows, series=losses, title="Compression: losses", log=True), run / "loss.png")
        save_figure(
            plot_loss_curves(run.rows, series=("agreement",), title="Agreement on disturbed synthetic images"),
            run / "agreement.png",
        )
    save_figure(plot_images(images, labels, per_class=8), run / "images.png")
    if layers := result.layers_and_shares():
        save_figure(plot_layers(layers, title=f"Layers of the {result.bits} student"), run / "layers.png")
    if result.mixed_precision is not None:
        title = f"Harm of bits, layer by layer, and size: the {result.bits} student"
        save_figure(plot_frontier(result.mixed_precision.to_dict(), title=title), run / "frontier.png")
