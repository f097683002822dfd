"""What docs/synthesize.md shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import yaml
from typer.testing import CliRunner

from opsin.cli import app
from opsin.quickstart.dataset import TINY, build_drawn
from opsin.report.synthesis_view import HELD_OUT, INSTRUCT, PROVENANCE, QUARANTINE, STATISTICS
from opsin.synthesize.kinds import Kind
from opsin.synthesize.output import LEDGER, PAGE, PROBLEMS
from opsin.synthesize.sources import PictureSource
from opsin.synthesize.teacher_values import Limits, OpenAI

if TYPE_CHECKING:
    import pytest

PAGE_TEXT = (Path(__file__).parent.parent / "docs" / "synthesize.md").read_text(encoding="utf-8")
RUNNER = CliRunner()


def test_the_offline_run_prints_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build_drawn(Path("demo/quickstart/data"), 0, TINY)  # what `opsin quickstart --tiny` makes before it trains
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE_TEXT, re.DOTALL)
    first, *commands = block.strip().splitlines()
    assert first == "opsin quickstart --tiny --out demo/quickstart"
    told = ""
    for command in commands:
        done = RUNNER.invoke(app, command.split()[1:])
        assert done.exit_code == 0, done.output
        told += done.output
    shown = re.search(r"```\n\n((?: {4}.+\n)+)", PAGE_TEXT)
    assert shown is not None
    for line in shown[1].splitlines():
        assert line.strip() in (*(" ".join(one.split()) for one in told.splitlines()), "..."), line
    assert Path("demo/page.html").is_file()


def test_the_settings_of_an_endpoint_are_valid() -> None:
    (block,) = re.findall(r"((?: {4}.+\n)+)", PAGE_TEXT[PAGE_TEXT.index("    teacher:\n") :])[:1]
    value = yaml.safe_load(block)
    OpenAI.model_validate(value["teacher"])
    Limits.model_validate(value["limits"])


def test_every_kind_source_and_file_is_on_the_page() -> None:
    for union in (Kind, PictureSource):
        for one in get_args(get_args(union)[0]):
            assert f"`{one.model_fields['kind'].default}`" in PAGE_TEXT, one
    for name in (INSTRUCT, HELD_OUT, PROVENANCE, QUARANTINE, STATISTICS, PAGE, PROBLEMS, LEDGER):
        assert f"OUT/{name}" in PAGE_TEXT
