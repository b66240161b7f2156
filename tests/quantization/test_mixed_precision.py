"""The choice of bits: against all choices there are; bits by layer in a network; bytes of a weight."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from nni_autorecon.errors import InputError
from nni_autorecon.quantization.insertion import quantize_network
from nni_autorecon.quantization.integers import IntegerWeight, pack, quantized_layers, weight_bytes
from nni_autorecon.quantization.mixed_precision import Choice, best_within, pareto_frontier, thinned
from nni_autorecon.quantization.quantizers import in_floating_point, quantized_alone
from nni_autorecon.quantization.specification import Quantization
from tests.helpers.toys import IMAGE, toy_teacher


def test_a_worked_example() -> None:
    frontier = pareto_frontier([{2: 3.0, 4: 1.0}, {2: 5.0, 4: 0.0}], [{2: 1, 4: 2}, {2: 1, 4: 2}])
    assert frontier == [Choice((2, 2), 2, 8.0), Choice((2, 4), 3, 3.0), Choice((4, 4), 4, 1.0)]
    assert [best_within(frontier, size) for size in (1, 2, 3, 9)] == [None, *frontier]


def _random_layers(seed: int, layers: int) -> tuple[list[dict[int, float]], list[dict[int, int]]]:
    """Harms that fall with the bits on the whole, not always; layers of unlike sizes, one of which has no choice."""
    generator = torch.Generator().manual_seed(seed)
    bits = [(2, 3, 4, 8)] * (layers - 1) + [(5,)]
    harms = [{n: float(torch.rand((), generator=generator)) * 4.0**-n for n in own} for own in bits]
    counts = torch.randint(3, 500, (layers,), generator=generator).tolist()
    return harms, [{n: weight_bytes((1, count), n) for n in own} for own, count in zip(bits, counts, strict=True)]


def _all_choices(harms: list[dict[int, float]], sizes: list[dict[int, int]]) -> list[Choice]:
    return [
        Choice(
            bits,
            sum(s[n] for s, n in zip(sizes, bits, strict=True)),
            sum(h[n] for h, n in zip(harms, bits, strict=True)),
        )
        for bits in itertools.product(*harms)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_best_within_any_size_is_that_of_all_choices(seed: int) -> None:
    harms, sizes = _random_layers(seed, layers=6)
    everything, frontier = _all_choices(harms, sizes), pareto_frontier(harms, sizes)
    for size in {each.bytes for each in everything}:
        best = min(each.harm for each in everything if each.bytes <= size)
        found = best_within(frontier, size)
        assert found in everything
        assert (found.harm, found.bytes <= size) == (pytest.approx(best), True)


@pytest.mark.parametrize("seed", range(5))
def test_thinning_costs_no_more_than_its_intervals(seed: int) -> None:
    harms, sizes = _random_layers(seed, layers=6)
    everything, frontier = _all_choices(harms, sizes), pareto_frontier(harms, sizes, most=9)
    assert len(frontier) <= 9
    smallest, largest = (end(each.bytes for each in everything) for end in (min, max))
    lost = len(harms) * (largest - smallest) / 8
    assert frontier[0].bytes == smallest
    for size in range(smallest + int(lost) + 1, largest):
        best = min(each.harm for each in everything if each.bytes <= size - lost)
        assert best_within(frontier, size).harm <= best + 1e-12


def test_thinned_choices_keep_both_ends() -> None:
    frontier = [Choice((n,), n * n, 1 / n) for n in range(1, 30)]
    few = thinned(frontier, 5)
    assert len(few) <= 5
    assert (few[0], few[-1]) == (frontier[0], frontier[-1])
    assert thinned(frontier, 29) == frontier


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_bytes_of_a_weight_are_those_in_its_file(bits: int) -> None:
    student, _ = quantize_network(toy_teacher(), Quantization(f"w{bits}a8"), image=IMAGE)
    for _, layer in quantized_layers(student):
        weight = IntegerWeight.of(layer)
        stored = (pack(weight.codes, bits), weight.scale, weight.zero_point)
        assert weight_bytes(weight.codes.shape, bits) == sum(each.nbytes for each in stored)


def test_layers_have_bits_of_their_own_but_for_the_first_and_last_that_are_given() -> None:
    own = Quantization("w8a5", layer_bits={"0": 3, "3": 2, "8": 4})
    _, coverage = quantize_network(toy_teacher(), own, image=IMAGE)
    assert [each.bits for each in coverage.weights] == [3, 2, 4]
    _, coverage = quantize_network(toy_teacher(), replace(own, layer_bits={"3": 2}, last_bits=6), image=IMAGE)
    assert [each.bits for each in coverage.weights] == [8, 2, 6]
    assert coverage.mean_bits() == (3 * 2 * 9 * 8 + 5 * 3 * 9 * 2 + 25 * 6) / (54 + 135 + 25)
    assert Quantization.from_dict(own.to_dict()) == own


@pytest.mark.parametrize("bits", [1, 9, 4.0, "4", True])
def test_bits_that_a_layer_cannot_have_are_refused(bits: object) -> None:
    with pytest.raises(InputError, match="bits of layer conv are not supported; choose 2 to 8"):
        Quantization("w4a4", layer_bits={"conv": bits})


def test_bits_of_a_layer_that_is_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="has no layer 1 to have bits of its own"):
        quantize_network(toy_teacher(), Quantization("w4a4", layer_bits={"0": 4, "1": 4}), image=IMAGE)


def test_a_layer_is_quantized_alone_within_the_block_only() -> None:
    torch.manual_seed(0)
    teacher, images = toy_teacher(), torch.randn(3, *IMAGE)
    student, _ = quantize_network(teacher, Quantization("w8a8"), image=IMAGE)
    layers = dict(quantized_layers(student))
    quantizer = layers["3"].parametrizations.weight[0]
    with torch.no_grad(), in_floating_point(student):
        with quantized_alone(quantizer, 2):
            assert all(len(channel.unique()) <= 4 for channel in layers["3"].weight)
            assert torch.equal(layers["0"].weight, teacher[0].weight)
        assert torch.equal(layers["3"].weight, teacher[3].weight)
        torch.testing.assert_close(student(images), teacher(images))
    assert (quantizer.bits, quantizer.largest_code) == (8, 255)
