"""Training by several processes (gloo) is training by one: loss, gradients, weights, checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from opsin.checkpoint.restore import restore_model
from opsin.core.errors import LostRankError
from opsin.train.hooks import Hooks
from opsin.train.loop import StageLoop
from opsin.train.recipe import Recipe
from opsin.train.run import resume, start
from tests.support.launch import launched, meet, together
from tests.support.models import model_value, recipe_value
from tests.support.tokenizers import chatml_tokenizer_dir

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.train.metrics import StepMetrics
    from opsin.train.recipe import Stage

ALL = {"vision": {"lr": 1e-3}, "connector": {"lr": 1e-2}, "language": {"lr": 1e-3, "weight_decay": 0.1}}
LORA = {"connector": {"lr": 1e-2}, "language": {"lr": 1e-2, "lora": {"rank": 2, "dropout": 0.1}}}
CASES: dict[str, dict[str, Any]] = {
    "everything": {"train": ALL},
    "copies": {"train": ALL, "parallel": {"sharding": "none"}},
    "connector": {"train": {"connector": {"lr": 1e-2}}},
    "adapters": {"train": LORA},
    "layers": {"train": {"language": [{"lr": 1e-3, "layers": "1-1"}], "embeddings": {"lr": 1e-3}}},
    "recomputed": {"train": ALL, "activation_checkpointing": "selective"},
    "samples": {"train": ALL, "samples_per_step": 5, "packs_per_step": 1, "loss": {"average": "sample"}},
    "gated": {"train": ALL, "model": {"fusion": "gated_cross_attention", "resolution": "any_res", "encoder": "clip"}},
    "native": {"train": ALL, "model": {"encoder": "native_vit", "resolution": "native", "positions": "mrope"}},
    "cached": {"train": {"connector": {"lr": 1e-2}}, "cache_features": True},
}
"""What a stage trains, and how; all on packs with and without pictures, and steps that do not divide by the ranks."""


def recipe_of(folder: Path, case: str, epochs: int = 2, **changes: Any) -> Recipe:
    value = recipe_value(folder, **changes)
    given = dict(CASES[case])
    model = {"encoder": "clip"} | given.pop("model", {})
    value["model"] = model_value(chatml_tokenizer_dir(folder), **model)
    value["parallel"] = {"timeout": 30} | given.pop("parallel", {})
    stage = {**value["stages"][1], "packs_per_step": 3, "batch_tokens": 80, "epochs": epochs} | given
    made = Recipe.model_validate(value | {"stages": [stage]})
    return made.model_copy(update={"model": made.composition.resolved()})


def train(recipe: Recipe, out: Path) -> list[dict[str, Any]]:
    """The steps' metrics."""
    done: list[dict[str, Any]] = []

    def note(stage: Stage, step: StepMetrics, _total: int) -> None:
        done.append(step.as_dict(stage.name))

    start(recipe, out, Hooks(on_step=note))
    return done


def train_all(folder: Path, cases: list[str]) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for case in cases:
        meet()
        found[case] = train(recipe_of(folder / case, case), folder / case / "many")
    return found


def assert_same_steps(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], tolerance: float = 1e-5, norms: float = 1e-3
) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for key in ("tokens", "supervised", "samples", "pictures", "patches", "packs", "lr", "stage", "step"):
            assert one[key] == other[key], key
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance)
        assert one["norms"] == pytest.approx(other["norms"], rel=norms, abs=1e-6)
        assert one["sources"].keys() == other["sources"].keys()


def assert_same_weights(ours: Path, theirs: Path) -> None:
    one, other = (restore_model(next(path.glob("checkpoints/*-done"))).state_dict() for path in (ours, theirs))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=2e-4, rtol=1e-3, msg=name)


class CutError(Exception):
    """The run is cut off here."""


def cut_after(step: int) -> Hooks:
    def cut(_stage: Stage, done: StepMetrics, _total: int) -> None:
        if done.step == step:
            raise CutError

    return Hooks(on_step=cut)


def begin_and_cut(recipe: Recipe, out: Path, step: int) -> None:
    meet()
    with contextlib.suppress(CutError, LostRankError):  # of rank 0, who alone is told of steps, and of the others
        start(recipe, out, cut_after(step))


def go_on(out: Path, step: int | None) -> list[str]:
    """Resume a run, and cut it off again after a step; the lines that it told."""
    lines: list[str] = []
    meet()
    with contextlib.suppress(CutError, LostRankError):
        resume(out, Hooks(on_line=lines.append, on_step=cut_after(step or -1).on_step))
    return lines


@pytest.mark.parametrize("case", ["everything", "adapters"])
def test_a_run_goes_on_with_any_number_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    recipe = recipe_of(tmp_path, case, save_every=1, save_in_background=False, epochs=5)
    alone = train(recipe, tmp_path / "one")
    out = tmp_path / "many"
    together(2, begin_and_cut, recipe, out, 2)  # saved after step 1: the step that was cut is not
    for ranks, step in ((4, 3), (3, 4), (1, None)):
        told = together(ranks, go_on, out, step)[0]
        assert any(line.startswith("resuming at stage 'instruct', step ") for line in told)
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert_same_steps([json.loads(line) for line in lines], alone)
    assert_same_weights(out, tmp_path / "one")


