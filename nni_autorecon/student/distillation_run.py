"""A whole distillation: its epochs, and what is left in its folder after the last."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from ..accel.memory import in_usual_layout
from ..config.distill import DistillConfig
from ..data.images import EvaluationData
from ..export.distilled_file import save_distilled
from ..figures.canvas import save_figure
from ..figures.curves import plot_loss_curves
from ..figures.images import plot_images
from ..generator.training import images_per_class
from ..networks import parameter_count
from ..runs.beginning import taken_up
from ..runs.folder import RunFolder
from ..runs.progress import Show, progress_bar
from ..teacher.loading import Teacher
from .distillation import Distillation, EpochMetrics
from .images import OnStep
from .results import DistillationResult, accuracy_of, evaluation_data, measured_accuracy


def distill(
    distillation: Distillation,
    data: EvaluationData | None,
    *,
    teacher_accuracy: float | None = None,
    on_epoch: Callable[[EpochMetrics], object] = lambda metrics: None,
    on_step: Callable[[], object] = lambda: None,
    progress: Show = False,
) -> DistillationResult:
    """Run the epochs left and measure on ``data`` after the last; ``teacher_accuracy`` only goes into the result."""
    config, teacher = distillation.config, distillation.teacher.network
    for epoch in range(distillation.epoch, config.epochs):
        distillation.metrics = distillation.run_epoch(epoch, on_step)
        distillation.epoch = epoch + 1
        on_epoch(distillation.metrics)
    metrics = distillation.metrics
    in_usual_layout(distillation.student)
    return DistillationResult(
        student=config.student,
        generator=str(config.generator_spec),
        agreement=metrics["agreement"],
        teacher_accuracy=teacher_accuracy,
        accuracy=accuracy_of(distillation.student, distillation.teacher, data, progress),
        teacher_parameters=parameter_count(teacher),
        student_parameters=parameter_count(distillation.student),
        loss={part: metrics[part] for part in LOSSES},
        generator_macs=distillation.generator.macs(),
        generator_parameters=parameter_count(distillation.generator),
        seconds=time.perf_counter() - distillation.started,
    )


LOSSES = ("loss", "class_loss", "bns_loss", "adversarial_loss", "balance_loss", "student_loss")
"""The metrics have these columns: L_r, its parts, the other terms of the generator's objective, the student's loss."""


def run_distillation(
    config: DistillConfig,
    run: RunFolder,
    teacher: Teacher | None = None,
    *,
    on_epoch: Callable[[EpochMetrics], object] = lambda metrics: None,
    on_step: OnStep = lambda: None,
    progress: Show = False,
) -> DistillationResult:
    """Distil ``teacher``, or the configured one, into the configured student; leave all results in ``run``.

    The student is measured on ``test_data``, or on the held-out digits for the digits teacher, or not at all. An
    unfinished run goes on. Raises InputError for errors that the person can mend, and DivergenceError if a loss is no
    longer finite.
    """
    config.require_consistent()
    teacher, state = taken_up(run, "distill", config, teacher)
    distillation = Distillation.start(config, teacher, state)
    data = evaluation_data(config, teacher)
    teacher_accuracy = measured_accuracy(config, teacher, data, progress)
    run.start("distill", config, device=teacher.device_name)
    with progress_bar("distill", config.epochs * config.steps, progress) as bar:
        bar.begin(distillation.epoch * config.steps)

        def step() -> None:
            bar.update()
            on_step()

        def report(metrics: EpochMetrics) -> None:
            run.log(metrics)
            run.save("distill", config, distillation.state())
            on_epoch(metrics)
            bar.set_postfix_str(f"L1 {metrics['student_loss']:.3f}, L_r {metrics['loss']:.3f}", refresh=False)

        result = distill(
            distillation,
            data,
            teacher_accuracy=teacher_accuracy,
            on_epoch=report,
            on_step=step,
            progress=progress,
        )
    result = replace(result, network=distillation.student, device=run.device)
    if run.keeps:
        run.write_result(result.to_dict())
        save_distilled(run / "student.pt", distillation.student, config.student, teacher)
        _draw(run, distillation)
    return result


def _draw(run: RunFolder, distillation: Distillation) -> None:
    positive = [name for name in LOSSES if name != "balance_loss"]
    save_figure(plot_loss_curves(run.rows, series=positive, title="Distillation: losses", log=True), run / "loss.png")
    save_figure(
        plot_loss_curves(run.rows, series=("agreement",), title="Agreement on disturbed synthetic images"),
        run / "agreement.png",
    )
    images, labels = images_per_class(distillation.generator, distillation.source, count=8)
    save_figure(plot_images(images, labels, per_class=8), run / "images.png")
