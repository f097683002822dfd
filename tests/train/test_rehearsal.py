"""A dry run says what will train, proves it by a backward pass, and leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from opsin.core.errors import TrainError
from opsin.train.hooks import Hooks
from opsin.train.recipe import load_recipe
from opsin.train.rehearsal import lines, rehearse
from opsin.train.run import start
from tests.support.backbones import TINY, variables
from tests.support.models import build, model_value, recipe_value
from tests.support.tokenizers import chatml_tokenizer_dir


def written(folder: Path, **changes: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_value(folder) | changes, sort_keys=False), encoding="utf-8")
    return path


def test_every_stage_tells_what_trains_and_how_fast(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path), ["stages.1.train.language.weight_decay=0.1"])
    model = build(recipe.composition.model_dump())
    sizes = {part: sum(p.numel() for p in model.part(part).parameters()) for part in ("connector", "language")}
    everything = sum(p.numel() for p in model.parameters())
    align, instruct = rehearse(recipe)
    assert [(plan.name, plan.numbers, plan.lr) for plan in align.plans] == [("connector", sizes["connector"], 1e-2)]
    assert align.frozen == everything - sizes["connector"]
    assert {plan.name: (plan.numbers, plan.weight_decay) for plan in instruct.plans} == {
        "connector": (sizes["connector"], 0.0),
        "language": (sizes["language"], 0.1),
    }
    assert align.pictures > 0
    told = list(lines([align, instruct]))
    assert told[0] == "stage align: gradient audit passed"
    assert any(line.startswith("  language") and "at 1.0e-03, weight decay 0.1" in line for line in told)


def test_its_loss_is_that_of_the_run_and_nothing_is_changed(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path), ["stages.0.batch_tokens=512"])  # a step of one pack
    losses: list[float | None] = []
    start(recipe, tmp_path / "run", Hooks(on_step=lambda _stage, step, _total: losses.append(step.loss)))
    before = sorted(path.name for path in tmp_path.iterdir())
    align, instruct = rehearse(recipe)
    assert align.loss == pytest.approx(losses[0], rel=1e-6)
    assert instruct.loss > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_adapters_are_shown_and_gone_before_the_next_stage(tmp_path: Path) -> None:
    lora = next(tiny for tiny in TINY if tiny.recipe == "llava-1.5-lora")
    recipe = load_recipe(Path(lora.recipe), lora.overrides, variables=variables(tmp_path, lora.recipe))
    twice = recipe.model_copy(update={"stages": [recipe.stages[1], recipe.stages[0]]})
    instruct, align = rehearse(twice)
    assert {plan.name: plan.lora for plan in instruct.plans} == {"connector": None, "language": 128}
    assert any("adapters of rank 128" in line for line in lines([instruct]))
    assert [plan.name for plan in align.plans] == ["connector"]


def test_a_plan_that_no_gradient_reaches_is_refused(tmp_path: Path) -> None:
    model = model_value(chatml_tokenizer_dir(tmp_path), fusion="gated_cross_attention")
    recipe = load_recipe(written(tmp_path, model=model), ["stages.0.train={vision: {lr: 1.0e-3}}"])
    with pytest.raises(TrainError, match="gates of its cross-attention are closed"):
        next(rehearse(recipe))
    assert torch.is_grad_enabled()
