"""A person reads one line of an error."""

from nni_autorecon.errors import one_line


def test_a_message_is_one_line_and_no_longer_than_a_person_reads():
    assert one_line(ValueError(" two\n  lines ")) == "two lines"
    assert one_line(ValueError("x" * 5000)) == "x" * 1000 + "…"
