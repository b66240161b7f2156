"""With the switch off, everything that is accelerated computes the same: generators, losses, quantizers, optimizers."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nni_autorecon import accel
from nni_autorecon.accel.convolution import summed
from nni_autorecon.accel.memory import conv_layout, keep_freed_memory, memory_format
from nni_autorecon.accel.optimizers import adam, set_learning_rate, sgd
from nni_autorecon.generator.gdfq import GDFQGenerator
from nni_autorecon.generator.genotype import random_choices, uniform_choices
from nni_autorecon.generator.operations import EdgeShape, Features, make_candidates, mixture
from nni_autorecon.generator.searched import derived_generator
from nni_autorecon.generator.topology import CROSS, EDGES, NORMAL, UP
from nni_autorecon.losses.batchnorm import observed
from nni_autorecon.losses.reconstruction import reconstruction_loss
from nni_autorecon.nas.autorecon import AutoReConStrategy
from nni_autorecon.nas.space import GeneratorSpace
from nni_autorecon.quantization.fake_quantize import fake_quantize
from nni_autorecon.quantization.ranges import affine_qparams
from nni_autorecon.shapes import ImageShape
from tests.helpers.calls import Called
from tests.helpers.searches import CONFIG
from tests.helpers.toys import GENERATOR, IMAGE, toy_teacher

IMAGES = [ImageShape(1, 8, 8), ImageShape(3, 9, 14), ImageShape(2, 12, 11)]


def _assert_same(results, **tolerances):
    accelerated, plain = results
    for one, other in zip(accelerated, plain, strict=True):
        assert_close(one, other, **tolerances)


def _with_gradients(y, inputs):
    probe = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    gradients = torch.autograd.grad((y * probe).sum(), inputs, allow_unused=True)
    return y, *(torch.zeros(()) if gradient is None else gradient for gradient in gradients)


def _randomized(network):
    """Return it in float64, with affine maps of classes that do something."""
    torch.manual_seed(1)
    for name, parameter in network.named_parameters():
        if name.endswith("table.weight"):
            nn.init.normal_(parameter)
    return network.double()


@pytest.mark.parametrize("value", [None, "0", "1"])
def test_the_environment_turns_it_off_without_importing_torch(value):
    environment = {name: text for name, text in os.environ.items() if name != "NNI_AUTORECON_ACCEL"}
    environment |= {} if value is None else {"NNI_AUTORECON_ACCEL": value}
    program = "import sys; from nni_autorecon import accel; print(accel.enabled, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(value != "0"), "False"]


@pytest.mark.parametrize("kind", [NORMAL, UP, CROSS])
@pytest.mark.parametrize("size", [(7, 5), (8, 10), (9, 12)])
@pytest.mark.parametrize("weights", ["random", "one-hot"])
def test_the_mixture_of_an_edge(both_ways, kind, size, weights):
    edge = next(edge for edge in EDGES if edge.kind == kind)
    operations = _randomized(nn.ModuleDict(make_candidates(edge, EdgeShape(3, size, 7))))
    count = len(operations)
    m = torch.rand(count, dtype=torch.double) if weights == "random" else torch.eye(count, dtype=torch.double)[1]
    x, labels = torch.randn(5, 3, *(size if kind == NORMAL else (4, 5)), dtype=torch.double), torch.randint(7, (5,))
    inputs = [m.requires_grad_(), x.requires_grad_(), *operations.parameters()]

    def results():
        mixed = mixture(dict(operations.items()), m, Features(x), labels)
        assert isinstance(mixed, torch.Tensor) != accel.enabled
        return _with_gradients(summed([mixed]), inputs)

    _assert_same(both_ways(results), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("image", IMAGES, ids=str)
@pytest.mark.parametrize("genotype", [0, 1, "dil_conv_5x5", "conv_3x3"])
@pytest.mark.parametrize("mixed", [False, True], ids=["labels", "probabilities"])
def test_a_searched_generator(both_ways, image, genotype, mixed):
    choices = uniform_choices(genotype) if isinstance(genotype, str) else random_choices(genotype)
    shape = {"image": image, "num_classes": 5, "width": 3, "latent_dim": 7}
    generator = _randomized(derived_generator(choices, **shape))
    z, labels = torch.randn(6, 7, dtype=torch.double), torch.arange(6) % 5
    labels = torch.rand(6, 5, dtype=torch.double).softmax(1) if mixed else labels
    _assert_same(both_ways(lambda: _with_gradients(generator(z, labels), list(generator.parameters()))))


@pytest.mark.parametrize("image", IMAGES, ids=str)
@pytest.mark.parametrize("conditional", [False, True])
def test_gdfqs_generator(both_ways, image, conditional):
    shape = {"image": image, "num_classes": 5, "width": 6, "latent_dim": 7}
    z, labels = torch.randn(6, 7, dtype=torch.double), torch.arange(6) % 5

    def results():
        generator = _randomized(GDFQGenerator(**shape, conditional=conditional))
        return _with_gradients(generator(z, labels), list(generator.parameters()))

    _assert_same(both_ways(results))


@pytest.mark.parametrize("image", IMAGES, ids=str)
@pytest.mark.parametrize("sampling", ["soft", "hard"])
def test_a_step_on_the_supernet(both_ways, image, sampling):
    """L_r and its gradients for W and α, with the same Gumbel samples."""
    shape = {**GENERATOR, "image": image}
    strategy = AutoReConStrategy(CONFIG.override({"sampling": sampling}))
    supernet = _randomized(strategy.mutate_model(GeneratorSpace(**shape)))
    z, labels, teacher = torch.randn(6, 7, dtype=torch.double), torch.arange(6) % 5, _teacher(image)
    inputs = list(supernet.parameters())
    assert sum(name.endswith("alpha") for name, _ in supernet.named_parameters()) == len(EDGES)

    def results():
        loss = reconstruction_loss(observed(teacher), supernet(z, labels), labels, bns_weight=0.1)
        return _with_gradients(loss.total, inputs)

    _assert_same(both_ways(results))


def _teacher(image=IMAGE):
    teacher = toy_teacher()
    teacher[0] = nn.Conv2d(image.channels, 3, 3)
    for norm in (teacher[1], teacher[4]):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return teacher.double().eval().requires_grad_(False)


def test_the_statistics_of_a_teacher(both_ways):
    twin, labels = observed(_teacher()), torch.arange(6) % 5
    images = torch.randn(6, *IMAGE, dtype=torch.double, requires_grad=True)

    def results():
        loss = reconstruction_loss(twin, images, labels, bns_weight=0.1)
        return *loss, *torch.autograd.grad(loss.total, images)

    _assert_same(both_ways(results))

    def statistics():
        with Called(torch.ops.aten.batch_norm_update_stats) as called:
            results()
        return called.count

    assert both_ways(statistics) == (2, 0)


@pytest.mark.parametrize("learned", [False, True])
def test_activations_on_a_grid(both_ways, learned):
    values = torch.linspace(-3, 4, 1001, requires_grad=True)
    scale, zero_point = affine_qparams(torch.tensor(-1.0), torch.tensor(2.5), 4)
    log_factor = torch.tensor(0.3, requires_grad=True) if learned else None
    inputs = [values] if log_factor is None else [values, log_factor]
    _assert_same(
        both_ways(lambda: _with_gradients(fake_quantize(values, scale, zero_point, 15, log_factor), inputs)),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda w: adam(w, 0.1, betas=(0.5, 0.9), weight_decay=0.1),
        lambda w: sgd(w, 0.1, momentum=0.9, weight_decay=0.1),
        lambda w: sgd(w, 0.1, momentum=0.0, weight_decay=0.0),
    ],
)
def test_the_updates_of_optimizers(both_ways, make):
    def results():
        weights = [nn.Parameter(torch.randn(3, 2, dtype=torch.double)) for _ in range(2)]
        optimizer = make(weights)
        assert optimizer.param_groups[0]["fused"] == accel.enabled
        for step in range(5):
            set_learning_rate(optimizer, 0.1 / (step + 1))
            optimizer.zero_grad()
            sum(weight.square().sum() for weight in weights).backward()
            optimizer.step()
        return [weight.detach() for weight in weights]

    _assert_same(both_ways(results))


def test_plain_tensors_lie_as_usual_and_freed_memory_goes(monkeypatch, digits_teacher):
    monkeypatch.setattr(accel, "enabled", False)
    assert conv_layout() == memory_format(digits_teacher.network, digits_teacher.image) == torch.contiguous_format
    assert not keep_freed_memory()
    for generator in (derived_generator(random_choices(0), **GENERATOR), GDFQGenerator(**GENERATOR)):
        assert all(parameter.is_contiguous() for parameter in generator.parameters())
        assert generator(torch.randn(6, 7), torch.arange(6) % 5).is_contiguous()
