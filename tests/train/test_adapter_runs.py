"""Runs with adapters: what the end of a stage holds, by any number of ranks, and what goes on from it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from opsin.checkpoint.model import load_model, read_config
from opsin.checkpoint.restore import restore_model
from opsin.model.lora import MARK
from opsin.train.hooks import Hooks
from opsin.train.recipe import Recipe
from opsin.train.run import resume, start
from tests.support.launch import meet, together
from tests.support.models import model_value, recipe_value
from tests.support.tokenizers import chatml_tokenizer_dir

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.train.metrics import StepMetrics
    from opsin.train.recipe import Stage

pytest.importorskip("peft")

FIRST = {
    "vision": {"lr": 1e-2, "layers": "0-0", "lora": {"rank": 2}},
    "connector": {"lr": 1e-2},
    "language": [{"lr": 1e-3, "layers": "0-0"}, {"lr": 1e-2, "layers": "1-1", "lora": {"rank": 2, "dropout": 0.1}}],
}
SECOND = {"connector": {"lr": 1e-2}, "language": {"lr": 1e-2, "lora": {"rank": 3, "dropout": 0.1}}}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    """Two stages with adapters of their own, of different layers, parts and ranks."""
    value = recipe_value(folder, **changes)
    value["model"] = model_value(chatml_tokenizer_dir(folder), encoder="clip")
    for stage, train in zip(value["stages"], (FIRST, SECOND), strict=True):
        stage |= {"train": train, "epochs": 1}
    made = Recipe.model_validate(value)
    return made.model_copy(update={"model": made.composition.resolved()})


class Killed(BaseException):
    """Stands for a kill: nothing in the package may catch it."""


def killed_at(name: str, step: int) -> Hooks:
    def kill(stage: Stage, done: StepMetrics, _total: int) -> None:
        if (stage.name, done.step) == (name, step):
            raise Killed

    return Hooks(on_step=kill)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_is_cut_between_stages_with_adapters_ends_as_if_it_had_not_been(
    tmp_path: Path, precision: str
) -> None:
    recipe = recipe_of(tmp_path, precision=precision)
    whole = start(recipe, tmp_path / "whole")
    with pytest.raises(Killed):
        start(recipe, tmp_path / "cut", killed_at("instruct", 1))  # the newest checkpoint is the first stage's end
    torch.manual_seed(99)  # another process has another random state
    resumed = resume(tmp_path / "cut")
    for file in ("model.safetensors", "adapters/language/adapter_model.safetensors"):
        assert (resumed / file).read_bytes() == (whole / file).read_bytes()
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_the_end_of_a_stage_carries_its_adapters_and_is_used_without_them(tmp_path: Path) -> None:
    ends: list[dict[str, torch.Tensor]] = []
    hooks = Hooks(after_stage=lambda _stage, model: ends.append({k: v.clone() for k, v in model.state_dict().items()}))
    last = start(recipe_of(tmp_path), tmp_path / "run", hooks)
    first = next(last.parent.glob("*-align-*-done"))
    for path, end, parts in ((first, ends[0], {"vision", "language"}), (last, ends[1], {"language"})):
        assert set(read_config(path).lora) == parts == {found.name for found in (path / "adapters").iterdir()}
        assert any(MARK in name for name in load_file(path / "model.safetensors"))
        for model in (load_model(path).model, restore_model(path)):  # merged, as the run itself went on
            state = model.state_dict()
            assert state.keys() == end.keys()
            assert all(torch.equal(state[name], end[name]) for name in end)


def _run(recipe: Recipe, out: Path) -> None:
    meet()
    start(recipe, out)


def test_two_ranks_write_the_adapters_that_one_writes(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    recipe = recipe.model_copy(
        update={"stages": [stage.model_copy(update={"packs_per_step": 2}) for stage in recipe.stages]}
    )
    alone = start(recipe, tmp_path / "one")
    together(2, _run, recipe, tmp_path / "two")
    for ours in sorted((tmp_path / "two" / "checkpoints").glob("*-done")):
        theirs = alone.parent / ours.name
        written = sorted(path.relative_to(theirs) for path in (theirs / "adapters").rglob("*.*"))
        assert written == sorted(path.relative_to(ours) for path in (ours / "adapters").rglob("*.*"))
        for file in written:
            if file.suffix == ".json":
                assert (ours / file).read_bytes() == (theirs / file).read_bytes()
                continue
            one, two = load_file(theirs / file), load_file(ours / file)
            assert one.keys() == two.keys()
            for name, tensor in one.items():
                torch.testing.assert_close(two[name], tensor, atol=2e-4, rtol=1e-3, msg=name)
            assert any(tensor.abs().max() > 1e-4 for name, tensor in two.items() if "lora_B" in name)