def test_hybrid_sharding_of_four_ranks_and_bfloat16_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    hybrid = {"timeout": 30, "sharding": "hybrid", "group_size": 2}
    recipe = recipe_of(tmp_path, "everything")
    alone = train(recipe, tmp_path / "one")
    parallel = recipe.parallel.model_copy(update=hybrid)
    shared = together(4, _train_once, recipe.model_copy(update={"parallel": parallel}), tmp_path / "four")[0]
    assert_same_steps(shared, alone)
    low = recipe.model_copy(update={"precision": "bf16"})
    assert_same_steps(together(2, _train_once, low, tmp_path / "low")[0], train(low, tmp_path / "low-one"), 5e-3, 0.05)
    uneven = recipe.model_copy(update={"parallel": parallel.model_copy(update={"group_size": 3})})
    answers = launched(2, _train_once, uneven, tmp_path / "uneven")
    assert all("hybrid sharding: 2 ranks are no whole groups of 3; correct group_size" in why for _, why in answers)


def _train_once(recipe: Recipe, out: Path) -> list[dict[str, Any]]:
    meet()
    return train(recipe, out)


def _train_and_die(recipe: Recipe, out: Path, how: str) -> None:
    """Rank 1 is gone, or hangs, in the middle of step 3."""
    meet()
    original = StageLoop.take_step

    def take_step(loop: StageLoop) -> StepMetrics:
        if loop.step == 2 and loop.world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        return original(loop)

    StageLoop.take_step = take_step  # this process is a child, which ends
    start(recipe, out)


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_a_rank_that_is_gone_ends_all_and_the_last_good_checkpoint_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    recipe = recipe_of(tmp_path, "everything", save_every=1, save_in_background=False)
    recipe = recipe.model_copy(update={"parallel": recipe.parallel.model_copy(update={"timeout": 3.0})})
    began = time.monotonic()
    (good, why), (other, _) = launched(2, _train_and_die, recipe, tmp_path / "run", how, seconds=12)
    assert (good, other) == (False, False)
    assert "another rank does not answer, so this one ends too" in why
    last = tmp_path / "run" / "checkpoints" / "00-instruct-000000002"
    assert f"the last good checkpoint is {last}; go on with: opsin train --resume {tmp_path / 'run'}" in why
    assert how == "hung" or time.monotonic() - began < 20
    alone = train(recipe, tmp_path / "one")
    resume(tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert_same_steps([json.loads(line) for line in lines], alone)


def _train_on_other_data(recipes: list[Recipe], out: Path) -> None:
    meet()
    start(recipes[int(os.environ["RANK"])], out)


def test_ranks_that_plan_different_steps_are_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    one = recipe_of(tmp_path / "one", "everything")
    other = recipe_of(tmp_path / "other", "everything").model_copy(update={"seed": 4})
    answers = launched(2, _train_on_other_data, [one, other], tmp_path / "run")
    assert [good for good, _ in answers] == [False, False]
    assert all("plans other steps than rank" in why for _, why in answers)
    assert not (tmp_path / "run" / "run.json").exists()


def _find_damage(recipe: Recipe, out: Path) -> None:
    meet()
    start(recipe, out)


def test_an_error_of_one_rank_is_told_by_all_and_what_was_done_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    recipe = recipe_of(tmp_path, "everything")
    alone = train(recipe, tmp_path / "one")
    picture = tmp_path / "pictures" / "3.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:-30])
    answers = launched(2, _find_damage, recipe, tmp_path / "run")
    assert [good for good, _ in answers] == [False, False]
    assert all("(picture-3)" in why and "3.png" in why for _, why in answers)
    picture.write_bytes(whole)
    kept = list((tmp_path / "run" / "checkpoints").iterdir()) if (tmp_path / "run" / "checkpoints").exists() else []
    assert all(path.name.startswith(("emergency-00-instruct-", "LATEST")) for path in kept)
    if kept:  # the picture was not in the first step
        resume(tmp_path / "run")
        lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert_same_steps([json.loads(line) for line in lines], alone)


def test_two_ranks_train_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    alone = {case: train(recipe_of(tmp_path / case, case), tmp_path / case / "one") for case in CASES}
    first, second = together(2, train_all, tmp_path, list(CASES), meetings=len(CASES))
    assert second == {case: [] for case in CASES}  # only the first rank tells
    for case in CASES:
        assert len(alone[case]) >= 2, case
        assert any(step["packs"] % 2 for step in alone[case]), case
        assert_same_steps(first[case], alone[case])
        assert_same_weights(tmp_path / case / "many", tmp_path / case / "one")
