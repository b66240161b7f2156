"""A student's file is loaded by building its structure again, exactly as it was built."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import nni_autorecon as nar
from nni_autorecon.errors import InputError
from nni_autorecon.export.description import Description
from nni_autorecon.export.distilled_file import ABOUT, load_distilled
from nni_autorecon.student.distillation import student_for
from nni_autorecon.teacher.sources import architecture
from tests.helpers.toys import relative_error

STEPS = {"method": "gdfq", "epochs": 3, "warmup_epochs": 1, "range_epochs": 1, "steps": 1, "agreement_steps": 1}
TINY = {"generator": "random:0", "width": 3, "batch_size": 4, "image_size": 12, "threads": 1, "progress": False}
CODE = """
import itertools
from torch import nn

def layers(first, norm, last):
    return nn.Sequential(first, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), last)

def with_background(num_classes=6):
    return layers(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(12, num_classes + 1))

def lazy():
    return layers(nn.LazyConv2d(4, 3, groups=2), nn.LazyBatchNorm2d(), nn.LazyLinear(5))

def other():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm1d(), nn.Flatten(), nn.LazyLinear(5))

widths = itertools.count(3)

def growing():
    width = next(widths)
    return layers(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.Linear(4 * width, 5))
"""


@pytest.fixture
def made(tmp_path):
    """The specification and the checkpoint of a network that a function in a file of its own makes."""

    def of(name):
        (tmp_path / "nets.py").write_text(CODE)
        spec = f"{tmp_path}/nets.py:{name}"
        network = architecture(spec)
        network(torch.randn(8, 2, 12, 12))
        torch.save(network.state_dict(), tmp_path / "weights.pt")
        return {"teacher": spec, "checkpoint": str(tmp_path / "weights.pt")}

    return of


@pytest.mark.parametrize(
    ("name", "given", "classes"),
    [("with_background", {}, 7), ("with_background", {"num_classes": 6}, 7), ("lazy", {}, 5)],
)
def test_a_factory_is_called_again_as_it_was_called(made, tmp_path, name, given, classes):
    where = made(name) | given
    result = nar.compress(**where, bits="w4a4", **STEPS, **TINY)
    result.student.save(tmp_path / "student.safetensors")
    saved = nar.load_student(tmp_path / "student.safetensors", teacher=where["teacher"])
    images = torch.randn(3, 2, 12, 12)
    assert saved.description.num_classes == classes
    assert torch.equal(saved.network(images), result.student.network(images))


def test_lazy_norms_that_were_folded_are_built_again(made, tmp_path):
    where = made("lazy")
    result = nar.compress(**where, method="dfq", image_size=12, batch_size=4, threads=1, progress=False)
    result.student.save(tmp_path / "student.safetensors")
    saved = nar.load_student(tmp_path / "student.safetensors", teacher=where["teacher"])
    images = torch.randn(3, 2, 12, 12)
    assert torch.equal(saved.network(images), result.student.network(images))


def test_a_file_of_another_lazy_network_is_refused_in_one_line(made, tmp_path):
    where = made("lazy")
    result = nar.compress(**where, method="dfq", image_size=12, batch_size=4, threads=1, progress=False)
    result.student.save(tmp_path / "student.safetensors")
    with pytest.raises(
        InputError, match=r"does not fit .*:other: RuntimeError.*; name the network it was made of"
    ) as caught:
        nar.load_student(tmp_path / "student.safetensors", teacher=where["teacher"].replace(":lazy", ":other"))
    assert "\n" not in str(caught.value)


def test_a_lazy_network_is_distilled_into_and_loaded(made, tmp_path):
    where = made("lazy")
    spec = where["teacher"]
    student = student_for(nar.load_teacher(spec, checkpoint=where["checkpoint"], image_size=12), spec)
    assert [type(layer).__name__ for layer in student][:2] == ["Conv2d", "BatchNorm2d"]
    assert torch.equal(student[1].running_mean, torch.zeros(4))  # the trial in training leaves no trace
    about = {"student": spec, "teacher": spec, "num_classes": 5, "image": (2, 12, 12), "mean": (0, 0), "std": (1, 1)}
    content = {"state_dict": student.state_dict(), ABOUT: json.dumps({**about, "resize": 12})}
    torch.save(content, tmp_path / "student.pt")
    again = load_distilled(tmp_path / "student.pt", structure=spec).network
    images = torch.randn(3, 2, 12, 12)
    assert torch.equal(again(images), student(images))
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_lazy_layers_become_ordinary_ones(made):
    where = made("lazy")
    network = nar.load_teacher(where["teacher"], checkpoint=where["checkpoint"], image_size=12).network
    kinds = [type(layer).__name__ for layer in network]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "AdaptiveAvgPool2d", "Flatten", "Linear"]
    assert (network[0].in_channels, network[1].num_features, network[5].in_features) == (2, 4, 16)


def test_a_factory_that_builds_something_else_each_time_is_refused_before_training(made, tmp_path):
    where = made("growing")
    torch.save(_grown(torch.load(where["checkpoint"])), where["checkpoint"])
    with pytest.raises(InputError, match=r"growing is another network each time .*\(0.weight: .*at every call"):
        nar.compress(**where, bits="w4a4", folder=tmp_path / "run", **STEPS, **TINY)
    assert not (tmp_path / "run" / "metrics.csv").exists()


def _grown(weights):
    """The same weights for a network of one more channel, which the next call of the factory builds."""
    grown = dict(weights)
    for key in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        grown[key] = torch.cat([weights[key], weights[key][:1]])
    grown["5.weight"] = torch.cat([weights["5.weight"], weights["5.weight"][:, :4]], 1)
    return grown


def test_earlier_files_build_with_their_number_of_classes():
    known = {"teacher": "a.py:f", "num_classes": 7, "image": [2, 12, 12], "mean": [0, 0], "std": [1, 1]}
    earlier = Description.from_dict({**known, "quantization": None})
    assert earlier.factory_arguments is None
    today = Description.from_dict(json.loads(json.dumps({**known, "quantization": None, "factory_arguments": {}})))
    assert today.factory_arguments == {}


class Wrapped(nn.Module):
    """Parts of it are compiled or parallel, and hooks compute the weights of two of its layers."""

    def __init__(self):
        super().__init__()
        self.block = torch.compile(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()))
        self.pruned = nn.utils.prune.l1_unstructured(nn.Conv2d(3, 4, 3), "weight", 0.5)
        self.norm, self.fc = nn.DataParallel(nn.BatchNorm2d(4)), nn.utils.spectral_norm(nn.Linear(4, 5))

    def forward(self, x):
        return self.fc(self.norm(self.pruned(self.block(x))).relu().mean((2, 3)))


def test_a_student_of_a_network_with_wrapped_parts_is_loaded(tmp_path):
    network = Wrapped()
    teacher = nar.Teacher.of(network, (2, 12, 12))
    assert [path for path, _ in teacher.network.block.named_parameters()] == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
    ]
    result = nar.compress(teacher, method="dfq", bits="w8a8", agreement_steps=1, batch_size=4, progress=False)
    result.student.save(tmp_path / "student.safetensors")
    loaded, images = nar.load_student(tmp_path / "student.safetensors", teacher=network), torch.randn(8, 2, 12, 12)
    with torch.no_grad():
        assert torch.equal(loaded.network(images), result.student.network(images))
        assert relative_error(loaded.network(images), teacher.network(images)) < 0.1
    assert any("_orig_mod" in path for path, _ in network.named_parameters())
