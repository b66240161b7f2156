"""Python users have this: examples that run, a light import, live networks, and runs that are interrupted."""

import ast
import copy
import dataclasses
import doctest
import importlib
import inspect
import itertools
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest
import torch
from torch import nn

import nni_autorecon as nar
from nni_autorecon.cli import main as cli
from nni_autorecon.config.settings import Settings
from nni_autorecon.nas import search as search_stage
from nni_autorecon.student import compression_run, distillation_run
from tests.helpers.toys import CLASSES, IMAGE, snapshot, toy_teacher

SIZES = {"batch_size": 4, "latent_dim": 5, "width": 3}
GDFQ = {**SIZES, "generator": "gdfq", "steps": 2, "agreement_steps": 1}
RUNS = {
    "search": (
        nar.search,
        {**SIZES, "epochs": 3, "weight_steps": 2, "architecture_steps": 1, "validation_steps": 1, "final_steps": 2},
    ),
    "compress": (nar.compress, {**GDFQ, "method": "gdfq", "epochs": 4, "warmup_epochs": 1}),
    "distill": (nar.distill, {**GDFQ, "epochs": 3, "student_steps": 2, "student": "tests.helpers.toys:toy_student"}),
}
"""Each stage and settings with which it is over at once."""


@pytest.fixture(scope="module", autouse=True)
def no_figures():
    """They take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for stage in (search_stage, compression_run, distillation_run):
            patch.setattr(stage, "_draw", lambda *arguments: None)
        yield


@pytest.fixture
def live():
    """A network of the person's own, in training mode, with gradients on."""
    return toy_teacher().train().requires_grad_(True)


@pytest.fixture
def teacher(live):
    return nar.Teacher.of(live, IMAGE)


def run(stage, teacher, **more):
    call, settings = RUNS[stage]
    return call(teacher, progress=False, **{**settings, **more})


def found(result):
    """All of a result but for time, the sizes of files, and what does not compare."""
    network = result.student.network if isinstance(result, nar.CompressionResult) else getattr(result, "network", None)
    weights = {name: value.tolist() for name, value in network.state_dict().items()} if network else None
    genotype = result.genotype.choices if isinstance(result, nar.SearchResult) else None
    return {**result.to_dict(), "seconds": None}, genotype, weights


