"""The speed benchmark times these: steps of searches, and iterations of compression."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.strategy import GumbelDARTS
from plain_compression import plain_iteration
from plain_search import plain_search_step
from torch import Tensor, nn

from nni_autorecon.accel.cuda_graphs import Recorded
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.config.search import SearchConfig
from nni_autorecon.generator.costs import generator_macs
from nni_autorecon.generator.genotype import random_choices, uniform_choices
from nni_autorecon.generator.latent import LatentSource
from nni_autorecon.generator.operations import EdgeShape, make_operation
from nni_autorecon.generator.searched import Generator, derived_generator
from nni_autorecon.generator.topology import CROSS, Edge
from nni_autorecon.generator.training import generator_step, weight_optimizer
from nni_autorecon.losses.reconstruction import reconstruction_loss
from nni_autorecon.nas.autorecon import AutoReConStrategy
from nni_autorecon.nas.mixed_edge import MixedEdge
from nni_autorecon.nas.space import CrossChoice, GeneratorSpace
from nni_autorecon.networks import digits_resnet, resnet20
from nni_autorecon.quantization.quantizers import observe_ranges
from nni_autorecon.shapes import ImageShape
from nni_autorecon.student.compression import Compression
from nni_autorecon.student.images import GeneratorImages
from nni_autorecon.teacher.loading import Teacher

Cases = dict[str, Callable[[], object]]
ENDLESS = sys.maxsize
PHASES = ("weights", "alpha")
STOCK, SHARED, PLAIN = "NNI's mixtures, all plain", "NNI's mixtures of our operations", "plain"


def teacher_of(network: nn.Module, image: ImageShape, device: torch.device, num_classes: int = 10) -> Teacher:
    """A network with random weights: they change no time."""
    zeros, ones = (0.0,) * image.channels, (1.0,) * image.channels
    return Teacher("benchmark", network.eval().requires_grad_(False).to(device), num_classes, image, zeros, ones)


def digits(device: torch.device) -> Teacher:
    return teacher_of(digits_resnet(), ImageShape(1, 16, 16), device)


def cifar(device: torch.device) -> Teacher:
    return teacher_of(resnet20(), ImageShape(3, 32, 32), device)


def generator_training(
    generator: nn.Module, teacher: Teacher, config: SearchConfig, *, of_alpha: bool = False
) -> Callable[[], object]:
    """One update of the weights of a generator, or of a supernet's alpha, on L_r."""
    generator.to(teacher.device).train()
    for name, parameter in generator.named_parameters():
        parameter.requires_grad_(("alpha" in name) == of_alpha)
    optimizer = weight_optimizer([p for p in generator.parameters() if p.requires_grad], config)
    objective = partial(reconstruction_loss, teacher.observed, bns_weight=1.0)
    source = LatentSource(config.batch_size, config.latent_dim, teacher.num_classes, config.seed, teacher.device)

    batches = source.batches("search", 0, ENDLESS)
    step = Recorded(partial(generator_step, generator, objective, optimizer), "a generator")
    return lambda: step(*next(batches))


class StockSpace(ModelSpace):
    """Our operations as NNI's differentiable strategies take them: every candidate with an affine map of its own."""

    def __init__(self, **shape: Any) -> None:
        super().__init__()
        self.generator = Generator(stock_choice, **shape)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.generator(z, labels)


def stock_choice(edge: Edge, shape: EdgeShape) -> nn.Module:
    candidates = {name: make_operation(name, shape) for name in edge.candidates}
    return CrossChoice(candidates, edge.label) if edge.kind == CROSS else LayerChoice(candidates, label=edge.label)


def search_cases(teacher: Teacher, config: SearchConfig) -> tuple[Cases, dict[str, int]]:
    """Steps of the search and of three derived generators; and the MACs of these."""
    size: dict[str, Any] = {"image": teacher.image, "width": config.width, "latent_dim": config.latent_dim}
    shape, macs = {**size, "num_classes": teacher.num_classes}, partial(generator_macs, **size)
    by_cost = sorted((random_choices(seed) for seed in range(501)), key=macs)
    derived = {"cheapest": by_cost[0], "median": by_cost[250], "all dil_conv_5x5": uniform_choices("dil_conv_5x5")}

    def ours(sampling: str) -> nn.Module:
        supernet = AutoReConStrategy(replace(config, sampling=sampling)).mutate_model(GeneratorSpace(**shape))
        if sampling == "hard":  # it then samples the median generator
            for module in supernet.modules():
                if isinstance(module, MixedEdge):
                    index = module.edge.candidates.index(derived["median"][module.edge.label])
                    module.alpha.data[index] = 50.0
        return supernet

    def step(name: str, of_alpha: bool) -> Callable[[], object]:
        if name == STOCK:
            return plain_search_step(
                teacher.network, **shape, batch_size=config.batch_size, bns_weight=1.0, of_alpha=of_alpha
            )
        supernet = GumbelDARTS().mutate_model(StockSpace(**shape)) if name == SHARED else ours(name)
        return generator_training(supernet, teacher, config, of_alpha=of_alpha)

    cases: Cases = {
        f"{name}, {phase}": step(name, phase == "alpha") for name in (STOCK, SHARED, "soft", "hard") for phase in PHASES
    }
    for name, choices in derived.items():
        cases[f"{name} generator"] = generator_training(derived_generator(choices, **shape), teacher, config)
    return cases, {f"{name} generator": macs(choices) for name, choices in derived.items()}


def compression_cases(teacher: Teacher, config: CompressConfig) -> Cases:
    """An iteration of compression with GDFQ's generator, plain and the library's."""
    plain = plain_iteration(
        teacher.network, teacher.image, teacher.num_classes, batch_size=config.batch_size, bits=int(config.bits[1])
    )
    compression = Compression.start(config, teacher)
    assert isinstance(compression.images, GeneratorImages)
    with torch.no_grad(), observe_ranges(compression.student):
        compression.student(torch.randn(8, *teacher.image, device=teacher.device))

    batches = compression.images.batches(0, ENDLESS, learning_rate=1e-3)
    train_student = Recorded(compression.training.step, "a student")

    def iteration() -> None:
        images, labels, loss = next(batches)
        train_student(images, labels, loss.logits)

    return {PLAIN: plain, "ours": iteration}
