"""Stage 2: what each phase changes, what never changes, what is measured."""

import dataclasses
import json

import pytest
import torch
from torch.nn.utils import parametrize

from nni_autorecon.config.common import SCHEDULES
from nni_autorecon.config.compress import TRACKING, TRAINING, WARM_UP, CompressConfig
from nni_autorecon.config.presets import LOSSES
from nni_autorecon.data.images import LabelledImages
from nni_autorecon.errors import DivergenceError, InputError
from nni_autorecon.generator.gdfq import GDFQ_WIDTH
from nni_autorecon.losses.game import adaptability_loss, disagreement_entropy
from nni_autorecon.losses.student import compression_loss
from nni_autorecon.quantization.quantizers import ActivationQuantizer, WeightQuantizer
from nni_autorecon.quantization.ranges import RANGES
from nni_autorecon.quantization.specification import PROTOCOLS
from nni_autorecon.shapes import ImageShape
from nni_autorecon.student import images as image_sources
from nni_autorecon.student.compression import Compression
from nni_autorecon.student.compression_run import compress
from nni_autorecon.student.features import feature_alignment_loss
from nni_autorecon.student.forecast import epoch_costs
from nni_autorecon.student.generators import configured_generator
from nni_autorecon.student.images import FixedImages, distillation_steps, low_pass
from nni_autorecon.teacher.loading import Teacher
from tests.helpers.toys import CLASSES, IMAGE, snapshot, toy_teacher

CONFIG = CompressConfig(
    method="gdfq",
    generator="gdfq",
    width=4,
    latent_dim=7,
    batch_size=6,
    epochs=5,
    steps=3,
    warmup_epochs=2,
    range_epochs=1,
    student_lr=0.01,
    agreement_steps=2,
).as_shared()


def _start(config=CONFIG):
    teacher = Teacher("toy", toy_teacher(), CLASSES, IMAGE, (0.0, 0.0), (1.0, 1.0))
    return Compression.start(config, teacher)


def _changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def test_phases_follow_each_other():
    compression = _start()
    assert compression.phases == (WARM_UP, WARM_UP, TRACKING, TRAINING, TRAINING)


def test_each_phase_changes_only_what_it_should():
    compression = _start()
    teacher = snapshot(compression.teacher.network)
    for epoch in range(5):
        student, generator = snapshot(compression.student), snapshot(compression.images.generator)
        compression.run_epoch(epoch)
        changed = _changed(compression.student, student)
        ranges = {name for name in student if "average" in name or "observ" in name}
        assert ranges
        if compression.phases[epoch] == WARM_UP:
            assert not changed
        elif compression.phases[epoch] == TRACKING:
            assert changed == ranges
        else:
            assert changed
            assert not changed & ranges
            assert not {name for name in changed if "running" in name or "num_batches" in name}
        assert _changed(compression.images.generator, generator)
    assert not _changed(compression.teacher.network, teacher)
    assert all(parameter.grad is None for parameter in compression.teacher.network.parameters())


def test_ranges_are_learned_while_the_student_is_and_by_its_schedule():
    compression = _start(CONFIG.override({"range_lr": 0.1, "student_clip": 1e-6, "student_schedule": "step"}))
    factors = [parameter for name, parameter in compression.student.named_parameters() if "log_factor" in name]
    assert len(factors) == len([m for m in compression.student.modules() if isinstance(m, ActivationQuantizer)])
    for epoch in range(3):
        compression.run_epoch(epoch)
        assert not any(factors)
    weights = snapshot(compression.student)
    compression.run_epoch(3)
    assert all(abs(factor) > 0.01 for factor in factors)  # clipping is for weights
    before = torch.stack(factors).detach()
    compression.run_epoch(4)
    assert (torch.stack(factors) - before).abs().max() < 2 * 3 * 0.01  # three steps at a tenth of the rate
    assert {name for name in _changed(compression.student, weights) if "averages" in name} == set()


def test_the_generator_may_rest_after_the_warm_up():
    compression = _start(CONFIG.override({"generator_updates": "warmup"}))
    for epoch in range(2):
        compression.run_epoch(epoch)
    before = {name: value.clone() for name, value in compression.images.generator.named_parameters()}
    for epoch in range(2, 5):
        compression.run_epoch(epoch)
    assert all(torch.equal(before[name], value) for name, value in compression.images.generator.named_parameters())


