"""Runs to tables: every figure by hand or by the statistics module, nothing unfinished dropped, nothing mixed."""

import io
import itertools
import json
import statistics

import pandas as pd
import pytest

from nni_autorecon.cli import main as cli
from nni_autorecon.config.common import Config
from nni_autorecon.config.compress import CompressConfig
from nni_autorecon.config.stages import stage_of_settings
from nni_autorecon.errors import InputError
from nni_autorecon.files import sealed, write_json
from nni_autorecon.reports.report import make_report, table_markdown
from nni_autorecon.runs import records
from nni_autorecon.runs.records import CANCELED, FAILED, INCOMPLETE, RUNNING, WAITING, Run, read_folders
from tests.helpers.report_runs import SEARCHES, TABLE_2, VERSIONS, found, run


def table(runs):
    """The first table alone, as cells."""
    text = table_markdown(make_report(runs).sections[0].tables[0])
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()]


def cells(runs):
    return {row[0]: row[1:-2] for row in table(runs)[2:]}


EXPECTED = """\
Teacher digits, accuracy 99.10 %. Test accuracy, in %, after the last block: mean ± standard deviation over \
seeds 0, 1, 2; in brackets the gain over GDFQ. Protocol activations.
Settings other than the defaults: none. searched is `searched:a-{seed}.json`.
Versions: nni-autorecon 0.1.0, torch 2.15.0.

| generator | w4a4 | w3a3 | MMACs | parameters (k) |
| --- | --- | --- | --- | --- |
| gdfq | 91.20 ± 0.26 | 78.10 ± 0.42, 1 of 3 failed | 28.7 | 430 |
| searched | 92.31 ± 0.20 (+1.11) | 70.00 (-8.10), n=1, 1 of 2 running | 22.1 ± 11.4 | 430 |

11 runs: 9 finished; 1 failed (lost); 1 running (now).
"""


def test_a_report_is_exactly_this():
    assert make_report(TABLE_2).to_markdown() == EXPECTED


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (["blockwise"], "after the last block"),
        (["gdfq", "dfc"], "last of 14 epochs"),
        (["gdfq", "dfq"], "at the end of each run"),
    ],
)
def test_the_caption_says_when_students_were_measured(methods, said):
    report = make_report([run(90.0, method=method) for method in methods])
    assert f"Test accuracy, in %, {said}: seed 0" in report.caption


def of_losses(accuracy, losses, seed, **changes):
    settings = CompressConfig().override({"generator": "gdfq", "losses": losses, "seed": seed, **changes}).to_dict()
    return run(accuracy, **settings)


def test_sets_of_losses_make_rows_and_speak_for_what_is_in_them():
    runs = [of_losses(90 + i + j, losses, j) for i, losses in enumerate(("gdfq", "adadfq", "ait")) for j in (0, 1)]
    head, _, *rows = table(runs)
    assert head[:3] == ["losses", "generator", "w4a4"]
    assert [row[:3] for row in rows] == [
        ["gdfq", "gdfq", "90.50 ± 0.71"],
        ["adadfq", "gdfq", "91.50 ± 0.71 (+1.00)"],
        ["ait", "gdfq", "92.50 ± 0.71 (+2.00)"],
    ]
    assert "Settings other than the defaults: none." in make_report(runs).caption


def test_a_run_with_the_values_of_a_set_counts_as_named_so():
    runs = [of_losses(90 + i, losses, j) for i, losses in enumerate((None, "ait")) for j in (0, 1)]
    assert [row[:3] for row in table(runs)[2:]] == [
        ["gdfq", "gdfq", "90.00 ± 0.00"],
        ["ait", "gdfq", "91.00 ± 0.00 (+1.00)"],
    ]


def test_a_setting_that_is_not_its_sets_own_shows():
    runs = [of_losses(90, "gdfq", 0), of_losses(91, "ait", 0), of_losses(92, "ait", 0, flip_share=0.01)]
    assert table(runs)[0][:2] == ["losses", "flip_share"]


