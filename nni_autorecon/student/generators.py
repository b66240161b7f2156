"""The generator of a run: the one that is named, or GDFQ's, as wide as the teacher's cost allows."""

from __future__ import annotations

import logging

from ..config.compress import CompressConfig
from ..config.generator_spec import LEAVES, NOISE
from ..config.rules import OF_TRAINED_GENERATORS
from ..config.student import StudentConfig
from ..generator.by_name import generator_from_spec
from ..generator.costs import gdfq_macs
from ..generator.gdfq import GDFQ_WIDTH, LATENT_DIM, GDFQGenerator
from ..generator.searched import Generator
from ..shapes import ImageShape
from ..teacher.loading import Teacher

_log = logging.getLogger(__name__)

CHOSEN = {NOISE: "smooth noise, which is refined", LEAVES: "dead leaves"}
"""A person reads these names of drawn images."""
CIFAR = ImageShape(3, 32, 32)


def configured_generator(config: StudentConfig, teacher: Teacher) -> Generator | GDFQGenerator:
    """Return the generator that ``config`` names for ``teacher``, freshly initialized on its device.

    Raises ValueError for a method without a generator.
    """
    if config.generator_spec is None:
        raise ValueError("this method has no generator")
    width = affordable_width(teacher) if config.chooses_generator else config.width
    return generator_from_spec(
        config.generator_spec,
        image=teacher.image,
        num_classes=teacher.num_classes,
        width=width,
        latent_dim=config.latent_dim,
        scale=config.generator_scale,
        genotype=config.genotype_file,
    ).to(teacher.device)


def with_generator_chosen(config: CompressConfig, teacher: Teacher) -> CompressConfig:
    """Return the settings with images that are drawn where nobody chose a generator for method ``blockwise``.

    They are smooth noise, which is refined. Where GDFQ's generator would cost more than the teacher, images are large,
    and most likely photographs, whose networks learn more from dead leaves, in less time (docs/results/teachers.md,
    docs/results/imagenet.md).
    """
    defaults = CompressConfig()
    untouched = all(getattr(config, name) == getattr(defaults, name) for name in ("generator", *OF_TRAINED_GENERATORS))
    if config.method != "blockwise" or not untouched:
        return config
    own = gdfq_macs(width=GDFQ_WIDTH, image=teacher.image, latent_dim=LATENT_DIM)
    chosen = NOISE if own <= _affordable(teacher) else LEAVES
    _log.info("no generator is named: the images are %s (see --generator)", CHOSEN[chosen])
    return config.override({"generator": chosen}).as_shared()


def _affordable(teacher: Teacher) -> int:
    """Return the MACs that a generator may cost: the teacher's, or those of GDFQ's on CIFAR, whichever are more."""
    return max(teacher.macs, gdfq_macs(width=GDFQ_WIDTH, image=CIFAR, latent_dim=LATENT_DIM))


def affordable_width(teacher: Teacher) -> int:
    """Return the width of GDFQ's generator for a teacher nobody chose one for: its own, or what costs no more than it.

    At 32×32 pixels its own width of 128 costs as little as on CIFAR; at 224×224 it would cost many times the teacher.
    """
    affordable = _affordable(teacher)
    widths = range(GDFQ_WIDTH, 0, -1)
    costs = (gdfq_macs(width=width, image=teacher.image, latent_dim=LATENT_DIM) for width in widths)
    chosen = next((width for width, cost in zip(widths, costs, strict=True) if cost <= affordable), 1)
    if chosen < GDFQ_WIDTH:
        _log.info("GDFQ's generator has %d channels, not %d, to cost no more than the teacher", chosen, GDFQ_WIDTH)
    return chosen
