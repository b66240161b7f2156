"""Topology and genotypes: the published facts, JSON, dead nodes, counts."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_autorecon.errors import InputError
from nni_autorecon.generator.costs import generator_macs
from nni_autorecon.generator.genotype import (
    Genotype,
    check_choices,
    dead_nodes,
    published_genotype,
    random_choices,
    repair,
    uniform_choices,
)
from nni_autorecon.generator.topology import EDGES, NONE, NORMAL, UP, Node, latent_split, node_size
from nni_autorecon.shapes import ImageShape

PUBLISHED = ("cifar10-resnet20", "cifar100-resnet20", "imagenet-resnet18", "imagenet-resnet50", "imagenet-mobilenetv2")

any_choices = st.fixed_dictionaries({edge.label: st.sampled_from(edge.candidates) for edge in EDGES})
probabilities = st.floats(0, 1)


def test_the_space_has_the_published_size():
    kinds = [edge.kind for edge in EDGES]
    assert (kinds.count(UP), kinds.count(NORMAL), kinds.count("cross")) == (6, 15, 12)
    size = 1
    for edge in EDGES:
        size *= len(edge.candidates)
    assert size == 2**6 * 7**15 * 3**12


def test_a_forward_pass_in_the_order_of_the_edges_needs_no_node_too_early():
    ready = {Node(1, 1)}
    for edge in EDGES:
        if edge.source.position == 1 and edge.source.block > 1:
            ready.add(edge.source)  # the previous block's N5
        assert edge.source in ready
        ready.add(edge.target)


@pytest.mark.parametrize(
    ("size", "expected"), [(8, [1, 2, 4, 8]), (28, [4, 7, 14, 28]), (32, [4, 8, 16, 32]), (33, [5, 9, 17, 33])]
)
def test_blocks_are_rounded_up_and_the_last_has_the_image_size(size, expected):
    image = ImageShape(3, size, 2 * size)
    heights = [node_size(Node(1, 1), image)[0], *(node_size(Node(b, 5), image)[0] for b in (1, 2, 3))]
    assert heights == expected
    assert node_size(Node(3, 2), image) == (size, 2 * size)
    assert node_size(Node(2, 1), image) == node_size(Node(1, 5), image)


def test_the_latent_vector_is_split_as_published():
    assert latent_split(100) == (33, 33, 34)
    assert latent_split(3) == (1, 1, 1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_genotypes_load(name):
    assert set(published_genotype(name).choices) == {edge.label for edge in EDGES}


def test_published_statistics():
    normal = [published_genotype(name).choices[e.label] for name in PUBLISHED for e in EDGES if e.kind == NORMAL]
    assert len(normal) == 75
    assert (normal.count("dil_conv_5x5"), normal.count("none"), normal.count("identity")) == (41, 2, 0)


@pytest.mark.parametrize(
    ("name", "size", "width", "gmacs"),
    [("cifar100-resnet20", 32, 64, 0.61), ("cifar100-resnet20", 32, 32, 0.153), ("imagenet-resnet18", 224, 64, 28.5)],
)
def test_published_macs(name, size, width, gmacs):
    choices = published_genotype(name).choices
    macs = generator_macs(choices, width=width, image=ImageShape(3, size, size), latent_dim=100)
    assert macs / 1e9 == pytest.approx(gmacs, rel=0.02)


@given(any_choices)
def test_json_round_trip_for_every_valid_genotype(choices):
    if dead_nodes(choices):
        with pytest.raises(InputError, match="is dead"):
            check_choices(choices)
        return
    genotype = Genotype(choices, 7, 11, {"seed": 3, "teacher": "digits"})
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert list(genotype.choices) == [edge.label for edge in EDGES]


@given(any_choices, st.randoms(use_true_random=False))
def test_repair_leaves_no_dead_node_and_touches_only_none(choices, rng):
    p = {edge.label: {name: rng.random() for name in edge.candidates} for edge in EDGES}
    repaired, changed = repair(choices, p)
    assert not dead_nodes(repaired)
    assert {label for label in choices if choices[label] != repaired[label]} == set(changed)
    assert all(choices[label] == NONE for label in changed)
    if not dead_nodes(choices):
        assert not changed


def test_repair_takes_the_most_probable_connection():
    choices = uniform_choices("conv_3x3") | {"B1-N2 > B1-N4": NONE, "B1-N3 > B1-N4": NONE}
    p = {edge.label: dict.fromkeys(edge.candidates, 0.1) for edge in EDGES}
    p["B1-N3 > B1-N4"] |= {NONE: 0.9, "identity": 0.3}
    p["B1-N2 > B1-N4"] |= {NONE: 0.9, "conv_5x5": 0.2}
    assert dead_nodes(choices) == [Node(1, 4)]
    repaired, changed = repair(choices, p)
    assert changed == ["B1-N3 > B1-N4"]
    assert repaired["B1-N3 > B1-N4"] == "identity"


def test_a_node_that_nothing_leaves_is_dead_too():
    choices = uniform_choices("conv_3x3") | {"B3-N2 > B3-N4": NONE, "B3-N2 > B3-N5": NONE}
    assert dead_nodes(choices) == [Node(3, 2)]


def test_random_genotypes_are_valid_reproducible_and_different():
    samples = [random_choices(seed) for seed in range(20)]
    for choices in samples:
        check_choices(choices)
    assert random_choices(3) == samples[3]
    assert len({tuple(choices.values()) for choices in samples}) == 20


@pytest.mark.parametrize("operation", ["none", "nearest", "conv_7x7"])
def test_uniform_choices_refuse_what_normal_edges_lack(operation):
    with pytest.raises(InputError):
        uniform_choices(operation)


def test_saving_is_loading(tmp_path):
    genotype = published_genotype("cifar10-resnet20")
    genotype.save(tmp_path / "g.json")
    assert Genotype.load(tmp_path / "g.json") == genotype
    with pytest.raises(InputError, match=re.escape(f"genotype {tmp_path / 'none.json'} does not exist")):
        Genotype.load(tmp_path / "none.json")


def test_no_flipped_bit_makes_another_genotype(tmp_path):
    found, path = Genotype(random_choices(0), width=16, details={"seed": 3, "loss": {"loss": 0.5}}), tmp_path / "g.json"
    content = found.to_json().encode()
    positions, refused = range(0, 8 * len(content), 5), 0
    for position in positions:
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            read = Genotype.load(path)
        except InputError:
            refused += 1
        else:  # the checksum's own name was hit
            assert (read.choices, read.width, read.latent_dim) == (found.choices, found.width, found.latent_dim)
    assert len(positions) - 12 <= refused < len(positions)


def test_a_genotype_may_be_edited_without_its_checksum(tmp_path):
    found = Genotype(random_choices(0), width=16)
    edited = found.to_json().replace('"width": 16', '"width": 24')
    with pytest.raises(InputError, match=r"g is damaged, or edited by hand: its sha256 .*take sha256 out to keep"):
        Genotype.from_json(edited, source="g")
    without = re.sub(r',\s*"sha256": "\w+"', "", edited)
    assert Genotype.from_json(without).width == 24
