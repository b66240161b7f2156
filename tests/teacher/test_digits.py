"""The default teacher: its data by hand, its training reproducible, its cache safe."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from nni_autorecon.cache import CACHE_VARIABLE
from nni_autorecon.data.digits import _table, digits_data
from nni_autorecon.data.images import accuracy
from nni_autorecon.errors import InputError
from nni_autorecon.networks import CifarResNet, digits_resnet
from nni_autorecon.teacher import digits
from nni_autorecon.teacher.digits import load_digits_teacher, train_digits_teacher
from nni_autorecon.teacher.loading import Teacher


class CountedTrainer:
    """Stands in for the training: fixed weights at once."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> CifarResNet:
        self.calls += 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            return digits_resnet()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the file that will be in it."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / f"digits-teacher-v{digits.RECIPE_VERSION}.pt"


@pytest.fixture
def trainer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> CountedTrainer:
    counted = CountedTrainer()
    monkeypatch.setattr(digits, "train_digits_teacher", counted)
    return counted


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(key == key2 and torch.equal(tensor, tensor2) for (key, tensor), (key2, tensor2) in pairs)


def test_split_is_stratified_and_covers_every_digit() -> None:
    everything = load_digits()
    train, test = digits_data("train"), digits_data("test")
    counts = np.bincount(everything.target)
    assert test.labels.bincount().tolist() == (counts // 4).tolist()
    assert (train.labels.bincount() + test.labels.bincount()).tolist() == counts.tolist()
    assert train.images.shape[1:] == test.images.shape[1:] == digits.IMAGE


@pytest.mark.parametrize("found", [True, False])
def test_the_table_is_read_without_scikit_learn_or_asked_of_it(found, monkeypatch):
    if not found:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    digits = load_digits()
    assert np.array_equal(_table(), np.column_stack([digits.data, digits.target]))


def test_images_are_the_digits_doubled_in_size() -> None:
    """Bilinear doubling by hand, away from the border: 9/16, 3/16, 3/16 and 1/16 of the four nearest pixels."""
    x = load_digits().images * 255 / 16  # [N, 8, 8]
    a, right, below, beyond = x[:, :-1, :-1], x[:, :-1, 1:], x[:, 1:, :-1], x[:, 1:, 1:]
    expected = (9 * a + 3 * right + 3 * below + beyond) / 16  # output pixels (1, 1), (1, 3) ... (13, 13)
    images = torch.cat([digits_data("train").images, digits_data("test").images]).numpy()
    got = images[:, 0, 1:-1:2, 1:-1:2].reshape(len(x), -1)
    distance = np.abs(np.sort(got, axis=0) - np.sort(expected.reshape(len(x), -1), axis=0))  # the order is the split's
    assert distance.max() <= 0.5 + 1e-4  # rounding


def test_constants_are_those_of_the_training_images() -> None:
    pixels = digits_data("train").images / 255
    assert (pixels.mean().item(), pixels.std().item()) == pytest.approx((*digits.MEAN, *digits.STD), abs=5e-5)


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="'train' or 'test'"):
        digits_data("all")  # type: ignore[arg-type]


def test_held_out_accuracy(digits_teacher: Teacher) -> None:
    test = digits_data("test")
    got = accuracy(digits_teacher.network, test, mean=digits.MEAN, std=digits.STD, device="cpu")
    assert got >= 0.985


def test_training_is_reproducible_and_leaves_no_trace() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        before = torch.get_rng_state()
        first = train_digits_teacher(epochs=1)
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.get_rng_state(), before)
        torch.set_num_threads(1)
        torch.manual_seed(5)
        with torch.no_grad():
            second = train_digits_teacher(epochs=1)
    finally:
        torch.set_num_threads(threads)
    assert same_weights(first, second)
    assert not first.training
    assert not same_weights(first, CountedTrainer()())


def test_intact_cache_is_not_trained_again(trainer: CountedTrainer) -> None:
    first, second = load_digits_teacher(), load_digits_teacher()
    assert trainer.calls == 1
    assert same_weights(first, second)
    assert first is not second
    assert not any(network.training for network in (first, second))


def test_random_numbers_do_not_depend_on_the_cache(trainer: CountedTrainer) -> None:
    before = torch.get_rng_state()
    for _ in range(2):
        load_digits_teacher()
        assert torch.equal(torch.get_rng_state(), before)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def rewrite(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        stored = torch.load(path, weights_only=True)
        change(stored)
        torch.save(stored, path)

    return damage


def lose_a_layer(stored: dict[str, Any]) -> None:
    del stored["state_dict"]["linear.bias"]
    stored["sha256"] = digits._checksum(stored["state_dict"])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no checkpoint\n"),
    "not UTF-8": lambda path: path.write_bytes(b"\x80\x02X\x01\x00\x00\x00\xff."),
    "flipped byte": flip_a_byte,
    "other weights": rewrite(lambda stored: stored["state_dict"]["linear.bias"].add_(1)),
    "no checksum": rewrite(lambda stored: stored.pop("sha256")),
    "no weights": rewrite(lambda stored: stored.update(state_dict=3)),
    "a layer lost": rewrite(lose_a_layer),
    "a list": lambda path: torch.save([1, 2], path),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_cache_is_trained_again(
    damage: Callable[[Path], object], cache: Path, trainer: CountedTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nni_autorecon")
    first = load_digits_teacher()
    assert [record.message for record in caplog.records] == [
        "training the digits teacher, once; it takes some 20 seconds"
    ]
    caplog.clear()
    damage(cache)
    second = load_digits_teacher()
    third = load_digits_teacher()
    assert trainer.calls == 2
    assert same_weights(first, second)
    assert same_weights(first, third)
    assert [(r.levelno, str(cache) in r.message) for r in caplog.records] == [(logging.WARNING, True)]


def test_failed_training_leaves_nothing_behind(
    cache: Path, trainer: CountedTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> CifarResNet:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(digits, "train_digits_teacher", fail)
        with pytest.raises(KeyboardInterrupt):
            load_digits_teacher()
    assert not cache.exists()
    load_digits_teacher()  # the lock is free
    assert trainer.calls == 1


def test_unwritable_cache(tmp_path: Path, trainer: CountedTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=f"file/cache: .*set {CACHE_VARIABLE} to a writable folder") as caught:
        load_digits_teacher()
    assert "\n" not in str(caught.value)
    assert trainer.calls == 0


RACER = """
import sys, time
from pathlib import Path
from nni_autorecon.teacher import digits
from nni_autorecon.networks import digits_resnet

folder, own, other = Path(sys.argv[1]), *sys.argv[2:]

def train():
    print("trained")
    time.sleep(1)  # long enough for the other to arrive
    return digits_resnet()

digits.train_digits_teacher = train
(folder / own).touch()
while not (folder / other).exists():
    time.sleep(0.01)
digits.load_digits_teacher()
print("loaded")
"""


def test_processes_that_start_at_once_train_once(cache: Path, tmp_path: Path) -> None:
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path), *names], stdout=subprocess.PIPE, text=True)
        for names in (("a", "b"), ("b", "a"))
    ]
    outputs = sorted(racer.communicate(timeout=120)[0].split() for racer in racers)
    assert outputs == [["loaded"], ["trained", "loaded"]]
    assert cache.exists()
