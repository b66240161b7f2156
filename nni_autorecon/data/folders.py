"""Pictures in folders get their classes from the folders' names, or from a table of files and labels."""

from __future__ import annotations

import csv
import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, one_line

FILE_COLUMNS = {"file", "filename", "filepath", "fname", "image", "imageid", "imagename", "imagepath", "imagefile"}
FILE_COLUMNS |= {"img", "path", "name", "id"}
LABEL_COLUMNS = {"label", "labels", "truelabel", "class", "classid", "target", "category", "y"}
"""The two columns of a table have one of these headings, in lower case and without signs."""

NUMBER = re.compile(r"[-+]?\d+(\.0*)?")
"""Whole numbers, also as floating-point ones, which tables with gaps have."""

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
    files = [_find(known, name) for name in names]
    if missing := [name for name, file in zip(names, files, strict=True) if file is None]:
        raise InputError(
            f"labels {table} name {len(missing)} of {len(names)} files that are not in {folder}, or lie there several "
            f"times, such as {missing[0]}; correct the folder or the table"
        )
    texts = [row[label_column].strip() for row in rows]
    if unlabelled := [name for name, text in zip(names, texts, strict=True) if not text]:
        raise InputError(f"labels {table} have none for {unlabelled[0]}; leave its line out, or give its class")
    labelled = dict(zip(files, texts, strict=True))
    if twice := [name for name, file, text in zip(names, files, texts, strict=True) if labelled[file] != text]:
        raise InputError(f"labels {table} have two different ones for {twice[0]}; correct the table")
    return LabelledPictures([file for file in files if file], _numbers(texts, num_classes, table))


def pictures_of_classes(folder: Path, names: Path | None, num_classes: int) -> LabelledPictures:
    """Return the pictures of a folder with a folder of pictures for each class.

    names: a text file with the classes' names in the network's order, one on each line. Without it, names that are all
    numbers are the numbers of the classes, from 0 or from 1, and other names are in alphabetical order.

    Raises InputError if a folder is missing, empty or unknown. Without ``names``, only numbers may be left out.
    """
    from torchvision.datasets import DatasetFolder
    from torchvision.datasets.folder import IMG_EXTENSIONS

    found = sorted(e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith((".", "__MACOSX")))
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
    separator = max(",;\t|", key=first.count)
    separator = separator if separator in first else " "
    rows = [row for row in csv.reader(text.splitlines(), delimiter=separator) if any(map(str.strip, row))]
    if not rows or len(rows[0]) < 2 or len({len(row) for row in rows}) > 1:
        raise InputError(f"labels {table} are no table of files and labels; give a CSV with these two columns")
    return rows


def _files_by_name(folder: Path) -> dict[str, Path | None]:
    """Map each picture's path within ``folder``, and the ends of it, to it, with and without extension, in lower case.

    What is the end of several paths, but none of them, is mapped to None.
    """
    from PIL import Image

    whole: dict[str, Path | None] = {}
    ends: dict[str, Path | None] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in Image.registered_extensions() and path.is_file():
            parts = path.relative_to(folder).parts[:-1]
            for start, name in itertools.product(range(len(parts) + 1), {path.name, path.stem}):
                end = "/".join([*parts[start:], name]).lower()
                if start == 0:
                    whole.setdefault(end, path)
                ends[end] = None if end in ends else path
    return ends | whole


def _find(known: Mapping[str, Path | None], name: str) -> Path | None:
    """Return the picture whose path ends as ``name`` does, or in as much of it as there is; None if none is known."""
    parts = name.lower().replace("\\", "/").split("/")
    return next((known[end] for start in range(len(parts)) if (end := "/".join(parts[start:])) in known), None)


def _columns(rows: list[list[str]], known: Mapping[str, Path | None], table: Path) -> tuple[int, int, list[list[str]]]:
    """Return the columns of files and of labels, and the rows without a header."""
    header = ["".join(filter(str.isalnum, cell)).lower() for cell in rows[0]]
    files = [index for index, name in enumerate(header) if name in FILE_COLUMNS]
    labels = [index for index, name in enumerate(header) if name in LABEL_COLUMNS]
    if files and labels:
        if len(rows) < 2:
            raise InputError(f"labels {table} have a header and no line below it; give a line for each file")
        return files[0], labels[0], rows[1:]
    if len(rows[0]) == 2:
        has_header = _find(known, rows[0][0].strip()) is None and len(rows) > 1
        return 0, 1, rows[1:] if has_header else rows
    raise InputError(
        f"labels {table} have the columns {', '.join(rows[0])}; call that of the files file, that of the labels label"
    )


def _numbers(labels: Sequence[str], num_classes: int, source: Path) -> list[int]:
    """Return labels as numbers from 0. Raises InputError if they are not the network's classes."""
    if all(NUMBER.fullmatch(label) for label in labels):
        numbers = [int(float(label)) for label in labels]
        if min(numbers) < 0:
            raise InputError(f"labels of {source} go down to {min(numbers)}; leave out the lines of files without one")
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
