"""The default teacher is a small residual network for handwritten digits; it is trained once and cached."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cache import CACHE_VARIABLE, cache_folder, cache_lock
from ..data.digits import IMAGE, MEAN, STD, digits_data
from ..data.images import normalize
from ..errors import InputError, MachineError
from ..files import tensor_bytes, write_atomically
from ..networks import CifarResNet, digits_resnet

RECIPE_VERSION = 1
"""This number rises with every change that gives other weights: to the constants below, the split or the network."""


# These values were chosen by cross-validation within the training split; the test split was not used.
EPOCHS = 15
BATCH_SIZE = 32
LEARNING_RATE = 0.05
WEIGHT_DECAY = 5e-4
LARGEST_SHIFT = 1
SEED = 0
_log = logging.getLogger(__name__)


def load_digits_teacher() -> nn.Module:
    """Return the digits teacher on the CPU in eval mode; train it now (about 20 seconds) if it is not in the cache.

    When several processes ask at once, one trains and the others wait for it. If the cached file is damaged, the log
    says so and the teacher is trained again. Raises InputError if the cache folder cannot be written.
    """
    path = cache_folder() / f"digits-teacher-v{RECIPE_VERSION}.pt"
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers must not depend on the cache
        network = digits_resnet()
        if not _restore(network, path):
            with cache_lock(path):
                if not _restore(network, path):  # nobody else has trained it meanwhile
                    if path.exists():
                        _log.warning("%s is damaged; training the digits teacher again", path)
                    else:
                        _log.info("training the digits teacher, once; it takes some 20 seconds")
                    network = train_digits_teacher()
                    _store(network, path)
    return network.eval()


def train_digits_teacher(*, epochs: int = EPOCHS) -> CifarResNet:
    """Train the digits network with SGD, one cycle of the learning rate, and a random shift for each batch.

    On one machine the weights are the same every time, because the seed is fixed and one thread computes. The caller's
    random state and number of threads stay as they were.
    """
    data = digits_data("train")
    padded = F.pad(data.images, (LARGEST_SHIFT,) * 4)
    steps = len(data) // BATCH_SIZE
    with _reproducible(), torch.enable_grad():
        network = digits_resnet().train()
        optimizer = torch.optim.SGD(
            network.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * steps)
        for _ in range(epochs):
            for batch in torch.randperm(len(data))[: steps * BATCH_SIZE].split(BATCH_SIZE):
                images = normalize(_shifted(padded[batch]), mean=MEAN, std=STD)  # [B, 1, 16, 16]
                loss = F.cross_entropy(network(images), data.labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return network.eval()


def _shifted(padded: Tensor) -> Tensor:
    """Cut the same random window out of every padded image; return [N, C, H, W] of the original size."""
    down, right = torch.randint(2 * LARGEST_SHIFT + 1, (2,)).tolist()
    return padded[:, :, down : down + IMAGE.height, right : right + IMAGE.width]


@contextmanager
def _reproducible() -> Iterator[None]:
    """Fix the seed and compute in one thread within the block, as sums over several threads depend on their number."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)  # torch.manual_seed would also seed GPUs, whose state is not restored
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _store(network: nn.Module, path: Path) -> None:
    """Write the weights with a checksum. Raises InputError if the file cannot be written."""
    state = network.state_dict()
    content = tensor_bytes({"state_dict": state, "sha256": _checksum(state)})
    try:
        write_atomically(path, lambda file: file.write(content))
    except (InputError, MachineError) as error:  # the lock could be written and the file could not
        raise type(error)(f"{error} with {CACHE_VARIABLE}") from error


def _restore(network: nn.Module, path: Path) -> bool:
    """Load ``path`` into ``network``; return False if it is missing or not exactly what was stored."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        if stored["sha256"] != _checksum(stored["state_dict"]):
            return False
        network.load_state_dict(stored["state_dict"])
    except Exception:  # damaged bytes can make the reader raise anything
        return False
    return True


def _checksum(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
