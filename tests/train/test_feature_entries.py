"""Which media share an entry of the feature cache, and whole runs of every kind of model on cached features."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from opsin.core.types import Clip, Medium, Picture
from opsin.data.example import Preparation, Seen, plan_media, seen_alone, shrunk
from opsin.model.vlm import Vlm
from opsin.train import features
from opsin.train.features import FeatureCache
from opsin.train.hooks import Hooks
from opsin.train.recipe import Recipe
from opsin.train.run import start
from opsin.vision.shrinking import ladder
from tests.support.models import build, draw_picture, model_value, recipe_value, tiny_vlm
from tests.support.tokenizers import chatml_tokenizer_dir
from tests.support.videos import write_video

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Made = tuple[Vlm, Preparation]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    return [Picture(path=draw_picture(tmp_path / f"{n}.png", n, (60, 40))) for n in range(4)]


def made_of(folder: Path, **kinds: Any) -> Made:
    model, prepare = tiny_vlm(folder, **kinds)
    return model.requires_grad_(requires_grad=False).eval(), prepare


def added(cache: FeatureCache, seen: Sequence[Seen]) -> int:
    return cache.add(seen, features.one).computed


def beside(media: Sequence[Medium], prepare: Preparation) -> list[Seen]:
    """Media as those of one conversation."""
    return plan_media(media, prepare, sample="")


def test_under_any_res_a_picture_alone_and_among_others_are_two_entries(
    tmp_path: Path, pictures: list[Picture]
) -> None:
    made = made_of(tmp_path, encoder="native_vit", resolution="any_res")
    cache = FeatureCache(*made, tmp_path / "features")
    single = seen_alone(pictures[:1], made[1])[0]
    multi, other = beside(pictures[:2], made[1])
    assert added(cache, [single]) == 1
    assert added(cache, [multi, other]) == 2
    alone, among = cache.get([single]), cache.get([multi])
    assert len(alone) == single[1].patches > len(among) == multi[1].patches
    assert not torch.equal(alone[: len(among)], among)  # the base of the one is padded, of the other squeezed
    assert added(cache, [single, multi, other]) == 0


def test_a_picture_that_is_cut_the_same_way_alone_and_among_others_is_one_entry(
    tmp_path: Path, pictures: list[Picture]
) -> None:
    for resolution in ("square", "native"):
        made = made_of(tmp_path, encoder="native_vit", resolution=resolution)
        cache = FeatureCache(*made, tmp_path / resolution)
        assert added(cache, seen_alone(pictures[:2], made[1])) == 2
        assert added(cache, beside(pictures[:2], made[1])) == 0


def test_a_picture_that_was_shrunk_for_a_long_sample_is_an_entry_of_its_own(tmp_path: Path) -> None:
    made = made_of(tmp_path, encoder="native_vit", resolution="any_res")
    wide = Picture(path=draw_picture(tmp_path / "wide.png", 1, (64, 64)))
    (whole,) = seen_alone([wide], made[1])
    layouts = [shrunk(whole, made[1], level)[1] for level in range(len(ladder(made[1].resolution)))]
    cache = FeatureCache(*made, tmp_path / "features")
    assert added(cache, [(wide, layout) for layout in layouts]) == len({layout.tiles for layout in layouts}) > 1


def test_another_connector_reads_the_same_entries(tmp_path: Path, pictures: list[Picture]) -> None:
    first, second = made_of(tmp_path), made_of(tmp_path, connector="q_former", fusion="gated_cross_attention")
    second[0].encoder.load_state_dict(first[0].encoder.state_dict())
    cache = FeatureCache(*first, tmp_path / "features")
    assert added(cache, seen_alone(pictures, first[1])) == 4
    other = FeatureCache(*second, tmp_path / "features")
    assert other.path == cache.path
    seen = seen_alone(pictures, second[1])
    assert added(other, seen) == 0
    assert torch.equal(other.get(seen), cache.get(seen_alone(pictures, first[1])))


def test_each_precision_has_a_file_of_its_own(tmp_path: Path) -> None:
    made = made_of(tmp_path)
    exact = FeatureCache(*made, tmp_path).path
    made[0].precision = "bf16"
    assert FeatureCache(*made, tmp_path).path != exact
    made[0].precision = "fp32"
    assert FeatureCache(*made, tmp_path).path == exact


def test_a_clip_is_not_its_frames_and_not_another_clip(tmp_path: Path, pictures: list[Picture]) -> None:
    made = made_of(tmp_path, encoder="native_vit", resolution="native")
    cache = FeatureCache(*made, tmp_path / "features")
    one, two, turned, still = (
        Clip(tuple(pictures[:2])),
        Clip(tuple(pictures)),
        Clip(tuple(pictures[1::-1])),
        pictures[0],
    )
    seen = seen_alone([one, two, turned, still, Clip((still,))], made[1])
    assert added(cache, seen) == 5
    assert [len(cache.get([pair])) for pair in seen] == [layout.patches for _, layout in seen]
    assert not torch.equal(cache.get(seen[:1]), cache.get(seen[2:3]))
    assert added(cache, seen_alone([Clip(tuple(pictures[:2]))], made[1])) == 0


def test_other_frames_of_one_video_file_are_another_entry(tmp_path: Path) -> None:
    made = made_of(tmp_path, encoder="native_vit", resolution="native")
    cache = FeatureCache(*made, tmp_path / "features")
    path = write_video(tmp_path / "a.avi", range(0, 250, 10), rate=100)
    copy = tmp_path / "copy.avi"
    copy.write_bytes(path.read_bytes())
    seen = seen_alone([Clip(path=path, taken=(0, 1)), Clip(path=path, taken=(0, 200))], made[1])
    assert added(cache, seen) == 2
    assert not torch.equal(cache.get(seen[:1]), cache.get(seen[1:]))
    assert added(cache, seen_alone([Clip(path=copy, taken=(0, 1))], made[1])) == 0


def test_media_are_encoded_together_up_to_so_many_bytes(
    tmp_path: Path, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = made_of(tmp_path, encoder="native_vit", resolution="native")
    seen = seen_alone([*pictures, Clip(tuple(pictures))], made[1])
    size = seen[0][1].bytes
    assert seen[4][1].bytes > size
    batches: list[int] = []
    made[0].encoder.register_forward_pre_hook(lambda _module, inputs: batches.append(len(inputs[1])))
    monkeypatch.setattr(features, "BATCH_BYTES", 2 * size)
    cache = FeatureCache(*made, tmp_path / "features")
    told: list[tuple[int, int]] = []
    asked = [seen[0], seen[4], *seen[1:4]]
    assert cache.add(asked, features.one, lambda done, todo: told.append((done, todo))).computed == 5
    assert batches == [1, 1, 2, 1]  # a medium that is larger than the limit comes alone
    assert told == [(n, 5) for n in range(1, 6)] * 2  # looked for, and computed
    with torch.no_grad():
        for pair in seen:
            pixels = torch.from_numpy(features.medium_pixels(*pair, made[1])).flatten()
            torch.testing.assert_close(cache.get([pair]), made[0].encoder(pixels, [pair[1]]), atol=1e-5, rtol=1e-5)


KINDS: dict[str, dict[str, Any]] = {
    "any_res": {"encoder": "siglip", "resolution": "any_res"},
    "native": {"encoder": "native_vit", "resolution": "native", "positions": "mrope"},
    "gated": {"fusion": "gated_cross_attention", "connector": "perceiver"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_cached_features_is_the_run_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    value = recipe_value(tmp_path, model=model_value(chatml_tokenizer_dir(tmp_path), **KINDS[kind]))
    weights, lines = [], []
    for cached in (True, False):
        for stage in value["stages"]:
            stage["cache_features"] = cached
        made = Recipe.model_validate(value)
        recipe = made.model_copy(update={"model": made.composition.resolved()})
        last = start(recipe, tmp_path / f"run-{cached}", Hooks(on_line=lines.append))
        weights.append(load_file(last / "model.safetensors"))
    assert [re.sub(r"[0-9.]+ s", "T s", line) for line in lines if "features of" in line] == [
        "stage 'align': features of 6 pictures: 6 computed in T s, 0 read",
        "stage 'instruct': features of 6 pictures: 0 computed, 6 read, about T s saved",
    ]
    before = build(value["model"], seed=value["seed"]).state_dict()
    assert any(not torch.equal(before[name], weights[0][name]) for name in weights[0] if name.startswith("connection."))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], atol=2e-4, rtol=1e-3, msg=name)
