"""What `opsin plan` says is what training then does."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from opsin.cli import app
from opsin.train.hooks import Hooks
from opsin.train.outlook import look_ahead
from opsin.train.recipe import load_recipe
from opsin.train.run import start
from tests.support.models import build, model_value, recipe_value
from tests.support.tokenizers import chatml_tokenizer_dir

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.train.metrics import StepMetrics
    from opsin.train.recipe import Stage


def written(folder: Path, **changes: Any) -> Path:
    value = recipe_value(folder, **changes)
    path = folder / "recipe.json"
    path.write_text(json.dumps(value, default=str), encoding="utf-8")
    return path


def run(*arguments: str) -> int:
    sys.argv = ["opsin", *arguments]
    try:
        app()
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def test_the_outlook_is_what_training_does(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path))
    stages = look_ahead(recipe)
    done: dict[str, list[StepMetrics]] = {}

    def note(stage: Stage, metrics: StepMetrics, _total: int) -> None:
        done.setdefault(stage.name, []).append(metrics)

    start(recipe, tmp_path / "run", Hooks(on_step=note))
    for stage in stages:
        steps = done[stage.name]
        assert stage.steps == len(steps)
        assert stage.tokens == sum(step.tokens for step in steps)
        assert stage.supervised == sum(step.supervised for step in steps)
        assert stage.samples == sum(stage.histogram) == 8
        assert 0 < stage.visual < stage.tokens
        assert stage.patches == 4 * sum(step.pictures for step in steps)
        assert stage.refused == ()
        assert 0 < stage.efficiency <= 1


def test_memory_counts_what_is_trained_with_its_optimiser(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path))
    align, instruct = look_ahead(recipe)
    model = build(recipe.composition.model_dump())
    sizes = {
        part: sum(p.numel() for p in model.part(part).parameters()) for part in ("vision", "connector", "language")
    }
    assert align.memory["vision"] == 4 * sizes["vision"]
    assert align.memory["connector"] == 16 * sizes["connector"]
    assert align.memory["language"] == 4 * sizes["language"]
    assert instruct.memory["language"] == 16 * sizes["language"]


def test_memory_counts_what_waits_for_the_backward_pass(tmp_path: Path) -> None:
    model = model_value(chatml_tokenizer_dir(tmp_path), encoder="siglip")  # three layers of 16 channels
    path = written(tmp_path, model=model)
    layers, width, tokens = 2, 24, 96

    def waiting(*changes: str) -> int:
        recipe = load_recipe(path, ["precision=bf16", "stages.0.batch_patches=100", *changes])
        return look_ahead(recipe)[0].memory["activations"]

    assert waiting() == tokens * layers * width * 34
    assert waiting("precision=fp32") == 2 * waiting()
    again = waiting("stages.0.activation_checkpointing=full")
    assert again == tokens * width * (layers * 2 + 34)
    assert again < waiting("stages.0.activation_checkpointing=selective")
    assert waiting("stages.0.train.vision={lr: 1.0e-5}") == waiting() + 100 * 3 * 16 * 34


def test_refused_samples_are_named_and_the_costliest_come_first(tmp_path: Path) -> None:
    value = recipe_value(tmp_path)
    data = tmp_path / "data.json"
    records = json.loads(data.read_text(encoding="utf-8"))
    records[0]["image"] = "gone.png"
    records[1]["conversations"][1]["value"] = "word " * 25
    data.write_text(json.dumps(records), encoding="utf-8")
    path = tmp_path / "recipe.json"
    value["stages"] = value["stages"][:1]
    path.write_text(json.dumps(value, default=str), encoding="utf-8")
    (stage,) = look_ahead(load_recipe(path))
    gone, long = stage.refused
    assert "image 'gone.png': no such file" in gone
    assert "more than the pack's budget of 96" in long
    assert stage.samples == 6  # the others go on
    (roomy,) = look_ahead(load_recipe(path, ["stages.0.batch_tokens=512"]))
    assert roomy.costliest[0].sample.endswith("(picture-1)")
    assert roomy.costliest[0].tokens == max(costly.tokens for costly in roomy.costliest) > 96
    assert len(roomy.refused) == 1


def test_ranks_share_the_packs_of_a_step(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path), ["stages.0.packs_per_step=4", "stages.1.packs_per_step=4"])
    alone, shared = look_ahead(recipe, ranks=1)[0], look_ahead(recipe, ranks=2)[0]
    assert alone.balance == (0.0, 0.0)
    assert shared.balance[0] >= 0
    assert alone.tokens == shared.tokens
    assert alone.uneven == shared.uneven == ""


def test_packs_of_a_step_that_ranks_cannot_share_evenly_are_told(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path), ["stages.1.packs_per_step=6"])
    few, some = look_ahead(recipe, ranks=4)
    assert few.uneven == "packs_per_step 1 leaves 3 of 4 ranks idle; make it a multiple of 4"
    assert some.uneven == "packs_per_step 6 gives some of 4 ranks one more; make it a multiple of 4"


def test_steps_of_samples_tell_their_packs_and_which_are_uneven(tmp_path: Path) -> None:
    changes = ["stages.0.samples_per_step=4", "stages.0.batch_tokens=64", "stages.1.samples_per_step=8"]
    first, second = look_ahead(load_recipe(written(tmp_path), changes), ranks=2)
    assert (first.samples_per_step, first.steps) == (4, 2)
    assert (second.samples_per_step, second.steps) == (8, 1)
    assert first.packs_per_step[0] == first.packs / 2
    assert first.packs_per_step[1] >= first.packs_per_step[0] > 1
    roomy, _ = look_ahead(load_recipe(written(tmp_path), ["stages.0.samples_per_step=4"]), ranks=64)
    assert roomy.uneven == (
        "2 of 2 steps give some of 64 ranks one pack more, and 2 leave some idle; "
        "a smaller batch_tokens than 96 makes more packs of a step, and the rest smaller"
    )


def test_the_command_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path)
    assert run("plan", str(path), "--rate", "1000") == 0
    shown = capsys.readouterr().out
    assert "stage align: 8 samples" in shown
    assert "all stages: " in shown
    assert "most expensive samples" in shown
    assert run("plan", str(path), "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert [stage["name"] for stage in value] == ["align", "instruct"]
    assert run("plan", str(path), "stages.0.batch_tokens=16") == 2
    told = capsys.readouterr().err
    assert "stage 'align': its sources hold no sample that it can use" in told
    assert told.count("more than the pack's budget of 16") == 8