@pytest.mark.parametrize("bits", ["w2a8", "w8a2", "w3a5"])
def test_bit_widths_are_independent(bits):
    compression = _start(CONFIG.override({"bits": bits}))
    coverage = compression.coverage.to_dict()
    assert {weight["bits"] for weight in coverage["weights"]} == {int(bits[1])}
    assert {activation["bits"] for activation in coverage["activations"]} == {int(bits[3])}
    quantizers = [m for m in compression.student.modules() if isinstance(m, ActivationQuantizer)]
    assert len(quantizers) == 2


def test_a_run_is_reproducible_and_depends_on_its_seed():
    results = []
    for seed in (1, 1, 2):
        compression = _start(CONFIG.override({"seed": seed}))
        results.append(compress(compression, None).loss)
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_the_result_says_what_was_measured_and_when():
    torch.manual_seed(0)
    data = LabelledImages(torch.randint(256, (9, *IMAGE), dtype=torch.uint8), torch.arange(9) % CLASSES)
    rows = []
    result = compress(_start(), data, teacher_accuracy=0.75, on_epoch=rows.append)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert ["agreement" in row for row in rows] == [False, False, True, True, True]
    assert ["student_loss" in row for row in rows] == [False, False, False, True, True]
    assert result.agreement == rows[-1]["agreement"]
    assert result.loss["loss"] == rows[-1]["loss"]
    assert result.teacher_accuracy == 0.75
    for share in (result.ranges_only_accuracy, result.accuracy):
        assert share * 9 == pytest.approx(round(share * 9))
    json.dumps(result.to_dict(), allow_nan=False)
    assert (result.metrics()["default"], result.metrics()["generator"]) == (result.agreement, "gdfq")
    assert f"{result.accuracy:.2%}" in result.summary()


def test_without_test_data_nothing_is_claimed():
    result = compress(_start(), None)
    assert (result.teacher_accuracy, result.ranges_only_accuracy, result.accuracy) == (None, None, None)
    assert "accuracy" not in result.metrics()
    assert "accuracy" not in result.summary()


def test_real_images_never_reach_training():
    torch.manual_seed(0)
    data = LabelledImages(torch.randint(256, (9, *IMAGE), dtype=torch.uint8), torch.arange(9) % CLASSES)
    students = []
    for evaluation in (data, None):
        compression = _start()
        compress(compression, evaluation)
        students.append(snapshot(compression.student))
    assert all(torch.equal(students[0][name], students[1][name]) for name in students[0])


def test_an_8_bit_student_agrees_with_its_teacher():
    result = compress(_start(CONFIG.override({"bits": "w8a8", "student_lr": 1e-5, "agreement_steps": 20})), None)
    assert result.agreement > 0.9


def test_nan_stops_the_run_with_a_clear_error():
    compression = _start(CONFIG.override({"student_lr": 1e30, "student_momentum": 0.0}))
    with pytest.raises(DivergenceError, match="became|no longer finite"):
        compress(compression, None)


def test_the_student_gradient_can_be_clipped():
    norms = []
    for clip in (None, 1e-3):
        compression = _start(CONFIG.override({"student_clip": clip}))
        for epoch in range(4):
            compression.run_epoch(epoch)
        grads = [p.grad for p in compression.student.parameters() if p.grad is not None]
        norms.append(torch.stack([g.norm() for g in grads]).norm().item())
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)
    assert norms[0] > 2e-3


def test_the_student_rate_follows_its_schedule():
    compression = _start(CONFIG.override({"student_schedule": "step", "epochs": 7}))
    rates = [row["student_lr"] for row in map(compression.run_epoch, range(7)) if "student_lr" in row]
    assert rates == pytest.approx([0.01, 0.01 * 0.1, 0.01 * 0.01, 0.01 * 0.001], rel=1e-6)


def test_the_generator_rate_follows_its_schedule():
    compression = _start(CONFIG.override({"weight_schedule": "step", "epochs": 4, "warmup_epochs": 2}))
    rates = []
    for epoch in range(4):
        compression.run_epoch(epoch)
        rates.append(compression.images.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 1e-4, 1e-5, 1e-6])