def test_mean_and_deviation_are_those_of_the_sample():
    values = [91.0, 91.5, 91.1]
    (cell,) = cells([run(v, seed=i) for i, v in enumerate(values)])["gdfq"]
    assert cell == f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([FAILED], "failed"),
        ([RUNNING], "running"),
        ([WAITING, WAITING], "waiting"),
        ([CANCELED], "canceled"),
        ([INCOMPLETE], "incomplete"),
        ([WAITING, FAILED, FAILED], "2 failed, 1 waiting"),
    ],
)
def test_what_has_no_result_is_shown_as_what_it_is(statuses, expected):
    lost = [run(status=status, bits="w3a3", seed=seed) for seed, status in enumerate(statuses)]
    assert cells([run(90.0), *lost])["gdfq"] == ["90.00, n=1", expected]


def test_a_cell_says_how_many_seeds_it_lacks():
    runs = [
        run(90.0 + seed, bits=bits, seed=seed) for bits, seed in [*itertools.product(["w4a4", "w3a3"], range(3))][:5]
    ]
    runs.append(run(50.0, generator="all:identity"))
    assert cells(runs) == {"gdfq": ["91.00 ± 1.00", "90.50 ± 0.71, n=2"], "all:identity": ["50.00 (-41.00), n=1", "–"]}


def test_columns_and_rows_stand_as_in_the_paper():
    methods = [("gdfq", "searched:a.json"), ("dfc", "gdfq"), ("gdfq", "gdfq"), ("zeroq-kd", "gdfq"), ("dfq", "gdfq")]
    runs = [run(90.0, bits=b, method=m, generator=g) for b in ("w2a4", "w4a4", "w3a3") for m, g in methods]
    head, _, *rows = table(runs)
    assert head == ["method", "generator", "w4a4", "w3a3", "w2a4", "MMACs", "parameters (k)"]
    assert [row[:2] for row in rows] == [
        ["dfq", "–"],
        ["zeroq-kd", "–"],
        ["dfc", "–"],
        ["gdfq", "gdfq"],
        ["gdfq", "searched:a.json"],
    ]
    assert [row[2] for row in rows] == ["90.00 (+0.00), n=1"] * 3 + ["90.00, n=1", "90.00 (+0.00), n=1"]


def test_students_within_sizes_have_columns_behind_those_of_bits():
    """Bits of weights are of no use beside a size."""
    sizes = [run(80.0, bits=bits, size=size) for bits, size in (("w4a8", "9kB"), ("w3a8", "1.5 MB"), ("w2a8", "30kB"))]
    (section,) = make_report([*sizes, run(85.0, bits="w3a8", size="9kB", seed=1), run(90.0, bits="w2a8")]).sections
    table = section.tables[0]
    assert table.columns == ("w2a8", "1.5 MB a8", "30kB a8", "9kB a8")
    assert table.row_names == ("generator",)
    assert table.text(table.rows[0], "9kB a8") == "82.50 ± 3.54"
    assert "size = 9kB" in make_report([sizes[0]]).caption


def test_scales_are_columns_and_each_has_its_costs():
    runs = [
        run(80.0 + s, generator_scale=s, seed=seed, metrics={"generator_macs": s * 1e7 + seed * 1e6})
        for s in (4, 0.5, 1)
        for seed in (0, 1)
    ]
    head, _, row = table(runs)
    assert head[:4] == ["generator", "s = 0.5", "s = 1", "s = 4"]
    assert row[1:4] == ["80.50 ± 0.00", "81.00 ± 0.00", "84.00 ± 0.00"]
    assert row[4] == "5.5 ± 0.7 / 10.5 ± 0.7 / 40.5 ± 0.7"
    both = make_report([*runs, *(run(70.0, generator_scale=s, bits="w2a2") for s in (0.5, 4.0))])
    assert [section.heading for section in both.sections] == ["bits w2a2", "bits w4a4"]
    assert both.sections[0].tables[0].columns == (0.5, 4.0)


def test_where_gdfq_stands_at_equal_macs_only_the_gain_is_over_that():
    runs = [run(a, generator=g, genotype="a.json") for a, g in ((80.0, "gdfq@equal-macs"), (82.5, "searched"))]
    assert [row[0] for row in cells(runs).values()] == ["80.00, n=1", "82.50 (+2.50), n=1"]
    both = [*runs, run(70.0, generator="gdfq")]
    assert [row[0] for row in cells(both).values()] == ["70.00, n=1", "80.00 (+10.00), n=1", "82.50 (+12.50), n=1"]


