"""Settings: the one way in, and what it refuses."""

import argparse
import dataclasses
import json

import pytest

from nni_autorecon.config.common import Config
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.config.distill import DistillConfig
from nni_autorecon.config.flags import add_flags, from_flags
from nni_autorecon.config.rules import STRATEGIES
from nni_autorecon.config.search import SearchConfig
from nni_autorecon.errors import InputError


def test_a_whole_float_is_taken_for_an_int():
    assert SearchConfig().override({"epochs": 4.0}).epochs == 4


def test_override_leaves_the_original_alone():
    config = SearchConfig()
    assert config.override({"width": 7}).width == 7
    assert config == SearchConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown setting 'epoch'; did you mean 'epochs'"),
        ({"epochs": 2.5}, "epochs = 2.5 is not a whole number"),
        ({"epochs": "3"}, "epochs = '3' is not a whole number"),
        ({"epochs": True}, "epochs = True is not a whole number"),
        ({"epochs": None}, "epochs = None is not a whole number"),
        ({"epochs": 0}, "epochs = 0 is too small; the least is 1"),
        ({"weight_beta1": 1.0}, "weight_beta1 = 1.0 is too large"),
        ({"weight_lr": float("nan")}, "weight_lr = nan is not finite"),
        ({"inherit_weights": 1}, "inherit_weights = 1 is not true or false"),
        ({"relaxation": "soft"}, "relaxation = 'soft' is not one of logits, paper"),
        ({"teacher": 5}, "teacher = 5 is not text"),
        ([1, 2], "expected names and values, got list"),
    ],
)
def test_what_cannot_be_used_is_named(values, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        SearchConfig().override(values, source="tuner")


@pytest.mark.parametrize("bits", ["w1a4", "w4a9", "4", "w4a4 ", "W4A4"])
def test_bits_are_from_2_to_8(bits):
    with pytest.raises(InputError, match="bits"):
        CompressConfig().override({"bits": bits})


@pytest.mark.parametrize(
    ("size", "count"),
    [("1B", 1), ("38.2kB", 38_200), ("1.5MB", 1_500_000), ("1.5 MB", 1_500_000), ("0.0000019MB", 1), ("0kB", 0)],
)
def test_sizes_are_read_in_powers_of_ten(size, count, tmp_path):
    assert CompressConfig(size=size).size.bytes == count
    (tmp_path / "c.yml").write_text(f"size: {size}\n")
    assert CompressConfig.load(tmp_path / "c.yml").to_dict()["size"] == size
    assert CompressConfig.from_record(CompressConfig(size=size).to_dict(), source="config.json").size.bytes == count


@pytest.mark.parametrize(
    "size", ["1.5", "", "MB", "-1MB", "1.5Mb", "1,5MB", "1e3kB", "1.MB", "1MB\n", "9" * 99 + "B", "٣MB"]
)
def test_other_sizes_are_refused(size):
    with pytest.raises(
        InputError, match=r"settings: size: size .* is not understood; write it as 1.5MB, in B, kB or MB"
    ):
        CompressConfig(size=size)
    with pytest.raises(InputError, match="size = 1500 is not text"):
        CompressConfig(size=1500)


def test_bits_give_both_widths():
    quantization = CompressConfig().override({"bits": "w2a7"}).quantization
    assert (quantization.bits.weights, quantization.bits.activations) == (2, 7)


GDFQ = CompressConfig(method="gdfq", generator="gdfq")


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (GDFQ, {"epochs": 5, "warmup_epochs": 4, "range_epochs": 1}, "epochs .* must exceed"),
        (
            GDFQ,
            {"generator_updates": "warmup", "warmup_epochs": 0},
            "warmup_epochs 0 train nothing; raise warmup_epochs",
        ),
        (GDFQ, {"method": "zeroq"}, "method is zeroq, so that generator would do nothing; leave out generator"),
        (GDFQ, {"input_bits": 4}, "protocol is activations, so that input_bits would do nothing"),
        (CompressConfig(), {"generator": "searched"}, "generator searched needs a genotype; give --genotype FILE"),
        (CompressConfig(), {"preset": "paper"}, "generator searched needs a genotype"),
        (
            CompressConfig(),
            {"method": "dfq", "activation_ranges": "mse"},
            "method is dfq, so that activation_ranges",
        ),
        (CompressConfig(), {"method": "zeroq-kd", "epochs": 5}, "epochs .* must exceed"),
        (DistillConfig(), {"generator": "gdfq@equal-macs"}, "generator gdfq@equal-macs needs a genotype"),
        (CompressConfig(), {"method": "dfc", "mixed_share": 0.4}, "method is dfc, so that mixed_share would do"),
        (
            GDFQ,
            {"generator_updates": "warmup", "class_weight": 0.0},
            "generator_updates is warmup, so that class_weight would do nothing; leave out class_weight",
        ),
        (CompressConfig(), {"method": "zeroq", "flip_share": 0.1}, "method is zeroq, so that flip_share"),
        (GDFQ, {"image_steps": 3}, "method is gdfq, so that image_steps would do nothing"),
        (CompressConfig(), {"method": "dfq", "image_count": 3}, "method is dfq, so that image_count would"),
        (CompressConfig(), {"method": "dfc", "width": 3}, "method is dfc, so that width would do nothing"),
        (
            SearchConfig(),
            {"temperature_schedule": "constant", "temperature_end": 1.0},
            "temperature_schedule is constant, so that temperature_end would do nothing",
        ),
        (GDFQ, {"mixed_classes": 3}, "mixed_share is 0, so that mixed_classes would do nothing"),
        (GDFQ, {"ce_weight": 0.0, "ce_gate": 0.5}, "ce_weight is 0, so that ce_gate would do nothing"),
        (GDFQ, {"kd_weight": 0.0, "kd_temperature": 3.0}, "disagreement_weight is 0, so that kd_temperature"),
        (GDFQ, {"losses": "adadfq", "kd_reduction": "batchmean"}, "so that kd_reduction would do nothing"),
        (GDFQ, {"ce_weight": 0.0, "kd_weight": 0.0}, "all 0, so that the student has nothing to learn; raise one"),
        (CompressConfig(), {"method": "zeroq-kd", "bns_form": "kl"}, "method is zeroq-kd, so that bns_form"),
        (CompressConfig(), {"method": "dfq", "student_lr": 5.0}, "so that student_lr would do nothing; leave out stu"),
        (
            CompressConfig(),
            {"method": "dfq", "epochs": 77, "steps": 3},
            "dfq, so that steps, epochs would do nothing",
        ),
        (CompressConfig(), {"method": "dfc", "weight_lr": 0.1}, "method is dfc, so that weight_lr would do nothing"),
        (GDFQ, {"bns_weight": 0.0, "bns_form": "kl"}, "bns_weight is 0, so that bns_form would do nothing"),
        (
            CompressConfig(),
            {"method": "zeroq", "preset": "gdfq"},
            "so that generator, .*; leave out preset gdfq",
        ),
        (CompressConfig(), {"method": "dfc", "losses": "adadfq"}, "nothing; leave out losses adadfq"),
        (CompressConfig(), {"method": "dfq", "epochs": 14}, "method is dfq, so that epochs would do nothing"),
        (GDFQ, {"genotype": "g.json"}, "generator gdfq has no use for a genotype; leave out --genotype"),
        (GDFQ, {"generator": "random:0", "width": 3, "genotype": "g.json"}, "random:0 has no use for a genotype"),
        (GDFQ, {"generator": "gdfq@equal-macs"}, "generator gdfq@equal-macs needs a genotype"),
        (CompressConfig(), {"method": "zeroq", "preset": "best"}, "would do nothing; leave out preset best"),
        (CompressConfig(), {"method": "zeroq", "range_lr": 0.1}, "method is zeroq, so that range_lr would"),
        (CompressConfig(), {"method": "zeroq", "losses": "gdfq", "hard_step": 0.1}, "nothing; leave out hard_step"),
        (GDFQ, {"class_weight": 0.0, "bns_weight": 0.0}, "are all 0, so that the generator has nothing to learn"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config, settings, message):
    with pytest.raises(InputError, match=message):
        config.override(settings).require_consistent()


def test_a_generator_without_an_objective_is_refused():
    weights = {"reconstruction_weight": 0, "adversarial_weight": 0, "balance_weight": 0}
    config = DistillConfig(generator="gdfq")
    with pytest.raises(InputError, match="all 0, so that the generator has nothing to learn; raise one of them"):
        config.override(weights).require_consistent()
    for name in weights:
        config.override({**weights, name: 1}).require_consistent()


def test_a_preset_gives_its_values_to_what_is_not_given_beside_it():
    config = CompressConfig().override({"epochs": 7, "preset": "gdfq", "losses": "adadfq", "kd_weight": 2.0})
    assert (config.epochs, config.kd_weight) == (7, 2.0)  # whatever the order
    assert (config.steps, config.generator, config.ce_weight) == (200, "gdfq", 0.0)
    assert CompressConfig().override(config.to_dict()) == config
    again = config.override({"preset": "paper", "losses": "gdfq"})  # whichever comes first
    assert (again.epochs, again.kd_weight) == (7, 2.0)
    assert (again.steps, again.ce_weight, again.generator) == (200, 1.0, "searched")


def test_a_preset_of_the_search_goes_with_every_strategy_and_yields_to_what_is_given():
    for strategy in STRATEGIES:
        config = SearchConfig().override({"preset": "best", "strategy": strategy})
        config.require_consistent()
        assert (config.epochs, config.bns_weight) == (37, 1.0)
    assert SearchConfig().override({"epochs": 3, "preset": "best"}).epochs == 3


@pytest.mark.parametrize("given", [{"feature_weight": 100.0}, {"ce_weight": 1.0}, {"bns_form": "var"}])
def test_what_was_given_before_stands_whatever_a_later_preset_says(given):
    """Be it a default, or what the preset beside it says."""
    config = CompressConfig().override({"preset": "best", **given})
    for later in ({"losses": "adadfq"}, {"losses": "synq"}, {"preset": "gdfq"}):
        assert config.override(later).to_dict().items() >= given.items()


def test_presets_mean_the_same_in_whatever_order_they_are_given():
    both = {"preset": "best", "losses": "gdfq"}
    together = CompressConfig().override(both)
    assert (together.feature_weight, together.activation_ranges) == (0.0, "percentile")  # losses speak of losses
    for first, second in (("preset", "losses"), ("losses", "preset")):
        assert CompressConfig().override({first: both[first]}).override({second: both[second]}) == together


def test_gdfqs_losses_are_the_defaults():
    assert CompressConfig().override({"losses": "gdfq"}) == CompressConfig(losses="gdfq")


@pytest.mark.parametrize("kind", [SearchConfig, CompressConfig])
def test_presets_are_of_settings_that_there_are_and_may_be_given_alone(kind):
    given = {"genotype": "g.json"} if kind is CompressConfig else {}
    for name, meanings in kind.PRESETS.items():
        given |= {"method": "gdfq"} if name == "losses" else {}
        assert set(meanings) == set(kind.__dataclass_fields__[name].metadata["choices"])
        for value, settings in meanings.items():
            searched = settings.get("generator", "searched") == "searched"
            own = {key: each for key, each in given.items() if key != "genotype" or searched}
            config = kind().override({**own, name: value})
            config.require_consistent()
            assert config == kind().override({**config.to_dict(), **settings, name: value})


def test_a_preset_may_stand_in_the_file_and_as_a_flag(tmp_path):
    (tmp_path / "c.yml").write_text("preset: paper\nepochs: 9\n")
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    add_flags(parser, CompressConfig)
    arguments = ["--config", str(tmp_path / "c.yml"), "--steps", "5"]
    config = from_flags(CompressConfig, parser.parse_args(arguments))
    assert (config.epochs, config.steps, config.batch_size) == (9, 5, 200)
    over = from_flags(CompressConfig, parser.parse_args([*arguments, "--preset", "gdfq"]))
    assert (over.epochs, over.steps, over.generator) == (9, 5, "gdfq")
    tuned = over.override({"losses": "hast"}, source="tuner")
    assert (tuned.epochs, tuned.hard_step) == (9, 0.01)


def test_settings_may_contradict_each_other_on_the_way():
    GDFQ.override({"epochs": 3}).override({"warmup_epochs": 1}).require_consistent()


def test_seeds_stand_in_names():
    config = CompressConfig(generator="random:{seed}", genotype="digits/seed-{seed}.json", seed=7)
    assert (str(config.generator_spec), config.genotype_file) == ("random:7", "digits/seed-7.json")
    assert str(CompressConfig(genotype="a.json").generator_spec) == "searched"
    assert CompressConfig(method="zeroq").generator_spec is None


@pytest.mark.parametrize("text", ['{"student_lr": 1e-05, "mean": "0.5"}', "student_lr: 1e-5\nmean: 0.5\n"])
def test_numbers_may_be_written_as_people_write_them(tmp_path, text):
    (tmp_path / "settings").write_text(text)
    config = CompressConfig.load(tmp_path / "settings")
    assert (config.student_lr, config.mean) == (1e-5, "0.5")


@pytest.mark.parametrize("text", ['{"epochs": 3, "teacher": "x.py:f"}', "epochs: 3\nteacher: x.py:f\n"])
def test_files_may_be_json_or_yaml(tmp_path, text):
    path = tmp_path / "settings"
    path.write_text(text)
    config = SearchConfig.load(path)
    assert (config.epochs, config.teacher) == (3, "x.py:f")


def _parse(kind, *argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    add_flags(parser, kind)
    return from_flags(kind, parser.parse_args(argv))


def test_flags_go_before_the_file_and_the_file_before_defaults(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"epochs": 3, "width": 5}))
    config = _parse(SearchConfig, "--config", str(path), "--width", "7", "--weight-lr", "1e-2", "--inherit-weights")
    assert (config.epochs, config.width, config.weight_lr, config.inherit_weights) == (3, 7, 0.01, True)
    assert config.batch_size == SearchConfig().batch_size


