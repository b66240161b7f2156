"""Pictures in folders get their classes from the folders' names, or from a table of files and labels."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, one_line

FILE_COLUMNS = {"file", "filename", "image", "imageid", "imagepath", "img", "path", "name", "id"}
LABEL_COLUMNS = {"label", "labels", "truelabel", "class", "classid", "target", "category", "y"}
"""The two columns of a table have one of these headings, in lower case and without signs."""

_log = logging.getLogger(__name__)


class LabelledPictures:
    """Picture files and their labels, as a data set of torchvision gives them: (PIL image, label)."""

    def __init__(self, files: Sequence[Path], labels: Sequence[int]) -> None:
        self.files = files
        self.labels = labels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return read_picture(str(self.files[index])), self.labels[index]


def read_picture(path: str) -> Any:
    """Read a picture file into memory, in RGB. Raises InputError, naming the file, if it is not a picture."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except Exception as error:  # damaged bytes can make a decoder raise anything
        raise InputError(f"cannot read picture {path} ({one_line(error)}); repair or remove it") from error


def pictures_of_table(folder: Path, table: Path, num_classes: int) -> LabelledPictures:
    """Return the pictures in ``folder``, at any depth, that the CSV file ``table`` names.

    A table has a column of file names (with or without folder or extension) and one of labels: numbers in the network's
    order, from 0 or from 1, or the names of all its classes, in alphabetical order. Columns are found by their headers;
    two columns need none. Pictures that the table does not name are left out.

    Raises InputError if the table cannot be read, or if files or labels do not fit.
    """
    rows = _read_table(table)
    known = _files_by_name(folder)
    file_column, label_column, rows = _columns(rows, known, table)
    names = [row[file_column].strip() for row in rows]
    if missing := [name for name in names if name.lower() not in known]:
        raise InputError(
            f"labels {table} name {len(missing)} of {len(names)} files that are not in {folder}, such as {missing[0]}; "
            "correct the folder or the table"
        )
    labels = _numbers([row[label_column].strip() for row in rows], num_classes, table)
    return LabelledPictures([known[name.lower()] for name in names], labels)


def pictures_of_classes(folder: Path, names: Path | None, num_classes: int) -> LabelledPictures:
    """Return the pictures of a folder with a folder of pictures for each class.

    names: a text file with the classes' names in the network's order, one on each line. Without it, names that are all
    numbers are the numbers of the classes, from 0 or from 1, and other names are in alphabetical order.

    Raises InputError if a folder is missing, empty or unknown. Without ``names``, only numbers may be left out.
    """
    from torchvision.datasets import DatasetFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS

    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    order = _class_order(found, names, num_classes, folder)

    try:
        pictures = DatasetFolder.make_dataset(str(folder), dict(order), IMG_EXTENSIONS)
    except OSError as error:  # torchvision raises it if there is no class folder, or an empty one
        raise InputError(f"test data {folder}: {one_line(error)}; give a folder of pictures for every class") from error
    return LabelledPictures([Path(path) for path, _ in pictures], [label for _, label in pictures])


def _class_order(found: Sequence[str], names: Path | None, num_classes: int, folder: Path) -> Mapping[str, int]:
    """Return the class of each folder. Raises InputError if that is not certain."""
    if names is not None:
        listed = [line.strip() for line in _text(names).splitlines() if line.strip()]
        if len(listed) != num_classes:
            raise InputError(
                f"labels {names} list {len(listed)} classes, the teacher has {num_classes}; give one name on each line"
            )
        if strangers := [name for name in found if name not in listed]:
            raise InputError(f"labels {names} do not list {strangers[0]}, a folder of {folder}; correct either")
        return {name: listed.index(name) for name in found}
    if found and all(name.isdecimal() for name in found):
        return dict(zip(found, _numbers(found, num_classes, folder), strict=True))
    if found and len(found) != num_classes:
        raise InputError(
            f"test data {folder} have {len(found)} classes, the teacher {num_classes}; measure on the classes it was "
            "trained for, or list the names of all in its order in a file, --labels names.txt"
        )
    return {name: index for index, name in enumerate(found)}


def _text(path: Path) -> str:
    """Return the text of a file. Raises InputError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read labels {path}: {error.strerror or error}; check the path") from error
    except ValueError as error:
        raise InputError(f"labels {path} are no text in UTF-8; save them as such") from error


def _read_table(table: Path) -> list[list[str]]:
    """Return the rows of a CSV file, whatever separates its columns. Raises InputError if it has none."""
    text = _text(table)
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    rows = [row for row in csv.reader(text.splitlines(), delimiter=separator) if any(map(str.strip, row))]
    if not rows or len(rows[0]) < 2 or len({len(row) for row in rows}) > 1:
        raise InputError(f"labels {table} are no table of files and labels; give a CSV with these two columns")
    return rows


def _files_by_name(folder: Path) -> dict[str, Path]:
    """Map each picture's path within ``folder`` and its name, with and without extension, to it, in lower case."""
    known: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            within = path.relative_to(folder)
            for name in (str(within), str(within.with_suffix("")), path.name, path.stem):
                known.setdefault(name.lower(), path)
    return known


def _columns(rows: list[list[str]], known: Mapping[str, Path], table: Path) -> tuple[int, int, list[list[str]]]:
    """Return the columns of files and of labels, and the rows without a header."""
    header = ["".join(filter(str.isalnum, cell)).lower() for cell in rows[0]]
    files = [index for index, name in enumerate(header) if name in FILE_COLUMNS]
    labels = [index for index, name in enumerate(header) if name in LABEL_COLUMNS]
    if files and labels:
        return files[0], labels[0], rows[1:]
    if len(rows[0]) == 2:
        has_header = rows[0][0].strip().lower() not in known and len(rows) > 1
        return 0, 1, rows[1:] if has_header else rows
    raise InputError(
        f"labels {table} have the columns {', '.join(rows[0])}; call that of the files file, that of the labels label"
    )


def _numbers(labels: Sequence[str], num_classes: int, source: Path) -> list[int]:
    """Return labels as numbers from 0. Raises InputError if they are not the network's classes."""
    if all(label.isdecimal() for label in labels):
        numbers = [int(label) for label in labels]
        if max(numbers) == num_classes and min(numbers) > 0:
            _log.info("labels of %s are counted from 1", source)
            return [number - 1 for number in numbers]
        if max(numbers) >= num_classes:
            raise InputError(
                f"labels of {source} go up to {max(numbers)}, the teacher has {num_classes} classes, counted from 0; "
                "correct them"
            )
        if min(numbers) > 0:
            _log.warning("labels of %s are taken as counted from 0, so that class 0 has no picture", source)
        return numbers
    names = sorted(set(labels))
    if len(names) != num_classes:
        raise InputError(
            f"labels of {source} are {len(names)} different names, the teacher has {num_classes} classes; "
            "give their numbers in its order, from 0"
        )
    return [names.index(label) for label in labels]
