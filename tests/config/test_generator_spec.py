"""A generator's name: there and back, and what it needs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_autorecon.config.generator_spec import HUMAN_DESIGNED, GeneratorSpec
from nni_autorecon.errors import InputError

arguments = st.text(min_size=1)  # a file may be called anything
NAMES = st.one_of(
    st.just("searched"),
    st.builds("{}:{}".format, st.sampled_from(["searched", "published", "random", "all"]), arguments),
    st.builds("{}{}".format, st.sampled_from(HUMAN_DESIGNED), st.sampled_from(["", "@equal-macs"])),
)


@given(NAMES)
def test_a_name_is_given_back(name):
    spec = GeneratorSpec.parse(name)
    assert str(spec) == name
    assert GeneratorSpec.parse(str(spec)) == spec
    assert name.startswith(spec.kind)
    assert not spec.argument or spec.family in ("searched", "published", "random", "all")


def test_the_parts_of_a_name():
    assert GeneratorSpec.parse("random:7") == GeneratorSpec("random", "7")
    assert GeneratorSpec.parse("searched:a:b@equal-macs") == GeneratorSpec("searched", "a:b@equal-macs")
    assert GeneratorSpec.parse("gdfq@equal-macs") == GeneratorSpec("gdfq", equal_macs=True)
    assert GeneratorSpec.parse("gdfq@equal-macs").family == "gdfq@equal-macs"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "gdfq@",
        "gdfq@macs",
        "gdfq:7",
        "random",
        "random:",
        "published",
        "all:",
        "searched:",
        "searched@equal-macs",
        "gdfq @equal-macs",
        "Random:7",
        "nonsense:7",
        "@equal-macs",
    ],
)
def test_another_name_is_refused(name):
    with pytest.raises(InputError, match="generator .* is not known; use one of searched"):
        GeneratorSpec.parse(name)


@pytest.mark.parametrize(
    ("name", "needs", "uses", "uses_for_width"),
    [
        ("searched", True, True, True),
        ("searched:g.json", False, False, False),
        ("published:x", False, False, False),
        ("random:7", False, False, True),
        ("all:conv", False, False, True),
        ("gdfq", False, False, False),
        ("gdfq@equal-macs", True, True, True),
    ],
)
def test_who_needs_a_genotype(name, needs, uses, uses_for_width):
    spec = GeneratorSpec.parse(name)
    assert (spec.needs_genotype, spec.uses_genotype(16), spec.uses_genotype(None)) == (needs, uses, uses_for_width)
