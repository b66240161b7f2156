"""A layer's weights are rounded together, so that its outputs stay, not each weight to the nearest code by itself.

The method is GPTQ (Frantar et al., ICLR 2023): column after column is rounded, and the error of each is made good by
those that are still to come, as far as the layer's inputs go together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_COLUMNS = 8192
"""The products of so many columns take 256 MB; layers with more are rounded to the nearest codes."""
SAMPLES_PER_COLUMN = 16
"""More samples of a layer's inputs hardly change their products."""
AT_ONCE = 128
"""The columns whose errors are carried over to the later ones in one product of matrices."""


def columns(layer: nn.Conv2d | nn.Linear, inputs: Tensor, *, most: int, generator: torch.Generator) -> Tensor:
    """Return some ``most`` samples of what the weights of each group multiply, [groups, samples, columns].

    inputs: the layer's inputs, [N, C, H, W] or [..., C]. The columns are in the order of ``layer.weight.flatten(1)``.
    A convolution samples positions of its output in every image.
    """
    if isinstance(layer, nn.Linear):
        samples = inputs.flatten(0, -2)[None]  # [1, n, C]
        return samples[:, torch.randperm(samples.shape[1], generator=generator)[:most]]
    padding = layer._reversed_padding_repeated_twice  # also that of padding="same"
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs, padding, mode)
    reaches = [d * torch.arange(k) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    positions = [
        torch.arange(0, size - int(reach[-1]), stride)
        for size, reach, stride in zip(padded.shape[2:], reaches, layer.stride, strict=True)
    ]
    patches = torch.cartesian_prod(*reaches)  # [k², 2]: the places of a patch's pixels, from its first one on
    firsts = torch.cartesian_prod(*positions)  # [positions, 2]
    found = []
    for image in padded:  # [C, H, W]
        chosen = firsts[torch.randperm(len(firsts), generator=generator)[: -(-most // len(inputs))]]
        rows, across = (chosen[:, None] + patches).to(image.device).unbind(2)  # [samples, k²]
        values = image[:, rows, across].unflatten(0, (layer.groups, -1))  # [groups, C, samples, k²]
        found.append(values.transpose(1, 2).flatten(2))
    return torch.cat(found, 1)


def round_together(
    weight: Tensor, products: Tensor, *, scale: Tensor, zero_point: Tensor, largest_code: int, damping: float = 0.01
) -> Tensor:
    """Return ``weight`` [groups, outputs, columns], changed so that its nearest codes give nearly what it gave.

    products: of the columns with each other, [groups, columns, columns], summed or averaged over samples.
    scale, zero_point: of each output, [groups, outputs].
    damping: the part of the mean square of a column that is added to all, so that few samples do not decide alone.

    Columns go from the strongest input to the weakest. With U the upper Cholesky factor of the inverse products, the
    error e of column j takes e / U[j, j] · U[j, j + 1:] from the columns after it (Frantar et al., algorithm 1).
    Columns are returned as they were before they were rounded, so that training can turn those between two codes.
    """
    power = products.diagonal(dim1=1, dim2=2)  # [groups, columns]
    order = power.argsort(1, descending=True)
    products = products.take_along_dim(order[:, :, None], 1).take_along_dim(order[:, None, :], 2)
    products = products + torch.diag_embed(damping * power.mean(1, keepdim=True).expand_as(power) + 1e-12)
    factor = torch.linalg.cholesky(products.flip(1, 2))  # that of the inverse is the inverse of this one, turned round
    eye = torch.eye(products.shape[1], dtype=products.dtype, device=products.device).expand_as(products)
    upper = torch.linalg.solve_triangular(factor, eye, upper=False).flip(1, 2)
    weight = weight.take_along_dim(order[:, None, :], 2)
    scale, zero_point = scale[..., None], zero_point[..., None].to(weight.dtype)
    for start in range(0, weight.shape[2], AT_ONCE):
        these = slice(start, start + AT_ONCE)
        part, own = weight[:, :, these].clone(), upper[:, these, these]
        errors = torch.empty_like(part)
        for j in range(part.shape[2]):
            column = part[:, :, j : j + 1]  # [groups, outputs, 1]
            code = (column / scale).round().add(zero_point).clamp(0, largest_code)
            errors[:, :, j : j + 1] = (column - (code - zero_point) * scale) / own[:, j, j].view(-1, 1, 1)
            part[:, :, j + 1 :] -= errors[:, :, j : j + 1] * own[:, j : j + 1, j + 1 :]
        weight[:, :, these] = part
        weight[:, :, these.stop :] -= errors @ upper[:, these, these.stop :]
    return torch.empty_like(weight).scatter_(2, order[:, None, :].expand_as(weight), weight)
