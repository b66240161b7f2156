"""An experiment may ask NNI for GPUs; requests that NNI could not meet are refused here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import InputError


def count_gpus() -> int:
    """Count the machine's GPUs as NNI does: regardless of CUDA_VISIBLE_DEVICES, and 0 without a driver."""
    try:
        import pynvml  # NNI depends on it
    except ImportError:
        return 0
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0
    finally:
        pynvml.nvmlShutdown()


def refuse_unmeetable_request(settings: Mapping[str, Any], gpus: int) -> None:
    """Raise InputError if NNI 3.0 could not schedule the trials of this experiment on a machine with ``gpus`` GPUs.

    NNI itself does not refuse the experiment. When the first trial finds no place, NNI's manager asks again and again
    without a pause, answers no requests and starts processes until memory is used up (``submitTrialJob`` in
    nni_node/training_service/v3/compat.js). The rules are those of ``TaskScheduler.schedule`` in
    nni_node/common/trial_keeper/task_scheduler/scheduler.js:

    * A trial asks for a share s = trialGpuNumber / maxTrialNumberPerGpu of GPUs.
    * It never runs if s ≥ ``gpus``; even an equal number is too much.
    * If s ≥ 1, it takes round(s) whole GPUs, so that 3 / 2 takes both of two GPUs.
    * If s < 1, as many trials share one GPU as fit into 1.001.

    settings: the settings of the experiment file.  Experiments on other machines are not checked.
    """
    top = _by_name(settings)
    services = top.get("trainingservice")
    for service in services if isinstance(services, list) else [services]:
        if isinstance(service, Mapping):
            _refuse_unmeetable(top, _by_name(service), gpus)


def _refuse_unmeetable(top: Mapping[str, Any], service: Mapping[str, Any], gpus: int) -> None:
    """Check one training service. ``top`` are the settings of the whole experiment, by name as NNI compares them."""
    if service.get("platform") != "local":
        return
    asked = _whole({**top, **service}, "trialGpuNumber", default=0, least=0)
    if asked == 0:
        return
    if gpus == 0:
        raise InputError(
            f"trialGpuNumber: {asked}, but NNI sees no GPU on this machine; leave out both it and maxTrialNumberPerGpu"
        )
    if service.get("useactivegpu") is None:
        raise InputError("useActiveGpu is missing beside trialGpuNumber; add useActiveGpu: true to trainingService")
    share = asked / _whole(service, "maxTrialNumberPerGpu", default=1)
    if share >= gpus:
        raise InputError(
            f"trialGpuNumber: {asked} is more than NNI 3.0 ever gives a trial on {gpus} GPU(s); to have all of them, "
            f"write trialGpuNumber: {2 * gpus - 1} and maxTrialNumberPerGpu: 2"
        )
    _refuse_too_few(top, service, share, gpus)


def _refuse_too_few(top: Mapping[str, Any], service: Mapping[str, Any], share: float, gpus: int) -> None:
    """Raise InputError if the trials that run at once need more than the GPUs that NNI may use."""
    usable = len(set(_indices(service)) & set(range(gpus))) if _indices(service) else gpus
    whole = max(1, math.floor(share + 0.5))
    if usable < whole:
        raise InputError(
            f"gpuIndices: {service['gpuindices']} leaves {usable} of the {gpus} GPU(s), numbered from 0, for "
            f"trials that take {whole}; name more of them, or leave it out"
        )
    places = usable // whole if share >= 1 else usable * math.floor(1.001 / share)
    trials = _whole(top, "trialConcurrency", default=1)
    trials = min(trials, _whole(top, "maxTrialNumber", default=trials))
    if trials > places:
        raise InputError(
            f"trialConcurrency: {trials}, but {places} such trial(s) fit on {usable} GPU(s), and NNI 3.0 freezes when "
            f"another asks; write trialConcurrency: {places}"
        )
    # A GPU counts as active until NNI looks again, and it looks only after it has chosen a GPU for the next trial.
    if not service["useactivegpu"] and usable < whole * (trials + 1):
        raise InputError(
            f"useActiveGpu: false keeps trials from a GPU that another has just left, and {usable} GPU(s) are too few "
            "for that; write useActiveGpu: true"
        )


def _by_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by name as NNI compares names: in lower case and without underscores."""
    return {str(name).replace("_", "").lower(): value for name, value in settings.items()}


def _whole(settings: Mapping[str, Any], name: str, *, default: int, least: int = 1) -> int:
    """Return a setting that must be a whole number of at least ``least``, or ``default`` if it is missing or null.

    Raises InputError if it is anything else.
    """
    value = settings.get(name.lower())
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}: {value!r} is not a whole number of {least} or more; correct it")
    return value


def _indices(service: Mapping[str, Any]) -> list[int]:
    """Return ``gpuIndices``, which NNI takes as a number, a list or text such as "0,2"; return [] if it is missing.

    Raises InputError if it is anything else.
    """
    value = service.get("gpuindices")
    try:
        return [int(index) for index in (str(value).split(",") if isinstance(value, (str, int)) else value or [])]
    except (TypeError, ValueError) as error:
        raise InputError(f"gpuIndices: {value!r} is no list of GPUs; write their numbers, such as [0, 2]") from error
