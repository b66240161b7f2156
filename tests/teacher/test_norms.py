"""Layers that compute what a BatchNorm does are taken as one."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

import nni_autorecon as nar
from nni_autorecon.losses.batchnorm import record_bn_statistics

IMAGE = (3, 8, 8)


class Own(nn.Module):
    """A person's own norm, whose parameters are shaped like feature maps or like BatchNorm2d's."""

    def __init__(self, channels: int, *, extra: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.rand(channels, *extra)) for _ in range(2))
        self.register_buffer("running_mean", torch.randn(channels))
        self.register_buffer("running_var", torch.rand(channels) + 0.5)

    def normalized(self, x: Tensor) -> Tensor:
        return (x - self.running_mean[:, None, None]) / torch.sqrt(self.running_var[:, None, None] + 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalized(x) * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class Dive(nn.Module):
    """Other names, other shapes and another eps, as in the textbook Dive into Deep Learning."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        shape = (1, channels, 1, 1)
        self.gamma, self.beta = nn.Parameter(torch.rand(shape)), nn.Parameter(torch.randn(shape))
        self.moving_mean, self.moving_var = torch.randn(shape), torch.rand(shape) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * (x - self.moving_mean) / torch.sqrt(self.moving_var + 1e-3) + self.beta


class ByFunction(Own):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class Merged(ByFunction):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(super().forward(x), 0.1)


class Saturating(Own):
    """No BatchNorm: what it returns is bounded."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.normalized(x))


def frozen(channels: int) -> nn.Module:
    norm, own = FrozenBatchNorm2d(channels), Own(channels)
    norm.load_state_dict({key: value.detach() for key, value in own.state_dict().items()})
    return norm


def network(norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()


NORMS = {
    "torchvision's": lambda: frozen(4),
    "own": lambda: Own(4),
    "own, shaped like maps": lambda: Own(4, extra=(1, 1)),
    "other names": lambda: Dive(4),
    "by function": lambda: ByFunction(4),
}


@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_what_computes_a_batchnorm_is_one(make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "nni_autorecon")
    net = network(make())
    teacher = nar.Teacher.of(net, IMAGE)
    assert type(teacher.network[1]) is nn.BatchNorm2d
    assert f"taken as BatchNorms: 1 {type(net[1]).__name__}" in caplog.text
    x = torch.randn(7, *IMAGE)
    with torch.no_grad():
        torch.testing.assert_close(teacher.network(x), net(x))
        given = net[0](x)
    with record_bn_statistics(teacher.observed) as statistics:
        teacher.observed(x)
    torch.testing.assert_close(statistics[0].mean, given.mean((0, 2, 3)))
    remembered = getattr(net[1], "running_var", None)
    assert torch.equal(statistics[0].running_var, net[1].moving_var.flatten() if remembered is None else remembered)


def test_a_batchnorm_by_function_that_is_merged_with_an_activation_is_one_in_the_graph() -> None:
    teacher = nar.Teacher.of(network(Merged(4)), IMAGE)
    assert isinstance(teacher.network[1], Merged)
    with record_bn_statistics(teacher.observed) as statistics:
        teacher.observed(torch.randn(2, *IMAGE))
    assert len(statistics) == 1
    assert nar.compress(teacher, method="dfq", bits="w8a8", progress=False).agreement > 0.9


def test_a_subclass_that_takes_more_than_images_is_recorded() -> None:
    class Conditional(nn.BatchNorm2d):
        def forward(self, x: Tensor, gain: float) -> Tensor:  # type: ignore[override]
            return super().forward(x) * gain

    class Code(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = network(Conditional(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[2:](self.parts[1](self.parts[0](x), 0.5))

    teacher = nar.Teacher.of(Code().eval(), IMAGE)
    for net in (teacher.network, teacher.observed):
        with record_bn_statistics(net) as statistics:
            net(torch.randn(2, *IMAGE))
        assert len(statistics) == 1


def test_what_computes_something_else_stays() -> None:
    teacher = nar.Teacher.of(network(Saturating(4)), IMAGE, need_batchnorm=False)
    assert isinstance(teacher.network[1], Saturating)


def test_a_layer_with_hooks_stays() -> None:
    norm = Own(4)
    norm.register_forward_hook(lambda module, inputs, output: 2 * output)
    teacher = nar.Teacher.of(network(norm), IMAGE, need_batchnorm=False)
    assert isinstance(teacher.network[1], Own)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("by_name", [False, True], ids=["", "by name"])
@pytest.mark.parametrize("reentrant", [None, False, True], ids=["no checkpoint", "checkpoint", "reentrant"])
def test_statistics_are_those_of_one_pass(by_name: bool, reentrant: bool | None) -> None:
    """Parts that run again in the backward pass, to save memory, are recorded once."""

    class Code(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = network(nn.BatchNorm2d(4))

        def stem(self, x: Tensor) -> Tensor:
            x = self.parts[0](x)
            return self.parts[1](input=x) if by_name else self.parts[1](x)

        def forward(self, x: Tensor) -> Tensor:
            stem = self.stem(x) if reentrant is None else checkpoint(self.stem, x, use_reentrant=reentrant)
            return self.parts[2:](stem)

    teacher = nar.Teacher.of(Code().eval(), IMAGE)
    results = []
    for net in (teacher.observed, teacher.graph):
        x = torch.linspace(-1, 1, 2 * 192).view(2, *IMAGE).requires_grad_()
        with record_bn_statistics(net) as statistics:
            loss = net(x).square().sum()
        (recorded,) = statistics
        (gradient,) = torch.autograd.grad(loss + recorded.var.sum(), x)
        results.append((recorded.mean, recorded.var, gradient))
    torch.testing.assert_close(*results)


def test_a_layer_stays_if_code_reads_more_of_it() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = network(Own(4))

        def forward(self, x: Tensor) -> Tensor:
            self.parts[1].normalized(self.parts[0](x))
            return self.parts(x)

    teacher = nar.Teacher.of(Reading().eval(), IMAGE, need_batchnorm=False)
    assert isinstance(teacher.network.parts[1], Own)


FACTORY = """
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))

    def forward(self, x):
        return {"loss": None, "logits": self.parts(x)}
"""


@pytest.mark.parametrize("by_name", [False, True], ids=["in memory", "by name"])
def test_a_student_of_such_a_network_is_loaded_again(by_name: bool, tmp_path: Path) -> None:
    (tmp_path / "frozen_net.py").write_text(FACTORY)
    namespace: dict[str, type[nn.Module]] = {}
    exec(FACTORY, namespace)
    net = namespace["Net"]().eval()
    net.parts[1].load_state_dict(frozen(4).state_dict())
    torch.save(net.state_dict(), tmp_path / "net.pt")
    spec = f"{tmp_path}/frozen_net.py:Net"
    loaded = {"teacher": spec, "checkpoint": str(tmp_path / "net.pt"), "image_size": 8}
    given = loaded if by_name else {"teacher": nar.Teacher.of(net, IMAGE)}
    student = nar.compress(**given, method="dfq", bits="w8a8", protocol="integer", progress=False).student
    student.save(tmp_path / "student.safetensors")
    again = nar.load_student(tmp_path / "student.safetensors", teacher=spec if by_name else net)
    x = torch.randn(4, *IMAGE)
    assert torch.equal(again.network(x), student.network(x))
