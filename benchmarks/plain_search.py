"""The search is measured against this: its space as NNI's differentiable strategies take it, every candidate whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.strategy import GumbelDARTS
from torch import Tensor, nn

from nni_autorecon.generator.topology import (
    CONVOLUTIONS,
    EDGES,
    IDENTITY,
    INTERPOLATIONS,
    NUM_BLOCKS,
    Edge,
    Node,
    incoming,
    latent_split,
    node_size,
)
from nni_autorecon.shapes import ImageShape


class PlainSpace(ModelSpace):
    """The generators of Figure 2 and Table 1, layer by layer."""

    def __init__(self, image: ImageShape, num_classes: int, width: int, latent_dim: int) -> None:
        super().__init__()
        self.image, self.width, self.latent_split = image, width, latent_split(latent_dim)
        sizes = [node_size(Node(block, 1), image) for block in range(1, NUM_BLOCKS + 1)]
        self.stems = nn.ModuleList(
            nn.Linear(dim, width * h * w) for dim, (h, w) in zip(self.latent_split, sizes, strict=True)
        )
        self.edges = nn.ModuleDict({edge.label: self._choice(edge, num_classes) for edge in EDGES})
        self.end = PlainConv(width, image.channels, 3, 1, num_classes)
        self.norm = nn.BatchNorm2d(image.channels, affine=False)

    def _choice(self, edge: Edge, num_classes: int) -> LayerChoice:
        size = node_size(edge.target, self.image)
        return LayerChoice(
            {name: plain_operation(name, self.width, size, num_classes) for name in edge.candidates}, label=edge.label
        )

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        nodes: dict[Node, Tensor] = {}
        for block, (stem, chunk) in enumerate(zip(self.stems, z.split(self.latent_split, 1), strict=True), start=1):
            x = stem(chunk).view(-1, self.width, *node_size(Node(block, 1), self.image))
            nodes[Node(block, 1)] = x if block == 1 else nodes[Node(block - 1, 5)] + x
            for index in (2, 3, 4, 5):
                node = Node(block, index)
                nodes[node] = sum(self.edges[edge.label](nodes[edge.source], labels) for edge in incoming(node))
        return self.norm(torch.tanh(self.end(nodes[Node(NUM_BLOCKS, 5)], labels)))


class PlainConv(nn.Module):
    """Class-conditional BatchNorm, LeakyReLU, convolution."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, dilation: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs, affine=False)
        self.scale, self.shift = nn.Embedding(num_classes, inputs), nn.Embedding(num_classes, inputs)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)
        padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, padding=padding, dilation=dilation)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        x = self.norm(x) * self.scale(labels)[:, :, None, None] + self.shift(labels)[:, :, None, None]
        return self.conv(F.leaky_relu(x, 0.2))


class PlainUp(nn.Module):
    def __init__(self, mode: str, width: int, size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.resize = partial(F.interpolate, size=size, mode=mode)
        self.conv = PlainConv(width, width, 1, 1, num_classes)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.conv(self.resize(x), labels)


class PlainSame(nn.Module):
    """The features themselves, or nothing of them."""

    def __init__(self, factor: float, size: tuple[int, int]) -> None:
        super().__init__()
        self.factor, self.size = factor, size

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return x if self.factor else x.new_zeros(*x.shape[:2], *self.size)


def plain_operation(name: str, width: int, size: tuple[int, int], num_classes: int) -> nn.Module:
    if name in CONVOLUTIONS:
        return PlainConv(width, width, *CONVOLUTIONS[name], num_classes)
    if name in INTERPOLATIONS:
        return PlainUp(name, width, size, num_classes)
    return PlainSame(float(name == IDENTITY), size)


def plain_loss(teacher: nn.Module, images: Tensor, labels: Tensor, *, bns_weight: float) -> Tensor:
    """Eq. 1 with hooks that keep lists."""
    gaps: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        mean, var = inputs[0].mean([0, 2, 3]), inputs[0].var([0, 2, 3], unbiased=False)
        gaps.append(F.mse_loss(mean, module.running_mean) + F.mse_loss(var, module.running_var))

    handles = [m.register_forward_hook(hook) for m in teacher.modules() if isinstance(m, nn.BatchNorm2d)]
    class_loss = F.cross_entropy(teacher(images), labels)
    for handle in handles:
        handle.remove()
    return class_loss + bns_weight * torch.stack(gaps).mean()


def plain_search_step(
    teacher: nn.Module,
    image: ImageShape,
    num_classes: int,
    *,
    width: int,
    latent_dim: int,
    batch_size: int,
    bns_weight: float,
    of_alpha: bool,
) -> Callable[[], None]:
    """One update of the weights, or of alpha, of NNI's supernet. As its strategies do, it takes all gradients for
    either, and clears those of what it updates."""
    device = next(teacher.parameters()).device
    supernet = GumbelDARTS().mutate_model(PlainSpace(image, num_classes, width, latent_dim)).to(device).train()
    chosen = [parameter for name, parameter in supernet.named_parameters() if ("alpha" in name) == of_alpha]
    optimizer = torch.optim.Adam(chosen, 1e-3, betas=(0.5, 0.999))

    def step() -> None:
        z = torch.randn(batch_size, latent_dim).to(device)
        labels = torch.randint(num_classes, (batch_size,)).to(device)
        loss = plain_loss(teacher, supernet(z, labels), labels, bns_weight=bns_weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step