def refusal(call, *arguments, **settings):
    """Return the line with which it is refused."""
    with pytest.raises(nar.InputError) as caught:
        call(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The package


def _examples():
    """The docstrings with examples, of every module that has one."""
    package = Path(nar.__file__).parent
    for path in sorted(package.rglob("*.py")):
        if ">>> " in path.read_text():
            name = ".".join((package.name, *path.relative_to(package).with_suffix("").parts))
            module = importlib.import_module(name.removesuffix(".__init__"))
            yield from (each for each in doctest.DocTestFinder().find(module) if each.examples)


EXAMPLES = list(_examples())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_an_example_gives_what_it_says(example, tmp_path, monkeypatch, digits_teacher):
    monkeypatch.chdir(tmp_path)
    example.globs = {**example.globs, "nar": nar, "nn": nn, "torch": torch}
    told = []
    doctest.DocTestRunner().run(example, out=told.append)
    assert not told, "".join(told)


def test_every_public_name_has_an_example():
    assert set(nar.__all__) - {"__version__"} <= {example.name.rpartition(".")[2] for example in EXAMPLES}


PUBLIC = [getattr(nar, name) for name in nar.__all__]
RECORDS = [value for value in PUBLIC if dataclasses.is_dataclass(value)]
CALLS = [
    *(value for value in PUBLIC if inspect.isfunction(value)),
    *(nar.Bits, nar.Genotype),
    *(
        getattr(kind, name)
        for kind in RECORDS
        if not issubclass(kind, Settings)
        for name, member in vars(kind).items()
        if isinstance(member, (classmethod, FunctionType)) and not name.startswith("_")
    ),
]
"""Functions, methods, and classes that a person makes; arguments of the stages' settings have a help each."""


def arguments_told(docstring):
    """Return the names below ``Args:``."""
    section = re.search(r"^Args:\n((?: +.*\n?)*)", docstring, re.MULTILINE)
    return re.findall(r"^ {4}\**(\w+): ", section[1], re.MULTILINE) if section else []


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__qualname__)
def test_every_argument_is_told_in_order(call):
    names = [name for name in inspect.signature(call).parameters if name != "self"]
    assert arguments_told(inspect.getdoc(call)) == names


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_field_is_told(kind):
    """A field is told by the text below it, as an argument, or by the help of a setting."""
    (source,) = ast.parse(inspect.getsource(kind)).body
    told = {
        field.target.id
        for field, text in itertools.pairwise(source.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    helped = {field.name for field in dataclasses.fields(kind) if field.metadata.get("help")}
    names = {field.name for field in dataclasses.fields(kind)}
    assert names <= told | helped | set(arguments_told(inspect.getdoc(kind)))


def test_the_import_is_light():
    """The machine may be busy, so that the least of five counts."""
    code = "import nni_autorecon, sys; print(*sys.modules)"
    command = [sys.executable, "-X", "importtime", "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(5)]
    assert not set(runs[0].stdout.split()) & {"torch", "nni", "pandas", "matplotlib", "numpy"}
    cumulative = r"\| +(\d+) \| nni_autorecon$"
    microseconds = [int(re.search(cumulative, each.stderr, re.MULTILINE)[1]) for each in runs]
    assert min(microseconds) < 50_000


@pytest.mark.parametrize("name", nar.__all__)
def test_a_public_name_is_there(name):
    assert name in dir(nar)
    assert getattr(nar, name) is not None


def test_another_name_is_not():
    with pytest.raises(AttributeError, match="module 'nni_autorecon' has no attribute 'nonsense'"):
        nar.nonsense  # noqa: B018


# Calls


@pytest.mark.parametrize("stage", RUNS)
def test_without_a_folder_nothing_is_written(stage, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    run(stage, teacher)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", RUNS)
def test_a_row_comes_with_every_epoch(stage, teacher, tmp_path):
    rows, steps, results = [], [], []
    result = run(
        stage, teacher, folder=tmp_path, on_epoch=rows.append, on_result=results.append, on_step=lambda: steps.append(1)
    )
    assert [row["epoch"] for row in rows] == list(range(1, RUNS[stage][1]["epochs"] + 1))
    assert all(isinstance(row["loss"], float) for row in rows)
    assert len(steps) > len(rows)
    assert results == [result]
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == len(rows) + 1


@pytest.mark.parametrize("generator", [None, "gdfq", "dead-leaves"])
def test_seconds_are_left_until_the_last_epoch(generator, teacher):
    """Images that are drawn need no time to warm up, so that nothing is done after the first epochs."""
    rows, settings = [], RUNS["compress"][1]
    if generator:
        settings = {"generator": generator, "epochs": 7, "steps": 1, "block_images": 8, "batch_size": 4}
    nar.compress(teacher, on_epoch=rows.append, progress=False, **settings)
    left = [row["seconds_left"] for row in rows]
    assert min(left[:-1]) > left[-1] == 0
    assert max(left) < 100


def test_all_settings_may_be_given_at_once():
    by_name = found(run("compress", "digits"))
    settings = RUNS["compress"][1]
    config = nar.CompressConfig(**settings)
    assert found(nar.compress(config=config, progress=False)) == by_name
    message = refusal(nar.compress, config=config, seed=3, bits="w8a8")
    assert message == "config is given, and seed, bits beside it; give one of them"
    assert "genotype beside it" in refusal(nar.compress, config=config, genotype="g.json")


def test_a_loaded_teacher_is_used_beside_a_config(teacher):
    config = nar.CompressConfig(**RUNS["compress"][1])
    assert found(nar.compress(teacher, config=config, progress=False)) == found(run("compress", teacher))
    for given in ({"teacher": "digits"}, {"mean": "0.5"}):
        assert f"{next(iter(given))} would do nothing" in refusal(nar.compress, teacher, config=config.override(given))
    named = config.override({"teacher": "digits"})
    assert "digits" in refusal(nar.compress, "timm:resnet18", config=named)


@pytest.mark.parametrize(
    ("call", "more", "message"),
    [
        (nar.search, {"resume": True, "replace": True, "folder": "f"}, "resume goes on .* replace begins it again"),
        (nar.search, {"resume": True}, "without a folder there is nothing to resume"),
        (nar.compress, {"replace": True}, "without a folder"),
        (nar.distill, {"tensorboard": True}, "without a folder"),
        (nar.compress, {"epoch": 3}, "arguments: unknown setting 'epoch'; did you mean 'epochs'"),
        (nar.search, {"width": 0}, "arguments: width = 0 is too small"),
        (nar.compress, {"genotype": "no.json", "generator": "gdfq"}, "generator gdfq has no use for a genotype"),
        (nar.compress, {"genotype": "no.json"}, "no.json does not exist"),
    ],
)
def test_what_contradicts_itself_is_refused(call, more, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.search(message, refusal(call, "digits", **more))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "setting",
    [{"checkpoint": "w.pt"}, {"num_classes": 5}, {"image_size": 9}, {"mean": "0,0"}, {"std": "1,1"}, {"device": "cpu"}],
)
def test_what_a_loaded_teacher_knows_is_not_set_again(setting, teacher):
    assert f"loaded already, so that {next(iter(setting))} would do nothing" in refusal(
        run, "search", teacher, **setting
    )


# Live networks


def test_a_live_network_goes_through_all_stages_and_stays_as_it_is(live, tmp_path):
    before = snapshot(live)
    teacher = nar.Teacher.of(live, IMAGE, mean=(0.5, 0.25), std=(0.5, 2.0))
    assert (teacher.num_classes, teacher.image, teacher.mean, teacher.std) == (CLASSES, IMAGE, (0.5, 0.25), (0.5, 2.0))
    genotype = run("search", teacher).genotype
    settings = {name: value for name, value in RUNS["compress"][1].items() if name not in (*SIZES, "generator")}
    result = nar.compress(teacher, genotype=genotype, progress=False, **settings)
    assert (result.generator, result.accuracy) == ("searched", None)  # there are no images to measure it on
    result.student.save(tmp_path / "s.safetensors")
    run("distill", teacher)

    assert live.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in live.parameters())
    assert all(torch.equal(before[name], value) for name, value in live.state_dict().items())

    images = torch.randn(7, *IMAGE)
    loaded = nar.load_student(tmp_path / "s.safetensors", teacher=live)
    assert torch.equal(loaded.network(images), result.student.network.eval()(images))
    assert live.training
    assert loaded.description.mean == (0.5, 0.25)
    message = refusal(nar.load_student, tmp_path / "s.safetensors")
    assert "a network that was handed over in Python (Sequential)" in message
    assert "load_student(path, teacher=network)" in message
    other = nn.Sequential(*list(live)[:3], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES))
    assert "does not fit" in refusal(nar.load_student, tmp_path / "s.safetensors", teacher=other)


def test_a_student_of_a_live_network_becomes_onnx(teacher, live, tmp_path):
    pytest.importorskip("onnxruntime")
    result = run("compress", teacher)
    agreement = result.student.to_onnx(tmp_path / "s.onnx")
    assert "decide alike" in agreement.summary()
    images = torch.randn(7, *IMAGE)
    model = nar.load_student(tmp_path / "s.onnx").network
    torch.testing.assert_close(model(images), result.student.network.eval()(images), atol=0.05, rtol=0)
    assert "leave out --teacher" in refusal(nar.load_student, tmp_path / "s.onnx", teacher=live)


@pytest.mark.parametrize("name", ["digits", "timm:resnet18", "mine"])
def test_a_live_network_is_never_taken_for_a_known_one_whatever_its_name(name, live, tmp_path):
    teacher = nar.Teacher.of(live, IMAGE, name=name)
    result = run("compress", teacher)
    assert result.accuracy is None
    result.student.save(tmp_path / "s.safetensors")
    assert f"handed over in Python ({name})" in refusal(nar.load_student, tmp_path / "s.safetensors")


def test_a_live_network_says_what_it_takes_or_is_refused(live):
    assert "does not tell the size of its images" in refusal(nar.Teacher.of, live)
    live.image_size, live.mean, live.std = (9, 11), (0.5, 0.25), [1.0, 2.0]
    teacher = nar.Teacher.of(live)
    assert (teacher.image, teacher.mean, teacher.std) == (IMAGE, (0.5, 0.25), (1.0, 2.0))
    assert "no BatchNorm2d" in refusal(nar.Teacher.of, nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten()), IMAGE)


def test_without_batchnorm_their_loss_is_refused(tmp_path):
    plain = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES))
    teacher = nar.Teacher.of(plain, IMAGE, need_batchnorm=False)
    for stage in RUNS:
        assert "no BatchNorm2d" in refusal(run, stage, teacher)
        run(stage, teacher, bns_weight=0.0)


