"""Evaluation data by name: what a classifier gets to see, streamed, and every refusal."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from nni_autorecon.cache import CACHE_VARIABLE
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.data.digits import digits_data
from nni_autorecon.data.images import LabelledImages, accuracy
from nni_autorecon.data.test_sets import Pictures, fit_image, load_evaluation_data
from nni_autorecon.errors import InputError, MachineError
from nni_autorecon.shapes import ImageShape
from nni_autorecon.student.results import evaluation_data
from nni_autorecon.teacher.loading import Teacher

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


class BrightestChannel(nn.Module):
    """Class = brightest of three channels."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))  # [N, 3]


def write(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (9, 7)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Classes in the order of their names; four of the five pictures are of the color of their class."""
    for name, color in {"a/0": RED, "a/1": RED, "b/0": GREEN, "b/1": RED, "c/0": BLUE}.items():
        write(tmp_path / "pictures" / f"{name}.png", color)
    return tmp_path / "pictures"


def load(spec: object, *, num_classes: int = 3, image: tuple[int, int, int] = (3, 5, 5), **settings: Any) -> Any:
    return load_evaluation_data(str(spec), num_classes=num_classes, image=ImageShape(*image), **settings)


def refusal(spec: object, kind: type[Exception] = InputError, **settings: Any) -> str:
    with pytest.raises(kind) as caught:
        load(spec, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What a classifier gets to see


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (33, 33), (11, 17), (300, 40)])
@pytest.mark.parametrize("resize", [22, 28])
def test_fit_is_torchvisions_resize_and_crop(size: tuple[int, int], resize: int) -> None:
    pixels = torch.randint(256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    reference = transforms.Compose([transforms.Resize(resize, antialias=True), transforms.CenterCrop(22)])
    assert torch.equal(fit_image(pixels, image=ImageShape(3, 22, 22), resize=resize), reference(pixels))


def test_images_of_the_right_size_stay_as_they_are() -> None:
    pixels = torch.randint(256, (2, 3, 5, 7), dtype=torch.uint8)
    assert fit_image(pixels, image=ImageShape(3, 5, 7), resize=9) is pixels


@pytest.mark.parametrize("size", [(5, 20), (20, 5), (11, 11), (7, 8), (6, 7), (5, 9)])
def test_an_oblong_crop_is_covered_by_the_picture(size: tuple[int, int]) -> None:
    white = torch.full((2, 3, *size), 255, dtype=torch.uint8)
    for resize in (8, 0):
        fitted = fit_image(white, image=ImageShape(3, 7, 13), resize=resize)
        assert fitted.shape == (2, 3, 7, 13)
        assert fitted.min() == 255  # no border


def test_color_becomes_grey_and_grey_becomes_color() -> None:
    color = torch.tensor([100, 200, 50], dtype=torch.uint8).view(3, 1, 1).expand(2, 3, 5, 7)
    grey = fit_image(color, image=ImageShape(1, 5, 7))
    assert grey.shape == (2, 1, 5, 7)
    assert grey.unique().tolist() == [int(0.2989 * 100 + 0.587 * 200 + 0.114 * 50)]  # ITU-R 601-2 luma
    assert torch.equal(fit_image(grey, image=ImageShape(3, 5, 7)), grey.expand(2, 3, 5, 7))


# Folders


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_folder_of_class_folders(folder: Path, batch_size: int) -> None:
    data = load(folder)
    assert [(image.shape, image.dtype, label) for image, label in (data[i] for i in range(5))] == [
        ((3, 5, 5), torch.uint8, label) for label in (0, 0, 1, 1, 2)
    ]
    black, white = (0.0,) * 3, (1.0,) * 3
    assert accuracy(BrightestChannel().eval(), data, mean=black, std=white, batch_size=batch_size, device="cpu") == 0.8


def test_folder_for_a_grey_classifier(folder: Path) -> None:
    assert load(folder, image=(1, 5, 5))[0][0].unique().tolist() == [int(0.2989 * 200)]


def test_pictures_are_read_when_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(Path(path).name) or original(path))
    data = load(folder)
    assert opened == []
    data[4]
    assert opened == ["0.png"]


def test_a_batch_is_read_in_order(folder: Path) -> None:
    data = load(folder)
    batch = data.__getitems__([4, 0, 2])
    assert [label for _, label in batch] == [2, 0, 1]
    assert all(torch.equal(image, data[i][0]) for (image, _), i in zip(batch, (4, 0, 2), strict=True))


# Arrays and digits


def arrays(folder: Path, images: Tensor, labels: list[int]) -> Path:
    np.savez(folder / "test.npz", images=images.numpy(), labels=np.array(labels, dtype=np.uint8))
    return folder / "test.npz"


def test_arrays_are_fitted_and_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    images = torch.randint(256, (2, 3, 9, 7), dtype=torch.uint8)
    data = load(path := arrays(tmp_path, images, [2, 0]))
    assert caplog.messages == [f"test images of 9×7 in {path} are fitted to 5×5"]
    assert torch.equal(data.images, fit_image(images, image=ImageShape(3, 5, 5)))
    assert data.labels.tolist() == [2, 0]


def test_arrays_of_other_channels(tmp_path: Path) -> None:
    path = arrays(tmp_path, torch.zeros(2, 1, 5, 5, dtype=torch.uint8), [2, 0])
    assert f"test data {path} have 1 channel(s), the teacher takes 3; store images of the kind" in refusal(path)


def test_arrays_whose_channels_come_last(tmp_path: Path) -> None:
    path = arrays(tmp_path, torch.zeros(2, 5, 5, 3, dtype=torch.uint8), [2, 0])
    assert f"test data {path} have 5 channel(s), the teacher takes 3; store them as [N, C, H, W]" in refusal(path)


def test_digits_as_they_are_and_for_a_larger_color_network() -> None:
    assert torch.equal(load("digits", num_classes=10, image=(1, 16, 16)).images, digits_data("test").images)
    assert load("digits", num_classes=10, image=(3, 32, 32)).images.shape[1:] == (3, 32, 32)
    assert "digits have 10 classes, the teacher 3" in refusal("digits")


@pytest.mark.parametrize("spec", ["digits", "."])
def test_channels_that_are_neither_grey_nor_color(spec: str) -> None:
    assert "the teacher takes 2 channels, not grey or RGB; give an .npz" in refusal(spec, image=(2, 5, 5))


# torchvision's data sets


class FakeDataSet:
    """One white picture of class 6 of ten, and the arguments it was asked with."""

    classes = tuple("abcdefghij")

    def __init__(self, folder: str, **arguments: Any) -> None:
        self.arguments = (folder, {name: value for name, value in arguments.items() if name != "loader"})

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (32, 32), (255, 255, 255)), [6][index]


@pytest.mark.parametrize(
    ("spec", "name", "download", "arguments"),
    [
        ("cifar10:some/folder", "CIFAR10", False, {"train": False, "download": False}),
        ("cifar100:some/folder", "CIFAR100", True, {"train": False, "download": True}),
        ("imagenet:some/folder", "ImageNet", False, {"split": "val"}),
    ],
)
def test_the_test_split_of_a_data_set(
    spec: str, name: str, download: bool, arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.datasets, name, FakeDataSet)
    data = load(spec, num_classes=10, download=download)
    assert isinstance(data, Pictures)
    assert data.pictures.arguments == ("some/folder", arguments)
    image, label = data[0]
    assert (image.shape, image.min(), label) == ((3, 5, 5), 255, 6)
    assert f"{spec} have 10 classes, the teacher 11" in refusal(spec, num_classes=11, download=download)


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_a_missing_data_set_may_be_downloaded(kind: str, tmp_path: Path) -> None:
    message = refusal(f"{kind}:{tmp_path}", num_classes=10)
    assert f"cannot read test data {kind} in {tmp_path}: Dataset not found" in message
    assert message.endswith("check the path, or fetch them with --download")


def test_a_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", refuse)
    assert refusal(f"cifar10:{tmp_path}", MachineError, download=True).endswith(
        "Name or service not known; check the network"
    )


def test_downloads_wait_for_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    at_once, most = [], []

    class Slow(FakeDataSet):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            at_once.append(self)
            most.append(len(at_once))
            time.sleep(0.2)
            at_once.remove(self)

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Slow)
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: load("cifar10:there", num_classes=10, download=True), range(3)))
    assert most == [1, 1, 1]


def test_imagenet_must_be_fetched_by_the_person(tmp_path: Path) -> None:
    remedy = "put ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz from image-net.org there"
    assert refusal(f"imagenet:{tmp_path}").endswith(remedy)
    assert f"{remedy} and leave out --download" in refusal(f"imagenet:{tmp_path}", download=True)


# In stage 2


def test_stage_2_takes_data_as_its_teacher_does(folder: Path) -> None:
    ramp = np.arange(19 * 21 * 3).reshape(19, 21, 3) % 251
    Image.fromarray(ramp.astype(np.uint8)).save(folder / "a" / "0.png")
    network = BrightestChannel()
    teacher = Teacher("toy", network, 3, ImageShape(3, 5, 5), (0.0,) * 3, (1.0,) * 3, 9)
    pictures = evaluation_data(CompressConfig(teacher="toy.py:net", test_data=str(folder)), teacher)
    assert torch.equal(pictures[0][0], load(folder, resize=9)[0][0])
    assert evaluation_data(CompressConfig(teacher="toy.py:net"), teacher) is None
    digits = Teacher("digits", network, 10, ImageShape(1, 16, 16), (0.0,), (1.0,))
    assert isinstance(evaluation_data(CompressConfig(), digits), LabelledImages)
