"""No GPU but for test_cuda.py, one thread a process, one cache folder: the digits teacher is trained once."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: toys gain nothing from threads, which wait for each other
if "PYTEST_XDIST_WORKER" not in os.environ and not any("test_cuda" in argument for argument in sys.argv):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is compared bit for bit is of a CPU

import pytest
import torch
from torch import nn

from nni_autorecon.cache import CACHE_VARIABLE
from nni_autorecon.runs import progress
from nni_autorecon.teacher.loading import Teacher, load_teacher
from tests.helpers.toys import SmallResNet


def pytest_xdist_auto_num_workers() -> int | None:
    """One worker more than processors, because many tests wait for other processes."""
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no worker is left with one of them at the end.

    Those that wait for NNI's managers are spread among those that compute, so that processors have work meanwhile.
    """
    slow = dict.fromkeys(item.path for item in items if item.get_closest_marker("slow"))
    waiting = [path for path in slow if path.parent.name == "experiment"]
    computing = [path for path in slow if path not in waiting]
    order = {path: index / len(files) for files in (waiting, computing) for index, path in enumerate(files)}
    items.sort(key=lambda item: (order.get(item.path, 1.0), str(item.path) if item.path in order else ""))


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep out of the person's own cache, unless the environment names a folder (a CI's, say)."""
    with pytest.MonkeyPatch.context() as patch:
        if CACHE_VARIABLE not in os.environ:
            root = tmp_path_factory.getbasetemp()
            shared = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
            patch.setenv(CACHE_VARIABLE, str(shared / "cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def translations_once() -> Iterator[None]:
    """Let PyTorch make its table of translations to ONNX, a third of the time of an export, once, not for each."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session")
def digits_teacher(cache_folder: None) -> Teacher:
    """The default teacher on the CPU; leave it as it is."""
    return load_teacher("digits")


@pytest.fixture
def small() -> nn.Module:
    """A network with BatchNorm statistics and affine parameters that are not 0 and 1; in training mode."""
    network = SmallResNet()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) / 5
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return network.train()


@pytest.fixture(autouse=True)
def no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run is so long that it says how far it is, even on a busy machine: tests look at all that is printed."""
    monkeypatch.setattr(progress, "FIRST", 3600.0)


@pytest.fixture(autouse=True)
def seed() -> None:
    """Every test begins with the same random numbers."""
    torch.manual_seed(0)