def test_a_gain_is_over_gdfq_with_the_same_objective():
    def distilled(accuracy, weight, generator):
        made = run(accuracy, reconstruction_weight=weight, generator=generator)
        made.settings.pop("bits")
        return made

    runs = [distilled(60.0, 0.0, "gdfq"), distilled(70.0, 1.0, "gdfq"), distilled(71.5, 1.0, "random:0")]
    assert table(runs)[0] == ["reconstruction_weight", "generator", "accuracy", "MMACs", "parameters (k)"]
    assert [row[:3] for row in table(runs)[2:]] == [
        ["0", "gdfq", "60.00, n=1"],
        ["1", "gdfq", "70.00, n=1"],
        ["1", "random", "71.50 (+1.50), n=1"],
    ]


def test_protocols_are_never_in_one_table():
    runs = [run(a, protocol=p) for p, a in (("integer", 80.0), ("activations", 90.0))]
    report = make_report([*runs, run(95.0, generator="all:identity", protocol="integer")])
    assert [(section.heading, section.tables[0].rows) for section in report.sections] == [
        ("protocol activations", (("gdfq",),)),
        ("protocol integer", (("gdfq",), ("all:identity",))),
    ]
    assert "## protocol integer" in report.to_markdown()
    assert "95.00 (+15.00), n=1" in report.to_markdown()


@pytest.mark.parametrize(
    ("generators", "names"),
    [
        (["random:0", "random:1"], ["random"]),
        (["random:0", "random:0"], ["random:0"]),
        (["searched:x-0/a-0.json", "searched:x-0/a-1.json"], ["searched"]),
        (["searched:x.json", "searched:x.json"], ["searched:x.json"]),
        (
            ["searched:p-0.json", "searched:p-1.json", "searched:l-0.json", "searched:l-1.json"],
            ["searched:l-{seed}.json", "searched:p-{seed}.json"],
        ),
        (["random:5", "random:6"], ["random:5", "random:6"]),
        (["random:{seed}", "random:{seed}"], ["random"]),
        (["published:net-0", "published:net-1"], ["published:net-0", "published:net-1"]),
    ],
)
def test_generators_are_one_row_where_only_the_seed_differs(generators, names):
    runs = [run(90.0, seed=i % 2, generator=generator) for i, generator in enumerate(generators)]
    assert [row for (row,) in make_report(runs).sections[0].tables[0].rows] == names


def test_a_genotype_beside_the_generator_is_part_of_its_name():
    runs = [run(90.0, seed=s, generator=g, genotype=f"d/seed-{s}.json") for s in (0, 1) for g in ("searched", "gdfq")]
    report = make_report(runs)
    assert report.sections[0].tables[0].rows == (("gdfq",), ("searched",))
    assert "searched is `searched:d/seed-{seed}.json`" in report.caption


def test_random_generators_as_wide_as_different_genotypes_are_different_rows():
    runs = [
        run(90.0, seed=s, generator=f"random:{s}", genotype=f"{folder}/seed-{s}.json", width=width)
        for s in (0, 1)
        for folder, width in (("wide", None), ("narrow", None), ("any", 8))
    ]
    table = make_report([*runs, run(91.0, generator="gdfq", genotype="wide/seed-0.json")]).sections[0].tables[0]
    assert {row[-1] for row in table.rows} == {"gdfq", "random"}
    assert len(table.rows) == 4
    gains = [table.gain(row, table.columns[0]) for row in table.rows if row[-1] == "random"]
    assert gains.count(None) == 1  # another width setting, for which GDFQ was not run
    assert [gain for gain in gains if gain is not None] == [pytest.approx(-1.0)] * 2


def test_a_design_at_the_macs_of_different_genotypes_is_different_rows():
    runs = [run(90.0 + i, generator="gdfq-conditional@equal-macs", genotype=f"{i}.json") for i in range(2)]
    assert len(make_report(runs).sections[0].tables[0].rows) == 2


def test_the_csv_keeps_the_genotype_that_was_set():
    runs = [run(90.0 + s, seed=s, generator="searched", genotype=f"d/seed-{s}.json") for s in (0, 1)]
    assert make_report(runs).frame["genotype"].tolist() == ["d/seed-0.json", "d/seed-1.json"]


