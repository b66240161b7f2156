"""Measuring: accuracies known by construction, and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import normalize as reference_normalize

from nni_autorecon.data.images import LabelledImages, accuracy, normalize
from nni_autorecon.errors import InputError


class BrightestChannel(nn.Module):
    """Class = brightest channel. Keeps the sizes of the batches it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return self.weight * images.mean((2, 3))  # [N, C]


def brightest(channels: list[int], *, labels: list[int]) -> LabelledImages:
    images = torch.full((len(channels), 3, 2, 7), 100, dtype=torch.uint8)
    images[torch.arange(len(channels)), channels] = 101
    return LabelledImages(images, torch.tensor(labels))


DATA = brightest([0, 1, 2, 2, 1], labels=[0, 2, 2, 1, 1])
GREY: dict[str, tuple[float, ...]] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7])
def test_accuracy_counts_every_image_once(batch_size: int) -> None:
    network = BrightestChannel().eval()
    assert accuracy(network, DATA, **GREY, batch_size=batch_size, device="cpu") == 3 / 5
    assert sum(network.batches[1:]) == 5  # the first is a look at the shape
    assert max(network.batches) == min(batch_size, 5)


def test_measuring_leaves_the_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    accuracy(BrightestChannel().eval(), DATA, **GREY, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_accuracy_normalizes() -> None:
    """A mean above every pixel in channel 1 and a large std in channel 2 leave channel 0 the highest."""
    got = accuracy(BrightestChannel().eval(), DATA, mean=(0.0, 0.9, 0.0), std=(1.0, 1.0, 10.0), device="cpu")
    assert got == 1 / 5


def test_accuracy_keeps_no_graph() -> None:
    network, outputs = BrightestChannel().eval(), []
    network.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    accuracy(network, DATA, **GREY, device="cpu")
    assert [output.requires_grad for output in outputs] == [False, False]


def test_normalize_matches_torchvision() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.7, 1.1)
    torch.testing.assert_close(normalize(images, mean=mean, std=std), reference_normalize(images / 255, mean, std))


def test_training_mode_anywhere_is_refused() -> None:
    network = nn.Sequential(BrightestChannel(), nn.Dropout()).eval()
    network[1].train()
    with pytest.raises(ValueError, match=r"network\.eval\(\)"):
        accuracy(network, DATA, **GREY, device="cpu")


def test_labels_beyond_the_classes_are_refused() -> None:
    with pytest.raises(InputError, match="labels go up to 3, the network has 3 classes"):
        accuracy(BrightestChannel().eval(), brightest([0, 1], labels=[0, 3]), **GREY, device="cpu")


def test_labels_beyond_the_classes_are_refused_in_a_later_batch() -> None:
    with pytest.raises(InputError, match="labels go up to 3"):
        accuracy(BrightestChannel().eval(), brightest([0, 1], labels=[0, 3]), **GREY, batch_size=1, device="cpu")


def test_images_that_do_not_fit_the_normalization_are_refused() -> None:
    with pytest.raises(InputError, match=r"3 channel\(s\), mean 1 and std 1"):
        accuracy(BrightestChannel().eval(), DATA, mean=(0.0,), std=(1.0,), device="cpu")


def test_images_that_do_not_fit_the_network_are_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(5, 3)).eval()
    with pytest.raises(InputError, match=r"\[1, 3, 2, 7\]") as caught:
        accuracy(network, DATA, **GREY, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 5, 7), torch.zeros(2).long(), r"float32 \[2, 3, 5, 7\]; give uint8"),
        (torch.zeros(2, 5, 7).byte(), torch.zeros(2).long(), r"uint8 \[2, 5, 7\]; give uint8 \[N, C, H, W\]"),
        (torch.zeros(2, 3, 5, 7).byte(), torch.zeros(2), r"labels are float32 \[2\]; give int64"),
        (torch.zeros(2, 3, 5, 7).byte(), torch.zeros(2, 1).long(), r"labels are int64 \[2, 1\]"),
        (torch.zeros(2, 3, 5, 7).byte(), torch.zeros(3).long(), "2 images and 3 labels"),
        (torch.zeros(0, 3, 5, 7).byte(), torch.zeros(0).long(), "0 images and 0 labels"),
        (torch.zeros(2, 3, 5, 7).byte(), torch.tensor([0, -1]), "the least label is -1"),
    ],
)
def test_what_is_no_labelled_images(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LabelledImages(images, labels)
