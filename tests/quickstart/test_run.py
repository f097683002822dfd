"""The quick start on its smoke setting: the same code as the real one, from nothing to a report and a chat."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from opsin.checkpoint.model import load_model
from opsin.core.errors import OpsinError
from opsin.quickstart.run import Options, Outcome, quickstart, show
from opsin.serve.chat import run_chat

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, str]:
    folder = tmp_path_factory.mktemp("quickstart")
    console = Console(file=io.StringIO(), width=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPSIN_HOME", str(folder / "home"))
        outcome = quickstart(Options(out=folder / "run", tiny=True), console)
    show(outcome, console)
    assert isinstance(console.file, io.StringIO)
    return outcome, console.file.getvalue()


def test_it_measures_before_between_and_after(made: tuple[Outcome, str]) -> None:
    outcome, told = made
    assert [e.name for e in outcome.evaluations] == ["before", "after align", "after instruct"]
    tasks = {(s.task, s.metric) for s in outcome.evaluations[-1].scores.scores}
    assert tasks == {
        ("category", "accuracy"),
        ("yes_no", "accuracy"),
        ("count", "accuracy"),
        ("caption", "CIDEr-D"),
        ("caption", "recall@1"),
        ("caption", "recall@5"),
    }
    assert [(r.task, r.name) for r in outcome.references] == [
        ("category", "encoder's 1-NN"),
        ("category", "1-NN, leave one out"),
    ]
    assert "gradient audit passed" in told
    assert f"opsin chat {outcome.run}" in told


def test_training_teaches_the_answers(made: tuple[Outcome, str]) -> None:
    outcome, _ = made
    before, after = outcome.evaluations[0].scores, outcome.evaluations[-1].scores
    # Counting is beyond an untrained encoder; answering with a number is not.
    for task, least in (("category", 0.2), ("yes_no", 0.2), ("count", 0.05)):
        first, last = before.find(task, "accuracy"), after.find(task, "accuracy")
        assert first is not None
        assert last is not None
        assert first.value == 0  # a random model says nothing that could be an answer
        assert last.value > least, task


def test_everything_a_person_needs_is_there(made: tuple[Outcome, str]) -> None:
    outcome, _ = made
    page = outcome.report.read_text(encoding="utf-8")
    assert "after instruct" in page
    assert "data:image/" in page
    scores = json.loads((outcome.run / "scores.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in scores] == ["before", "after align", "after instruct"]
    assert json.loads(json.dumps(outcome.as_dict()))["seconds"]["all"] > 0
    assert load_model(outcome.run).path == outcome.checkpoint


def test_the_trained_model_chats(made: tuple[Outcome, str]) -> None:
    outcome, _ = made
    picture = next((outcome.run / "data" / "images").iterdir())
    lines = iter([f"/image {picture}", "Which group does this belong to?", "/quit"])
    console = Console(file=io.StringIO(), width=100)
    run_chat(outcome.run, console, lambda _prompt: next(lines))
    assert isinstance(console.file, io.StringIO)
    assert "error" not in console.file.getvalue().lower()


def test_a_directory_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(OpsinError, match="not empty; choose another directory with --out, or remove it"):
        quickstart(Options(out=tmp_path, tiny=True), Console(file=io.StringIO()))
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "precious"
