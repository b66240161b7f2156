"""Generators: shapes for any image, published sizes, what gradients reach, cost counting."""

import pytest
import torch

from nni_autorecon.errors import InputError
from nni_autorecon.generator.by_name import generator_from_spec
from nni_autorecon.generator.costs import gdfq_macs
from nni_autorecon.generator.gdfq import GDFQGenerator
from nni_autorecon.generator.genotype import (
    Genotype,
    published_genotype,
    random_choices,
    uniform_choices,
)
from nni_autorecon.generator.searched import derived_generator
from nni_autorecon.shapes import ImageShape
from tests.helpers.toys import GENERATOR, IMAGE, count_macs


def _parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    "image", [ImageShape(1, 8, 8), ImageShape(3, 28, 28), ImageShape(5, 17, 12), ImageShape(2, 9, 32)]
)
@pytest.mark.parametrize("conditional", [None, False, True])
def test_any_image_size_from_8_up_and_any_channel_count(image, conditional):
    shape = {"image": image, "num_classes": 7, "latent_dim": 11}
    generator = (
        derived_generator(random_choices(1), width=3, **shape)
        if conditional is None
        else GDFQGenerator(width=6, conditional=conditional, **shape)
    )
    images = generator(torch.randn(5, 11), torch.arange(5))
    assert images.shape == (5, *image)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(image.channels), atol=1e-4, rtol=0)
    torch.testing.assert_close(images.var((0, 2, 3), correction=0), torch.ones(image.channels), atol=1e-2, rtol=0)


def test_the_published_generator_has_the_published_size():
    """2.45 M parameters in the authors' release, which keeps a class-conditional norm on each of 5 ``none`` edges."""
    genotype = published_genotype("cifar100-resnet20")
    shape = {"image": ImageShape(3, 32, 32), "latent_dim": 100}
    generator = derived_generator(genotype.choices, num_classes=100, width=64, **shape)
    unused_norms = list(genotype.choices.values()).count("none") * 2 * 100 * 64
    assert _parameters(generator) + unused_norms == pytest.approx(2.45e6, rel=0.002)
    assert generator.macs() == pytest.approx(0.61e9, rel=0.02)


def test_gdfq_has_the_published_size():
    generator = GDFQGenerator(image=ImageShape(3, 32, 32), num_classes=100)
    assert _parameters(generator) == pytest.approx(1.06e6, rel=0.01)
    assert generator.macs() == pytest.approx(0.116e9, rel=0.01)  # "0.12 G"


@pytest.mark.parametrize("seed", range(3))
def test_counted_macs_are_the_formulas(seed):
    generator = derived_generator(random_choices(seed), **GENERATOR)
    assert generator.macs() == count_macs(generator)


def test_the_label_and_every_part_of_z_matter():
    torch.manual_seed(0)
    generator = derived_generator(uniform_choices("conv_3x3"), **GENERATOR)
    for name, parameter in generator.named_parameters():
        if name.endswith("table.weight"):
            torch.nn.init.normal_(parameter)
    z, labels = torch.randn(6, 7), torch.arange(6) % 5
    images = generator(z, labels)
    assert not torch.allclose(images, generator(z, (labels + 1) % 5))
    for dimension in range(7):
        changed = z.clone()
        changed[:, dimension] += 1
        assert not torch.allclose(images, generator(changed, labels))


def test_gradients_reach_every_weight():
    generator = derived_generator(random_choices(2), **GENERATOR)
    generator(torch.randn(6, 7), torch.arange(6) % 5).pow(3).sum().backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())


