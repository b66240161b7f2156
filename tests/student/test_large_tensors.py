"""Tensors in a file are the same tensors."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nni_autorecon.errors import InputError
from nni_autorecon.student import large_tensors
from nni_autorecon.student.large_tensors import joined


@pytest.mark.parametrize("limit", [0, 10**9])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_batches_are_joined_in_memory_and_in_a_file(
    limit: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(large_tensors, "IN_MEMORY", limit)
    monkeypatch.setenv("NNI_AUTORECON_CACHE", str(tmp_path / "cache"))
    expected = torch.randn(10, 3, 4, 5).to(memory_format=layout)
    found = joined(iter(expected.split(4)), 10)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=layout)
    assert (tmp_path / "cache").exists() == (limit == 0)
    assert not limit or not list(tmp_path.iterdir())
    assert limit or not list((tmp_path / "cache").iterdir())  # the file has no name


def test_features_of_two_dimensions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(large_tensors, "IN_MEMORY", 0)
    monkeypatch.setenv("NNI_AUTORECON_CACHE", str(tmp_path))
    expected = torch.randn(7, 3, dtype=torch.float64)
    assert torch.equal(joined(iter(expected.split(2)), 7), expected)


def test_a_folder_that_cannot_be_written_in_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(large_tensors, "IN_MEMORY", 0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("NNI_AUTORECON_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="set NNI_AUTORECON_CACHE to a writable folder"):
        joined(iter([torch.zeros(1, 2)]), 1)


@pytest.mark.parametrize("fallocate", [True, False], ids=["Linux", "macOS"])
def test_a_full_disk_is_an_error_and_not_a_crash(
    fallocate: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(large_tensors, "IN_MEMORY", 0)
    monkeypatch.setenv("NNI_AUTORECON_CACHE", str(tmp_path))

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    if fallocate:
        monkeypatch.setattr(os, "posix_fallocate", full)
    else:
        monkeypatch.delattr(os, "posix_fallocate")
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=7))
        assert torch.equal(joined(iter([torch.ones(1, 7, dtype=torch.uint8)]), 1), torch.ones(1, 7, dtype=torch.uint8))
    with pytest.raises(OSError, match="No space left"):
        joined(iter([torch.zeros(1, 2)]), 1)
