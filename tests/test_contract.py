"""What holds across the package: layers, optional imports, documentation of settings."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nni_autorecon

PACKAGE = Path(nni_autorecon.__file__).parent
ARCHITECTURE = (PACKAGE.parent / "docs" / "architecture.md").read_text()
LAYERS = [set(re.findall(r"`(\w+)`", row.split("|")[1])) for row in ARCHITECTURE.splitlines() if row.startswith("| `")]
NNI_MODULES = LAYERS[-4] | LAYERS[-3]
WITHIN_A_LAYER = {  # the order inside a layer, where there is one
    ("events", "errors"), ("events", "files"), ("files", "errors"), ("settings", "errors"), ("settings", "files"),
    ("config", "settings"), ("gpus", "errors"),
    *((stage, below) for stage in ("search_config", "student_config")
      for below in ("config", "errors", "presets", "settings", "topology")),
    ("operations", "convolution"), ("runs", "snapshots"),
    ("equalization", "moments"), ("teacher", "teacher_sources"), ("distilled_images", "reconstruction"),
    ("folding", "integers"), ("comparison", "entries"),
    ("runtime", "saving"), ("export", "saving"), ("export", "runtime"),
    ("report_plots", "plots"), ("report_plots", "report"),
    ("experiment", "trial"), ("trial", "loopback"), ("loopback", "experiment_file"),
    ("start", "experiment_file"), ("status", "experiment"), ("status", "trial"), ("start", "loopback"),
    ("start", "experiment"), ("start", "manager"),
    ("cli", "commands"), ("endings", "errors"), ("strategy", "space"), ("search", "space"), ("search", "strategy"),
    ("multi_trial", "space"), ("search", "multi_trial"), ("search", "engine"),
    ("engine", "space"), ("engine", "supernet"), ("engine", "multi_trial"),
    ("enas", "space"), ("enas", "supernet"), ("search", "enas"), ("strategy", "supernet"), ("search", "supernet"),
}  # fmt: skip


def _imports(module):
    """(this package's modules, other top-level packages) that a module imports anywhere in its code."""
    own, others = set(), set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            own |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
    return own, others


MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


def test_every_module_has_a_layer():
    assert sorted(name for layer in LAYERS for name in layer) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_from_lower_layers_only(module):
    level = next(i for i, layer in enumerate(LAYERS) if module in layer)
    lower = {name for layer in LAYERS[:level] for name in layer}
    upward = {name for name in _imports(module)[0] - lower if (module, name) not in WITHIN_A_LAYER}
    assert not upward


@pytest.mark.parametrize("module", sorted(set(MODULES) - NNI_MODULES))
def test_nni_stays_at_the_rim(module):
    assert not _imports(module)[1] & {"nni", "pytorch_lightning"}


def _modules_after(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


def test_the_package_and_the_command_line_start_without_heavy_imports():
    loaded = _modules_after("import nni_autorecon, nni_autorecon.cli as c; c.build_parser()")
    assert not loaded & {"nni", "torch", "pytorch_lightning", "matplotlib", "pandas", "sklearn"}


def test_compression_runs_without_nni():
    assert not _modules_after("import nni_autorecon.compression") & {"nni", "pytorch_lightning"}


def test_the_search_is_imported_without_a_word_of_nni_about_torch():
    assert "nni" in _modules_after("import nni_autorecon.search")


def test_tensorboard_stays_away_until_it_is_asked_for():
    run = "from nni_autorecon.runs import RunFolder; RunFolder('no-such-folder').rows"
    assert "tensorboard" not in _modules_after(run)
    assert "tensorboard" in _modules_after(run.replace("'no-such-folder'", "'no-such-folder', tensorboard=True"))
