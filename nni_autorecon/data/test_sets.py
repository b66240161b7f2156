"""Evaluation data are found by name and fitted to a classifier here. They serve to measure, and for nothing else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..cache import lock
from ..errors import InputError, MachineError, one_line
from ..files import is_there
from ..shapes import ImageShape
from .digits import digits_data
from .folders import pictures_of_classes, pictures_of_table, read_picture
from .images import EvaluationData, LabelledImages, load_images

_log = logging.getLogger(__name__)

SPECS = "digits, FILE.npz, a folder of class folders, or cifar10:, cifar100: or imagenet:FOLDER"
DATA_SETS = ("cifar10", "cifar100", "imagenet")
ARCHIVES = "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz"


def load_evaluation_data(
    spec: str,
    *,
    num_classes: int,
    image: ImageShape,
    resize: int = 0,
    download: bool = False,
    labels: str | Path | None = None,
) -> EvaluationData:
    """Return the images that ``spec`` names, fitted to a classifier of ``num_classes`` and images of shape ``image``.

    ``spec`` is ``digits``, an ``.npz``, a folder of class folders (labels follow the order of their names),
    ``cifar10:FOLDER``, ``cifar100:FOLDER`` or ``imagenet:FOLDER`` (torchvision's data sets, test or validation split).
    Pictures of another size are resized and cropped by :func:`fit_image`, and converted between grey and RGB.

    resize: pixels of the short side before the crop, for :func:`fit_image`.
    labels: a CSV of files and labels for a folder of pictures (:func:`.folders.pictures_of_table`), or a text file with
        the names of all classes for one of class folders (:func:`.folders.pictures_of_classes`).
    download: fetch CIFAR-10 or CIFAR-100 into the folder if they are not there.

    Raises InputError if there are no such data or if they do not fit. The data set raises it, too, when it reads a
    file that is not a picture.
    """
    kind, _, folder = spec.partition(":")
    if download and kind not in DATA_SETS:
        raise InputError(f"test data {spec} are not downloaded from anywhere; leave out --download")
    if labels is not None and (spec.endswith(".npz") or spec == "digits" or kind in DATA_SETS):
        raise InputError(f"test data {spec} have labels of their own; leave out --labels")
    fit = partial(fit_image, image=image, resize=resize)
    if spec.endswith(".npz"):
        return _from_arrays(spec, fit, image.channels)
    if image.channels not in (1, 3):
        raise InputError(
            f"test data {spec}: the teacher takes {image.channels} channels, not grey or RGB; give an .npz"
        )
    if spec == "digits":
        _require_classes(spec, 10, num_classes)
        digits = digits_data("test")
        return LabelledImages(fit(digits.images), digits.labels)
    if folder and kind in DATA_SETS:
        pictures = _from_torchvision(kind, folder, download)
    elif is_there(Path(spec), Path.is_dir):
        return Pictures(_from_folder(Path(spec), Path(labels) if labels else None, num_classes), fit)
    else:
        raise InputError(f"test data {spec!r} do not exist; give {SPECS}")
    _require_classes(spec, len(pictures.classes), num_classes)
    return Pictures(pictures, fit)


def fit_image(images: Tensor, *, image: ImageShape, resize: int = 0) -> Tensor:
    """Fit pictures to the shape that a classifier takes: uint8 [..., C', H', W'] to uint8 [..., *image].

    Pictures of another height or width are resized (bilinear), and their centre is cut out. The resize keeps the aspect
    ratio. For a square crop it gives the picture a short side of ``resize``, or of the crop itself if that is longer.
    Worked example: for crops of 224 with ``resize`` 256, 640×480 becomes 341×256, then 224×224.
    """
    if tuple(images.shape[-3:]) == image:
        return images
    from torchvision.transforms import functional as tv  # slow to import

    if images.shape[-3] != image.channels:
        images = tv.rgb_to_grayscale(images) if image.channels == 1 else images.repeat_interleave(3, dim=-3)
    height, width = images.shape[-2:]
    if (height, width) == image[1:]:
        return images
    margin = max(1.0, resize / min(image[1:]))
    scale = max(image.height / height, image.width / width) * margin
    short, long = round(min(height, width) * scale), max(height, width)
    long = int(short * long / min(height, width))  # torchvision rounds down here, too
    resized = (short, long) if height <= width else (long, short)
    images = tv.resize(images, [max(sides) for sides in zip(resized, image[1:], strict=True)], antialias=True)
    return tv.center_crop(images, list(image[1:]))  # [..., C, H, W]


class Pictures(Dataset[tuple[Tensor, int]]):
    """A torchvision data set whose items (PIL image, label) are read when asked for and fitted to a classifier.

    fit: a function of a picture, uint8 [3, H, W], that returns the image for the classifier.
    """

    def __init__(self, pictures: Any, fit: Callable[[Tensor], Tensor]) -> None:
        self.pictures = pictures
        self.fit = fit

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture, label = self.pictures[index]
        rgb = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)  # [3, H, W]
        return self.fit(rgb), label

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return the items of one batch, for a DataLoader; threads pay, as decoding and resizing release the GIL."""
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            return list(pool.map(self.__getitem__, indices))


def _from_arrays(path: str, fit: Callable[[Tensor], Tensor], channels: int) -> LabelledImages:
    """Return the fitted images of an ``.npz``. Raises InputError if they have another number of channels."""
    data = load_images(path)
    if data.images.shape[1] != channels:
        last = data.images.shape[3] == channels
        remedy = "store them as [N, C, H, W]" if last else "store images of the kind it was trained for"
        raise InputError(
            f"test data {path} have {data.images.shape[1]} channel(s), the teacher takes {channels}; {remedy}"
        )
    fitted = fit(data.images)
    if fitted.shape != data.images.shape:
        (height, width), (to_height, to_width) = data.images.shape[2:], fitted.shape[2:]
        _log.info("test images of %d×%d in %s are fitted to %d×%d", height, width, path, to_height, to_width)
    return LabelledImages(fitted, data.labels)


def _from_folder(folder: Path, labels: Path | None, num_classes: int) -> Any:
    """Return the pictures of a folder as a data set. Raises InputError if they or their labels cannot be used."""
    if labels is not None and labels.suffix.lower() in (".csv", ".tsv"):
        return pictures_of_table(folder, labels, num_classes)
    if not any(entry.is_dir() for entry in folder.iterdir()):
        raise InputError(f"test data {folder} have no class folders; give a CSV of files and labels with --labels")
    return pictures_of_classes(folder, labels, num_classes)


def _from_torchvision(kind: str, folder: str, download: bool) -> Any:
    """Return torchvision's data set ``kind``, downloaded if asked. Raises InputError if it cannot be read."""
    from torchvision import datasets

    if kind == "imagenet":
        remedy = f"put {ARCHIVES} from image-net.org there"
        if download:
            raise InputError(f"ImageNet cannot be downloaded without an account; {remedy} and leave out --download")
        load = partial(datasets.ImageNet, folder, split="val", loader=read_picture)
    else:
        remedy = "check the network" if download else "check the path, or fetch them with --download"
        cifar = datasets.CIFAR10 if kind == "cifar10" else datasets.CIFAR100
        load = partial(cifar, folder, train=False, download=download)
    try:
        if not download:
            return load()
        with lock(Path(folder) / kind, remedy="choose a writable folder"):  # two at once would write one archive
            return load()
    except (OSError, RuntimeError) as error:  # torchvision raises RuntimeError if files are missing or damaged
        fault = MachineError if download else InputError
        raise fault(f"cannot read test data {kind} in {folder}: {one_line(error)}; {remedy}") from error


def _require_classes(spec: str, found: int, expected: int) -> None:
    if found != expected:
        raise InputError(
            f"test data {spec} have {found} classes, the teacher {expected}; measure on the classes it was trained for"
        )
