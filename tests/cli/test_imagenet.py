"""Both stages run end to end on networks of 224×224 pixels with random weights: shapes, memory and files."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
import torchvision

from nni_autorecon.generator.genotype import Genotype

pytestmark = pytest.mark.slow

GIBIBYTES = 3.4
SEARCH = (
    "--width 8 --batch-size 2 --epochs 1 --weight-steps 1 --architecture-steps 1 --validation-steps 1 --final-steps 1"
)
JOINT = "--batch-size 2 --epochs 3 --steps 1 --warmup-epochs 1 --agreement-steps 1"
COMPRESS = f"{JOINT} --block-images 8"


def _run(*arguments):
    """Run a command; peak memory in GiB."""
    command = [sys.executable, "-m", "nni_autorecon", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    expected = "% done after |student takes|is loaded and checked"
    said = [line for line in errors.splitlines() if not re.search(expected, line)]
    assert (process.returncode, said) == (0, [])
    return usage.ru_maxrss / 2**20


def _teacher(name, folder):
    """Flags of a torchvision network with random weights."""
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model(name, weights=None).state_dict(), folder / "net.pt")
    return "--teacher", f"torchvision:{name}", "--checkpoint", folder / "net.pt", "--bns-weight", 0.1


def _compress(*arguments, folder, flags=COMPRESS):
    """Run it; its result and peak memory in GiB."""
    peak = _run("compress", *arguments, *flags.split(), "-o", folder)
    result = json.loads((folder / "result.json").read_text())
    assert result["accuracy"] is None  # there are no test data
    assert result["compression_ratio"] > 5
    return result, peak


def test_search_and_compress_at_224(tmp_path):
    teacher, genotype = _teacher("mnasnet0_5", tmp_path), tmp_path / "search" / "genotype.json"
    peak = _run("search", *teacher, *SEARCH.split(), "-o", tmp_path / "search")
    details = Genotype.load(genotype).details
    assert details["image"] == {"channels": 3, "height": 224, "width": 224}
    assert details["num_classes"] == 1000
    _, other_peak = _compress(*teacher, "--genotype", genotype, folder=tmp_path / "student")
    assert max(peak, other_peak) < GIBIBYTES


def test_gdfqs_generator_at_224(tmp_path):
    teacher = _teacher("mnasnet0_5", tmp_path)
    teacher += ("--generator", "gdfq-conditional", "--method", "gdfq")
    result, peak = _compress(*teacher, folder=tmp_path / "student", flags=JOINT)
    assert result["generator_parameters"] == pytest.approx(41.4e6, rel=0.02)  # GDFQ's for ImageNet
    assert peak < GIBIBYTES
