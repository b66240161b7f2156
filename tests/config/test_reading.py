"""Files of names and values: what YAML means by them, and one line for what is wrong."""

import json

import pytest

from nni_autorecon.config.reading import LARGEST, read_names_and_values
from nni_autorecon.config.search import SearchConfig
from nni_autorecon.errors import InputError
from nni_autorecon.experiment.reading import read_experiment
from nni_autorecon.files import DEEPEST

READERS = {"settings": SearchConfig.load, "experiment": read_experiment}


@pytest.fixture(params=READERS)
def read(request, tmp_path):
    """Return what a reader makes of a text."""

    def reading(text):
        (tmp_path / "file.yml").write_text(text)
        return READERS[request.param](tmp_path / "file.yml")

    return reading


def nested(levels):
    return "epochs: " + "[" * levels + "]" * levels


LAUGHS = "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)
"""A billion values in a kilobyte."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 3\nwidth: 2\nepochs: 4\n", "'epochs' stands twice"),
        ('{"epochs": 3, "epochs": 4}', "'epochs' stands"),
        ("epochs: {a: 1, a: 2}\n", "'a' stands twice"),
        ("epochs: &a [*a]\n", "nested too deeply"),
        ("epochs: &a {b: *a}\n", "nested too deeply"),
        ("&a\nepochs: *a\n", "nested too deeply"),
        ("&a {? *a : 1}\n", "found unhashable key|unconstructable recursive node"),
        (LAUGHS, f"more than {LARGEST} values"),
        (nested(DEEPEST + 5), "nested too deeply"),
        (nested(1000), "nested too deeply|maximum recursion"),
        (nested(100_000), "nested too deeply|maximum recursion"),
        ("- epochs: 3\n", "expected names and values, got list"),
        ("epochs\n", "expected names and values, got str"),
        ("epochs: [3\n", "neither JSON nor YAML"),
        ("epochs: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("epochs: 2021-13-45\n", "month must be"),
        ("epochs: *nothing\n", "found undefined alias"),
    ],
)
def test_what_is_wrong_is_one_line(read, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "file.yml" in str(caught.value)


def test_a_merge_in_settings_and_experiments(tmp_path):
    """An alias that stands for a scalar or mapping more than once is plain YAML."""
    text = "trialCommand: &c python trials/search.py\na: &a {x: 1, y: 2}\n"
    text += "b: {<<: *a, y: 3}\nc: {<<: [*a, *a], z: 0}\nagain: [*c, *a, *a]\n"
    (tmp_path / "e.yml").write_text(text)
    known = read_experiment(tmp_path / "e.yml")
    assert known["b"] == {"x": 1, "y": 3}
    assert known["c"] == {"x": 1, "y": 2, "z": 0}
    assert known["again"] == ["python trials/search.py", {"x": 1, "y": 2}, {"x": 1, "y": 2}]
    (tmp_path / "c.yml").write_text("epochs: &n 3\nwidth: *n\n<<: {seed: 5}\n")
    config = SearchConfig.load(tmp_path / "c.yml")
    assert (config.epochs, config.width, config.seed) == (3, 3, 5)


@pytest.mark.parametrize("text", ["", "\n", "# a remark\n", "null\n", "{}"])
def test_a_file_may_say_nothing(text, tmp_path):
    (tmp_path / "c.yml").write_text(text)
    assert SearchConfig.load(tmp_path / "c.yml") == SearchConfig()
    with pytest.raises(InputError, match="is empty; nni-autorecon new"):
        read_experiment(tmp_path / "c.yml")


def test_as_much_as_a_person_writes_is_read(tmp_path):
    values = {f"name{n}": [n] * 3 for n in range(1000)}
    (tmp_path / "f").write_text("".join(f"{name}: {value}\n" for name, value in values.items()))
    assert read_names_and_values(tmp_path / "f", "file", remedy="") == values
    (tmp_path / "f").write_text(json.dumps(values))
    assert read_names_and_values(tmp_path / "f", "file", remedy="") == values