def test_the_student_sees_the_images_that_the_generator_was_just_trained_with(monkeypatch):
    """The same images and teacher logits, made before the generator's update (Xu et al., 2020)."""
    compression = _start()
    for epoch in range(3):
        compression.run_epoch(epoch)
    made, seen = [], []
    generator_step = image_sources.generator_step

    def recorded(*arguments, **named):
        images, loss = generator_step(*arguments, **named)
        made.append((images, loss.logits))
        return images, loss

    monkeypatch.setattr(image_sources, "generator_step", recorded)
    student_step = compression._train_student

    def spied(images, labels, logits):
        seen.append((images, logits))
        return student_step(images, labels, logits)

    monkeypatch.setattr(compression, "_train_student", spied)
    compression.run_epoch(3)
    assert len(seen) == CONFIG.steps
    assert all(a is c and b is d for (a, b), (c, d) in zip(made, seen, strict=True))
    assert all(torch.equal(compression.teacher.observed(images), logits) for images, logits in seen)


def test_ranges_alone_are_measured_before_the_student_is_trained(monkeypatch):
    compression = _start()
    initial = {name: value.clone() for name, value in compression.student.named_parameters()}
    untouched = []

    def measured(self, network, data, on_images):
        if network is compression.student:
            current = dict(network.named_parameters())
            untouched.append(all(torch.equal(initial[name], current[name]) for name in initial))
        return 0.5

    monkeypatch.setattr(Teacher, "accuracy", measured)
    compress(compression, [])
    assert untouched == [True, False]


def test_losses_are_weighted_as_configured(monkeypatch):
    seen = {}

    def spy(student, teacher, labels, **weights):
        seen.update(weights)
        return student.sum()

    monkeypatch.setattr("nni_autorecon.student.training.compression_loss", spy)
    config = CONFIG.override(
        {"ce_weight": 0.3, "kd_weight": 0.7, "kd_temperature": 5.0, "kd_reduction": "batchmean", "ce_gate": 0.9}
    )
    compression = _start(config)
    for epoch in range(4):
        compression.run_epoch(epoch)
    assert seen == {"ce_weight": 0.3, "kd_weight": 0.7, "temperature": 5.0, "reduction": "batchmean", "ce_gate": 0.9}


def _without_generator(method, **settings):
    images = {} if method == "dfq" else {"image_count": 9, "image_steps": 3}
    return CONFIG.as_shared().override({**images, "method": method, **settings})


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("dfq", ()),
        ("zeroq", (TRACKING,)),
        ("zeroq-kd", (TRACKING, TRAINING, TRAINING)),
        ("dfc", (TRACKING, TRAINING, TRAINING)),
    ],
)
def test_methods_without_a_generator(method, expected):
    torch.manual_seed(0)
    data = LabelledImages(torch.randint(256, (9, *IMAGE), dtype=torch.uint8), torch.arange(9) % CLASSES)
    compression = _start(_without_generator(method))
    teacher, student = snapshot(compression.teacher.network), snapshot(compression.student)
    result = compress(compression, data)
    assert compression.phases == expected
    assert bool(_changed(compression.student, student)) == bool(expected)
    trained = {
        name for name in _changed(compression.student, student) if "average" not in name and "observ" not in name
    }
    assert bool(trained) == (TRAINING in expected)
    assert not _changed(compression.teacher.network, teacher)
    assert (result.method, result.generator, result.generator_macs) == (method, None, None)
    assert 0 <= result.agreement <= 1
    assert (result.loss is None) == (not expected)
    if TRAINING not in expected:
        assert result.accuracy == result.ranges_only_accuracy
    json.dumps(result.to_dict(), allow_nan=False)
    assert result.metrics()["default"] == result.agreement


def test_distilled_images_are_held_out_or_trained_on_never_both():
    images = _start(_without_generator("zeroq-kd")).images
    assert isinstance(images, FixedImages)
    assert (len(images.images), len(images.aside)) == (9, CONFIG.agreement_steps * CONFIG.batch_size)
    seen = torch.cat([batch for batch, _, _ in images.batches(0, 50)])
    assert {image.sum().item() for image in seen} == {image.sum().item() for image in images.images}
    aside = torch.cat(list(images.held_out(CONFIG.agreement_steps)))
    assert torch.equal(aside, images.aside)
    assert not {image.sum().item() for image in aside} & {image.sum().item() for image in seen}


@pytest.mark.parametrize(("method", "drawn"), [("zeroq", False), ("dfc", True)])
def test_labels_of_distilled_images(method, drawn):
    """ZeroQ's are the teacher's decisions, DFC's were drawn before the image was made for them."""
    compression = _start(_without_generator(method, image_count=64, image_steps=1))
    decisions = compression.teacher.network(compression.images.images).argmax(1)
    assert torch.equal(compression.images.labels, decisions) != drawn


