"""A network gets flags and search spaces that suit it, with the reasons and the time for a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..teacher.loading import Teacher

LARGE = 64
"""From so many pixels in height and width on, an image costs too much for the settings that suit small ones."""
PIXELS = {"search": 8 * 224 * 224, "compress": 32 * 224 * 224}
"""The images of a batch have so many pixels in all: a search for a MobileNetV2 then needs 2.7 GB of memory."""
MINUTES = 30


@dataclass(frozen=True)
class Recipe:
    """The flags and the search space of each stage, with sentences for a person."""

    flags: Mapping[str, Mapping[str, Any]]
    spaces: Mapping[str, Mapping[str, Any]]
    about: Mapping[str, str]
    """Each experiment is described in a sentence."""
    reason: str
    duration: str
    """A sentence tells the time, with {search} and {student} in place of the times of a search and of a student."""
    typical: Mapping[str, Any]
    """Settings of a student whose time is typical of those in the search space."""
    first: str = "search"
    """The stage to begin with. Students of large images need no search."""


def recipe(teacher: Teacher) -> Recipe:
    """Return what suits a network: the digits', one for small images, or one for large images."""
    height, width = teacher.image[1:]
    found = {"genotype": _choice("best-genotype.json")}
    seeds = {"seed": _choice(0, 1, 2)}
    unsearched = {"generator": "random:0"}  # nothing is found yet, and costs about as much when it is
    about = {
        "search": "Search a generator for the network.",
        "compress": "Quantize the network with the generator that was found, at several bit widths.",
    }
    if teacher.name == "digits":
        return Recipe(
            {"search": {"threads": 1}, "compress": {"threads": 1}},
            {
                "search": {**seeds, "relaxation": _choice("logits", "paper")},
                "compress": {**found, "bits": _choice("w4a4", "w3a3", "w2a2")},
            },
            about,
            "All settings have their defaults, which are for this network.",
            "Each of the six searches takes about {search} on this machine, each of the three students {student}.",
            unsearched,
        )
    if min(height, width) < LARGE:
        return Recipe(
            {"search": {"preset": "best", "threads": 1}, "compress": {"threads": 1}},
            {"search": seeds, "compress": {**found, "bits": _choice("w8a8", "w4a4", "w3a3")}},
            about,
            "`--preset best` is a longer search than the default, which is for tiny digits, with the weight of the "
            "BatchNorm term that suits networks of 32×32 images. Searches differ by seed alone, and the best is taken. "
            "Where it was measured, students did as well from noise that was refined as from a generator's images: to "
            "do without a search, delete the line `genotype` in `compress.json` and start `compress.yml`. "
            "`--threads 1`: on busy cores the threads of PyTorch wait for each other longer than they work.",
            "Each of the three searches takes about {search} on this machine, each of the three students {student}.",
            unsearched,
        )
    batch = {stage: max(4, min(32, pixels // (height * width))) for stage, pixels in PIXELS.items()}
    methods = _choice({"_name": "dfq", "bits": _choice("w8a8")}, {"_name": "blockwise", "bits": _choice("w4a8")})
    return Recipe(
        {
            "search": {"bns_weight": 0.1, "width": 8, "batch_size": batch["search"]},
            "compress": {"batch_size": batch["compress"], "minutes": MINUTES},
        },
        {"search": seeds, "compress": {"method": methods}},
        {**about, "compress": "Quantize the network by two methods, which need no search."},
        "With 8 bits method `dfq`, which needs no images, cost an EfficientNet-Lite0 nothing. 4 bits of weights cost "
        "it four points by method `blockwise`, and less than one in a file of the same size whose layers differ: "
        """for that, add `"size": {"_type": "choice", "_value": ["6MB"]}` beside `bits` in `compress.json`. """
        "Students see drawn images, `dead-leaves`, from which that network's learned more than from others. "
        f"An image of {height}×{width} costs {height * width // 32**2} times as much as one of 32×32, and a search "
        f"computes every operation of every edge at once. So it has 8 channels and batches of {batch['search']}, "
        "where the paper has 64 channels. For a MobileNetV2 at 224×224 that is 2.7 GB of memory. `--bns-weight 0.1` is "
        "GDFQ's for ImageNet.",
        "The trial by `blockwise` takes about {student} on this machine, that by `dfq` less. Measuring on test data "
        f"comes on top. `--minutes {MINUTES}` in `trialCommand` is the most that the former may take; with more, it "
        "has more images, up to what the disk has room for. Each of the three searches takes about {search}.",
        {"bits": "w4a8"},
        first="compress",
    )


def _choice(*values: Any) -> dict[str, Any]:
    return {"_type": "choice", "_value": list(values)}