def test_a_trial_of_which_only_nni_knows_joins_the_row_of_the_others():
    waiting = Run("trial w", None, {"generator": "searched", "bits": "w4a4", "seed": 2}, WAITING)
    runs = [run(90.0 + seed, seed=seed, generator=f"searched:a-{seed}.json", student_lr=0.5) for seed in (0, 1)]
    assert cells([*runs, waiting]) == {"searched": ["90.50 ± 0.71, 1 of 3 waiting"]}


def test_a_setting_that_a_run_lacked_is_not_taken_from_another():
    lacking = run(90.0, command=None, name="old")
    del lacking.settings["protocol"]
    report = make_report([lacking, run(80.0, protocol="activations"), run(80.0, protocol="integer")])
    assert [section.heading for section in report.sections] == [
        "protocol activations",
        "protocol default",
        "protocol integer",
    ]


def test_how_images_are_distilled_makes_no_row_of_methods_that_distil_none():
    runs = [run(90.0, method="gdfq"), run(91.0, method="zeroq", image_count=8), run(92.0, method="dfq")]
    assert table(runs)[0][:3] == ["method", "generator", "w4a4"]
    assert cells(runs)["zeroq"] == ["–", "91.00 (+1.00), n=1"]


def test_agreements_of_different_generators_are_not_subtracted():
    runs = [run(generator=g, metrics={"agreement": a}) for g, a in (("gdfq", 0.5), ("all:identity", 0.625))]
    assert cells(runs) == {"gdfq": ["50.00, n=1"], "all:identity": ["62.50, n=1"]}


def test_ranges_alone_are_a_second_table():
    runs = [
        run(90.0, generator=g, metrics={"ranges_only_accuracy": a}) for g, a in (("gdfq", 0.5), ("all:identity", 0.625))
    ]
    first, second = make_report(runs).sections[0].tables
    assert (first.metric, second.metric) == ("accuracy", "ranges_only_accuracy")
    assert second.text(("all:identity",), "w4a4") == "62.50 (+12.50), n=1"
    assert "By the ranges alone, before any training of the student:" in make_report(runs).to_markdown()


def test_without_test_data_agreement_is_used_and_said():
    report = make_report([run(metrics={"agreement": 0.97, "teacher_accuracy": None})])
    assert report.sections[0].tables[0].text(("gdfq",), "w4a4") == "97.00, n=1"
    assert report.caption.startswith(
        "Teacher digits. No test data: agreement of student and teacher on held-out synthetic"
    )
    assert report.teacher_accuracy is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"teacher": "torchvision:resnet18"}, r"a \(digits\) and b \(torchvision:resnet18\) differ in teacher"),
        ({"checkpoint": "c.pt"}, r"a \(digits\) and b \(digits with c.pt\) differ in teacher; make a report of each"),
        ({"command": "distill"}, r"a \(compress\) and b \(distill\) differ in command; make a report of each"),
    ],
)
def test_runs_that_must_not_be_compared_are_named(other, message):
    with pytest.raises(InputError, match=message):
        make_report([run(90.0, name="a"), run(90.0, name="b", seed=1, **other)])


def test_accuracy_is_not_mixed_with_agreement():
    with pytest.raises(InputError, match=r"a \(test accuracy\) and b \(none\) differ in data; make a report of each"):
        make_report([run(90.0, name="a"), run(name="b", seed=1, metrics={"agreement": 0.97})])
    with pytest.raises(InputError, match="b has no accuracy and no agreement; run it again"):
        make_report([run(name="b", metrics={"seconds": 1.0})])


def test_searches_are_left_out_and_counted():
    assert "Left out: 1 of search." in make_report([run(90.0), run(command="search")]).caption


# Searches


