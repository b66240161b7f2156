"""Steps on a GPU: they run, and none of them makes the CPU wait."""

from functools import partial

import pytest
import torch

from nni_autorecon.compression import Compression
from nni_autorecon.generator import derived_generator
from nni_autorecon.genotype import random_choices
from nni_autorecon.image_sources import GeneratorImages
from nni_autorecon.latent import LatentSource
from nni_autorecon.losses import reconstruction_loss
from nni_autorecon.networks import digits_resnet
from nni_autorecon.operations import EdgeShape, Features, fused_mixture, make_candidates, node_sum
from nni_autorecon.quantizers import observe_ranges
from nni_autorecon.reconstruction import generator_step
from nni_autorecon.student_config import CompressConfig
from nni_autorecon.teacher import Teacher
from nni_autorecon.topology import EDGES, NORMAL, ImageShape

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICE = torch.device("cuda")


@pytest.fixture
def no_waiting():
    """A function after whose call every wait for the GPU is an error."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def _teacher():
    network = digits_resnet().eval().requires_grad_(False).to(DEVICE)
    return Teacher("digits", network, 10, ImageShape(1, 16, 16), (0.0,), (1.0,))


def test_an_iteration_of_compression_makes_nobody_wait(no_waiting):
    compression = Compression.start(CompressConfig(generator="gdfq", batch_size=8), _teacher())
    assert isinstance(compression.images, GeneratorImages)
    batches = compression.images.batches(0, 3, learning_rate=1e-3)
    images, labels, loss = next(batches)
    with torch.no_grad(), observe_ranges(compression.student):
        compression.student(images)
    compression.training.step(images, labels, loss.logits)
    no_waiting()
    for images, labels, loss in batches:
        loss = compression.training.step(images, labels, loss.logits)
    torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


def test_a_mixture_and_a_generator_make_nobody_wait(no_waiting):
    edge = next(edge for edge in EDGES if edge.kind == NORMAL)
    operations = torch.nn.ModuleDict(make_candidates(edge, EdgeShape(4, (8, 8), 10))).to(DEVICE)
    teacher = _teacher()
    generator = derived_generator(random_choices(0), image=teacher.image, num_classes=10, width=4, latent_dim=7).to(
        DEVICE
    )
    source = LatentSource(8, 7, 10, 0, DEVICE)
    objective = partial(reconstruction_loss, teacher.observed, bns_weight=0.1)
    optimizer = torch.optim.Adam(generator.parameters(), fused=True)
    weights = torch.rand(len(operations), device=DEVICE, requires_grad=True)
    x = torch.randn(8, 4, 8, 8, device=DEVICE)
    for step, (z, labels) in enumerate(source.batches("search", 0, 3)):
        if step == 1:  # the first step prepares the libraries
            no_waiting()
        parts = fused_mixture(dict(operations.items()), weights, Features(x), labels)
        node_sum(parts, (8, 8)).square().mean().backward()
        generator_step(generator, objective, optimizer, z, labels)
    torch.cuda.set_sync_debug_mode("default")
    assert weights.grad.isfinite().all()
