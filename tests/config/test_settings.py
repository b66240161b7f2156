"""Settings made by a constructor, what they remember of it, and what groups, rules and choices say of them."""

import json

import pytest

from nni_autorecon.config.common import SCHEDULES, Config
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.config.distill import DistillConfig
from nni_autorecon.config.search import RELAXATIONS, TEMPERATURES, SearchConfig
from nni_autorecon.config.stages import STAGES, stage_of_command
from nni_autorecon.errors import InputError
from nni_autorecon.losses.forms import GAPS, REDUCTIONS
from nni_autorecon.quantization.ranges import RANGES
from nni_autorecon.quantization.specification import PROTOCOLS, Bits, Quantization

CONFIGS = [stage.config for stage in STAGES.values()]


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (SearchConfig, {"epochs": -3}, "epochs = -3 is too small; the least is 1"),
        (SearchConfig, {"width": 0}, "width = 0 is too small; the least is 1"),
        (SearchConfig, {"weight_lr": "x"}, "weight_lr = 'x' is not a number; give a number"),
        (SearchConfig, {"weight_lr": "x", "width": 0, "device": "tpu", "epochs": -3}, "device = 'tpu' is not one of"),
        (SearchConfig, {"device": "tpu"}, "device = 'tpu' is not one of auto, cpu, cuda; choose one of them"),
        (CompressConfig, {"bits": "w4"}, "bits: bits 'w4' are not understood; write them as w4a8"),
        (CompressConfig, {"bits": 4}, "bits = 4 is not text"),
        (CompressConfig, {"weight_schedule": "cosin"}, "weight_schedule = 'cosin' is not one of constant, cosine"),
        (CompressConfig, {"steps": 0}, "steps = 0 is too small"),
        (CompressConfig, {"batch_size": 1}, "batch_size = 1 is too small; the least is 2"),
        (CompressConfig, {"generator": "nonsense"}, "generator 'nonsense' is not known; use one of searched"),
        (SearchConfig, {"epoch": 3}, "settings: unknown setting 'epoch'; did you mean 'epochs'"),
        (DistillConfig, {"student": None}, "student = None is not text"),
        (DistillConfig, {"test_data": "a\0b"}, "test_data = .* holds characters that no file name has"),
    ],
)
def test_a_constructor_names_the_setting_that_is_wrong(kind, values, message):
    with pytest.raises(InputError, match=message) as caught:
        kind(**values)
    assert "\n" not in str(caught.value)


def test_a_constructor_takes_the_types_that_are_meant():
    config = CompressConfig(bits="w2a7", epochs=7.0, student_lr=1)
    assert (type(config.bits), config.bits.weights, config.bits.activations) == (Bits, 2, 7)
    assert (type(config.epochs), type(config.student_lr)) == (int, float)
    assert type(config.to_dict()["bits"]) is str


def test_a_preset_of_a_constructor_yields_to_what_stands_beside_it():
    assert SearchConfig(preset="best").epochs == 37
    config = SearchConfig(preset="best", epochs=8, width=7)  # 8 is the default, too
    assert (config.epochs, config.width, config.bns_weight) == (8, 7, 1.0)


def test_what_was_given_is_remembered_and_makes_no_difference():
    config = SearchConfig(epochs=8)
    assert (SearchConfig().given, config.given) == (frozenset(), {"epochs"})
    assert config == SearchConfig()
    assert config.override({"width": 5, "seed": 0}).given == {"epochs", "width", "seed"}
    assert config.given == {"epochs"}
    assert SearchConfig(preset="best").given == {"preset"}


def test_what_several_trials_share_may_be_of_no_use():
    config = CompressConfig(method="gdfq", generator="gdfq", mixed_classes=3)
    with pytest.raises(InputError, match="mixed_classes would do nothing"):
        config.require_consistent()
    shared = config.as_shared()
    shared.override({"kd_weight": 2.0}).require_consistent()
    with pytest.raises(InputError, match="mixed_classes would do nothing"):
        shared.override({"mixed_classes": 3}).require_consistent()
    with pytest.raises(InputError, match="mixed_classes would do nothing"):
        config.require_consistent()


def test_what_a_run_wrote_down_is_read_as_it_is():
    """Presets meant other values when it was written, and settings that its method ignores stand there, too."""
    record = {**CompressConfig(method="dfq").to_dict(), "preset": "best", "bns_form": "std"}
    del record["weight_lr"]
    config = CompressConfig.from_record(record, source="config.json")
    assert config.to_dict() == {**record, "weight_lr": CompressConfig().weight_lr}
    assert config.given == frozenset()
    with pytest.raises(InputError, match="config.json: epochs = 0 is too small"):
        CompressConfig.from_record({"epochs": 0}, source="config.json")