EXPECTED_OF_SEARCHES = """\
Teacher digits. L_r = class_loss + 100 bns_loss (eq. 1) of the generator found: trained by 150 batches of 32 \
from fresh weights, measured on 16 others: mean ± standard deviation over seeds 0, 1, 2. Equal cost, 256 updates \
(batches of the search, which update W or α, or reward a controller); seconds include the final training.
Settings other than the defaults: none.
Versions: nni-autorecon 0.1.0, torch 2.15.0.

| strategy | L_r | class_loss | bns_loss | MMACs | updates | seconds |
| --- | --- | --- | --- | --- | --- | --- |
| autorecon | 0.523 ± 0.025 | 0.250 | 0.00350 | 7.1 | 256 | 31 ± 1 |
| random | waiting | – | – | – | – | – |
| tpe | 0.720 ± 0.028, 1 of 3 failed | 0.250 | 0.00350 | 7.1 | 256 | 5 |

7 runs: 5 finished; 1 failed (lost); 1 waiting (trial w).
"""


def test_a_report_of_searches_is_exactly_this():
    assert make_report(SEARCHES).to_markdown() == EXPECTED_OF_SEARCHES
    frame = make_report(SEARCHES).frame
    assert list(frame)[:3] == ["run", "strategy", "seed"]
    assert frame.groupby("strategy")["loss"].mean().round(6).tolist()[::2] == [0.523333, 0.72]


def test_whatever_varies_makes_a_row_but_not_what_a_strategy_has_no_use_for():
    runs = [found(0.5, relaxation="paper"), found(0.6), found(0.7, strategy="random"), found(0.8, strategy="tpe")]
    one_size = [*runs, found(0.9, strategy="evolution", candidate_steps=8)]
    assert [row[:3] for row in table(one_size)] == [
        ["strategy", "relaxation", "L_r"],
        ["---"] * 3,
        ["autorecon", "logits", "0.600, n=1"],
        ["autorecon", "paper", "0.500, n=1"],
        ["random", "–", "0.700, n=1"],
        ["evolution", "–", "0.900, n=1"],
        ["tpe", "–", "0.800, n=1"],
    ]
    sizes = [found(0.9, strategy="tpe", candidate_steps=steps) for steps in (12, 4)]
    assert make_report([found(0.5), *sizes]).sections[0].tables[0].rows == (
        ("autorecon", "–"),
        ("tpe", 4),
        ("tpe", 12),
    )
    assert "candidate_steps = 4." in make_report([found(0.5), sizes[1]]).caption


def test_searches_of_unequal_cost_are_said_to_be():
    runs = [found(0.5), found(0.4, epochs=16), found(0.7, strategy="tpe", candidate_steps=100)]
    assert "Unequal cost, 200 or 256 or 512 updates (" in make_report(runs).caption
    assert [row[-2] for row in table(runs)[2:]] == ["256", "512", "200"]
    assert "updates" not in make_report([found()]).caption


def test_the_caption_says_from_which_weights_the_final_training_started():
    inherited, fresh = found(0.4, inherit_weights=True), found(0.5, strategy="tpe")
    assert "of 32 from the supernet's weights, measured" in make_report([inherited]).caption
    caption = make_report([inherited, fresh]).caption
    assert "from fresh weights, or the supernet's with inherit_weights, measured" in caption


@pytest.mark.parametrize(
    "other",
    [
        {"teacher": "torchvision:resnet18"},
        {"bns_weight": 0.1},
        {"batch_size": 64},
        {"width": 64},
        {"latent_dim": 7},
        {"final_steps": 1},
        {"validation_steps": 2},
        {"weight_lr": 0.5},
        {"bns_form": "kl"},
        {"image_size": 32},
        {"mean": "0.5"},
        {"weight_schedule": "step"},
    ],
)
def test_searches_whose_l_r_is_another_are_named(other):
    (name,) = other
    with pytest.raises(InputError, match=rf"a \(.+\) and b \(.+\) differ in {name}; make a report of each"):
        make_report([found(0.5, name="a"), found(0.5, name="b", strategy="tpe", **other)])


def test_what_only_nni_knows_is_not_held_against_others():
    waiting = Run("trial w", None, {"seed": 0}, WAITING)
    with pytest.raises(InputError, match=r"a \(100\) and b \(1\) differ in bns_weight"):
        make_report([waiting, found(0.5, name="a"), found(0.5, name="b", bns_weight=1.0)])


@pytest.mark.parametrize("metric", ["loss", "updates"])
def test_a_search_without_its_l_r_or_cost_is_named(metric):
    with pytest.raises(InputError, match=f"b has no {metric}; run it again or leave it out"):
        make_report([found(0.5), found(0.5, name="b", metrics={metric: None})])


