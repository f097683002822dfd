"""What the quick start tells: commands that work as typed, what to do next, what to compare with."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
import torch
from rich.console import Console

from opsin.core.errors import OpsinError
from opsin.quickstart import run
from opsin.quickstart.assets import Assets
from opsin.quickstart.dataset import DatasetSize, build_easy_vqa
from opsin.quickstart.run import Measuring, Options, Outcome, chat_command, quickstart, show
from opsin.report.scores import Reference
from opsin.train.progress import ProgressHooks
from tests.support.easy_vqa import easy_vqa_wheel
from tests.support.models import tiny_vlm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opsin.core.types import Picture
    from opsin.data.example import Seen
    from opsin.text.tokenizer import Tokenizer
    from opsin.train.features import FeatureCache


def written() -> Console:
    return Console(file=io.StringIO(), width=300)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("found", "started_as", "command"),
    [
        ("/usr/bin/opsin", ".venv/bin/opsin", "opsin"),
        (None, ".venv/bin/opsin", ".venv/bin/opsin"),
        (None, "{here}/.venv/bin/opsin", ".venv/bin/opsin"),
        (None, "opsin", "./opsin"),
        (None, "/opt/my tools/opsin", "'/opt/my tools/opsin'"),
    ],
)
def test_the_chat_command_works_as_typed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: str | None, started_as: str, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda _name: found)
    monkeypatch.setattr(sys, "argv", [started_as.format(here=tmp_path), "quickstart"])
    assert chat_command(Path("runs/my [first] run")) == f"{command} chat 'runs/my [first] run'"


def test_the_chat_command_of_a_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(sys, "argv", ["/somewhere/opsin/__main__.py", "quickstart"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    assert chat_command(Path("run")) == ".venv/bin/python -m opsin chat run"


def test_the_end_shows_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: "/usr/bin/opsin")
    outcome = Outcome(Path("runs/[red]"), Path("c"), Path("runs/[red]/report.html"), [], [], {})
    console = written()
    show(outcome, console)
    assert "report  runs/[red]/report.html\nchat    opsin chat 'runs/[red]'\n" in text_of(console)


def test_a_directory_in_use_says_how_to_begin_anew(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(OpsinError, match=r"with --out, or remove it .*make quickstart OUT=runs/another\)$"):
        quickstart(Options(out=tmp_path, tiny=True), written())


def test_a_directory_with_a_run_says_how_to_finish_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: "/usr/bin/opsin")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(OpsinError, match=f"finish the training .*: opsin train --resume {tmp_path}$"):
        quickstart(Options(out=tmp_path, tiny=True), written())


class Colours:
    """A cache whose features tell the shape of every second picture."""

    def add(
        self, seen: list[Seen], seen_of: Callable[[Seen], Iterable[Seen]], _on_progress: Callable[..., None]
    ) -> None:
        assert all(list(seen_of(pair)) == [pair] for pair in seen)

    def get(self, seen: list[Seen]) -> torch.Tensor:
        indices = [int(Path(cast("Picture", medium).path or "").stem.split("_")[1]) for medium, _ in seen]
        return torch.tensor([[1.0, 0.0] if index % 2 else [0.0, 1.0] for index in indices])


def test_two_levels_of_the_encoder_also_for_easy_vqa(tmp_path: Path) -> None:
    size = DatasetSize(held_out=8, scenes=8)
    dataset = build_easy_vqa(easy_vqa_wheel(tmp_path / "easy.whl"), tmp_path / "data", 0, size)
    measuring = Measuring(dataset, cast("Tokenizer", None), ProgressHooks(written()))
    assert measuring._encoder_level(cast("FeatureCache", Colours()), tiny_vlm(tmp_path)[1]) == [
        Reference("category", "accuracy", "encoder's 1-NN", 1.0),
        Reference("category", "accuracy", "1-NN, leave one out", 1.0),
    ]


def test_easy_vqa_comes_with_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel = easy_vqa_wheel(tmp_path / "easy.whl")
    fetched = Assets(tmp_path, tmp_path, stamps=None, easy_vqa=wheel)
    monkeypatch.setattr(run, "fetch_all", lambda console, pictures: fetched)
    monkeypatch.setattr(run, "_recipe", lambda *_: SimpleNamespace())
    console = written()
    run._real(Options(out=tmp_path / "run", pictures="easy-vqa"), ProgressHooks(console), console)
    assert "Easy-VQA: its captions repeat across its own train/test split" in text_of(console)


def test_the_bar_is_closed_when_the_quick_start_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(options: Options, hooks: ProgressHooks) -> None:
        hooks.on_features(1, 10)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_tiny", fail)
    console = Console(file=io.StringIO(), force_terminal=True, width=100, legacy_windows=False)
    with pytest.raises(KeyboardInterrupt):
        quickstart(Options(out=tmp_path / "run", tiny=True), console)
    assert text_of(console).rfind("\x1b[?25h") > text_of(console).rfind("\x1b[?25l") > -1
