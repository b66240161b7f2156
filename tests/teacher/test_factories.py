"""Factories in files of the person's own: each file is a module of its own, whatever else has its name."""

import copy
import os
import pickle
import sys
import sysconfig

import pytest
import torch
from torch import nn

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


PARTS = """
from torch import nn
def unit(a, b):
    return nn.Sequential(nn.Conv2d(a, b, 1), nn.BatchNorm2d(b), nn.ReLU())
"""
MAKE = """
from torch import nn
{imports}
def make():
    {lazy}
    return nn.Sequential(unit(2, {width}), nn.Flatten(), nn.Linear({width} * 9, 4))
"""
IMPORTS = {
    "beside": ("net.py", "from parts import unit", ""),
    "within the factory": ("net.py", "", "from parts import unit"),
    "relatively": ("net.py", "from .parts import unit", ""),
    "relatively in a package": ("zoo/net.py", "from .parts import unit", ""),
    "from the package above": ("zoo/deep/net.py", "from ..parts import unit", ""),
    "by the package": ("zoo/deep/net.py", "from zoo.parts import unit", ""),
    "beside in a package": ("zoo/net.py", "from parts import unit", ""),
}
RELATIVE = [name for name in IMPORTS if name.startswith(("relatively", "from"))]


def package(folder, file, imports, lazy, width, *, marked=True):
    path = folder / file
    path.parent.mkdir(parents=True)
    for inner in [path.parent, *path.parent.parents]:
        if inner == folder:
            break
        if marked:
            (inner / "__init__.py").touch()
    outer = folder / "zoo" if "zoo" in file else folder
    (outer / "parts.py").write_text(PARTS.replace("nn.ReLU()", f"nn.ReLU(), nn.Conv2d(b, b, 1, groups={width})"))
    path.write_text(MAKE.format(imports=imports, lazy=lazy or "pass", width=width))
    return path


@pytest.mark.parametrize(("file", "imports", "lazy"), IMPORTS.values(), ids=IMPORTS)
def test_a_file_imports_what_lies_beside_it(tmp_path, file, imports, lazy):
    for name, width in (("first", 3), ("second", 5)):  # each has parts of its own
        network = architecture(f"{package(tmp_path / name, file, imports, lazy, width)}:make")
        assert network(torch.zeros(2, 2, 3, 3)).shape == (2, 4)
        assert network[0][3].groups == width


@pytest.mark.parametrize("name", RELATIVE)
def test_a_file_imports_relatively_from_folders_without_init(tmp_path, name):
    network = architecture(f"{package(tmp_path / 'plain', *IMPORTS[name], 3, marked=False)}:make")
    assert network(torch.zeros(2, 2, 3, 3)).shape == (2, 4)


FORWARD = """
from torch import nn
class Scaled(nn.Identity):
    def forward(self, x):
        {imports}
        return scale.FACTOR * x
"""


@pytest.mark.parametrize("folders", [("a", "a/b"), ("a/b", "a"), ("a", "b")], ids=str)
def test_folders_may_lie_in_each_other(tmp_path, folders):
    for folder, factor in zip(folders, (2, 9), strict=True):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "scale.py").write_text(f"FACTOR = {factor}\n")
        (tmp_path / folder / "net.py").write_text(FORWARD.format(imports="import scale"))
        if "/" in folder:
            (tmp_path / folder / "__init__.py").touch()
    specs = [f"{tmp_path / folder}/net.py:Scaled" for folder in folders]
    for order in ((0, 1, 0, 1), (1, 0, 1, 0)):
        made = {index: architecture(specs[index]) for index in order}
        for index in order:
            assert made[index](torch.ones(1)).item() == (2, 9)[index]