def test_before_any_search_knows_its_settings_there_is_a_report():
    waiting = [Run(f"trial {seed}", None, {"relaxation": "paper", "seed": seed}, WAITING) for seed in (0, 1)]
    report = make_report(waiting)
    assert report.sections[0].tables[0].rows == ((None,),)
    assert "Teacher unknown. L_r of the generator found: mean" in report.caption


# The CSV


def test_the_caption_says_what_differs_and_what_is_no_default():
    runs = [run(90.0, seed=4, student_lr=0.5, threads=1), run(91.0, seed=7, student_lr=0.5, threads=2)]
    caption = make_report(runs).caption
    assert "over seeds 4, 7." in caption
    assert "Settings other than the defaults: student_lr = 0.5, threads = 1 or 2." in caption
    other = run(91.0, seed=7, versions=VERSIONS | {"torch": "2.14.0"}, metrics={"teacher_accuracy": 0.5})
    caption = make_report([run(90.0), other]).caption
    assert "Versions differ: torch 2.15.0, 2.14.0." in caption
    assert "accuracy 50.00 % to 99.10 % (its weights or the test data are not the same in all runs)" in caption
    assert "Versions are not recorded." in make_report([run(90.0, versions={})]).caption


def test_of_two_runs_with_one_seed_the_last_counts_and_it_is_said():
    report = make_report([run(90.0), run(92.0), run(94.0, seed=1)])
    assert report.sections[0].tables[0].text(("gdfq",), "w4a4") == "93.00 ± 1.41"
    assert report.sections[0].note == "3 runs: 3 finished; 1 repeated with the same seed, of which the last counts."


def test_the_csv_has_a_line_per_run_and_reads_back():
    frame = make_report(TABLE_2).frame
    read = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    pd.testing.assert_frame_equal(read, frame, check_dtype=False)
    assert list(read)[:5] == ["run", "generator", "bits", "generator_scale", "protocol"]
    assert len(read) == len(TABLE_2)
    assert read.set_index("run").loc["now", ["generator", "seed", "status"]].tolist() == [
        "searched:a-1.json",
        1,
        "running",
    ]
    means = read.groupby(["generator", "bits"])["accuracy"].mean()
    assert means["gdfq", "w3a3"] == pytest.approx(0.781)


# Folders of results and the command line


def write(folder, result=None, command="compress", **settings):
    folder.mkdir(parents=True)
    config = {"command": command, "config": {**CompressConfig().to_dict(), **settings}, "versions": VERSIONS}
    (folder / "config.json").write_text(json.dumps(config))
    if result is not None:
        known = {"accuracy": None, "teacher_accuracy": None, "agreement": 0.5, "generator_macs": 1, "seconds": 1.5}
        known |= {"loss": {"loss": 0.5}}
        write_json(folder / "result.json", sealed({**known, **result}))


def replaced(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def report(*argv):
    return cli.main(["report", *map(str, argv)])


@pytest.fixture
def folders(tmp_path):
    write(tmp_path / "runs" / "a", {"accuracy": 0.9, "teacher_accuracy": 0.99}, seed=0)
    write(tmp_path / "runs" / "deep" / "b", {"accuracy": 0.92, "teacher_accuracy": 0.99}, seed=1)
    write(tmp_path / "runs" / "c", seed=2)
    return tmp_path / "runs"


def test_folders_become_three_files(folders, tmp_path, capsys):
    assert report(folders, folders / "a" / ".." / "a", "-o", tmp_path / "out" / "table.2") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"table.2.md", "table.2.csv", "table.2.png"}
    printed = capsys.readouterr().out
    made, _, table = printed.partition("\n\n")
    assert made == ", ".join(str(tmp_path / "out" / f"table.2.{end}") for end in ("md", "csv", "png"))
    assert table == (tmp_path / "out" / "table.2.md").read_text()
    assert "91.00 ± 1.41, 1 of 3 incomplete | 0.0 | – |" in printed
    assert f"3 runs: 2 finished; 1 incomplete ({folders / 'c'})." in printed
    assert list(pd.read_csv(tmp_path / "out" / "table.2.csv")["seconds"].dropna()) == [1.5, 1.5]
    assert (tmp_path / "out" / "table.2.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("settings", "chosen", "rows"),
    [
        ({}, "noise", ["dead-leaves", "gdfq", "noise"]),
        ({"width": 7}, "gdfq", ["dead-leaves", "gdfq"]),
        ({"method": "dfq"}, None, ["dead-leaves", "gdfq", "–"]),
    ],
)
def test_a_run_that_chose_its_generator_is_named_by_what_it_chose(settings, chosen, rows, tmp_path):
    write(tmp_path / "a", {"accuracy": 0.9, "generator": chosen}, **settings)
    write(tmp_path / "b", {"accuracy": 0.9, "generator": "gdfq"}, generator="gdfq", width=7)
    write(tmp_path / "c", {"accuracy": 0.9, "generator": "dead-leaves"}, generator="dead-leaves")
    (section,) = make_report(read_folders([tmp_path])).sections
    place = section.tables[0].row_names.index("generator")
    assert sorted(row[place] for row in section.tables[0].rows) == rows
    assert "width" not in section.tables[0].row_names