def test_a_flag_that_is_no_number_is_named():
    with pytest.raises(InputError, match="command line: epochs = 'ten' is not a whole number"):
        _parse(SearchConfig, "--epochs", "ten")


@pytest.mark.parametrize("kind", [SearchConfig, CompressConfig, DistillConfig])
def test_every_default_passes_its_own_check(kind):
    defaults = kind().to_dict()
    assert kind().override(defaults) == kind()
    assert set(defaults) == {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("kind", [Config, SearchConfig, CompressConfig, DistillConfig])
def test_every_setting_says_what_it_means(kind):
    assert all(field.metadata["help"] for field in dataclasses.fields(kind))


@pytest.mark.parametrize("given", [(0.5, 0.25), [0.5, 0.25], ["0.5", "0.25"], ["0.5,", "0.25"], "0.5,0.25"])
def test_a_mean_of_channels_is_written_in_many_ways(given):
    assert CompressConfig().override({"mean": given}, source="arguments").mean == "0.5,0.25"


def test_a_mean_of_channels_is_one_flag_with_several_numbers():
    parser = argparse.ArgumentParser()
    add_flags(parser, CompressConfig)
    arguments = parser.parse_args(["--mean", "0.5", "-0.25", "--std", "1,2", "--seed", "3"])
    config = from_flags(CompressConfig, arguments)
    assert (config.mean, config.std, config.seed) == ("0.5,-0.25", "1,2", 3)
