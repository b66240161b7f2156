"""Fresh noise, reproducible from the seed."""

import pytest
import torch

from nni_autorecon.generator.latent import LatentSource

SOURCE = LatentSource(batch_size=5, latent_dim=3, num_classes=7, seed=11)


def test_shapes_and_ranges():
    batches = list(SOURCE.batches("search", 0, 200))
    z, labels = (torch.stack(part) for part in zip(*batches, strict=True))
    assert z.shape == (200, 5, 3)
    assert labels.shape == (200, 5)
    assert z.mean().abs() < 0.1
    assert z.std() == pytest.approx(1, abs=0.05)
    assert labels.unique().tolist() == list(range(7))


def test_an_epoch_depends_on_seed_stream_and_epoch_alone():
    first = list(SOURCE.batches("search", 2, 3))
    list(SOURCE.batches("validation", 0, 5))
    torch.randn(3)
    again = list(SOURCE.batches("search", 2, 3))
    assert all(torch.equal(a, b) for one, two in zip(first, again, strict=True) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize(
    "other",
    [
        SOURCE.batches("search", 3, 1),
        SOURCE.batches("validation", 2, 1),
        LatentSource(batch_size=5, latent_dim=3, num_classes=7, seed=12).batches("search", 2, 1),
    ],
)
def test_any_of_the_three_changes_the_batches(other):
    assert not torch.equal(next(SOURCE.batches("search", 2, 1))[0], next(other)[0])


def test_batches_of_an_epoch_differ():
    (first, _), (second, _) = SOURCE.batches("search", 0, 2)
    assert not torch.equal(first, second)