def test_reports_are_replaced_by_force_alone(folders, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("mine")
    assert report(folders, "-o", tmp_path / "t") == 2
    assert "t.csv already exists" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "t.csv"}
    assert (tmp_path / "t.csv").read_text() == "mine"
    assert report(folders, "-o", tmp_path / "t", "--force") == 0
    assert (tmp_path / "t.csv").read_text().startswith("run,")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda runs: (runs / "a" / "config.json").write_text("{"), "a/config.json is damaged"),
        (lambda runs: (runs / "a" / "config.json").write_text("[]"), "a/config.json is damaged (no names and values)"),
        (lambda runs: (runs / "a" / "config.json").write_text("{}"), "a/config.json names no command of"),
        (lambda runs: (runs / "a" / "result.json").write_text('{"accuracy"'), "a/result.json is damaged"),
        (lambda runs: (runs / "a" / "result.json").write_text('{"accuracy": "x"}'), "accuracy = 'x' is not a number"),
        (
            lambda runs: replaced(runs / "a" / "result.json", '"accuracy": 0.9', '"accuracy": 0.8'),
            "a/result.json is damaged (its sha256 is of other values); run it again",
        ),
        (lambda runs: (runs / "a" / "result.json").write_bytes(b"\xff"), "a/result.json: it is not a text file"),
        (lambda runs: write(runs / "x", seed=-1), "x/config.json: seed = -1 is too small"),
        (lambda runs: write(runs / "x", unheard_of=1), "x/config.json: unknown setting 'unheard_of'"),
        (lambda runs: [path.unlink() for path in runs.rglob("config.json")], "a run's folder holds config.json"),
    ],
)
def test_a_bad_folder_is_one_line_and_leaves_nothing(damage, message, folders, tmp_path, capsys):
    damage(folders)
    assert report(folders, "-o", tmp_path / "t") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "takes either folders or --experiment ID"),
        (["a", "--experiment", "e"], "takes either folders or --experiment ID"),
        (["--experiment", "nosuchid"], "NNI knows no experiment 'nosuchid'"),
        (["nosuchfolder"], "no runs in nosuchfolder"),
    ],
)
def test_a_report_of_nothing_is_one_line(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert report(*argv, "-o", "t") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_settings_of_an_older_version_are_the_defaults(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"command": "compress", "config": {"seed": 3}}))
    (only,) = records.read_folders([tmp_path])
    assert only.settings == CompressConfig(seed=3).to_dict()
    assert (only.status, only.metrics, only.versions) == (INCOMPLETE, {}, {})
    (tmp_path / "config.json").write_text(json.dumps({"command": "compress", "config": {"preset": "best"}}))
    (only,) = records.read_folders([tmp_path])  # whatever the preset may mean today
    assert only.settings == {**CompressConfig().to_dict(), "preset": "best"}


def test_the_stage_is_told_by_its_settings():
    assert stage_of_settings(CompressConfig().to_dict()).name == "compress"
    assert stage_of_settings({**Config().to_dict(), "relaxation": "paper"}).name == "search"
