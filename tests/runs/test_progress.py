"""Progress in plain lines: soon, then seldom, each a line of its own."""

from __future__ import annotations

import io
import logging
import re
import sys
import time
from typing import Any

import pytest
import tqdm.std

import nni_autorecon as nar
from nni_autorecon.runs import progress
from nni_autorecon.runs.progress import LATER, progress_bar, said_if_slow


class Clock:
    """The time that a bar sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(tqdm.std, "time", lambda: self.now)


def test_the_first_line_comes_soon_and_the_next_ones_seldom(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(progress, "FIRST", first := 5.0)
    clock = Clock(monkeypatch)
    lines = []
    with tqdm.std.tqdm(file=io.StringIO()), progress_bar("compress", 100, "lines") as bar:  # below another bar
        bar.set_postfix_str("ranges", refresh=False)
        for _ in range(80):
            clock.now += 1
            bar.update(0.5)
            if text := capsys.readouterr().err:
                lines.append((clock.now - 1000, text))
    assert [time for time, _ in lines] == [first, first + LATER, first + 2 * LATER]
    assert lines[1][1] == "compress: 17 % done after 00:35, 02:45 left, ranges\n"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("done", "said"),
    [
        (0.4, "0 % done after 00:05"),
        (1, "1 % done after 00:05, 08:15 left"),
        (99.9, "99 % done after 00:05, 00:00 left"),
    ],
)
def test_a_line_promises_no_more_than_is_known(
    done: float, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(progress, "FIRST", 5.0)
    clock = Clock(monkeypatch)
    with progress_bar("compress", 100, "lines") as bar:
        clock.now += 5
        bar.update(done)
    assert capsys.readouterr().err == f"compress: {said}\n"


def test_the_time_left_is_that_of_the_average_pace_of_this_process(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(progress, "FIRST", 5.0)
    clock = Clock(monkeypatch)
    with progress_bar("compress", 100, "lines") as bar:
        clock.now += 4  # it gets ready
        bar.begin(20)
        for seconds, units in ((1, 10), (10, 1), (20, 19)):
            clock.now += seconds
            bar.update(units)
    assert capsys.readouterr().err.splitlines() == [
        "compress: 30 % done after 00:05, 00:07 left",
        "compress: 50 % done after 00:35, 00:51 left",
    ]


def test_what_is_foreseen_is_believed_at_first(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A slow first unit of a hundred would promise eight minutes; a pace of half of the foreseen one shows in time."""
    monkeypatch.setattr(progress, "FIRST", 5.0)
    clock = Clock(monkeypatch)
    with progress_bar("compress", 100, "lines") as bar:
        bar.begin(in_seconds=True)
        for seconds, units in ((5, 1), (100, 50)):
            clock.now += seconds
            bar.update(units)
    assert capsys.readouterr().err.splitlines() == [
        f"compress: 1 % done after 00:05, {99 * 15 // 11 // 60:02}:{99 * 15 // 11 % 60:02} left",
        f"compress: 51 % done after 01:45, {49 * 115 // 61 // 60:02}:{49 * 115 // 61 % 60:02} left",
    ]


@pytest.mark.parametrize("show", [True, False])
def test_in_a_terminal_a_bar_is_a_bar(show: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar("compress", 10, show) as bar:
        bar.update(10)
    printed = capsys.readouterr().err
    assert ("compress: 100%|" in printed) == show


def test_without_a_terminal_a_bar_is_lines(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(progress, "FIRST", 5.0)
    clock = Clock(monkeypatch)
    with progress_bar("compress", 100, True) as bar:
        clock.now += 5
        bar.update(50)
    assert capsys.readouterr().err == "compress: 50 % done after 00:05, 00:05 left\n"


def test_a_short_run_writes_no_line_and_takes_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "FIRST", 60.0)
    caplog.set_level("INFO")
    nar.compress(
        "digits",
        generator="random:0",
        width=2,
        batch_size=4,
        epochs=3,
        warmup_epochs=1,
        steps=1,
        agreement_steps=1,
        block_images=4,
        progress="lines",
    )
    assert "left" not in capsys.readouterr().err
    assert re.search(r"the student takes about \d+ seconds", caplog.text)


@pytest.mark.parametrize(("seconds", "said"), [(4, ""), (6, "compress: 99 % done after 00:06, 00:00 left, the end\n")])
def test_what_follows_the_last_step_is_said_unless_all_was_quick(
    seconds: float, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(progress, "FIRST", 5.0)
    clock = Clock(monkeypatch)
    with progress_bar("compress", 100, "lines") as bar:
        bar.update(100)
        clock.now += seconds
        bar.set_postfix_str("the end")
    assert capsys.readouterr().err == said


def test_a_measurement_has_a_bar_only_if_it_takes_long(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(progress, "FIRST", 5.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    clock = Clock(monkeypatch)
    with progress_bar("student on test images", 100, True, passes=True) as bar:
        clock.now += 4
        bar.update(30)
        assert capsys.readouterr().err == ""
        clock.now += 4
        bar.update(30)
        assert "student on test images:  60%" in capsys.readouterr().err


@pytest.mark.parametrize(("first", "said"), [(0.01, ["it is loaded"]), (60.0, [])])
def test_what_is_slow_is_said(
    first: float, said: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nni_autorecon")
    monkeypatch.setattr(progress, "FIRST", first)
    with said_if_slow("it is loaded"):
        time.sleep(0.3)
    assert caplog.messages == said