@pytest.mark.parametrize("method", ["dfq", "zeroq"])
def test_distillation_is_counted_in_advance(method):
    config, steps = _without_generator(method), []
    teacher = Teacher("toy", toy_teacher(), CLASSES, IMAGE, (0.0, 0.0), (1.0, 1.0))
    Compression.start(config, teacher, lambda: steps.append(1))
    assert len(steps) == distillation_steps(config)


def test_settings_of_quantization_reach_the_student():
    config = CONFIG.override(
        {
            "bits": "w3a2",
            "protocol": "integer",
            "input_bits": 5,
            "first_bits": 8,
            "last_bits": 7,
            "weight_ranges": "mse",
            "activation_ranges": "percentile",
        }
    )
    compression = _start(config)
    assert [weight.bits for weight in compression.coverage.weights] == [8, 3, 7]
    assert [each.bits for each in compression.coverage.activations] == [5, 2, 2, 7]
    assert compression.coverage.activations[0].kind == "network input"
    quantizers = [m for m in compression.student.modules() if isinstance(m, (ActivationQuantizer, WeightQuantizer))]
    assert {type(q).__name__: q.estimate for q in quantizers} == {
        "ActivationQuantizer": RANGES["percentile"],
        "WeightQuantizer": RANGES["mse"],
    }


def test_names_in_the_settings_are_those_of_the_quantizers():
    choices = {field.name: field.metadata["choices"] for field in dataclasses.fields(CompressConfig)}
    assert choices["weight_ranges"] == choices["activation_ranges"] == tuple(RANGES)
    assert choices["protocol"] == tuple(PROTOCOLS)
    assert choices["student_schedule"] == choices["weight_schedule"] == tuple(SCHEDULES)


@pytest.mark.parametrize("losses", LOSSES)
def test_every_set_of_losses_trains_a_student_and_leaves_the_teacher_alone(losses):
    compression = _start(CONFIG.override({"losses": losses}))
    teacher, plain = snapshot(compression.teacher.network), _start()
    for epoch in range(4):
        metrics, usual = compression.run_epoch(epoch), plain.run_epoch(epoch)
    assert metrics["phase"] == TRAINING
    assert metrics["student_loss"] != usual["student_loss"] or losses == "gdfq"
    assert not _changed(compression.teacher.network, teacher)
    assert all(parameter.grad is None for parameter in compression.teacher.network.parameters())


def test_the_game_moves_the_generator_and_only_once_the_student_trains():
    compression, plain = (_start(CONFIG.override(changes)) for changes in ({"adaptability_weight": 1.0}, {}))
    for epoch in range(3):
        compression.run_epoch(epoch), plain.run_epoch(epoch)
    assert not _changed(compression.images.generator, snapshot(plain.images.generator))
    student = snapshot(compression.student)
    images, labels = torch.randn(6, *IMAGE), torch.arange(6) % CLASSES
    loss = compression.images.objective(images, labels)
    game = compression._generator_total(images, labels, loss) - loss.total
    expected = adaptability_loss(compression.student(images), loss.logits, labels)
    torch.testing.assert_close(game, expected, rtol=1e-4, atol=1e-5)
    assert not _changed(compression.student, student)
    compression.run_epoch(3), plain.run_epoch(3)
    assert _changed(compression.images.generator, snapshot(plain.images.generator))


def test_without_its_cross_entropy_a_generator_minimizes_the_statistics_alone():
    compression = _start(CONFIG.override({"class_weight": 0.0, "bns_weight": 3.0}))
    images, labels = torch.randn(6, *IMAGE), torch.arange(6) % CLASSES
    loss = compression.images.objective(images, labels)
    torch.testing.assert_close(compression._generator_total(images, labels, loss), 3.0 * loss.bns)


def test_the_students_loss_is_the_sum_of_its_terms():
    weights = {"ce_weight": 0.5, "kd_weight": 2.0, "disagreement_weight": 0.3, "feature_weight": 7.0}
    compression = _start(CONFIG.override({**weights, "kd_temperature": 4.0}))
    for epoch in range(3):
        compression.run_epoch(epoch)
    images, labels = torch.randn(6, *IMAGE), torch.arange(6) % CLASSES
    target = compression.training.target(images, torch.zeros(6, CLASSES))  # found anew, with the features
    logits, features = compression.training._student_outputs(images)
    torch.testing.assert_close(target.logits, compression.teacher.network(images))
    expected = (
        compression_loss(logits, target.logits, labels, ce_weight=0.5, kd_weight=2.0, temperature=4.0, reduction="mean")
        - 0.3 * 16 * disagreement_entropy(logits, target.logits, temperature=4.0).mean()
        + 7.0 * feature_alignment_loss(features, target.features)
    )
    torch.testing.assert_close(compression.training.loss(images, labels=labels, target=target), expected)