def test_values_of_earlier_versions_are_read(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"protocol": "gdfq"}))
    for config in (
        CompressConfig(protocol="gdfq"),
        CompressConfig.load(tmp_path / "c.json"),
        CompressConfig.from_record({"protocol": "gdfq"}, source="r"),
        CompressConfig().override({"protocol": "gdfq"}),
    ):
        assert config.protocol == "activations"
    old = {"weight_bits": 3, "activation_bits": 5, "protocol": "gdfq", "input_bits": None}
    assert Quantization.from_dict(old) == Quantization("w3a5")
    assert Quantization.from_dict(Quantization("w3a5", "integer", 4).to_dict()) == Quantization("w3a5", "integer", 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"protocol": "tensors"}, "protocol 'tensors' is unknown; choose one of activations, integer"),
        ({"weight_ranges": "all"}, "ranges 'all' are unknown"),
        ({"activation_ranges": "all"}, "ranges 'all' are unknown"),
        ({"input_bits": 8}, "leave out input_bits"),
        ({"bits": "w9a4"}, "bits 'w9a4' are not understood"),
    ],
)
def test_a_quantization_that_there_is_not_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        Quantization(**{"bits": "w4a4", **values})


@pytest.mark.parametrize("name", ["given", "shared", "PRESETS", "GROUPS", "RULES"])
def test_only_settings_are_settings(name, tmp_path):
    for call in (SearchConfig().override, lambda values: SearchConfig.from_record(values, source="settings")):
        with pytest.raises(InputError, match=f"settings: unknown setting '{name}'"):
            call({name: "1"})
    (tmp_path / "c.yml").write_text(f"{name}: 1e-3\n")
    with pytest.raises(InputError, match=f"unknown setting '{name}'"):
        SearchConfig.load(tmp_path / "c.yml")


# What the tables say


@pytest.mark.parametrize(
    ("kind", "name", "table"),
    [
        (Config, "bns_form", GAPS),
        (CompressConfig, "kd_reduction", REDUCTIONS),
        (CompressConfig, "weight_ranges", RANGES),
        (CompressConfig, "activation_ranges", RANGES),
        (CompressConfig, "protocol", PROTOCOLS),
        (CompressConfig, "student_schedule", SCHEDULES),
        (DistillConfig, "weight_schedule", SCHEDULES),
        (SearchConfig, "weight_schedule", SCHEDULES),
        (SearchConfig, "relaxation", RELAXATIONS),
        (SearchConfig, "temperature_schedule", TEMPERATURES),
    ],
)
def test_a_choice_has_its_code(kind, name, table):
    assert kind.__dataclass_fields__[name].metadata["choices"] == tuple(table)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_help_lists_every_setting_once_and_few_first(kind):
    listed = [name for names in kind.GROUPS.values() for name in names]
    assert sorted(listed) == sorted(kind().to_dict())
    assert len(next(iter(kind.GROUPS.values()))) <= 16


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_rule_is_of_settings_of_its_stage_and_of_values_that_they_take(kind):
    for rule in kind.RULES:
        assert {*rule.names, *rule.when} <= kind().to_dict().keys()
        for name in rule.when:
            choices = kind.__dataclass_fields__[name].metadata["choices"]
            if rule.values is not None:
                assert set(rule.values) < set(choices)
            elif set(rule.others) != {0}:
                assert all(str(getattr(kind(**{name: value}), name)) == value for value in rule.others)


@pytest.mark.parametrize(
    ("command", "stage"),
    [
        ("python trials/compress.py --bits w4a4", "compress"),
        ("NNI=1 exec python3 ./trials/search.py", "search"),
        ("python '/a folder/distill.py'", "distill"),
        ("A=1 .venv/bin/nni-autorecon search --seed 1", "search"),
        ("cd a && python3 -m nni_autorecon distill", "distill"),
        ("nni-autorecon show search", None),
        ("python train.py --search", None),
        ("python research.py search compress", None),
        ("", None),
    ],
)
def test_a_trials_command_tells_its_stage(command, stage):
    found = stage_of_command(command)
    assert (found and found.name) == stage


def test_a_command_that_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="No closing quotation"):
        stage_of_command("python 'search.py")
