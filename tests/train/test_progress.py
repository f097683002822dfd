"""Bars and lines on a terminal."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from opsin.train import progress as module
from opsin.train.metrics import StepMetrics
from opsin.train.progress import ProgressHooks
from tests.support.models import stage_of

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def terminal() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=True, width=100, legacy_windows=False), file


def test_an_interrupted_bar_gives_the_cursor_back() -> None:
    console, file = terminal()
    with pytest.raises(KeyboardInterrupt), ProgressHooks(console) as progress:  # noqa: PT012 (the bar is drawn inside)
        progress.on_features(1, 10)
        assert HIDE_CURSOR in file.getvalue()
        assert SHOW_CURSOR not in file.getvalue()
        raise KeyboardInterrupt
    assert file.getvalue().rfind(SHOW_CURSOR) > file.getvalue().rfind(HIDE_CURSOR)


def test_a_line_cannot_steer_the_terminal() -> None:
    file = io.StringIO()
    ProgressHooks(Console(file=file, width=100)).on_line("record \x1b[2J[red]\tx\nnext")
    assert "\x1b" not in file.getvalue()
    assert "record \N{REPLACEMENT CHARACTER}[2J[red]" in file.getvalue()
    assert file.getvalue().count("\n") == 2


@pytest.mark.parametrize(("seconds", "told"), [(30.0, [20, 25]), (0.0, list(range(1, 26)))])
def test_a_log_gets_a_line_every_so_many_steps_or_seconds(
    seconds: float, told: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PLAIN_SECONDS", seconds)
    file = io.StringIO()
    on_step = ProgressHooks(Console(file=file, width=100)).hooks().on_step
    for step in range(1, 26):
        metrics = StepMetrics(step, 1.0, 1.0, {}, tokens=8, supervised=4, pictures=0, seconds=0.1)
        on_step(stage_of({"connector": {"lr": 1e-3}}), metrics, 25)
    assert [int(line.split()[1].split("/")[0]) for line in file.getvalue().splitlines()] == told


def test_a_line_tells_the_mean_of_the_steps_since_the_last_one() -> None:
    file = io.StringIO()
    on_step = ProgressHooks(Console(file=file, width=100)).hooks().on_step
    for step in range(1, 44):
        loss, supervised = (None, 0) if step in (1, *range(41, 44)) else (4.0, 1) if step % 2 else (1.0, 2)
        metrics = StepMetrics(
            step, loss, loss, {}, tokens=5 * supervised, supervised=supervised, pictures=0, seconds=0.5
        )
        on_step(stage_of({"connector": {"lr": 1e-3}}), metrics, 43)
    assert file.getvalue().splitlines() == [
        "x 20/43  loss 1.931  14 tok/s (3 learned)  12 s left",  # 9 of 4.0 and 2 * 10 of 1.0
        "x 40/43  loss 2.000  15 tok/s (3 learned)  1.5 s left",
        "x 43/43  nothing to learn  0 tok/s (0 learned)",
    ]


FULL = StepMetrics(
    step=7,
    loss=2.3456,
    grad_norm=1.0,
    rates={},
    tokens=123_456,
    supervised=45_678,
    pictures=85,
    seconds=1.0,
    waited=0.031,
    flops=4e14,
    memory=72_300_000_000,
)


def test_everything_that_is_known_is_told() -> None:
    assert module.told([FULL], peak=989e12) == (
        "loss 2.346  123,456 tok/s (45,678 learned)  85.0 img/s  data 3%  72.3 GB  MFU 40%"
    )
    troubled = replace(FULL, loss=None, trouble="the loss is nan")
    assert module.told([FULL, troubled]).endswith("72.3 GB  1 step skipped")


def test_a_step_fits_into_eighty_columns() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80, legacy_windows=False)
    with ProgressHooks(console) as progress:
        progress.hooks().on_step(stage_of({"connector": {"lr": 1e-3}}), FULL, 5_000)
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).replace("\r", "\n")
    lines = [line for line in drawn.splitlines() if line.strip()]
    assert max(map(len, lines)) <= 80
    assert any("7/5000" in line for line in lines)
    assert any("loss 2.346  123,456 tok/s (45,678 learned)  85.0 img/s  data 3%  72.3 GB" in line for line in lines)
