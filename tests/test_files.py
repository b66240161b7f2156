"""Files are written whole or not at all."""

import os
import secrets
import stat

import pytest

from nni_autorecon.errors import InputError
from nni_autorecon.files import (
    parse_json,
    read_text,
    require_absent,
    write_atomically,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def half(file):
        file.write(b"ne")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomically(path, half)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_parents_are_made_and_the_mode_is_the_usual_one(tmp_path):
    path = tmp_path / "a" / "b.txt"
    mask = os.umask(0o027)
    try:
        write_text(path, "x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_the_umask_is_never_touched(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "umask")  # other threads would make files under it meanwhile
    write_text(tmp_path / "a.txt", "x")
    assert (tmp_path / "a.txt").read_text() == "x"


def test_a_random_name_that_is_taken_is_drawn_again(tmp_path, monkeypatch):
    taken = tmp_path / ".a.txt.taken"
    taken.write_text("theirs")
    names = iter(["taken", "free"])
    monkeypatch.setattr(secrets, "token_hex", lambda size: next(names))
    write_text(tmp_path / "a.txt", "x")
    assert (tmp_path / "a.txt").read_text() == "x"
    assert taken.read_text() == "theirs"
    assert sorted(tmp_path.iterdir()) == [taken, tmp_path / "a.txt"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write .*choose a writable place"):
        write_text(tmp_path / "file" / "below.txt", "x")


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_reading_names_the_thing(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="genotype .* does not exist"):
        read_text(tmp_path / "none", "genotype")
    with pytest.raises(InputError, match="not a text file"):
        read_text(tmp_path / "binary", "genotype")


def test_only_an_empty_folder_or_nothing_counts_as_absent(tmp_path):
    require_absent(tmp_path)
    require_absent(tmp_path / "none")
    (tmp_path / "a").write_text("")
    for path in (tmp_path, tmp_path / "a"):
        with pytest.raises(InputError, match="already exists"):
            require_absent(path)
        require_absent(path, force=True)


def test_a_name_that_is_no_text_survives_json(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "a.json", {"test_data": name, "symbol": "τ"})
    assert "τ" in (tmp_path / "a.json").read_text()
    assert parse_json(read_text(tmp_path / "a.json", "settings"))["test_data"] == name


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 40 + "]" * 40, '{"a": 1, "a": 1}', "[Infinity]", "9" * 5000, ""])
def test_json_that_is_not_ours_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)
