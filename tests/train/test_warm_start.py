"""The connector's warm start, and what is refused before any training."""

from __future__ import annotations

import json
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from PIL import Image

from opsin.core.errors import DataError, ModelError, TrainError
from opsin.train.data import read_stage
from opsin.train.features import FeatureCache
from opsin.train.recipe import Recipe, Stage, WarmStart
from opsin.train.run import start
from opsin.train.warm_start import warm_start
from opsin.vision.square import Square
from opsin.vision.tower import Tower
from tests.support.models import draw_picture, recipe_value, tiny_vlm, write_data

WORDS = ("red", "blue", "green", "dark")


def captions(folder: Path, *, text_first: bool) -> Path:
    records = []
    if text_first:
        turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
        records.append({"id": "text", "conversations": turns})
    for number, word in enumerate(WORDS):
        draw_picture(folder / f"{number}.png", number)
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"a {word} thing"}]
        records.append({"id": word, "image": f"{number}.png", "conversations": turns})
    path = folder / "captions.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.mark.parametrize("text_first", [False, True])
def test_it_fits_the_connector_and_nothing_else(tmp_path: Path, *, text_first: bool) -> None:
    model, prepare = tiny_vlm(tmp_path)
    source = {"kind": "llava", "path": captions(tmp_path, text_first=text_first)}
    stage = Stage.model_validate({"name": "x", "data": [source], "train": {"connector": {"lr": 1e-3}}})
    data = read_stage(stage, model.config, prepare.tokenizer)
    cache = FeatureCache(model, prepare, folder=tmp_path / "features")
    cache.add(data.examples, attrgetter("seen"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    done = warm_start(model, data.examples, cache, WarmStart(epochs=60, lr=1e-2), seed=0)
    assert done.pictures == len(WORDS)
    assert done.last < done.first
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all(name.startswith("connection.") for name in moved)


def test_it_needs_captions_that_differ(tmp_path: Path) -> None:
    model, prepare = tiny_vlm(tmp_path)
    source = {"kind": "llava", "path": write_data(tmp_path, pictures=1, texts=0)}
    stage = Stage.model_validate({"name": "x", "data": [source], "train": {"connector": {"lr": 1e-3}}})
    data = read_stage(stage, model.config, prepare.tokenizer)
    cache = FeatureCache(model, prepare, folder=tmp_path)
    cache.add(data.examples, attrgetter("seen"))
    with pytest.raises(TrainError, match="no sample has one picture and words of its own"):
        warm_start(model, data.examples, cache, WarmStart(), seed=0)


def test_a_bad_record_of_the_second_stage_stops_before_the_first(tmp_path: Path) -> None:
    value = json.loads(json.dumps(recipe_value(tmp_path), default=str))
    bad = tmp_path / "bad.json"
    bad.write_text('[{"id": "x", "conversations": "none"}]', encoding="utf-8")
    value["stages"][1]["data"] = [{"kind": "llava", "path": str(bad)}]
    recipe = Recipe.model_validate(value)
    recipe = recipe.model_copy(update={"model": recipe.composition.resolved()})
    with pytest.raises(DataError, match=r"bad\.json:1"):
        start(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rotary_embeddings_that_depend_on_the_pack_are_refused(tmp_path: Path) -> None:
    value = json.loads(json.dumps(recipe_value(tmp_path), default=str))
    value["model"]["language"]["config"]["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(ModelError, match="rope type 'dynamic', whose frequencies depend on the whole pack"):
        Recipe.model_validate(value).model.resolved()


def test_a_wide_strip_is_reduced_before_it_is_padded() -> None:
    strip = Image.new("RGB", (16_384, 82), (10, 20, 30))
    square = Square(size=64, fit="pad")
    layout = square.plan(82, 16_384, "single", Tower(patch=32, shrink=lambda rows, cols: (rows, cols)))
    (pixels,) = square.pixels([strip], layout, (0.5, 0.5, 0.5))
    assert pixels.shape == (3, 64, 64)
    assert pixels[:, 32, 32].max() < 127  # the strip is a third of a pixel high: darker than the padding around it


def test_a_model_that_does_not_splice_is_refused(tmp_path: Path) -> None:
    model, prepare = tiny_vlm(tmp_path, fusion="gated_cross_attention")
    with pytest.raises(TrainError, match="under fusion gated_cross_attention they never stand among words"):
        warm_start(model, [], FeatureCache(model, prepare, folder=tmp_path), WarmStart(), seed=0)
