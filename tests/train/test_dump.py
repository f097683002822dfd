from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from opsin.core.errors import TrainError
from opsin.core.types import Batch
from opsin.model.loss import supervised_loss
from opsin.train.dump import read_dump
from opsin.train.hooks import Hooks
from opsin.train.objective import Objective
from opsin.train.recipe import Recipe
from opsin.train.run import start
from tests.support.models import recipe_value

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.model.vlm import Vlm
    from opsin.train.recipe import Stage


def test_a_step_that_is_not_finite_can_be_computed_again_from_its_dump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = recipe_value(tmp_path)
    value["stages"] = [value["stages"][1] | {"packs_per_step": 2, "batch_tokens": 60, "epochs": 3}]
    made = Recipe.model_validate(value)
    recipe = made.model_copy(update={"model": made.composition.resolved()})
    original = Objective.forward
    seen: list[tuple[list[str], float]] = []
    models: list[Vlm] = []

    def poisoned(self: Objective, batch: Batch, weights_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total, losses_S = original(self, batch, weights_T)
        seen.append((list(batch.ids), float(losses_S.sum())))
        return total * float("nan"), losses_S

    def note(_stage: Stage, loop: Any) -> None:
        models.append(loop.model)

    monkeypatch.setattr(Objective, "forward", poisoned)
    lines: list[str] = []
    with pytest.raises(TrainError, match="3 steps of the stage were skipped"):
        start(recipe, tmp_path / "run", Hooks(on_line=lines.append, on_stage=note))
    folders = sorted((tmp_path / "run" / "dump").iterdir())
    assert [folder.name for folder in folders] == [f"instruct-{step:09d}-rank0" for step in (1, 2, 3)]
    told = [line for line in lines if "the step is skipped" in line]
    assert [str(folder)[:-1] + "*" in line for folder, line in zip(folders, told, strict=True)] == [True] * 3
    batches = [batch for folder in folders for batch in read_dump(folder)]
    (model,) = models  # whose weights no step has changed
    again = [
        (list(batch.ids), float(supervised_loss(model(batch), model.decoder.head_weight, batch.targets_T).detach()))
        for batch in batches
    ]
    assert [ids for ids, _ in again] == [ids for ids, _ in seen]
    assert [loss for _, loss in again] == pytest.approx([loss for _, loss in seen])
