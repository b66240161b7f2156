"""NNI's Medianstop on our intermediate results: the bad trial ends early, the others as ever."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from nni_autorecon.generator.genotype import Genotype
from nni_autorecon.runs.snapshots import load_snapshot
from tests.helpers import managers
from tests.helpers.managers import FLAGS, ROOT, experiment, get, tool, wait_until_done

pytestmark = pytest.mark.slow

EPOCHS, ENDLESS, START_STEP = 4, 100_000, 2


def _choice(bns_weight, epochs):
    return {"_name": bns_weight, "epochs": {"_type": "choice", "_value": [epochs]}}


def test_a_bad_trial_is_stopped_and_keeps_where_it_stood(digits_teacher, tmp_path):
    environment = managers.environment(tmp_path)
    shipped = yaml.safe_load((ROOT / "experiments" / "medianstop.yml").read_text())
    assessor = shipped["assessor"] | {"classArgs": shipped["assessor"]["classArgs"] | {"start_step": START_STEP}}
    # In the grid's order: one that ends, then one whose L_r is a hundred times as large, and which never would.
    choices = [_choice(100, EPOCHS), _choice(10_000, ENDLESS)]
    changes = {
        "trialCommand": f"{shipped['trialCommand']} {FLAGS}",
        "searchSpace": {"bns_weight": {"_type": "choice", "_value": choices}},
        "maxTrialNumber": 2,
        "assessor": assessor,
    }
    with experiment(environment, tmp_path, **changes) as (identifier, port):
        wait_until_done(port)
        good, bad = sorted(get(port, "trial-jobs"), key=lambda trial: trial["sequenceId"])
        status = tool(environment, "nni-autorecon", "status")
    # NNI 3.0 notes that the assessor stopped a local trial only after it has called it USER_CANCELED.
    assert [trial["status"] for trial in (good, bad)] == ["SUCCEEDED", "USER_CANCELED"]

    folder = Path(bad["logPath"])
    assert (folder / "trial.stderr").read_text() == "nni-autorecon: interrupted\n"
    assert not (folder / "genotype.json").exists()
    done = len(pd.read_csv(folder / "metrics.csv"))
    assert START_STEP <= done < ENDLESS
    assert load_snapshot(folder / "snapshot.bin")["rows"][-1]["epoch"] <= done

    assert status.stderr == ""
    summary, _, *lines = status.stdout.splitlines()
    assert "2 of 2 trials done" in summary
    assert [line.split()[:3] for line in lines] == [
        [good["trialJobId"], "finished", f"{EPOCHS}/{EPOCHS}"],
        [bad["trialJobId"], "canceled", f"{done}/{ENDLESS}"],
    ]
    exported = tool(
        environment, "nni-autorecon", "best-genotype", "--experiment", identifier, "-o", tmp_path / "best.json"
    )
    assert (exported.returncode, exported.stderr) == (0, "")
    assert Genotype.load(tmp_path / "best.json").details["config"]["bns_weight"] == 100