@pytest.mark.parametrize("imports", ["import scale", "scale = __import__('scale', fromlist=['FACTOR'])"])
def test_networks_import_their_own_neighbours_when_they_are_called(tmp_path, imports):
    made = []
    for name, factor in (("teacher", 2), ("student", 9)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scale.py").write_text(f"FACTOR = {factor}\n")
        (tmp_path / name / "net.py").write_text(FORWARD.format(imports=imports))
        made.append(architecture(f"{tmp_path / name}/net.py:Scaled"))
        assert made[-1](torch.ones(1)).item() == factor
    assert [network(torch.ones(1)).item() for network in (*made, *made)] == [2, 9, 2, 9]


def test_a_neighbour_stays_one_module_whatever_is_loaded_between(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kinds.py").write_text("from torch import nn\nclass Kind(nn.Conv2d):\n    pass\n")
        (tmp_path / name / "net.py").write_text("def make():\n    from kinds import Kind\n    return Kind(2, 3, 1)\n")
    specs = [f"{tmp_path / name}/net.py:make" for name in ("one", "other", "one")]
    first, between, again = map(architecture, specs)
    assert type(again) is type(first) is not type(between)


def test_a_file_may_import_when_it_is_called(tmp_path):
    (tmp_path / "late_part.py").write_text("FACTOR = 7\n")
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Identity):\n    def forward(self, x):\n"
        "        from late_part import FACTOR\n        return FACTOR * x\n"
    )
    assert architecture(f"{tmp_path}/net.py:Net")(torch.ones(1)).item() == 7


def test_an_error_beside_the_file_names_the_other_file(tmp_path):
    (tmp_path / "broken_part.py").write_text("\nraise ValueError('no')\n")
    (tmp_path / "net.py").write_text("import broken_part\n")
    with pytest.raises(InputError, match=r"net.py raised ValueError: no in .*broken_part.py, line 2; repair the file"):
        architecture(f"{tmp_path}/net.py:make")


def test_an_error_beside_the_file_is_named_when_the_factory_imports(tmp_path):
    (tmp_path / "late_fault.py").write_text("\n\nraise KeyError('width')\n")
    (tmp_path / "net.py").write_text("def make():\n    import late_fault\n")
    with pytest.raises(InputError, match=r"the factory raised KeyError: 'width' in .*late_fault.py, line 3; it must"):
        architecture(f"{tmp_path}/net.py:make")


def test_an_error_of_a_library_names_no_file_of_it(tmp_path):
    (tmp_path / "net.py").write_text("from torch import nn\ndef make():\n    return nn.Conv2d(3, 4, 1, groups=3)\n")
    with pytest.raises(InputError, match=r"must be divisible by groups; it must work"):
        architecture(f"{tmp_path}/net.py:make")


def test_an_error_of_a_library_beside_the_file_names_no_file_of_it(tmp_path, monkeypatch):
    packages = tmp_path / "venv" / "packages"
    packages.mkdir(parents=True)
    (packages / "library_of_theirs.py").write_text("raise ValueError('no')\n")
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setattr(sysconfig, "get_path", lambda kind: str(packages))
    (tmp_path / "net.py").write_text("def make():\n    import library_of_theirs\n")
    with pytest.raises(InputError, match=r"raised ValueError: no; it must"):
        architecture(f"{tmp_path}/net.py:make")


def test_a_dotted_module_is_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "here" / "zoo_of_mine").mkdir(parents=True)
    (tmp_path / "here" / "zoo_of_mine" / "net.py").write_text(
        "from torch import nn\ndef make():\n    return nn.ReLU()\n"
    )
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path / "here"))])
    assert isinstance(architecture("zoo_of_mine.net:make"), nn.ReLU)


@pytest.mark.parametrize("wrap", ["nn.DataParallel", "torch.compile", "lambda n: torch.compile(nn.DataParallel(n))"])
def test_wrappers_are_taken_off(tmp_path, wrap):
    code = f"import torch\nfrom torch import nn\ndef make():\n    return ({wrap})(nn.Sequential(nn.Conv2d(2, 3, 1)))\n"
    (tmp_path / "net.py").write_text(code)
    network = architecture(f"{tmp_path}/net.py:make")
    assert type(network) is nn.Sequential
    assert [*network.state_dict()] == ["0.weight", "0.bias"]


def test_a_network_in_the_place_of_a_factory_is_copied(tmp_path):
    (tmp_path / "built.py").write_text(NETWORK.format(width=3) + "network = Net()\n")
    one, other = (architecture(f"{tmp_path}/built.py:network") for _ in range(2))
    assert torch.equal(one.conv.weight, other.conv.weight)
    assert one.conv.weight is not other.conv.weight
