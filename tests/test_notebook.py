"""The notebook runs from top to bottom, in a folder of its own, and shows its pictures."""

from __future__ import annotations

import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import nni_autorecon

NOTEBOOK = Path(nni_autorecon.__file__).parent.parent / "examples" / "your_network.ipynb"
PICTURES = 4


@pytest.mark.slow
def test_the_notebook_runs_and_shows_pictures(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    started = time.monotonic()
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert time.monotonic() - started < 600  # three minutes on a CPU of its own
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == PICTURES
    assert outputs[-1]["data"]["text/plain"] == "True"
    assert (tmp_path / "student.onnx").exists()


def test_the_notebook_is_stored_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
