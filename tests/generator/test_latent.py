"""Fresh noise, reproducible from the seed."""

import math

import pytest
import torch

from nni_autorecon.generator.latent import LatentSource, mixed_labels

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


def test_mixed_labels_are_what_the_formula_says():
    others, strengths = (
        torch.tensor([[0, 2], [1, 1], [3, 0]]),
        torch.tensor([[0.0, math.log(3)], [5.0, -1.0], [1.0, 1.0]]),
    )
    got = mixed_labels(torch.tensor([4, 4, 1]), others, strengths, torch.tensor([True, True, False]), num_classes=5)
    expected = torch.tensor([[0.25, 0, 0.75, 0, 0], [0, 1.0, 0, 0, 0], [0, 1.0, 0, 0, 0]])
    torch.testing.assert_close(got, expected)


def test_a_share_of_the_labels_is_mixed_and_the_latent_vectors_stay():
    plain = LatentSource(batch_size=500, latent_dim=3, num_classes=7, seed=1)
    mixing = LatentSource(batch_size=500, latent_dim=3, num_classes=7, seed=1, mixed_share=0.4, mixed_classes=3)
    (z, labels), (same_z, probabilities) = (next(source.batches("compress", 2, 1)) for source in (plain, mixing))
    assert torch.equal(z, same_z)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(500))
    pure = probabilities.amax(1) == 1
    assert torch.equal(probabilities[pure].argmax(1), labels[pure])
    assert 0.5 < pure.float().mean() < 0.7  # 0.6, four standard deviations of 0.022 either side
    assert (probabilities > 0).sum(1).max() == 3
