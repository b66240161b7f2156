"""Method blockwise: each block comes nearer to the teacher's, none gets worse, and a run can be taken up anywhere."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import nni_autorecon as nar
from nni_autorecon.config.compress import BLOCK, REFINING, TRACKING, WARM_UP, CompressConfig
from nni_autorecon.data.images import accuracy
from nni_autorecon.errors import DivergenceError, InputError
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.integers import IntegerWeight, quantized_layers
from nni_autorecon.quantization.quantizers import WeightQuantizer, in_floating_point, observe_ranges
from nni_autorecon.quantization.specification import PROTOCOLS, Quantization
from nni_autorecon.student.agreement import Decisions, decisions
from nni_autorecon.student.block_features import outputs
from nni_autorecon.student.compression import Compression, Settled
from nni_autorecon.student.compression_run import compress
from nni_autorecon.student.reconstruction import Rates, Reconstruction
from nni_autorecon.teacher.loading import Teacher
from tests.helpers.toys import CLASSES, IMAGE, snapshot, tied_teacher, toy_teacher

CONFIG = CompressConfig(
    method="blockwise",
    generator="gdfq",
    width=4,
    latent_dim=7,
    batch_size=6,
    epochs=10,
    steps=3,
    warmup_epochs=2,
    range_epochs=1,
    agreement_steps=2,
    block_images=40,
    bits="w3a3",
).as_shared()


def start(config: CompressConfig = CONFIG, state: dict[str, object] | None = None) -> Compression:
    teacher = Teacher("toy", toy_teacher(), CLASSES, IMAGE, (0.0, 0.0), (1.0, 1.0))
    return Compression.start(config, teacher, state=state)


def ranged(network: nn.Module, images: Tensor, bits: str = "w3a3", protocol: str = "activations") -> nn.Module:
    """A student whose activation ranges are those of the images."""
    student, _ = quantize_network(network, Quantization(bits, protocol=protocol))
    with torch.no_grad(), observe_ranges(student):
        student(images)
    return student


def learn_all(reconstruction: Reconstruction, *, rates: Rates = Rates(), steps: int = 100) -> list[tuple[float, float]]:  # noqa: B008
    return [
        reconstruction.learn(index, steps=steps, batch_size=16, rates=rates, seed=0)
        for index in range(len(reconstruction.blocks))
    ]


def test_what_only_measures_quantizes_each_weight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large linear layer costs more to quantize than to multiply by."""
    images, count = torch.randn(40, *IMAGE), 0
    student = ranged(toy_teacher(), images)
    quantize = WeightQuantizer.forward

    def counted(quantizer: WeightQuantizer, weight: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return quantize(quantizer, weight)

    monkeypatch.setattr(WeightQuantizer, "forward", counted)
    data = [(image.byte(), 0) for image in images]
    for measure in (
        lambda: outputs(student, images),
        lambda: decisions(student, toy_teacher(), images.split(10)),
        lambda: accuracy(student, data, mean=(0.0, 0.0), std=(1.0, 1.0), batch_size=10, device="cpu"),  # type: ignore[arg-type]
    ):
        count = 0
        measure()
        assert count == len([*quantized_layers(student)])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_student_comes_nearer_to_the_teacher(protocol: str) -> None:
    torch.manual_seed(0)
    network, images = toy_teacher(), torch.randn(64, *IMAGE)
    student = ranged(network, images, protocol=protocol)
    with torch.no_grad():
        before, expected = student(images), network(images)
        reconstruction = Reconstruction(student)
        torch.testing.assert_close(student(images), before)  # learned scales begin where they were
    reconstruction.begin(images)
    errors = learn_all(reconstruction, steps=200)
    with torch.no_grad():
        after = student(images)
    assert len(errors) == 3
    assert all(error.after <= error.before for error in errors)
    assert (after - expected).norm() < 0.8 * (before - expected).norm()


class CalledAgain(nn.Module):
    """Its middle layer is called twice, with another one between, so that blocks would share it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.between = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.last = nn.Linear(4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.again(torch.relu(self.first(images))))
        x = torch.relu(self.again(torch.relu(self.between(x))))
        return self.last(x.mean((2, 3)))


@pytest.mark.parametrize(("make", "count"), [(CalledAgain, 3), (tied_teacher, 3)])
def test_a_weight_that_is_used_again_belongs_to_one_block(make: Callable[[], nn.Module], count: int) -> None:
    torch.manual_seed(0)
    network, images = make().eval(), torch.randn(64, *IMAGE)
    student = ranged(network, images)
    reconstruction = Reconstruction(student)
    reconstruction.begin(images)
    assert len(reconstruction.blocks) == count
    *_, last = learn_all(reconstruction, steps=30)
    with torch.no_grad():
        gap, size = (student(images) - network(images)).square().mean(), network(images).square().mean()
    assert last.after == pytest.approx(float(gap / size), rel=1e-3)  # no block has changed since it was fitted


@pytest.mark.parametrize("protocol", ["activations", "integer"])
def test_parts_of_a_batch_learn_what_the_batch_would(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for at_once in (32, 5):
        monkeypatch.setattr("nni_autorecon.student.reconstruction.at_once", lambda block, inputs, n=at_once: n)
        torch.manual_seed(0)
        network, images = toy_teacher(), torch.randn(64, *IMAGE)
        student, _ = quantize_network(network, Quantization("w4a4", protocol))  # type: ignore[arg-type]
        with torch.no_grad(), observe_ranges(student):
            student(images)
        reconstruction = Reconstruction(student)
        reconstruction.begin(images)
        found.append([error.after for error in learn_all(reconstruction, steps=5)])
    torch.testing.assert_close(*found, rtol=0.05, atol=0)  # sums of floats in another order turn some codes


def test_a_ruinous_rate_leaves_the_student_as_it_was() -> None:
    torch.manual_seed(0)
    network, images = toy_teacher(), torch.randn(64, *IMAGE)
    student = ranged(network, images, "w8a8")
    reconstruction = Reconstruction(student)
    reconstruction.begin(images)
    errors = learn_all(reconstruction, rates=Rates(1e4, 1e4, 10.0, 10.0), steps=10)
    assert all(error.after <= error.before for error in errors)
    rounded = Reconstruction(ranged(network, images, "w8a8"))
    rounded.begin(images)
    assert [error.after for error in learn_all(rounded, steps=0)] == [error.after for error in errors]


def test_the_rates_follow_the_scale_of_the_network() -> None:
    """A network whose layers are a thousand times as large, and smaller, learns the same."""

    def errors(factor: float) -> list[float]:
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(175, 4)
        )
        with torch.no_grad():
            network[0].weight.mul_(factor)
            network[0].bias.mul_(factor)
            network[2].weight.div_(factor)
        images = torch.randn(64, *IMAGE)
        reconstruction = Reconstruction(ranged(network, images))
        reconstruction.begin(images)
        return [error.after for error in learn_all(reconstruction, steps=30)]

    torch.testing.assert_close(errors(1024.0), errors(1.0), rtol=1e-3, atol=0)


def test_the_teacher_in_floating_point_is_the_network() -> None:
    torch.manual_seed(0)
    network, images = toy_teacher(), torch.randn(8, *IMAGE)
    student = ranged(network, images)
    with torch.no_grad(), in_floating_point(student):
        torch.testing.assert_close(student(images), network(images), rtol=0, atol=1e-6)
    with torch.no_grad():
        assert not torch.allclose(student(images), network(images), atol=1e-4)


def test_learned_scales_have_the_gradient_of_lsq() -> None:
    """dy / d log s = y - x where x passes, y where it is clamped (Esser et al., ICLR 2020, eq. 3)."""
    quantizer = WeightQuantizer(2)
    log_factor = quantizer.learn_scale(torch.tensor([[-1.0, 0.25, 2.0]]))  # scale 1, zero point 1: -1, 0, 1, 2
    weight = torch.tensor([[-5.0, 0.3, 1.4, 9.0]], requires_grad=True)
    y = quantizer(weight)
    assert y.tolist() == [[-1.0, 0.0, 1.0, 2.0]]
    (y * torch.tensor([1.0, 10.0, 100.0, 1000.0])).sum().backward()
    assert weight.grad.tolist() == [[0.0, 10.0, 100.0, 0.0]]
    torch.testing.assert_close(log_factor.grad, torch.tensor([-1.0 + 10 * -0.3 + 100 * -0.4 + 1000 * 2.0]))


def test_weights_at_the_ends_of_a_learned_range_stay() -> None:
    quantizer = WeightQuantizer(2)
    quantizer.learn_scale(torch.tensor([[-1.0, 0.25, 2.0], [-2.0, 0.0, 1.0]]))  # scale 1, zero points 1 and 2
    weight = torch.tensor([[-0.7, 0.3, 1.6], [-2.4, 1.2, -0.8]], requires_grad=True)
    quantizer(weight).backward(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert weight.grad.tolist() == [[0.0, 2.0, 0.0], [0.0, 0.0, 6.0]]


def test_codes_of_learned_scales_give_the_weights_back() -> None:
    torch.manual_seed(0)
    student = ranged(toy_teacher(), torch.randn(32, *IMAGE))
    reconstruction = Reconstruction(student)
    reconstruction.begin(torch.randn(32, *IMAGE))
    learn_all(reconstruction, steps=10)
    for _, layer in quantized_layers(student):
        weight = IntegerWeight.of(layer)
        assert torch.equal(weight.values(), layer.weight.detach())
        assert int(weight.codes.max()) <= 7


def test_no_more_images_are_taken_than_memory_holds() -> None:
    reconstruction = Reconstruction(ranged(toy_teacher(), torch.randn(8, *IMAGE)))
    largest = 4 * 2 * (2 * 9 * 11 + 3 * 7 * 9)  # bytes, of the first block's input and output in both networks
    image = torch.zeros(1, *IMAGE)
    assert [reconstruction.images_within(memory, image) for memory in (5 * largest, 5 * largest - 1, 3)] == [5, 4, 2]


def test_fewer_images_are_taken_with_a_word(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "nni_autorecon")
    monkeypatch.setattr("nni_autorecon.student.blockwise.FEATURE_SPACE", 20000)
    compression = start()
    for epoch in range(4):
        compression.run_epoch(epoch)
    why = "for more features would not fit in 2e-05 GB"
    assert caplog.messages == [f"blocks are fitted to 6 images in place of 40, {why}"]


def test_a_block_without_images_is_refused() -> None:
    reconstruction = Reconstruction(ranged(toy_teacher(), torch.randn(8, *IMAGE)))
    with pytest.raises(RuntimeError, match="call begin first"):
        reconstruction.learn(0, steps=1, batch_size=2, rates=Rates(), seed=0)


def test_values_that_are_not_finite_end_it() -> None:
    network, images = toy_teacher(), torch.randn(8, *IMAGE)
    reconstruction = Reconstruction(ranged(network, images))
    images[0, 0, 0, 0] = math.nan
    reconstruction.begin(images)
    with pytest.raises(DivergenceError, match="block 1 of the student"):
        reconstruction.learn(0, steps=1, batch_size=2, rates=Rates(), seed=0)


def test_a_network_without_a_graph_has_no_blocks() -> None:
    with pytest.raises(InputError, match="cannot be traced has no blocks to reconstruct; choose method gdfq"):
        Reconstruction(toy_teacher())


def test_each_block_changes_its_own_layers_alone() -> None:
    compression = start()
    assert compression.phases == (WARM_UP, WARM_UP, REFINING, TRACKING, BLOCK, BLOCK, BLOCK)
    for epoch in range(4):
        compression.run_epoch(epoch)
    generator = snapshot(compression.images.generator)
    layers = [name for name, _ in quantized_layers(compression.student)]
    for block in range(3):
        before = snapshot(compression.student)
        metrics = compression.run_epoch(4 + block)
        state = compression.student.state_dict()
        changed = {name for name in state if not torch.equal(state[name], before[name])}
        assert f"{layers[block]}.parametrizations.weight.original" in changed
        assert not any(name.startswith(f"{layer}.") for name in changed for layer in layers if layer != layers[block])
        assert changed <= set(compression.blockwise.reconstruction.blocks[block].state_dict())
        assert metrics["block_error"] < metrics["error_before"]
    now = compression.images.generator.state_dict()
    assert all(
        torch.equal(now[name], value)
        for name, value in generator.items()
        if "running" not in name and "num_b" not in name
    )


@pytest.mark.parametrize("done", range(1, 7))
def test_a_run_that_is_taken_up_comes_to_the_same(done: int) -> None:
    whole, part = start(), start()
    for epoch in range(7):
        metrics = whole.metrics = whole.run_epoch(epoch)
    for epoch in range(done):
        part.metrics = part.run_epoch(epoch)
        part.epoch = epoch + 1
    state = part.state()
    assert (state["images"] is None) == (done > part.phases.index(REFINING))  # the generator has then made its images
    again = start(state=copy.deepcopy(state))
    for epoch in range(done, 7):
        last = again.metrics = again.run_epoch(epoch)
    assert last == metrics
    state = again.student.state_dict()
    assert all(torch.equal(state[name], value) for name, value in whole.student.state_dict().items())


def test_a_student_is_saved_and_loaded(tmp_path) -> None:
    torch.manual_seed(0)
    settings = {
        "width": 4,
        "batch_size": 4,
        "epochs": 4,
        "steps": 2,
        "warmup_epochs": 1,
        "agreement_steps": 1,
        "progress": False,
    }
    teacher = nar.Teacher.of(toy_teacher(), IMAGE, mean=(0.0, 0.0), std=(1.0, 1.0))
    result = nar.compress(teacher, method="blockwise", generator="random:0", block_images=16, bits="w4a4", **settings)
    result.student.save(tmp_path / "student.safetensors")
    saved = nar.load_student(tmp_path / "student.safetensors", teacher=toy_teacher())
    images = torch.randn(3, *IMAGE)
    assert torch.equal(saved.network(images), result.student.network(images))
    assert result.student.to_onnx(tmp_path / "student.onnx").holds()


def measured_blocks(config: CompressConfig) -> list[int]:
    blockwise = start(config).blockwise
    return [index for index in range(blockwise.count) if blockwise.is_measured_after(index)]


def test_measuring_takes_little_beside_what_it_measures() -> None:
    last = start().blockwise.count - 1
    assert last > 0
    assert measured_blocks(CONFIG.override({"block_steps": 1000})) == list(range(last + 1))
    assert measured_blocks(CONFIG.override({"block_steps": 0, "agreement_steps": 50})) == [last]


def test_a_student_that_training_ruined_is_taken_back() -> None:
    config = CONFIG.override({"method": "gdfq", "epochs": 4, "warmup_epochs": 1, "student_lr": 100.0, "bits": "w8a8"})
    compression = start(config)
    result = compress(compression, None)
    assert result.taken_back
    assert result.agreement == result.ranges_only_agreement > compression.metrics["agreement"]
    assert result.agreement == compression.agreement()
    assert "training made it no better, so that the student by ranges alone was kept" in result.summary()
    state = compression.student.state_dict()
    assert all(torch.equal(state[name], value) for name, value in compression.by_ranges.items())


def test_a_student_that_decides_for_the_frequent_class_alone_is_not_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    compression = start(CONFIG)
    compression.by_ranges = copy.deepcopy(compression.student.state_dict())
    teacher = torch.tensor([0, 0, 0, 2])
    measured = iter([Decisions(torch.tensor([0, 1, 2, 2]), teacher), Decisions(torch.zeros(4).long(), teacher)])
    monkeypatch.setattr(Compression, "_decisions", lambda self: next(measured))
    assert compression.settle() == Settled(0.5, 0.75, taken_back=False)


def test_a_student_that_is_better_is_kept() -> None:
    compression = start(CONFIG.override({"bits": "w2a4", "epochs": 33, "block_images": 200}))
    result = compress(compression, None)
    assert not result.taken_back
    assert result.agreement == compression.agreement() >= result.ranges_only_agreement


def test_settings_of_other_methods_are_refused() -> None:
    with pytest.raises(InputError, match="student_lr"):
        CompressConfig(method="blockwise", generator="gdfq", student_lr=0.1).require_consistent()
    with pytest.raises(InputError, match="block_images"):
        CompressConfig(method="gdfq", generator="gdfq", block_images=3).require_consistent()


class Straight(nn.Module):
    """A convolution with a norm, one with a bias, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.second, self.last = nn.Conv2d(6, 5, 3), nn.Linear(5, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(images)))))
        return self.last(x.mean((2, 3)))


