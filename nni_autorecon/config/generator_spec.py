"""A generator's name is parsed into one value, which serves from the setting to the table in a report."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError

FORMS = (
    "searched[:FILE], published:NAME, random:SEED, all:OPERATION, gdfq[-conditional][@equal-macs], noise, dead-leaves"
)
HUMAN_DESIGNED = ("gdfq", "gdfq-conditional")
NOISE, LEAVES = DRAWN = ("noise", "dead-leaves")
"""These stand in for a generator: images that are drawn, and that nothing trains."""
SEARCH_SPACE = ("searched", "published", "random", "all")


@dataclass(frozen=True)
class GeneratorSpec:
    """A generator by its name; ``str`` gives the name back.

    For a ``kind`` in ``SEARCH_SPACE``, ``argument`` is the text behind the colon: a file, a name, a seed or an
    operation; only ``searched`` may have none. For a ``kind`` in ``HUMAN_DESIGNED``, ``equal_macs`` asks for the width
    at which the generator costs as much as a genotype. Worked example: ``random:7`` has kind ``random`` and argument
    ``7``.
    """

    kind: str
    argument: str = ""
    equal_macs: bool = False

    @classmethod
    def parse(cls, text: str) -> GeneratorSpec:
        """Parse a name. Raises InputError if no generator has it."""
        design, at, modifier = text.partition("@")
        if design in HUMAN_DESIGNED and modifier == ("equal-macs" if at else ""):
            return cls(design, equal_macs=bool(at))
        if text in DRAWN:
            return cls(text)
        kind, _, argument = text.partition(":")
        if kind not in SEARCH_SPACE or not (argument or text == "searched"):
            raise InputError(f"generator {text!r} is not known; use one of {FORMS}")
        return cls(kind, argument)

    def __str__(self) -> str:
        return self.kind + (f":{self.argument}" if self.argument else "") + ("@equal-macs" if self.equal_macs else "")

    @property
    def family(self) -> str:
        """Return the name without its argument, under which reports list it: ``random``, ``gdfq@equal-macs``."""
        return self.kind + ("@equal-macs" if self.equal_macs else "")

    @property
    def needs_genotype(self) -> bool:
        """Return True if it refers to a genotype that is named elsewhere."""
        return self.equal_macs or (self.kind == "searched" and not self.argument)

    def uses_genotype(self, width: int | None) -> bool:
        """Return True if it uses a genotype that is named elsewhere; a random generator takes its width from one."""
        return self.needs_genotype or (self.kind in ("random", "all") and width is None)
