"""Labels of pictures in folders: from tables, from lists of names, from numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nni_autorecon.data.test_sets import load_evaluation_data
from nni_autorecon.errors import InputError
from nni_autorecon.shapes import ImageShape

IMAGE = ImageShape(3, 8, 8)


def picture(path: Path, brightness: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), brightness, np.uint8)).save(path)


def loaded(folder: Path, labels: Path | None = None, *, classes: int = 3) -> dict[int, int]:
    """The labels of the pictures, by their brightness."""
    data = load_evaluation_data(str(folder), num_classes=classes, image=IMAGE, labels=labels)
    return {int(data[index][0][0, 0, 0]): int(data[index][1]) for index in range(len(data))}


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    for index, name in enumerate(("b.png", "a.png", "c.png")):
        picture(tmp_path / "flat" / name, 10 * index)
    for index, name in enumerate(("d.png", "same.png", "other/same.png"), start=3):
        picture(tmp_path / "flat" / "more" / name, 10 * index)
    picture(tmp_path / "flat" / "more" / "b.png", 70)
    (tmp_path / "flat" / "a.json").write_text("{}")
    return tmp_path / "flat"


TABLES = {
    "header": "file,label\na.png,2\nb.png,0\nmore/d.png,1\n",
    "no header": "a.png,2\nb.png,0\nd.png,1\n",
    "no extension": "ImageId;TrueLabel\na;2\nb;0\nd;1\n",
    "tabs": "filename\tclass\na.png\t2\nB.png\t0\nd.png\t1\n\n",
    "names": "file,label\na.png,zebra\nb.png,ant\nd.png,newt\n",
    "from 1": "file,label\na.png,3\nb.png,1\nd.png,2\n",
    "more columns": 'ImageId,URL,x,TrueLabel,Author\na,"http://a,b",1,2,me\nb,u,1,0,me\nd,u,2,1,"you, too"\n',
    "spaces": "a.png 2\nb.png 0\nmore/d.png 1\n",
    "bars": "file path|category\na.png|2\nb.png|0\nmore/d.png|1\n",
    "other folders": "file,label\n/data/test/a.png,2\n./b.png,0\nC:\\test\\more\\d.png,1\n",
    "floating point": "file,label\na.png,2.0\nb.png,0.0\nd.png,1.\n",
    "other headers": "which one,what is it\na.png,2\nb.png,0\nd.png,1\n",
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
def test_a_table_tells_the_labels_of_a_flat_folder(flat: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    assert loaded(flat, tmp_path / "labels.csv") == {10: 2, 0: 0, 30: 1}  # and not c, which it does not name


FAULTS = {
    "missing files": ("file,label\na.png,1\nx.png,2\ny,0\n", "name 2 of 3 files that are not in .*, such as x.png;"),
    "columns": ("which,what,why\na.png,1,2\n", "have the columns which, what, why; call that of the files file"),
    "one column": ("a.png\n", "are no table of files and labels"),
    "nothing": ("", "are no table of files and labels"),
    "too large": ("file,label\na.png,7\n", "go up to 7, the teacher has 3 classes, counted from 0"),
    "names": (
        "file,label\na.png,newt\nb.png,ant\n",
        "are 2 different names, the teacher has 3 classes; give their numbers",
    ),
    "header alone": ("file,label\n", "have a header and no line below it"),
    "negative": ("file,label\na.png,-1\nb.png,0\nd.png,1\n", "go down to -1; leave out the lines"),
    "without a label": ("file,label\na.png,1\nb.png,\n", "have none for b.png; leave its line out"),
    "two labels": ("file,label\na.png,1\nA,2\n", "have two different ones for a.png"),
    "several files": ("file,label\nsame.png,1\n", "not in .* or lie there several times, such as same.png"),
    "ragged": ("file,label\na.png,1,2\n", "are no table of files and labels"),
}


@pytest.mark.parametrize(("text", "message"), FAULTS.values(), ids=FAULTS)
def test_a_table_that_does_not_fit_is_named(flat: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        loaded(flat, tmp_path / "labels.csv")


def test_a_flat_folder_alone_asks_for_a_table(tmp_path: Path) -> None:
    picture(tmp_path / "flat" / "a.png", 1)
    with pytest.raises(InputError, match="flat have no class folders; give a CSV of files and labels with --labels"):
        loaded(tmp_path / "flat")


def test_a_table_that_is_missing_is_named(flat: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read labels .*none.csv: No such file or directory; check the path"):
        loaded(flat, tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("names", "classes", "expected"),
    [
        (("0", "2", "10"), 12, {0: 0, 1: 2, 2: 10}),  # numbers of a network with more classes
        (("00", "01", "02"), 3, {0: 0, 1: 1, 2: 2}),
        (("1", "2", "10"), 10, {0: 0, 1: 1, 2: 9}),  # from 1
        (("newt", "ant", "zebra"), 3, {0: 1, 1: 0, 2: 2}),
    ],
)
def test_names_of_folders_are_numbers_or_in_order(tmp_path: Path, names, classes, expected) -> None:
    for index, name in enumerate(names):
        picture(tmp_path / "sorted" / name / "x.png", index)
    assert loaded(tmp_path / "sorted", classes=classes) == expected


def test_ten_classes_by_floating_point_numbers_are_not_in_alphabetical_order(tmp_path: Path) -> None:
    for index in range(11):
        picture(tmp_path / "flat" / f"{index}.png", index)
    (tmp_path / "labels.csv").write_text("".join(f"{index}.png,{index}.0\n" for index in range(11)))
    assert loaded(tmp_path / "flat", tmp_path / "labels.csv", classes=11) == {index: index for index in range(11)}


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    for index, name in enumerate(("ant", "newt", ".ipynb_checkpoints", "__MACOSX")):
        picture(tmp_path / "sorted" / name / "x.png", index)
    assert loaded(tmp_path / "sorted", classes=2) == {0: 0, 1: 1}


def test_numbers_without_0_may_be_of_a_network_with_more_classes(tmp_path: Path, caplog) -> None:
    for name in ("1", "2"):
        picture(tmp_path / "sorted" / name / "x.png", int(name))
    assert loaded(tmp_path / "sorted", classes=3) == {1: 1, 2: 2}
    assert "are taken as counted from 0, so that class 0 has no picture" in caplog.text


def test_a_list_of_names_gives_the_order_and_classes_without_a_folder(tmp_path: Path) -> None:
    for index, name in enumerate(("newt", "ant")):
        picture(tmp_path / "some" / name / "x.png", index)
    (tmp_path / "names.txt").write_text("zebra\nnewt\nant\n")
    assert loaded(tmp_path / "some", tmp_path / "names.txt") == {0: 1, 1: 2}
    with pytest.raises(InputError, match="have 2 classes, the teacher 3; .* --labels names.txt"):
        loaded(tmp_path / "some")
    (tmp_path / "names.txt").write_text("zebra\nnewt\n")
    with pytest.raises(InputError, match="list 2 classes, the teacher has 3; give one name on each line"):
        loaded(tmp_path / "some", tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("zebra\nnewt\nbee\n")
    with pytest.raises(InputError, match="do not list ant, a folder of .*; correct either"):
        loaded(tmp_path / "some", tmp_path / "names.txt")


@pytest.mark.parametrize("spec", ["digits", "cifar10:here"])
def test_data_with_labels_of_their_own_take_no_others(spec: str) -> None:
    with pytest.raises(InputError, match=f"test data {spec} have labels of their own; leave out --labels"):
        load_evaluation_data(spec, num_classes=10, image=IMAGE, labels="x.csv")
