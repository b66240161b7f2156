"""Rounding together: columns are what a layer multiplies, and outputs change less than by rounding each weight."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nni_autorecon.quantization.rounding import columns, round_together

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "dilated": lambda: nn.Conv2d(6, 4, 3, padding=2, dilation=2),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6),
    "grouped": lambda: nn.Conv2d(6, 4, (1, 3), groups=2),
    "same": lambda: nn.Conv2d(6, 5, 3, padding="same"),
    "reflected": lambda: nn.Conv2d(6, 5, 3, padding=1, padding_mode="reflect"),
    "linear": lambda: nn.Linear(6, 5),
}


def samples(layer: nn.Module, inputs: Tensor, most: int = 10**6) -> Tensor:
    return columns(layer, inputs, most=most, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_columns_times_weights_are_the_outputs(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]()
    layer.bias.zero_()
    inputs = torch.randn(3, 7, 6) if name == "linear" else torch.randn(3, 6, 8, 7)
    found = samples(layer, inputs)
    groups = len(found)
    weight = layer.weight.reshape(groups, len(layer.weight) // groups, -1)
    ours = (found @ weight.transpose(1, 2)).flatten().sort().values  # in any order, for positions are drawn
    torch.testing.assert_close(ours, layer(inputs).flatten().sort().values, rtol=1e-4, atol=1e-5)


def test_no_more_samples_than_asked_for_but_one_of_each_image() -> None:
    layer = nn.Conv2d(2, 3, 3)
    assert samples(layer, torch.randn(4, 2, 8, 8), 20).shape == (1, 20, 18)
    assert samples(layer, torch.randn(4, 2, 8, 8), 1).shape == (1, 4, 18)
    assert samples(nn.Linear(2, 3), torch.randn(4, 5, 2), 3).shape == (1, 3, 2)


def output_error(weight: Tensor, exact: Tensor, products: Tensor) -> float:
    change = weight - exact
    return float((change @ products @ change.transpose(1, 2)).diagonal(dim1=1, dim2=2).sum())


def nearest(weight: Tensor, scale: float, largest: int) -> Tensor:
    return ((weight / scale).round() + 2).clamp(0, largest).sub(2) * scale


@pytest.mark.parametrize("groups", [1, 3])
def test_outputs_change_less_than_with_the_nearest_codes(groups: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(groups, 8, 200)  # more columns than are rounded at once
    inputs = torch.randn(groups, 500, 10) @ torch.randn(groups, 10, 200) + 0.3 * torch.randn(groups, 500, 200)
    products = inputs.transpose(1, 2) @ inputs
    scale = torch.full((groups, 8), 0.5)
    made = round_together(weight, products, scale=scale, zero_point=torch.full((groups, 8), 2), largest_code=7)
    ours, theirs = (output_error(nearest(each, 0.5, 7), weight, products) for each in (made, weight))
    assert ours < 0.4 * theirs


def test_it_comes_near_to_the_best_of_all_codes() -> None:
    torch.manual_seed(0)
    ratios = []
    for _ in range(10):
        weight, inputs = (
            torch.randn(1, 1, 5),
            torch.randn(1, 30, 2) @ torch.randn(1, 2, 5) + 0.3 * torch.randn(1, 30, 5),
        )
        products = inputs.transpose(1, 2) @ inputs
        made = round_together(
            weight, products, scale=torch.ones(1, 1), zero_point=torch.full((1, 1), 2), largest_code=3
        )
        codes = torch.tensor(list(itertools.product((-2.0, -1.0, 0.0, 1.0), repeat=5)))[:, None]  # [1024, 1, 5]
        best = min(output_error(each[None], weight, products) for each in codes)
        found = output_error(nearest(made, 1.0, 3), weight, products)
        assert found >= best * (1 - 1e-5)
        ratios.append(found / best)
    assert sorted(ratios)[5] < 1.3


def test_inputs_that_are_always_zero_change_nothing() -> None:
    weight = torch.tensor([[[0.4, 1.3, -0.6]]])
    made = round_together(
        weight, torch.zeros(1, 3, 3), scale=torch.ones(1, 1), zero_point=torch.full((1, 1), 2), largest_code=7
    )
    torch.testing.assert_close(nearest(made, 1.0, 7), nearest(weight, 1.0, 7))
