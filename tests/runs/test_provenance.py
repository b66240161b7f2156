"""The commit that stands beside results."""

import shutil
import subprocess

import pytest

from nni_autorecon.runs.provenance import revision
from nni_autorecon.version import __version__


@pytest.fixture
def checkout(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("needs git")

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", tmp_path, *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "code.py").write_text("1")
    for arguments in (["init"], ["add", "code.py"], ["commit", "-m", "first"], ["tag", "v1"]):
        git(*arguments)
    return tmp_path, git("rev-parse", "--short=7", "HEAD")


def test_a_checkout_says_its_commit_and_whether_it_was_edited(checkout):
    folder, commit = checkout
    assert revision(folder) == f"{__version__}+g{commit}"
    (folder / "results").write_text("2")  # not a part of the code
    assert revision(folder) == f"{__version__}+g{commit}"
    (folder / "code.py").write_text("2")
    assert revision(folder) == f"{__version__}+g{commit}.dirty"


def test_without_git_the_version_is_all_there_is_to_say(checkout, tmp_path_factory, monkeypatch):
    folder, _ = checkout
    assert revision(tmp_path_factory.mktemp("installed")) == __version__
    monkeypatch.setenv("PATH", "")
    assert revision(folder) == __version__