def test_generators_by_name(tmp_path):
    Genotype(random_choices(3), width=2).save(tmp_path / "g.json")
    shape = {"image": IMAGE, "num_classes": 5, "latent_dim": 7}
    searched = generator_from_spec(f"searched:{tmp_path / 'g.json'}", width=None, **shape)
    random = generator_from_spec("random:3", width=2, **shape)
    assert searched.width == 2
    assert searched.state_dict().keys() == random.state_dict().keys()
    assert generator_from_spec("published:imagenet-resnet18", width=3, **shape).width == 3
    assert generator_from_spec("all:conv_1x1", width=None, **shape).width == 64
    assert generator_from_spec("gdfq", width=None, **shape).width == 128
    assert generator_from_spec("gdfq-conditional", width=4, **shape).embedding is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "generator '' is not known; use one of searched"),
        ("searched", "needs a genotype; give its file with --genotype"),
        ("gdfq@equal-macs", "needs a genotype; give its file with --genotype"),
        ("gdfq@macs", "not known"),
        ("gdfq@", "not known"),
        ("searched@equal-macs", "not known"),
        ("gdfq:3", "not known"),
        ("searched:/none.json", "genotype /none.json does not exist"),
        ("published:x", "no published genotype 'x'; there are cifar10-resnet20"),
        ("random:x", "seed is not a whole number"),
        ("all:none", "node B1-N4 is dead"),
    ],
)
def test_a_generator_that_does_not_exist_is_named(spec, message):
    with pytest.raises(InputError, match=message):
        generator_from_spec(spec, image=IMAGE, num_classes=5, width=None, latent_dim=7)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("width", [1, 6, 7])
def test_macs_of_gdfq_in_closed_form(conditional, width):
    generator = GDFQGenerator(**{**GENERATOR, "width": width}, conditional=conditional)
    assert generator.macs() == gdfq_macs(width=width, image=IMAGE, latent_dim=7) == count_macs(generator)


@pytest.mark.parametrize("conditional", [False, True])
def test_biases_that_gdfq_leaves_out_would_change_no_image(conditional):
    torch.manual_seed(0)
    generator = GDFQGenerator(**{**GENERATOR, "width": 6}, conditional=conditional).double()
    z, labels = torch.randn(8, 7, dtype=torch.float64), torch.arange(8) % 5
    images = generator(z, labels)
    biases = []
    for conv in generator.convs:
        conv.register_forward_hook(
            lambda module, inputs, y: y + (biases.append(torch.randn(y.shape[1], 1, 1).double()) or biases[-1])
        )
    torch.testing.assert_close(generator(z, labels), images)
    assert len(biases) == 2


def test_gdfq_at_the_macs_of_a_genotype(tmp_path):
    file = tmp_path / "g.json"
    Genotype(random_choices(3), width=8).save(file)
    shape = {"image": IMAGE, "num_classes": 5, "genotype": str(file)}
    goal = generator_from_spec("searched", **shape).macs()
    width = generator_from_spec("gdfq@equal-macs", **shape).width
    gaps = [abs(gdfq_macs(width=w, image=IMAGE, latent_dim=100) - goal) for w in (width - 1, width, width + 1)]
    assert min(gaps) == gaps[1]
    assert gaps[1] < 0.05 * goal
    with pytest.raises(InputError, match="leave out --width"):
        generator_from_spec("gdfq@equal-macs", width=4, **shape)


def test_scale_multiplies_the_width_of_every_generator(tmp_path):
    file = tmp_path / "g.json"
    Genotype(random_choices(3), width=8).save(file)
    shape = {"image": IMAGE, "num_classes": 5, "genotype": str(file)}
    widths = {"searched": 8, "random:1": 8, "all:conv_1x1": 8, "gdfq": 128, "gdfq-conditional": 128}
    for spec, width in widths.items():
        for scale in (0.5, 1.0, 1.5):
            assert generator_from_spec(spec, scale=scale, **shape).width == width * scale
    assert generator_from_spec("gdfq", scale=0.001, **shape).width == 1
    once = generator_from_spec("gdfq@equal-macs", **shape).width
    assert generator_from_spec("gdfq@equal-macs", scale=2.0, **shape).width == 2 * once
