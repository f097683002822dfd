"""Runs side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from opsin.cli import app
from opsin.report.compare import compare, compare_page, shown
from opsin.report.run import read_run
from tests.support.runs import step_line, whole_run, write_run

if TYPE_CHECKING:
    from pathlib import Path

STAGE = {"name": "align", "batch_tokens": 256, "data": [{"path": "a.json"}, {"path": "<b>.json"}]}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    one, other = whole_run(tmp_path / "one"), whole_run(tmp_path / "other", name="one", stages=[STAGE])
    facts = json.loads((other / "run.json").read_text(encoding="utf-8"))
    (other / "run.json").write_text(json.dumps(facts | {"torch": "2.14.0"}), encoding="utf-8")
    return one, other


def test_what_differs_is_named_by_its_path(runs: tuple[Path, Path]) -> None:
    found = compare([read_run(run) for run in runs])
    assert dict(found.differences) == {
        "stages.align.batch_tokens": (512, 256),
        "run: torch": ("2.13.0", "2.14.0"),
        "stages.align.data.1.path": (None, "<b>.json"),
    }


def test_results_stand_side_by_side(tmp_path: Path) -> None:
    one = whole_run(tmp_path / "one")
    other = write_run(tmp_path / "other", [step_line("align", step, loss=float(step)) for step in range(1, 21)])
    results = dict(compare([read_run(one), read_run(other)]).results)
    assert results["align: steps"] == (29, 20)
    assert results["align: final loss (mean of 10 steps)"][1] == pytest.approx(15.5)
    assert results["align: final validation loss"] == (2.25, None)
    assert results["align: best validation loss"] == (2.0, None)
    assert results["align: small accuracy"] == (0.75, None)
    assert results["align: tokens a second"] == (2000.0, 2000.0)
    assert results["align: steps skipped"] == (1, None)
    assert results["align: best loss (smoothed)"][1] == 1.0


def test_the_page_draws_both_and_escapes(runs: tuple[Path, Path]) -> None:
    html = compare_page(compare([read_run(run) for run in runs]))
    assert html.count("<polyline") == 4  # two lines, and their keys
    assert "&lt;b&gt;.json" in html
    assert "<b>.json" not in html


def test_runs_of_one_name_are_told_by_their_paths(tmp_path: Path) -> None:
    runs = [whole_run(tmp_path / folder / "run") for folder in ("a", "b")]
    found = compare([read_run(run) for run in runs])
    assert found.names == tuple(map(str, runs))
    assert found.differences == ()


def test_how_values_are_shown() -> None:
    told = {
        "x": (None, "–"),
        "align: time": (75.0, "1 min 15 s"),
        "loss": (1.23456, "1.235"),
        "rate": (12345.6, "12,346"),
    }
    assert {name: shown(name, value) for name, (value, _) in told.items()} == {
        name: text for name, (_, text) in told.items()
    }


def test_the_commands(runs: tuple[Path, Path], tmp_path: Path) -> None:
    one, other = map(str, runs)
    done = CliRunner().invoke(app, ["compare", one, other, "--json", "--out", str(tmp_path / "page.html")])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["differences"]["stages.align.batch_tokens"] == [512, 256]
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    told = CliRunner().invoke(app, ["compare", one, other])
    assert "stages.align.batch_tokens" in told.stdout
    written = CliRunner().invoke(app, ["report", one, "--json"])
    assert json.loads(written.stdout) == {"report": f"{one}/report.html"}


def test_one_run_alone_is_refused(runs: tuple[Path, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "opsin", "compare", str(runs[0])],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, "give two runs or more" in done.stderr) == (2, True)


def test_neither_needs_torch(runs: tuple[Path, Path]) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from opsin.commands.report import compare, report\n"
        "from pathlib import Path\n"
        "report(Path(sys.argv[1]), None, True); compare([Path(p) for p in sys.argv[1:]], None, True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, runs)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
