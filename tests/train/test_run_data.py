"""Runs over mixtures, streams and workers: the same weights however the batches are made, and after a kill."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from opsin.core.errors import DataError, TrainError
from opsin.data import index
from opsin.train import stream
from opsin.train.hooks import Hooks
from opsin.train.recipe import Recipe
from opsin.train.run import resume, start
from tests.support.models import recipe_value, write_data

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.train.metrics import StepMetrics
    from opsin.train.recipe import Stage


def recipe(folder: Path, stage_changes: dict[str, Any], source_changes: dict[str, Any] | None = None) -> Recipe:
    value = recipe_value(folder, save_every=2)
    for stage in value["stages"]:
        stage |= stage_changes
        stage["data"] = [source | (source_changes or {}) for source in stage["data"]]
    made = Recipe.model_validate(value)
    return made.model_copy(update={"model": made.model.resolved()})


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Killed(BaseException):
    """Stands for a kill."""


def killed(at: int) -> Hooks:
    def on_step(stage: Stage, done: StepMetrics, _total: int) -> None:
        if stage.name == "instruct" and done.step == at:
            raise Killed

    return Hooks(on_step=on_step)


MIXED = {"weight": 1.5}
STREAMED = {"order": "stream", "steps": 5, "packs_per_step": 2}


@pytest.mark.parametrize(("changes", "source"), [({"packs_per_step": 2}, MIXED), (STREAMED, {})])
def test_workers_change_nothing(tmp_path: Path, changes: dict[str, Any], source: dict[str, Any]) -> None:
    alone = start(recipe(tmp_path, changes, source), tmp_path / "alone")
    helped = start(recipe(tmp_path, changes | {"workers": 2}, source), tmp_path / "helped")
    assert same(alone, helped)


@pytest.mark.parametrize(("changes", "source"), [({"workers": 2}, MIXED), (STREAMED | {"workers": 1}, {})])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, changes: dict[str, Any], source: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SHUFFLED", 16)
    monkeypatch.setattr(stream, "WINDOW", 8)
    monkeypatch.setattr(index, "CHUNK", 5)
    whole = start(recipe(tmp_path, changes, source), tmp_path / "whole")
    with pytest.raises(Killed):
        start(recipe(tmp_path, changes, source), tmp_path / "cut", killed(3))
    assert same(resume(tmp_path / "cut"), whole)


def test_what_a_run_left_out_or_made_shorter_is_written_down(tmp_path: Path) -> None:
    made = recipe(tmp_path, {"too_long": "truncate_turns"})
    path = tmp_path / "data.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    records[0]["conversations"] *= 9  # nine exchanges, the picture's mark in each
    records[0]["image"] = [records[0]["image"]] * 9
    records[1]["conversations"][1]["value"] = "endless " * 90
    path.write_text(json.dumps(records), encoding="utf-8")
    lines: list[str] = []
    start(made, tmp_path / "run", Hooks(on_line=lines.append))
    shortened = (tmp_path / "run" / "shortened.txt").read_text(encoding="utf-8").splitlines()
    skipped = (tmp_path / "run" / "skipped.txt").read_text(encoding="utf-8").splitlines()
    assert ["align: " in line and "(picture-0)" in line for line in shortened] == [True, False]
    assert all("(picture-1)" in line for line in skipped)
    assert any("samples made shorter: 1" in line for line in lines)


def test_a_data_file_that_changes_under_a_run_stops_it(tmp_path: Path) -> None:
    def rewrite(stage: Stage, done: StepMetrics, _total: int) -> None:
        if stage.name == "align" and done.step == 1:
            write_data(tmp_path, pictures=3)

    with pytest.raises(DataError, match=r"data\.json: changed"):
        start(recipe(tmp_path, {}), tmp_path / "run", Hooks(on_step=rewrite))


@pytest.mark.parametrize("changes", [{}, STREAMED])
def test_a_run_is_not_resumed_on_other_samples(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Pictures of one size cost the same: which samples there are counts too."""
    made = recipe(tmp_path, changes).model_copy(update={"skip_bad": True})
    pictures = tmp_path / "pictures"
    (pictures / "1.png").rename(tmp_path / "1.png")
    with pytest.raises(Killed):
        start(made, tmp_path / "run", killed(3))
    (tmp_path / "1.png").rename(pictures / "1.png")
    (pictures / "4.png").unlink()
    with pytest.raises(TrainError, match="put them back, or start a new run"):
        resume(tmp_path / "run")
