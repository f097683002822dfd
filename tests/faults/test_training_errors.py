"""Whatever goes wrong beside the training: no work is lost, and nothing torn is taken for a checkpoint."""

from __future__ import annotations

import errno
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch

from opsin.checkpoint import saver
from opsin.checkpoint.store import candidates, newest_whole
from opsin.core.errors import CheckpointError, DataError, OutOfMemoryError, StoppedError, TrainError
from opsin.train import stages, watch
from opsin.train.hooks import Hooks
from opsin.train.recipe import Recipe
from opsin.train.run import resume, start
from tests.support.models import recipe_value, write_data

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def recipe_of(folder: Path, stage: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    value = recipe_value(folder)
    value["stages"] = [one | {"batch_tokens": 60} | (stage or {}) for one in value["stages"]]
    made = Recipe.model_validate(value | changes)
    return made.model_copy(update={"model": made.composition.resolved()})


def failing_once(function: Callable[..., Any], at: int, error: Exception) -> Callable[..., Any]:
    calls: list[int] = []

    def call(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            raise error
        return function(*args, **options)

    return call


def test_weights_that_are_half_moved_are_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.optim.AdamW.step
    full = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    monkeypatch.setattr(torch.optim.AdamW, "step", failing_once(original, 3, full))
    lines: list[str] = []
    with pytest.raises(OutOfMemoryError, match=r"step 3: memory ran out in the optimiser.*parallel\.cpu_offload"):
        start(recipe_of(tmp_path), tmp_path / "run", Hooks(on_line=lines.append))
    monkeypatch.setattr(torch.optim.AdamW, "step", failing_once(original, 3, RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        start(recipe_of(tmp_path), tmp_path / "other", Hooks(on_line=lines.append))
    assert not any("are saved in" in line for line in lines)
    assert not candidates(tmp_path / "run" / "checkpoints")
    assert not candidates(tmp_path / "other" / "checkpoints")


def test_a_save_that_failed_once_does_not_prevent_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = start(recipe_of(tmp_path), tmp_path / "whole")
    broken = failing_once(saver.commit, 1, CheckpointError("EIO once"))
    with monkeypatch.context() as patch:
        patch.setattr(saver, "commit", broken)
        lines: list[str] = []
        done = start(recipe_of(tmp_path, save_every=4), tmp_path / "run", Hooks(on_line=lines.append))
    assert any("EIO once" in line for line in lines)
    assert (done / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_save_that_failed_ends_the_run_with_what_was_done_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = start(recipe_of(tmp_path), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(saver, "commit", failing_once(saver.commit, 1, CheckpointError("EIO once")))
        with pytest.raises(CheckpointError, match="EIO once"):
            start(recipe_of(tmp_path, save_every=1), tmp_path / "run")
    newest, _ = newest_whole(tmp_path / "run" / "checkpoints")
    assert newest.name == "emergency-00-align-000000002"
    assert (resume(tmp_path / "run") / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_files_beside_the_checkpoints_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    lines: list[str] = []
    monkeypatch.setattr(stages, "METRICS", "gone/metrics.jsonl")
    monkeypatch.setattr(watch, "Scalars", full)
    recipe = recipe_of(tmp_path).model_copy(update={"tensorboard": True})
    monkeypatch.setattr("opsin.train.run.require_tensorboard", lambda: None)
    done = start(recipe, tmp_path / "run", Hooks(on_line=lines.append))
    assert done.name.startswith("01-instruct-")
    assert any("metrics.jsonl: could not be written (No such file or directory); training goes on" in x for x in lines)
    assert any("the report or TensorBoard could not be written: OSError" in line for line in lines)


def test_a_stage_that_nothing_could_train_is_refused_before_step_1(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    text = {"data": [{"kind": "llava", "path": str(write_data(tmp_path / "text", pictures=0, texts=3))}]}
    with pytest.raises(TrainError, match="stage 'align' trains connector, but none of its samples has a picture or"):
        start(recipe_of(tmp_path, text), tmp_path / "run")


def test_data_of_later_checks_are_read_before_step_1(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    missing = tmp_path / "checks" / "data.json"
    write_data(tmp_path / "checks")
    (tmp_path / "checks" / "pictures" / "2.png").unlink()
    value = recipe.model_dump(mode="json")
    value["stages"][1]["checks"] = {"every": 1, "data": [{"kind": "llava", "path": str(missing)}]}
    steps: list[int] = []
    hooks = Hooks(on_step=lambda _stage, done, _total: steps.append(done.step))
    with pytest.raises(DataError, match=r"2\.png"):
        start(Recipe.model_validate(value), tmp_path / "run", hooks)
    assert steps == []


def test_stages_are_known_by_their_names(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(stage: Any, done: Any, _total: int) -> None:
        if (stage.name, done.step) == ("instruct", 2):
            raise Killed

    out = tmp_path / "run"
    with pytest.raises(Killed):
        start(recipe_of(tmp_path, save_every=1), out, Hooks(on_step=kill))
    whole = (out / "recipe.json").read_text(encoding="utf-8")
    for change in ("renamed", "removed"):
        value = json.loads(whole)
        if change == "renamed":
            value["stages"][1]["name"] = "other"
        else:
            del value["stages"][0]
        (out / "recipe.json").write_text(json.dumps(value), encoding="utf-8")
        with pytest.raises(TrainError, match=r"was saved in stage 'instruct', number 2, which is '(other|none)'"):
            resume(out, override=True)
    (out / "recipe.json").write_text(whole, encoding="utf-8")
    assert resume(out).name.startswith("01-instruct-")  # put back, it goes on


def test_a_warmup_that_never_ends_is_told(tmp_path: Path) -> None:
    lines: list[str] = []
    start(recipe_of(tmp_path, {"warmup_steps": 1000}), tmp_path / "run", Hooks(on_line=lines.append))
    assert any("a warmup of 1,000 steps, but it has 5: its rates end at 0.5% of their peak" in line for line in lines)


def test_a_signal_does_not_wait_for_the_check_that_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    original = stages.Checker.check

    def check(self: Any, objective: Any) -> Any:
        checked.append(1)
        return original(self, objective)

    def kill(_stage: Any, done: Any, _total: int) -> None:
        if done.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(stages.Checker, "check", check)
    data = recipe_value(tmp_path)["stages"][0]["data"]
    recipe = recipe_of(tmp_path, {"checks": {"every": 1, "data": data, "samples": 2}})
    with pytest.raises(StoppedError):
        start(recipe, tmp_path / "run", Hooks(on_step=kill))
    assert checked == [1]
