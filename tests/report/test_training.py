"""The page of a run that its own files tell, also while it trains."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from opsin.core.errors import OpsinError
from opsin.report import page as page_module
from opsin.report.live import LiveReport
from opsin.report.page import rewrite
from opsin.report.run import read_metrics
from tests.support.runs import step_line, whole_run, write_run

if TYPE_CHECKING:
    from pathlib import Path


def titles(html: str) -> list[str]:
    return re.findall(r'<figure class="card"><h3>([^<]*)</h3>', html)


def test_everything_a_run_tells_is_drawn(tmp_path: Path) -> None:
    html = rewrite(whole_run(tmp_path / "run")).read_text(encoding="utf-8")
    assert titles(html) == [
        "Loss",
        "Learning rate",
        "Tokens a second",
        "Gradient norm, smoothed",
        "Loss by source, smoothed",
        "Waiting for data, % of a step",
        "Memory at the peak so far, GB",
        "Samples of a pack",
        "Packs are full, %",
        "Benchmarks: accuracy",
    ]
    told = "29 steps in 14 s, 2,000 tokens a second, 10% of the time waiting for data, 3.0 GB at the peak"
    assert f"{told}; 2 samples left out, damaged" in html
    for name in ("validation", "supervised", "captions", "talk", "language 0-11", "small"):
        assert f"</svg>{name}</span>" in html
    assert "step 5: the loss is &lt;nan&gt;" in html
    assert "</svg>none</span>" not in html  # a source of which nothing was learned has no loss
    assert "<script" not in html
    assert not re.search(r"https?://", html)


def test_a_pack_is_as_full_as_its_tokens(tmp_path: Path) -> None:
    html = rewrite(whole_run(tmp_path / "run")).read_text(encoding="utf-8")
    assert 'aria-label="Packs are full, %: from 97.66 to 97.66"' in html  # 1,000 tokens in 2 packs of 512


def test_lines_of_older_runs_have_a_page(tmp_path: Path) -> None:
    old = ("stage", "step", "loss", "grad_norm", "lr", "tokens", "supervised", "pictures", "seconds")
    lines = [{key: step_line("align", step)[key] for key in old} for step in range(1, 4)]
    run = write_run(tmp_path / "run", lines)
    assert titles(rewrite(run).read_text(encoding="utf-8")) == ["Loss", "Learning rate", "Tokens a second"]


def test_a_run_without_a_step_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [])
    (run / "metrics.jsonl").unlink()
    assert "No step has been taken yet." in rewrite(run, tmp_path / "out.html").read_text(encoding="utf-8")
    assert not (run / "report.html").exists()


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(OpsinError, match=r"no recipe\.json there; this is not a run directory"):
        rewrite(tmp_path)


def test_checks_are_read_beside_steps(tmp_path: Path) -> None:
    record = read_metrics(whole_run(tmp_path / "run") / "metrics.jsonl")["align"]
    assert [(check.step, check.loss, check.benchmarks["small"]["accuracy"]) for check in record.checks] == [
        (10, 2.5, 0.25),
        (20, 2.0, 0.5),
        (30, 2.25, 0.75),
    ]
    assert (len(record.steps), record.troubles, record.skipped) == (29, [(5, "the loss is <nan>")], 2)


def test_samples_that_the_run_kept_are_shown(tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run")
    (run / "samples").mkdir()
    (run / "samples" / "align.html").write_text('<div class="samples">a picture</div>', encoding="utf-8")
    html = rewrite(run).read_text(encoding="utf-8")
    assert "What it sees" in html
    assert '<div class="samples">a picture</div>' in html


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("takes", "expected"), [(0.1, [30, 61, 92]), (2.0, [30, 132])])
def test_it_is_rewritten_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes: float, expected: list[int]
) -> None:
    clock = Clock()
    written: list[int] = []

    def rewriting(_run: Path) -> None:
        written.append(round(clock.now))
        clock.now += takes

    monkeypatch.setattr("opsin.report.live.rewrite", rewriting)
    live = LiveReport(tmp_path, lambda _line: None, clock)
    while clock.now < 135 - takes:
        live.update()
        clock.now = round(clock.now) + 1
    assert written[: len(expected)] == expected


def test_a_report_that_fails_is_told_once_and_ends_nothing(tmp_path: Path) -> None:
    lines: list[str] = []
    live = LiveReport(tmp_path / "none", lines.append)
    live.write()
    live.write()
    (line,) = lines
    assert line.startswith("the report could not be written: ")
    assert line.endswith("no recipe.json there; this is not a run directory; the training goes on")


def test_a_report_that_is_being_written_never_is_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = whole_run(tmp_path / "run")
    before = rewrite(run).read_text(encoding="utf-8")

    def failing(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page_module, "write_text", failing)
    lines: list[str] = []
    LiveReport(run, lines.append).write()
    assert "No space left on device" in lines[0]
    assert (run / "report.html").read_text(encoding="utf-8") == before
