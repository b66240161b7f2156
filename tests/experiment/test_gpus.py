"""Requests for GPUs: refused where NNI's own scheduler, run here on GPUs that are made up, finds no place."""

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nni_autorecon.errors import InputError
from nni_autorecon.experiment.gpus import count_gpus, refuse_unmeetable_request
from nni_autorecon.teacher.device import promised_gpus

NODE = Path(importlib.util.find_spec("nni_node").submodule_search_locations[0])
SCHEDULE = """
require(process.argv[1] + '/node_modules/app-module-path').addPath(process.argv[1]);
require('common/globals');
require('common/globals/unittest').resetGlobals();
const { TaskScheduler, UnitTestHelpers } = require('common/trial_keeper/task_scheduler/scheduler');
const { LocalTrainingServiceV3 } = require('training_service/local_v3/local');

// Whether trials, `concurrency` at once, all find a place; NNI looks at the GPUs after each has started.
async function runs(gpus, concurrency, config) {
  const processes = [];
  UnitTestHelpers.mockGpuInfo({ gpuNumber: gpus, gpus: [...Array(gpus)].map((_, index) => ({ index })), processes });
  const scheduler = new TaskScheduler();
  await scheduler.init();
  const service = new LocalTrainingServiceV3('local', config);
  service.trialKeeper.createTrial = async ({ id, gpuNumber, gpuRestrictions }) => {
    const given = await scheduler.schedule('e', id, gpuNumber, gpuRestrictions);
    if (given === null) return false;
    for (const index of given.CUDA_VISIBLE_DEVICES.split(',')) processes.push({ gpuIndex: Number(index), id });
    return true;
  };
  for (let trial = 0; trial < 8; trial++) {
    if (trial >= concurrency) {
      await scheduler.release('e', trial - concurrency);
      const left = processes.filter(({ id }) => id !== trial - concurrency);
      processes.splice(0, processes.length, ...left);
    }
    if (await service.createTrial('env', 'command', 'code', trial, trial).catch(() => null) === null) return false;
    await scheduler.update();
  }
  return true;
}

(async () => {
  const answers = [];
  for (const given of require(process.argv[2])) answers.push(await runs(...given));
  console.log(JSON.stringify(answers));
})();
"""
GRID = list(
    itertools.product(range(1, 5), range(1, 5), range(1, 8), range(1, 4), (None, [0], [1, 2], [3]), (True, False))
)


def _settings(concurrency=1, **service):
    return {"trialConcurrency": concurrency, "trainingService": {"platform": "local", **service}}


def _taken(gpus, settings):
    try:
        refuse_unmeetable_request(settings, gpus)
    except InputError:
        return False
    return True


def test_as_nnis_own_scheduler(tmp_path):
    cases = []
    for gpus, concurrency, asked, per_gpu, indices, active in GRID:
        service = {"trialGpuNumber": asked, "maxTrialNumberPerGpu": per_gpu, "useActiveGpu": active}
        cases.append((gpus, concurrency, service if indices is None else {**service, "gpuIndices": indices}))
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    command = [NODE / "node", "-e", SCHEDULE, NODE, tmp_path / "cases.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    nnis = json.loads(done.stdout)
    ours = [_taken(gpus, _settings(concurrency, **service)) for gpus, concurrency, service in cases]
    assert [case for case, a, b in zip(cases, nnis, ours, strict=True) if a != b] == []
    assert 200 < sum(nnis) < 2000  # of 2688


@pytest.mark.parametrize(
    ("settings", "gpus", "message"),
    [
        (_settings(trialGpuNumber=1, useActiveGpu=True), 0, "trialGpuNumber: 1, but NNI sees no GPU"),
        (_settings(trialGpuNumber=1), 2, "useActiveGpu is missing beside trialGpuNumber; add useActiveGpu: true"),
        (_settings(trialGpuNumber=1, useActiveGpu=True), 1, "write trialGpuNumber: 1 and maxTrialNumberPerGpu: 2"),
        (_settings(trialGpuNumber=4, useActiveGpu=True), 4, "write trialGpuNumber: 7 and maxTrialNumberPerGpu: 2"),
        (_settings(trialGpuNumber=1, useActiveGpu=True, gpuIndices=2), 2, "gpuIndices: 2 leaves 0 of the 2"),
        (_settings(trialGpuNumber=2, useActiveGpu=True, gpuIndices="0,1,1"), 3, None),
        (
            _settings(trialGpuNumber=1, useActiveGpu=True, gpuIndices="all"),
            2,
            "gpuIndices: 'all' is no list of GPUs; write their numbers",
        ),
        (_settings(5, trialGpuNumber=1, useActiveGpu=True), 3, "trialConcurrency: 5, but 3 such.*: 3$"),
        ({**_settings(5, trialGpuNumber=1, useActiveGpu=True), "maxTrialNumber": 3}, 3, None),
        (_settings(trialGpuNumber=1, maxTrialNumberPerGpu=2, useActiveGpu=False), 1, "write useActiveGpu: true"),
        (_settings(trialGpuNumber="1"), 1, "trialGpuNumber: '1' is not a whole number of 0 or more"),
        (
            _settings(trialGpuNumber=1, useActiveGpu=True, maxTrialNumberPerGpu=0),
            1,
            "is not a whole number of 1 or more",
        ),
    ],
)
def test_one_line_names_the_key_and_the_remedy(settings, gpus, message):
    if message is None:
        return refuse_unmeetable_request(settings, gpus)
    with pytest.raises(InputError, match=message) as error:
        refuse_unmeetable_request(settings, gpus)
    assert "\n" not in str(error.value)
    return None


def test_names_and_places_are_as_free_as_nnis():
    service = {"platform": "local", "use_active_gpu": True}
    with pytest.raises(InputError, match="trialGpuNumber: 1"):
        refuse_unmeetable_request({"trial_gpu_number": 1, "TrainingService": service}, 1)
    refuse_unmeetable_request({"trialGpuNumber": 1, "trainingService": {**service, "trialGpuNumber": 0}}, 1)
    with pytest.raises(InputError, match="trialGpuNumber: 1"):
        refuse_unmeetable_request({"trainingService": [{"platform": "remote"}, {**service, "trialGpuNumber": 1}]}, 1)


@pytest.mark.parametrize("number", [None, 0])
def test_who_asks_for_no_gpu_needs_none(number):
    refuse_unmeetable_request(_settings(trialGpuNumber=number), 0)
    refuse_unmeetable_request({"trainingService": {"platform": "remote", "trialGpuNumber": 9}}, 0)


def test_gpus_are_counted_as_nni_counts_them(tmp_path, monkeypatch):
    count = "from nni_autorecon.experiment.gpus import count_gpus; print(count_gpus())"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for body, expected in (("return 3", "3"), ("raise NVMLError", "0")):
        (tmp_path / "pynvml.py").write_text(
            "class NVMLError(Exception): pass\n"
            "def nvmlInit(): pass\n"
            "nvmlShutdown = nvmlInit\n"
            f"def nvmlDeviceGetCount(): {body}  # noqa\n"
        )
        done = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert count_gpus() == 0


@pytest.mark.parametrize(
    ("platform", "visible", "promised"),
    [("local", "0,2", "0,2"), ("local", "", None), ("local", "-1", None), ("local", None, None), (None, "0", None)],
)
def test_what_nni_gave_a_trial(platform, visible, promised, monkeypatch):
    for name, value in (("NNI_PLATFORM", platform), ("CUDA_VISIBLE_DEVICES", visible)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert promised_gpus() == promised