def test_the_student_learns_from_images_a_step_harder():
    compression, seen = _start(CONFIG.override({"hard_step": 0.05})), []
    for epoch in range(3):
        compression.run_epoch(epoch)
    compression.training._student_outputs.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    images, labels = torch.randn(6, *IMAGE), torch.arange(6) % CLASSES
    loss = compression.training.step(images, labels, None)
    asked, learned_from = seen
    assert torch.equal(asked, images)
    torch.testing.assert_close((learned_from - images).abs().max().item(), 0.05)
    assert loss.isfinite()


def test_images_are_filtered_for_whoever_sees_them():
    compression = _start(CONFIG.override({"low_pass": 1.0}))
    z, labels = next(compression.images.source.batches("compress", 0, 1))
    (images, _, loss), *_ = compression.images.batches(0, 1, learning_rate=None)
    expected = low_pass(compression.images.generator(z, labels), sigma=1.0)
    torch.testing.assert_close(images, expected)
    torch.testing.assert_close(loss.total, compression.images.objective(expected, labels).total)


def test_a_student_is_trained_on_labels_that_are_mixed_and_measured_on_others():
    compression = _start(CONFIG.override({"mixed_share": 1.0, "mixed_classes": 3}))
    _, labels, _ = next(iter(compression.images.batches(0, 1, learning_rate=0.01)))
    assert labels.shape == (6, CLASSES)
    assert torch.all((labels > 0).sum(1) == 3)
    same = _start().images
    same.generator.load_state_dict(compression.images.generator.state_dict())
    for ours, theirs in zip(compression.images.held_out(2), same.held_out(2), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_more_classes_than_there_are_cannot_be_mixed():
    with pytest.raises(InputError, match=r"mixed_classes \(6\) exceeds the teacher's 5 classes; lower it"):
        _start(CONFIG.override({"mixed_share": 0.5, "mixed_classes": 6}))


def test_with_inundation_every_step_reaches_the_integers():
    rates = {"student_lr": 1e-5, "student_momentum": 0.0, "student_decay": 0.0, "bits": "w8a8"}
    for share, expected in ((0.0, False), (0.05, True)):
        compression = _start(CONFIG.override({**rates, "flip_share": share}))
        before = [module.weight.detach().clone() for module in compression.student.modules() if is_layer(module)]
        for epoch in range(4):
            compression.run_epoch(epoch)
        after = [module.weight.detach() for module in compression.student.modules() if is_layer(module)]
        moved = [bool((a - b).abs().max() > 1e-4) for a, b in zip(after, before, strict=True)]
        assert moved == [expected] * 3


def is_layer(module):
    return parametrize.is_parametrized(module, "weight")


def test_a_generator_that_nobody_chose_costs_no_more_than_the_teacher(digits_teacher):
    """At 16×16 pixels GDFQ's own costs less than it does on CIFAR, and keeps its width."""
    config = CompressConfig()
    assert str(config.generator_spec) == "gdfq"
    assert configured_generator(config, digits_teacher).width == GDFQ_WIDTH
    large = Teacher("t", digits_teacher.network, 10, ImageShape(3, 224, 224), (0.0,) * 3, (1.0,) * 3)
    large.__dict__["macs"] = 400_000_000
    chosen = configured_generator(config, large)
    assert 200_000_000 < chosen.macs() <= 400_000_000
    assert configured_generator(config.override({"generator": "gdfq"}, source="test"), large).width == GDFQ_WIDTH
    assert configured_generator(config.override({"width": 9}, source="test"), large).width == 9


def test_costs_of_epochs_are_those_of_what_is_computed():
    compression = _start(CONFIG.override({"method": "gdfq"}))
    costs = epoch_costs(compression)
    assert len(costs) == len(compression.phases)
    by_phase = dict(zip(compression.phases, costs, strict=True))
    steps = CONFIG.steps * CONFIG.batch_size
    assert by_phase[TRACKING] - by_phase[WARM_UP] == steps * compression.teacher.macs
    assert by_phase[TRAINING] - by_phase[WARM_UP] == 3 * steps * compression.teacher.macs
