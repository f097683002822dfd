"""Bars and lines on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from opsin.train.progress import ProgressHooks

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
