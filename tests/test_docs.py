"""What the documentation shows is true: recipes validate, commands and files exist."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import opsin
from opsin.cli import app
from opsin.data.check import source_of
from opsin.quickstart.dataset import TINY, build_drawn
from opsin.quickstart.tiny import write_tiny_backbones
from opsin.train.dump import write_dump
from opsin.train.objective import idle
from opsin.train.recipe import Recipe, Stage

ROOT = Path(__file__).parent.parent
TRAINING = ROOT / "docs" / "training.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RUNNER = CliRunner()


def page_id(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    named = re.findall(r"`((?:tests|opsin|docs|bench)/[\w./-]+\.(?:py|md|yaml))`", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_tests_exist(page: Path) -> None:
    named = re.findall(r"`(tests/[\w/-]+\.py)::(\w+)`", page.read_text(encoding="utf-8"))
    missing = [name for path, name in named if f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")]
    assert missing == []


def test_every_promise_names_a_test() -> None:
    rows = re.findall(r"^\| (P\d): .+? \| (.+) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, _ in rows] == ["P1", "P2", "P3", "P4", "P5", "P6"]
    for name, tests in rows:
        assert re.fullmatch(r"`tests/[\w/]+\.py::\w+`(, `tests/[\w/]+\.py::\w+`)*", tests), name


def test_the_examples_of_formats_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.jpg", "f1.jpg", "f2.jpg", "c.mp4"):
        (tmp_path / name).write_bytes(b"x")
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    records = re.findall(r"^ {4}(\{\"id\".+)$", text, re.MULTILINE)
    for key in ("conversations", "messages"):
        lines = [record for record in records if f'"{key}"' in record]
        (tmp_path / f"{key}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        assert len(lines) == 3
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], {})  # the page's own code
    with tarfile.open("data.tar", "w") as tar:
        for name, content in re.findall(r"^ {4}(000\d\.\w+) *(.*)$", text, re.MULTILINE):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content.encode()))
    for name, number in (("conversations.jsonl", 3), ("messages.jsonl", 3), ("data.parquet", 1), ("data.tar", 2)):
        read = list(source_of(tmp_path / name).conversations(Counter()))
        assert len(read) == number
        assert all(conversation.media for conversation in read)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_recipes_validate(page: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        Recipe.model_validate(_numbers(yaml.safe_load(block)))


def test_parts_of_stages_validate() -> None:
    text = TRAINING.read_text(encoding="utf-8")
    found = [yaml.safe_load(block) for block in re.findall(r"(?<=\n\n)((?: {4}.+\n)+)", text) if ":\n" in block]
    parts = [part for part in found if isinstance(part, dict)]
    assert [list(part) for part in parts] == [["train"], ["train"], ["checks"]]
    data = [{"kind": "llava", "path": "data.json"}]
    train = {"connector": {"lr": 1e-3}}
    for part in parts:
        Stage.model_validate({"name": "x", "data": data, "train": train} | _numbers(part))


def _numbers(value: Any) -> Any:
    """PyYAML reads 1e-3 as a text; opsin's own reader does not."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and re.fullmatch(r"\d+e-\d+", value) else value


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_and_their_options_exist(page: Path) -> None:
    for line in re.findall(r"^ {4}(?:\.venv/bin/)?opsin (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        words = line.split("#")[0].split()
        command = words[:2] if words[0] in ("data", "recipes", "prompts") else words[:1]
        shown = RUNNER.invoke(app, [*command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
        assert shown.exit_code == 0, line
        for option in (word for word in words if word.startswith("--")):
            assert option in shown.output, line


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = set(re.findall(r"^ {4}make ([a-z]+)", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert used <= targets


@pytest.mark.slow
def test_a_run_that_is_killed_learns_what_the_page_about_training_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # What `opsin quickstart --tiny` makes before it trains and evaluates.
    torch.manual_seed(0)
    dataset = build_drawn(Path("demo/parts/data"), 0, TINY)
    write_tiny_backbones(Path("demo/parts/backbones"), dataset)
    text = TRAINING.read_text(encoding="utf-8")
    one, two = (block.removeprefix("opsin quickstart --tiny --out demo/parts\n") for block in blocks(text, "bash"))
    scripts = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def run(block: str) -> str:
        done = subprocess.run(
            ["bash", "-euc", block], env=os.environ | scripts, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    told = run(one)
    hashes = re.findall(r"^([0-9a-f]{64})  demo/(\w+)/", told, re.MULTILINE)
    assert [name for _, name in hashes] == ["cut", "whole"]
    assert hashes[0][0] == hashes[1][0]
    assert "resuming at stage 'instruct', step 21" in told
    assert len(re.findall(r"^instruct 44/44  loss 2", told, re.MULTILINE)) == 2
    told = run(two.replace("wait\n", "wait || true\n"))
    # Whether the other rank still says why it ends (tests/train/test_ranks.py) is between it and the launcher.
    assert "resuming at stage 'instruct', step 21" in told
    losses = [float(loss) for loss in re.findall(r'"step": 44, "loss": ([\d.]+)', told)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)

    Path("runs").mkdir()
    Path("runs/mine").symlink_to(tmp_path / "demo" / "whole")
    pack = replace(idle(opsin.load("runs/mine").model), targets_T=torch.tensor([5]), ids=("one",))
    write_dump(Path("runs/mine/dump"), "instruct-000000613", [pack])
    capfd.readouterr()
    (replay,) = blocks(text, "python")
    exec(replay, {})  # the page's own code
    name, total, most = capfd.readouterr().out.rsplit(maxsplit=2)
    assert name == "('one',)"
    assert float(total) == float(most) > 0


def blocks(text: str, language: str) -> list[str]:
    """What stands between fences."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
