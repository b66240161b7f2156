"""The whole package keeps one order of sub-packages and optional imports, and its tests share helpers alone."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nni_autorecon

PACKAGE = Path(nni_autorecon.__file__).parent
ORDER = (
    "version",
    "errors",
    "files",
    "shapes",
    "cache",
    "networks",
    "accel",
    "quantization",
    "losses",
    "config",
    "data",
    "teacher",
    "runs",
    "export",
    "generator",
    "figures",
    "experiment",
    "nas",
    "student",
    "reports",
    "api",
    "cli",
    "__main__",
    "__init__",
)
"""A module imports from its own sub-package and from those before it, nothing else."""
ON_NNI = ("experiment", "nas")


def place(path: Path) -> str:
    """The module or sub-package at the top to which a file belongs."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = Path(__file__).parent


def imported(path: Path, top: Path) -> Iterator[list[str]]:
    """The parts of every name that a module below the package ``top`` imports, anywhere in its code."""
    here = (top.name, *path.relative_to(top).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: len(here) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from ([*base, alias.name] for alias in node.names)


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Places in this package, and other packages, that a module imports anywhere in its code."""
    own, others = set(), set()
    for parts in imported(path, PACKAGE):
        if parts[0] == "nni_autorecon":
            own.add(parts[1] if len(parts) > 1 else "__init__")
        else:
            others.add(parts[0])
    return own, others


def test_every_module_has_a_place():
    assert {place(path) for path in MODULES} == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_module_imports_from_what_comes_before_it(path):
    allowed = ORDER[: ORDER.index(place(path)) + 1]
    assert imports(path)[0] <= set(allowed)


@pytest.mark.parametrize("path", [path for path in MODULES if place(path) not in ON_NNI], ids=str)
def test_nni_stays_at_the_rim(path):
    assert not imports(path)[1] & {"nni", "pytorch_lightning"}


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=str)
def test_what_test_modules_share_stands_in_helpers(path):
    names = [parts for parts in imported(path, TESTS) if parts[0] != PACKAGE.name]
    assert not [".".join(parts) for parts in names if any(part.startswith("test_") for part in parts)]


def _modules_after(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_the_package_and_the_command_line_start_without_heavy_imports():
    loaded = _modules_after("import nni_autorecon; from nni_autorecon.cli import main as c; c.build_parser()")
    assert not loaded & {"nni", "torch", "pytorch_lightning", "matplotlib", "pandas", "sklearn"}


def test_compression_runs_without_nni():
    assert not _modules_after("import nni_autorecon.student.compression") & {"nni", "pytorch_lightning"}


def test_the_search_is_imported_without_a_word_of_nni_about_torch():
    assert "nni" in _modules_after("import nni_autorecon.nas.search")


def test_tensorboard_stays_away_until_it_is_asked_for():
    run = "from nni_autorecon.runs.folder import RunFolder; RunFolder('no-such-folder').rows"
    assert "tensorboard" not in _modules_after(run)
    assert "tensorboard" in _modules_after(run.replace("'no-such-folder'", "'no-such-folder', tensorboard=True"))
