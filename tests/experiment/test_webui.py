"""NNI's web UI shows what our trials report, in a real browser."""

import json

import pytest
import requests

from tests.helpers import managers
from tests.helpers.browser import CHROMIUM, DRIVER, MISSING, web_ui
from tests.helpers.managers import FLAGS, experiment, get, wait_for_tensorboard, wait_until, wait_until_done
from tests.helpers.pictures import show_compress, show_search

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)]

KEYS = {"default", "class_loss", "bns_loss", "train_loss", "temperature", "confidence", "expected_macs"}
ROWS = "//*[@role='row'][@data-item-index]"


@pytest.fixture(scope="module")
def port(digits_teacher, tmp_path_factory):
    """A finished search of two trials."""
    folder, environment = tmp_path_factory.mktemp("experiment"), managers.environment(tmp_path_factory.mktemp("home"))
    changes = {
        "experimentName": "A toy search",
        "trialCommand": f"python trials/search.py --teacher digits --threads 1 {FLAGS} --tensorboard",
        "searchSpace": {"width": {"_type": "choice", "_value": [2, 3]}},
        "maxTrialNumber": 2,
    }
    with experiment(environment, folder, **changes) as (_, port):
        wait_until_done(port)
        yield port


@pytest.fixture(scope="module")
def page(port, tmp_path_factory):
    with web_ui(port, tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def jobs(port):
    return get(port, "trial-jobs")


def _shown(job):
    """The final metric as the page writes it: up to six decimals."""
    final = json.loads(json.loads(job["finalMetricData"][0]["data"]))
    return f"{final['default']:.6f}".rstrip("0").rstrip(".")


def test_the_overview_has_the_name_and_the_best_metric(page, jobs):
    page.open("oview")
    page.wait_for(lambda: "Best metric" in page.text and "DONE" in page.text, "the best metric")
    assert "A toy search" in page.text
    assert min(map(_shown, jobs), key=float) in page.text


def test_the_list_has_every_trial_with_its_final_metric(page, jobs):
    page.open("detail")
    page.wait_for(lambda: len(page.find(ROWS)) == 2, "two trials")
    rows = " ".join(page.texts(ROWS))
    for job in jobs:
        assert job["trialJobId"] in rows
        assert _shown(job) in rows
    assert rows.count("SUCCEEDED") == rows.count("(FINAL)") == 2


def test_a_trials_curve_can_be_each_of_our_metrics(page):
    page.open("detail")
    page.click(f"{ROWS}//button[@title='Intermediate']")
    page.wait_for(lambda: page.find("//*[contains(@class, 'ms-Layer')]//canvas"), "the curve")
    assert set(page.options("//*[contains(@class, 'ms-Layer')]//*[@role='combobox']")) == KEYS


def test_the_curves_of_all_trials_are_drawn(page):
    page.open("detail")
    show_search(page)


def test_the_hyper_parameters_are_axes(page):
    page.open("detail")
    page.button("Hyper-parameter")
    page.wait_for(lambda: page.find("//*[@class='parcoords']//*[text()='generator_macs']"), "the axes")
    axes = page.texts("//*[contains(@class, 'parcoords')]//*[contains(@class, 'label')]")
    assert {"width", "default", "class_loss", "bns_loss", "generator_macs"} <= set(axes)


def test_a_trials_folder_and_log_are_shown(page, jobs):
    page.open("detail")
    page.click(f"{ROWS}//*[@data-icon-name='ChevronRight']")
    page.button("Log")
    page.wait_for(lambda: any(job["logPath"] in page.text for job in jobs), "the folder")
    with page.new_window():
        page.button("View trial log")
    assert "genotype.json: " in page.text


def test_the_tensorboard_button_shows_our_metrics(page, port, jobs):
    page.open("detail")
    page.click(f"{ROWS}//*[contains(@class, 'ms-Checkbox-checkbox')]")
    page.button("TensorBoard")
    page.wait_for(lambda: "TensorBoard id" in page.text, "the dialog")
    (task,) = get(port, "tensorboard-tasks")
    assert task["trialJobIdList"][0] in {job["trialJobId"] for job in jobs}
    address = f"http://127.0.0.1:{wait_for_tensorboard(int(task['port']))}/data/plugin/scalars/tags"

    def tags():
        """By run, of which there is one: the trial's."""
        return {name for run in requests.get(address, timeout=30).json().values() for name in run}

    assert wait_until(tags, "TensorBoard shows nothing") == (KEYS | {"loss"}) - {"default"}


BLOCKWISE = (
    "--method blockwise --width 2 --latent-dim 5 --batch-size 4 --steps 1 --warmup-epochs 1 --agreement-steps 1 "
    "--block-images 8 --refine-steps 1 --block-steps 1"
)
"""These flags make a student block by block, which is measured after some of them, at once."""


@pytest.fixture(scope="module")
def students(digits_teacher, tmp_path_factory):
    """A page with a finished compression by each of two generators, and the trials."""
    folder, environment = tmp_path_factory.mktemp("students"), managers.environment(tmp_path_factory.mktemp("home"))
    changes = {
        "trialCommand": f"python trials/compress.py --teacher digits --threads 1 {BLOCKWISE}",
        "searchSpace": {
            "generator": {"_type": "choice", "_value": ["gdfq", "random:0"]},
            "bits": {"_type": "choice", "_value": ["w4a4"]},
        },
        "maxTrialNumber": 2,
    }
    with experiment(environment, folder, **changes) as (_, port):
        wait_until_done(port)
        with web_ui(port, tmp_path_factory.mktemp("browser")) as page:
            yield page, get(port, "trial-jobs")


def test_a_compression_shows_its_settings_and_accuracy_as_axes(students):
    page, _ = students
    page.open("detail")
    show_compress(page)
    axes = page.texts("//*[contains(@class, 'parcoords')]//*[contains(@class, 'label')]")
    assert {"bits", "default", "accuracy"} <= set(axes)


def test_a_comparison_lists_generators_with_their_accuracy(students):
    page, jobs = students
    page.open("detail")
    page.wait_for(lambda: len(page.find(ROWS)) == 2, "two trials")
    page.button("Add/Remove columns")
    page.choose(["Trial No.", "generator (space)", "bits (space)", "accuracy (metric)", "generator_macs (metric)"])
    page.wait_for(lambda: "generator_macs" in page.text, "the columns")
    rows = page.texts(ROWS)
    for job in jobs:
        generator = json.loads(job["hyperParameters"][0])["parameters"]["generator"]
        accuracy = json.loads(json.loads(job["finalMetricData"][0]["data"]))["accuracy"]
        assert any(generator in row and str(accuracy) in row for row in rows), rows
