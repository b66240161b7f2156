"""Genotypes shown and compared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nni_autorecon.cli import main as cli
from nni_autorecon.generator.genotype import Genotype, random_choices
from nni_autorecon.generator.topology import EDGES, NONE


@pytest.fixture
def genotypes(tmp_path):
    """Two files whose genotypes differ in one edge."""
    choices, label = random_choices(1), "B2-N2 > B2-N4"
    files = tmp_path / "a.json", tmp_path / "b.json"
    details = {"teacher": "digits", "loss": {"loss": 0.5}, "macs": 7_100_000}
    for file, name in zip(files, ("conv_1x1", "dil_conv_5x5"), strict=True):
        Genotype({**choices, label: name}, width=16, details=details).save(file)
    return files, label


def test_show_says_what_enters_every_node(genotypes, capsys):
    (file, _), _ = genotypes
    assert cli.main(["show", str(file)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == f"{file}: teacher digits, width 16, latent vectors of 100, L_r 0.5000, 7.1 MMACs"
    genotype = Genotype.load(file)
    assert len(lines) == len({edge.target for edge in EDGES})
    for edge in EDGES:
        name = genotype.choices[edge.label]
        (line,) = (line for line in lines if line.startswith(f"{edge.target} = "))
        assert (f"{name}({edge.source})" in line.split(" = ")[1].split(" + ")) == (name != NONE)


def test_show_draws(genotypes, tmp_path, capsys):
    (file, _), _ = genotypes
    drawing = tmp_path / "a.png"
    assert cli.main(["show", str(file), "-o", str(drawing)]) == 0
    assert drawing.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["show", str(file), "-o", str(drawing)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_compare_names_the_edges_that_differ(genotypes, capsys):
    files, label = genotypes
    assert cli.main(["diff", *map(str, files)]) == 0
    count, *_, line = capsys.readouterr().out.splitlines()
    assert count == "1 of 33 edges differ"
    assert line == f"{label}: conv_1x1 | dil_conv_5x5"


def test_a_program_reads_genotypes_and_where_they_differ(genotypes, capsys):
    files, label = genotypes
    assert cli.main(["show", str(files[0]), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert Genotype.from_json(json.dumps(shown["genotype"])) == Genotype.load(files[0])
    assert cli.main(["diff", *map(str, files), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["different"] == {label: ["conv_1x1", "dil_conv_5x5"]}


def test_published_genotypes_are_compared(capsys):
    assert cli.main(["diff", "published:cifar10-resnet20", "published:cifar10-resnet20"]) == 0
    assert "0 of 33 edges differ" in capsys.readouterr().out


def test_a_reader_that_has_read_enough_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "nni_autorecon", "show", "published:cifar10-resnet20"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("e", ["evaluate"]),
        ("compress --protocol ", ["activations", "integer"]),
        ("compress --protocol=i", ["--protocol=integer"]),
        ("search --temperature-s", ["--temperature-schedule", "--temperature-start"]),
        ("compress --seed ", []),
        ("to-onnx --for s", ["size", "speed"]),
        ("evaluate st", ["student.pt"]),
    ],
)
def test_the_shell_completes_what_is_typed_without_torch(typed, offered, tmp_path):
    (tmp_path / "student.pt").write_text("")
    code = "import sys; sys.modules |= dict.fromkeys(('torch', 'nni', 'pandas')); "
    code += "from nni_autorecon.cli.main import console; console()"
    line = f"nni-autorecon {typed}"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    answer = {"_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer")}
    environment = {**os.environ, **asked, **answer, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert sorted((tmp_path / "answer").read_text().split()) == offered