def straight() -> nn.Module:
    torch.manual_seed(0)
    network = Straight().eval()
    nn.init.uniform_(network.norm.weight, 0.5, 2)
    nn.init.normal_(network.norm.bias)
    network.norm.running_mean.normal_()
    return network


def test_rounding_keeps_what_a_layer_makes_of_the_mean_of_real_inputs() -> None:
    network, images = straight(), torch.randn(64, *IMAGE).cumsum(3)  # neighbours go together, as in real images
    student = ranged(network, images, "w3a8")
    with torch.no_grad():
        inner = torch.relu(network.norm(network.first(images)))
    means = {"first": images.mean((0, 2, 3)) + 0.1, "second": inner.mean((0, 2, 3))}
    reconstruction = Reconstruction(student, means)
    reconstruction.begin(images)
    errors = learn_all(reconstruction, steps=0)
    assert all(error.after < error.before for error in errors[:2])  # else a block was put back
    with torch.no_grad():
        first, second = (mean.view(1, -1, 1, 1).expand(1, -1, 3, 3) for mean in means.values())
        torch.testing.assert_close(student.norm(student.first(first)), network.norm(network.first(first)))
        torch.testing.assert_close(student.second(second), network.second(second))


def test_biases_learn_only_where_nothing_corrects_them() -> None:
    network, images = straight(), torch.randn(64, *IMAGE)
    changed = []
    for means in ({}, {"first": torch.zeros(2)}):
        student = ranged(network, images, "w3a3")
        reconstruction = Reconstruction(student, means)
        reconstruction.begin(images)
        learn_all(reconstruction, steps=100)
        changed.append(not torch.equal(student.second.bias, network.second.bias))
    assert changed == [True, False]
