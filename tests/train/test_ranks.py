"""Training by several processes (gloo) is training by one: loss, gradients, weights, checkpoints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from opsin.checkpoint.restore import restore_model
from opsin.core.errors import TrainError
from opsin.model.config import ModelConfig
from opsin.train.hooks import Hooks
from opsin.train.recipe import Recipe
from opsin.train.run import resume, start
from tests.support.launch import meet, together
from tests.support.models import model_value, recipe_value
from tests.support.tokenizers import chatml_tokenizer_dir

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.train.loop import StageLoop
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


def recipe_of(folder: Path, case: str, **changes: Any) -> Recipe:
    value = recipe_value(folder, **changes)
    given = dict(CASES[case])
    model = {"encoder": "clip"} | given.pop("model", {})
    value["model"] = model_value(chatml_tokenizer_dir(folder), **model)
    value["parallel"] = {"timeout": 30} | given.pop("parallel", {})
    stage = {**value["stages"][1], "packs_per_step": 3, "batch_tokens": 80, "epochs": 2} | given
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


def assert_same_steps(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], tolerance: float = 1e-5) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for key in ("tokens", "supervised", "samples", "pictures", "patches", "packs", "lr", "stage", "step"):
            assert one[key] == other[key], key
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance)
        assert one["norms"] == pytest.approx(other["norms"], rel=100 * tolerance, abs=1e-6)
        assert one["sources"].keys() == other["sources"].keys()


def assert_same_weights(ours: Path, theirs: Path) -> None:
    one, other = (restore_model(next(path.glob("checkpoints/*-done"))).state_dict() for path in (ours, theirs))
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=2e-4, rtol=1e-3, msg=name)


def test_two_ranks_train_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    alone = {case: train(recipe_of(tmp_path / case, case), tmp_path / case / "one") for case in CASES}
    first, second = together(2, train_all, tmp_path, list(CASES))
    assert second == {case: [] for case in CASES}  # only the first rank tells
    for case in CASES:
        assert len(alone[case]) >= 2, case
        assert any(step["packs"] % 2 for step in alone[case]), case
        assert_same_steps(first[case], alone[case])
        assert_same_weights(tmp_path / case / "many", tmp_path / case / "one")
