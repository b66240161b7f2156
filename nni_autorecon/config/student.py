"""These settings are shared by compression and distillation."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..shapes import LARGEST_SIZE
from .common import SCHEDULES, Config
from .generator_spec import DRAWN, GeneratorSpec
from .settings import setting


@dataclass(frozen=True, kw_only=True)
class StudentConfig(Config):
    """Settings of every stage that has a student."""

    genotype: str | None = setting(
        None,
        "architecture of the generator, as a search finds it: a file, or its JSON; {seed} in a name stands for the "
        "seed",
    )
    generator: str | None = setting(
        None,
        "what makes images: searched[:FILE], published:NAME (the authors'), random:SEED and all:OPERATION "
        "(genotypes all), gdfq and gdfq-conditional (designed by hand), gdfq@equal-macs (as wide as the cost of the "
        "genotype's allows), or what nothing trains, with method blockwise alone: noise (smooth noise) and dead-leaves "
        "(ellipses and rectangles that hide each other); {seed} stands for the seed (default: searched if there is a "
        "genotype, else gdfq; with method blockwise, if no setting of a generator is changed, noise, or dead-leaves "
        "where gdfq would cost more than the network)",
        symbol="M_g",
    )
    generator_scale: float = setting(
        1.0, "factor of the generator's channels (Table 3)", symbol="s", low=0.01, high=1e4
    )
    width: int | None = setting(
        None,
        "channels of the generator (default: the genotype's; 128 for gdfq, or fewer where nobody chose it and it "
        "would cost more than the teacher)",
        low=1,
        high=LARGEST_SIZE,
    )
    latent_dim: int | None = setting(
        None,
        "dimensions of the latent vector z (default: the genotype's, or 100)",
        symbol="z",
        low=3,
        high=LARGEST_SIZE,
    )
    weight_schedule: str = setting(
        "constant",
        "course of that learning rate over all epochs; step multiplies it by 0.1 after 1/4, 1/2 and 3/4 of them, as "
        "GDFQ does",
        choices=SCHEDULES,
    )
    student_lr: float = setting(1e-3, "SGD learning rate of the student", low=0.0)
    student_momentum: float = setting(0.9, "Nesterov momentum of the student", low=0.0, high=0.9999)
    student_decay: float = setting(1e-4, "weight decay of the student", low=0.0)
    student_schedule: str = setting(
        "cosine",
        "course of that learning rate over the student's epochs; step as for the generator",
        choices=SCHEDULES,
    )
    agreement_steps: int = setting(
        8,
        "batches of synthetic images, held out and the same in every epoch, on which student and teacher are compared",
        low=1,
    )
    test_data: str | None = setting(
        None,
        "images to measure on, never to train on: digits, FILE.npz, a folder of class folders, cifar10:FOLDER, "
        "cifar100:FOLDER or imagenet:FOLDER (default: digits for the digits teacher)",
    )
    labels: str | None = setting(
        None,
        "for a test folder: a CSV of files and labels, or names.txt with the names of all class folders in the "
        "network's order",
    )
    allow_weak_teacher: bool = setting(
        False, "go on although the teacher decides hardly better than a guess on the test data"
    )
    download: bool = setting(False, "download test data cifar10 or cifar100 if the folder has none")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.generator is not None:
            GeneratorSpec.parse(self.generator)

    @property
    def generator_spec(self) -> GeneratorSpec | None:
        """Return the generator for this seed; None for a method without a generator."""
        named = self.generator or ("gdfq" if self.genotype is None else "searched")
        return GeneratorSpec.parse(named.replace("{seed}", str(self.seed)))

    @property
    def chooses_generator(self) -> bool:
        """Return True if a person named neither a generator nor its width, so that both are chosen for the teacher."""
        return self.generator is None and self.genotype is None and self.width is None

    @property
    def genotype_file(self) -> str | None:
        """Return the genotype file for this seed."""
        return self.genotype and self.genotype.replace("{seed}", str(self.seed))

    @property
    def files(self) -> dict[str, str]:
        """Return the files on whose contents a run depends, by the setting that names them."""
        files, spec = dict(super().files), self.generator_spec
        if spec and spec.uses_genotype(self.width) and self.genotype_file and not self.genotype_file.startswith("{"):
            files["genotype"] = self.genotype_file
        return {**files, "generator": spec.argument} if spec and spec.kind == "searched" and spec.argument else files

    def require_consistent(self) -> None:
        """Raise InputError if settings that are fine one by one do not go together."""
        self.require_used()
        spec = self.generator_spec
        if spec is None:
            return
        if spec.kind in DRAWN and getattr(self, "method", None) != "blockwise":
            raise InputError(f"generator {spec} is for method blockwise alone; choose another generator")
        if spec.needs_genotype and self.genotype is None:
            raise InputError(
                f"generator {spec} needs a genotype; give --genotype FILE or another generator, such as gdfq"
            )
        if "genotype" in self.given - self.shared and self.genotype and not spec.uses_genotype(self.width):
            raise InputError(f"generator {spec} has no use for a genotype; leave out --genotype or --generator")
