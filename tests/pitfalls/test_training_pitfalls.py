"""What went wrong with training in other projects, where no other test would fail if it went wrong here.

`docs/pitfalls.md` lists all of them, with the tests that stand elsewhere.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from opsin.checkpoint.model import unique_state
from opsin.core.errors import TrainError
from opsin.core.types import Picture
from opsin.train.audit import audit_gradients
from opsin.train.hooks import Hooks
from opsin.train.optimiser import build_optimiser, prepare_parts
from opsin.train.recipe import Recipe
from opsin.train.run import resume, start
from tests.support.launch import meet, together
from tests.support.models import dialogue, draw_picture, model_value, packed, recipe_value, stage_of, tiny_vlm
from tests.support.tokenizers import chatml_tokenizer_dir
from tests.support.videos import write_video

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.train.metrics import StepMetrics
    from opsin.train.recipe import Stage

ALL = {"vision": {"lr": 1e-3}, "connector": {"lr": 1e-2}, "language": {"lr": 1e-3}}


def resolved(value: dict[str, Any]) -> Recipe:
    made = Recipe.model_validate(value)
    return made.model_copy(update={"model": made.composition.resolved()})


def video_and_text(folder: Path) -> Recipe:
    """Steps of two packs: a video, and a text."""
    write_video(folder / "a.avi", range(8))
    asked = {"from": "human", "value": "<video>\nWhat happens?"}
    records = [
        {"id": "video", "video": "a.avi", "conversations": [asked, {"from": "gpt", "value": "It moves."}]},
        {"id": "text", "conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello." * 9}]},
    ]
    value = recipe_value(folder, parallel={"timeout": 20})
    (folder / "data.json").write_text(json.dumps(records), encoding="utf-8")
    value["model"] = model_value(chatml_tokenizer_dir(folder), encoder="clip", max_position_embeddings=1024)
    size = {"batch_tokens": 80, "packs_per_step": 2, "epochs": 3}
    return resolved(value | {"stages": [value["stages"][1] | {"train": ALL} | size]})


def train(recipe: Recipe, out: Path) -> list[dict[str, Any]]:
    done: list[dict[str, Any]] = []

    def note(stage: Stage, step: StepMetrics, _total: int) -> None:
        done.append(step.as_dict(stage.name))

    meet()
    start(recipe, out, Hooks(on_step=note))
    return done


def test_a_rank_with_text_does_not_hang_beside_one_with_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    recipe = video_and_text(tmp_path)
    (alone,) = together(1, train, recipe, tmp_path / "one", seconds=60)
    shared = together(2, train, recipe, tmp_path / "two", seconds=60)[0]
    assert [(step["packs"], step["samples"]) for step in shared] == [(2, 2)] * 3
    assert all(step["pictures"] for step in shared)
    assert [step["loss"] for step in shared] == pytest.approx([step["loss"] for step in alone], rel=1e-5)


@pytest.mark.parametrize("encoder", ["clip", "siglip", "dinov2", "native_vit"])
def test_a_frozen_encoder_keeps_no_graph(tmp_path: Path, encoder: str) -> None:
    native = {"resolution": "native"} if encoder == "native_vit" else {}
    model, prepare = tiny_vlm(tmp_path, encoder=encoder, **native)
    stage = stage_of({"connector": {"lr": 1e-2}, "language": {"lr": 1e-3}})
    prepare_parts(model, stage)
    model.train()
    batch = packed([dialogue("one", "What?", "That.", [picture(tmp_path)])], prepare)
    assert model.encode(batch).grad_fn is None
    assert model(batch).grad_fn is not None


def picture(folder: Path) -> Picture:
    return Picture(path=draw_picture(folder / "a.png", 1))


def test_trained_weights_that_a_save_would_leave_out_stop_the_run(tmp_path: Path) -> None:
    model, prepare = tiny_vlm(tmp_path)
    stage = stage_of({"connector": {"lr": 1e-2}, "language": {"lr": 1e-3, "lora": {"rank": 2}}})
    prepare_parts(model, stage)
    optimiser = build_optimiser(model, stage)
    model(packed([dialogue("one", "What?", "That.", [picture(tmp_path)])], prepare)).sum().backward()
    whole = set(unique_state(model))
    audit_gradients(model, stage, optimiser, saved=whole)
    adapters = {name for name in whole if "lora" in name}
    with pytest.raises(TrainError, match="trained by the plan, but a checkpoint would not hold it") as caught:
        audit_gradients(model, stage, optimiser, saved=whole - adapters)
    assert all(name in str(caught.value) for name in adapters)


class CutError(Exception):
    """The run ends here."""


def test_a_run_with_weights_that_no_gradient_reaches_goes_on(tmp_path: Path) -> None:
    value = recipe_value(tmp_path, save_every=1)
    value["model"] = model_value(chatml_tokenizer_dir(tmp_path), encoder="clip")
    recipe = resolved(value | {"stages": [value["stages"][1] | {"train": ALL, "epochs": 2}]})
    lines: list[str] = []

    def cut(_stage: Stage, step: StepMetrics, _total: int) -> None:
        if step.step == 3:
            raise CutError

    whole = start(recipe, tmp_path / "whole", Hooks(on_line=lines.append))
    assert any("not used in this stage, so unchanged: encoder." in line for line in lines)
    with pytest.raises(CutError):
        start(recipe, tmp_path / "cut", Hooks(on_step=cut))
    ended = resume(tmp_path / "cut")
    assert (ended / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
