"""The generator that a person names: searched, published, random, uniform, or GDFQ's."""

from __future__ import annotations

from collections.abc import Callable

from ..config.generator_spec import HUMAN_DESIGNED, GeneratorSpec
from ..errors import InputError
from ..shapes import LARGEST_SIZE, ImageShape
from .costs import equal_macs_width
from .gdfq import GDFQ_WIDTH, LATENT_DIM, GDFQGenerator
from .genotype import Genotype, published_genotype, random_choices, uniform_choices
from .searched import Generator, derived_generator


def generator_from_spec(
    spec: str | GeneratorSpec,
    *,
    image: ImageShape,
    num_classes: int,
    width: int | None = None,
    latent_dim: int | None = None,
    scale: float = 1.0,
    genotype: str | None = None,
) -> Generator | GDFQGenerator:
    """Return the generator that a person names; :class:`.GeneratorSpec` reads the name.

    ``genotype`` is the file that ``searched`` alone and ``@equal-macs`` refer to, and whose width random and all take.
    ``width`` None means the genotype's own (without one 64, GDFQ's 128); ``latent_dim`` None the genotype's, else 100.
    ``scale`` multiplies whatever the width is. Raises InputError for anything else.
    """
    spec = GeneratorSpec.parse(spec) if isinstance(spec, str) else spec
    if spec.needs_genotype and genotype is None:
        raise InputError(f"generator {str(spec)!r} needs a genotype; give its file with --genotype")
    if spec.kind in HUMAN_DESIGNED:
        if spec.equal_macs and width is not None:
            raise InputError(f"generator {str(spec)!r} has the width of equal MACs; leave out --width")
        latent_dim = latent_dim or LATENT_DIM
        if spec.equal_macs:
            width = equal_macs_width(str(genotype), image=image, latent_dim=latent_dim)
        return GDFQGenerator(
            image=image,
            num_classes=num_classes,
            width=_scaled(width or GDFQ_WIDTH, scale),
            latent_dim=latent_dim,
            conditional=spec.kind == "gdfq-conditional",
        )
    found = GENOTYPES[spec.kind](spec.argument or str(genotype))
    if not spec.needs_genotype and genotype is not None and spec.uses_genotype(width):
        width = Genotype.load(genotype).width
    return derived_generator(
        found.choices,
        image=image,
        num_classes=num_classes,
        width=_scaled(width or found.width, scale),
        latent_dim=latent_dim or found.latent_dim,
    )


def _scaled(width: int, scale: float) -> int:
    scaled = max(round(width * scale), 1)
    if scaled > LARGEST_SIZE:
        raise InputError(f"generator_scale {scale:g} makes {width} channels more than {LARGEST_SIZE}; lower it")
    return scaled


def _random_genotype(seed: str) -> Genotype:
    if not seed.isdecimal():
        raise InputError(f"generator 'random:{seed}': the seed is not a whole number; write random:0")
    return Genotype(random_choices(int(seed)))


GENOTYPES: dict[str, Callable[[str], Genotype]] = {
    "searched": Genotype.load,
    "published": published_genotype,
    "random": _random_genotype,
    "all": lambda operation: Genotype(uniform_choices(operation)),
}
