"""Everything accelerated is compared with the same code, plain."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

from nni_autorecon import accel

Result = TypeVar("Result")


@pytest.fixture(autouse=True)
def accelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn the switch on, however the tests are run."""
    monkeypatch.setattr(accel, "enabled", True)
    monkeypatch.delenv("NNI_AUTORECON_ACCEL", raising=False)


@pytest.fixture
def both_ways(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Result]], tuple[Result, Result]]:
    """A function that calls another twice, accelerated and plain, each time with the same random numbers."""

    def called(function: Callable[[], Result]) -> tuple[Result, Result]:
        results = []
        for enabled in (True, False):
            monkeypatch.setattr(accel, "enabled", enabled)
            torch.manual_seed(0)
            results.append(function())
        return results[0], results[1]

    return called