# Interruptions


def stop_in_epoch_2(row):
    if row["epoch"] == 2:
        raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["digits", "live"])
@pytest.mark.parametrize("stage", RUNS)
def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(stage, kind, teacher, tmp_path):
    here = teacher if kind == "live" else "digits"
    own = {"student": "nni_autorecon.networks:digits_student"} if (stage, kind) == ("distill", "digits") else {}
    handler = signal.getsignal(signal.SIGINT)
    whole = found(run(stage, here, folder=tmp_path / "whole", **own))
    with pytest.raises(KeyboardInterrupt):
        run(stage, here, folder=tmp_path / "run", on_epoch=stop_in_epoch_2, **own)
    assert (tmp_path / "run" / "snapshot.bin").exists()
    rows = []
    resumed = run(stage, here, folder=tmp_path / "run", resume=True, on_epoch=rows.append, **own)
    assert [row["epoch"] for row in rows] == list(range(3, RUNS[stage][1]["epochs"] + 1))
    assert found(resumed) == whole
    assert not (tmp_path / "run" / "snapshot.bin").exists()
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_persons_own_answer_to_ctrl_c_stays(teacher):
    def answer(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGINT, answer)
    try:
        with pytest.raises(KeyboardInterrupt):
            run("search", teacher, on_epoch=stop_in_epoch_2)
        assert signal.getsignal(signal.SIGINT) is answer
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("stage", RUNS)
def test_another_live_network_does_not_go_on_with_a_run(stage, teacher, live, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(stage, teacher, folder=tmp_path, on_epoch=stop_in_epoch_2)
    before = (tmp_path / "snapshot.bin").read_bytes()
    other = copy.deepcopy(live)
    with torch.no_grad():
        other[0].weight[0, 0, 0, 0] += 1
    message = refusal(run, stage, nar.Teacher.of(other, IMAGE), folder=tmp_path, resume=True)
    assert "was started with other contents of teacher" in message
    assert (tmp_path / "snapshot.bin").read_bytes() == before


def test_the_command_line_goes_on_with_what_python_began(tmp_path, capsys):
    torch.save(toy_teacher().state_dict(), tmp_path / "weights.pt")
    spec, folder = "tests.helpers.toys:toy_teacher", tmp_path / "run"
    teacher = nar.load_teacher(
        spec, checkpoint=tmp_path / "weights.pt", image_size=9, mean=(0.5, -0.25), std=(0.5, 2.0)
    )
    named = {
        "teacher": spec,
        "checkpoint": str(tmp_path / "weights.pt"),
        "image_size": 9,
        "mean": "0.5,-0.25",
        "std": "0.5,2.0",
    }
    whole = run("compress", teacher, folder=tmp_path / "whole")
    layers = [{**each, "share": None} for each in whole.layers_and_shares()]
    assert found(run("compress", spec, **{name: value for name, value in named.items() if name != "teacher"})) == (
        {**found(whole)[0], "file_bytes": None, "compression_ratio": None, "layers": layers},
        *found(whole)[1:],
    )
    with pytest.raises(KeyboardInterrupt):
        run("compress", teacher, folder=folder, on_epoch=stop_in_epoch_2)
    config = nar.CompressConfig(**RUNS["compress"][1], **named)
    flags = [
        word for name in sorted(config.given) for word in (f"--{name.replace('_', '-')}", str(getattr(config, name)))
    ]
    assert cli.main(["compress", *flags, "-o", str(folder), "--resume"]) == 0, capsys.readouterr().err
    for name in ("student.safetensors", "metrics.csv", "config.json"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
