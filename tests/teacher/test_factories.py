"""Factories in files of the person's own: each file is a module of its own, whatever else has its name."""

import copy
import os
import pickle
import sys

import pytest
import torch

from nni_autorecon.errors import InputError
from nni_autorecon.teacher.sources import architecture

NETWORK = """
from __future__ import annotations
import sys
from dataclasses import dataclass, field
from torch import nn

WIDTH = {width}



@dataclass
class Sizes:
    width: int = WIDTH
    more: list[int] = field(default_factory=lambda: [WIDTH])

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.sizes = Sizes()
        self.conv = nn.Conv2d(2, self.sizes.width, 1)

    def forward(self, images):
        return self.conv(images).mean((2, 3)) * sys.modules[type(self).__module__].WIDTH

def make():
    return Net()
"""


@pytest.fixture
def two(tmp_path):
    """Networks of two files with the same name, of 3 and 5 channels."""
    made = []
    for folder, width in (("a", 3), ("b", 5)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "models.py").write_text(NETWORK.format(width=width))
        made.append(architecture(f"{tmp_path / folder}/models.py:make"))
    return made


def test_files_of_one_name_do_not_take_each_others_place(two):
    images = torch.randn(2, 2, 7, 7)
    for network, width in zip(two, (3, 5), strict=True):
        module = sys.modules[type(network).__module__]
        assert width == module.WIDTH
        assert module.Net is type(network)
        assert torch.equal(network(images), network.conv(images).mean((2, 3)) * width)
        for again in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
            assert type(again) is type(network)
            assert again.sizes == type(network.sizes)(width, [width])
            assert torch.equal(again(images), network(images))
    assert type(two[0]) is not type(two[1])


def test_a_file_is_found_again_by_any_path_to_it(two, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    again = architecture("a/../a/models.py:make")
    assert type(again).__module__ == type(two[0]).__module__ != type(two[1]).__module__


def test_a_file_that_was_mended_is_read_again(two, tmp_path):
    path = tmp_path / "a" / "models.py"
    path.write_text("raise ValueError('not yet')")
    with pytest.raises(InputError, match="importing .* raised ValueError: not yet; repair the file"):
        architecture(f"{path}:make")
    path.write_text(NETWORK.format(width=11))
    assert architecture(f"{path}:make").conv.out_channels == 11
    assert [pickle.loads(pickle.dumps(network)).sizes.width for network in two] == [3, 5]  # as before


@pytest.mark.parametrize("stem", ["json", "torch"])
def test_a_file_may_have_the_name_of_a_module(stem, tmp_path):
    before = sys.modules.get(stem)
    (tmp_path / f"{stem}.py").write_text(NETWORK.format(width=3))
    assert architecture(f"{tmp_path}/{stem}.py:make").conv.out_channels == 3
    assert sys.modules.get(stem) is before


def test_a_file_that_is_loaded_twice_is_one_module(two, tmp_path):
    again = architecture(f"{tmp_path / 'a' / 'models.py'}:make")
    assert type(again) is type(two[0])
    assert pickle.loads(pickle.dumps(two[0])).sizes == again.sizes


def test_a_folder_whose_name_is_no_text_holds_networks_too(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "models.py").write_text(NETWORK.format(width=3))
    network = architecture(f"{folder}/models.py:make")
    assert pickle.loads(pickle.dumps(network)).sizes.width == 3
