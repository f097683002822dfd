"""Training on from a checkpoint, instead of from a new model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml

from opsin.checkpoint.load import load
from opsin.core.errors import RecipeError
from opsin.train.hooks import Hooks
from opsin.train.recipe import load_recipe
from opsin.train.run import start
from tests.support.hub import hub_dir
from tests.support.models import recipe_value

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.model.vlm import Vlm


def written(folder: Path, value: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    return path


def clone(model: Vlm) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def begun_and_ended(folder: Path, checkpoint: Path) -> tuple[dict[str, torch.Tensor], Path]:
    """The weights that training on from `checkpoint` began with, and the checkpoint it made."""
    value = recipe_value(folder) | {"start_from": str(checkpoint), "seed": 4}
    value.pop("model")
    value["stages"] = [value["stages"][1] | {"batch_tokens": 512}]
    before: dict[str, torch.Tensor] = {}
    hooks = Hooks(before_stages=lambda model: before.update(clone(model)))
    return before, start(load_recipe(written(folder, value)), folder / "second", hooks)


def test_training_goes_on_from_opsins_own_checkpoint(tmp_path: Path) -> None:
    first = start(load_recipe(written(tmp_path, recipe_value(tmp_path))), tmp_path / "first")
    before, last = begun_and_ended(tmp_path, first)
    trained = clone(load(first).model)
    assert before.keys() == trained.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.items())
    after = clone(load(last).model)
    assert not all(torch.equal(before[name], tensor) for name, tensor in after.items())


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision", "qwen2_vl"])
def test_training_goes_on_from_a_published_familys_directory(tmp_path: Path, family: str) -> None:
    path = hub_dir(tmp_path / "hub", family)
    before, last = begun_and_ended(tmp_path, path)
    theirs = clone(load(path).model)
    assert all(torch.equal(before[name], tensor) for name, tensor in theirs.items())
    after = clone(load(last).model)
    assert {
        name for name, tensor in after.items() if name.startswith("encoder.") and tensor.ne(before[name]).any()
    } == set()
    assert any(tensor.ne(before[name]).any() for name, tensor in after.items() if name.startswith("connection."))
    assert any(tensor.ne(before[name]).any() for name, tensor in after.items() if name.startswith("decoder."))


def refusal(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    (problem,) = caught.value.problems
    return problem


def test_a_recipe_has_either_a_new_model_or_a_checkpoint(tmp_path: Path) -> None:
    value = recipe_value(tmp_path)
    both = refusal(written(tmp_path, value | {"start_from": str(tmp_path)}))
    assert both.endswith("give 'model' or 'start_from', not both: a checkpoint has its own parts")
    value.pop("model")
    neither = refusal(written(tmp_path, value))
    assert "give either 'model' (the parts of a new one) or 'start_from' (a checkpoint)" in neither
    (tmp_path / "empty").mkdir()
    nothing = refusal(written(tmp_path, value | {"start_from": str(tmp_path / "empty")}))
    assert f"start_from: {tmp_path / 'empty'}" in nothing
    assert "config.json" in nothing
