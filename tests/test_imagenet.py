"""224×224: both stages end to end on networks of ImageNet's size, with random weights; shapes, memory and files."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torchvision

from nni_autorecon.genotype import Genotype

pytestmark = pytest.mark.slow

GIBIBYTES = 2.75
SEARCH = (
    "--width 8 --batch-size 2 --epochs 1 --weight-steps 1 --architecture-steps 1 --validation-steps 1 --final-steps 1"
)
COMPRESS = "--batch-size 2 --epochs 3 --steps 1 --warmup-epochs 1 --agreement-steps 1"


def _run(*arguments):
    """Run a command; peak memory in GiB."""
    command = [sys.executable, "-m", "nni_autorecon.cli", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert (process.returncode, errors) == (0, "")
    return usage.ru_maxrss / 2**20


@pytest.mark.parametrize(("name", "generator"), [("resnet18", "gdfq-conditional"), ("mobilenet_v2", "searched")])
def test_search_and_compress_at_224(name, generator, tmp_path):
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model(name, weights=None).state_dict(), tmp_path / "net.pt")
    teacher = ("--teacher", f"torchvision:{name}", "--checkpoint", tmp_path / "net.pt", "--bns-weight", 0.1)
    peaks = [_run("search", *teacher, *SEARCH.split(), "-o", tmp_path / "search")]
    genotype = Genotype.load(tmp_path / "search" / "genotype.json")
    assert genotype.details["image"] == {"channels": 3, "height": 224, "width": 224}
    assert genotype.details["num_classes"] == 1000
    arguments = ("--genotype", tmp_path / "search" / "genotype.json", "--generator", generator)
    peaks.append(_run("compress", *teacher, *arguments, *COMPRESS.split(), "-o", tmp_path / "student"))
    result = json.loads((tmp_path / "student" / "result.json").read_text())
    assert result["accuracy"] is None  # there are no test data
    assert result["compression_ratio"] > 5
    if generator == "gdfq-conditional":
        assert result["generator_parameters"] == pytest.approx(41.4e6, rel=0.02)  # GDFQ's for ImageNet
    assert max(peaks) < GIBIBYTES, peaks
