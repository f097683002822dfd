from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from opsin.core.types import Picture
from opsin.data.collate import medium_pixels
from opsin.data.example import Preparation, Seen, seen_alone
from opsin.model.vlm import Vlm
from opsin.train.features import FeatureCache, FeatureCacheError
from opsin.vision.square import Square
from tests.support.models import build, draw_picture, tiny_vlm

Made = tuple[Vlm, Preparation]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    model, prepare = tiny_vlm(tmp_path)
    model.requires_grad_(requires_grad=False)
    return model, prepare


@pytest.fixture
def pictures(made: Made, tmp_path: Path) -> list[Seen]:
    return seen_alone([Picture(path=draw_picture(tmp_path / f"{n}.png", n)) for n in range(5)], made[1])


def cache_of(made: Made, folder: Path) -> FeatureCache:
    return FeatureCache(*made, folder=folder / "features")


def fresh(made: Made, pictures: list[Seen]) -> torch.Tensor:
    model, prepare = made
    pixels = [torch.from_numpy(medium_pixels(*pair, prepare)).flatten() for pair in pictures]
    features: torch.Tensor = model.encoder(torch.cat(pixels), [layout for _, layout in pictures])
    return features.view(len(pictures), 4, -1)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_features_equal_a_fresh_encode(
    made: Made, pictures: list[Seen], tmp_path: Path, precision: Literal["bf16", "fp32"], stored: torch.dtype
) -> None:
    made[0].precision = precision
    if precision == "bf16":
        for parameter in made[0].encoder.parameters():
            parameter.data = parameter.data.to(stored)
    cache = cache_of(made, tmp_path)
    assert cache.add(pictures) == 5
    chosen = [pictures[3], pictures[0], pictures[3]]
    with made[0].computing():
        expected = fresh(made, pictures)[[3, 0, 3]].flatten(0, 1)
    torch.testing.assert_close(cache.get(chosen), expected.to(cache.get(chosen).dtype), atol=0, rtol=0)


def test_a_second_cache_reads_what_the_first_computed(made: Made, pictures: list[Seen], tmp_path: Path) -> None:
    first, second = cache_of(made, tmp_path), cache_of(made, tmp_path)
    assert first.add(pictures[:3]) == 3
    second.load()
    assert len(second) == 3
    assert second.add(pictures) == 2
    assert torch.equal(second.get(pictures[:3]), first.get(pictures[:3]))
    third = cache_of(made, tmp_path)
    third.load()
    assert third.add(pictures) == 0
    assert torch.equal(third.get(pictures), second.get(pictures))


def test_a_picture_is_known_by_its_bytes(made: Made, pictures: list[Seen], tmp_path: Path) -> None:
    cache = cache_of(made, tmp_path)
    original = tmp_path / "0.png"
    copy = tmp_path / "copy.png"
    copy.write_bytes(original.read_bytes())
    same, copied = seen_alone([Picture(data=original.read_bytes()), Picture(path=copy)], made[1])
    assert cache.add([pictures[0], same, copied]) == 1
    assert torch.equal(cache.get([same]), cache.get([pictures[0]]))


def test_another_encoder_or_resolution_has_another_file(made: Made, tmp_path: Path) -> None:
    model, prepare = made
    names = {cache_of(made, tmp_path).path}
    other = build(model.config.model_dump(), seed=1)
    names.add(cache_of((other, prepare), tmp_path).path)
    for resolution in (Square(size=96), Square(size=64, fit="stretch")):  # as a stage of training can have it
        names.add(cache_of((model, replace(prepare, resolution=resolution)), tmp_path).path)
    assert len(names) == 4
    retrained = build(model.config.model_dump())
    assert cache_of((retrained, prepare), tmp_path).path == cache_of(made, tmp_path).path
    for parameter in (*retrained.decoder.parameters(), *retrained.connection.parameters()):
        parameter.data += 1
    assert cache_of((retrained, prepare), tmp_path).path in names  # other parts do not matter


@pytest.mark.parametrize(
    ("damage", "reason"),
    [("cut", "not whole"), ("byte", "its checksum differs"), ("text", "not whole"), ("empty", "not whole")],
)
def test_a_damaged_file_is_named_and_its_features_computed_again(
    made: Made, pictures: list[Seen], tmp_path: Path, damage: str, reason: str
) -> None:
    cache = cache_of(made, tmp_path)
    cache.add(pictures)
    content = bytearray(cache.path.read_bytes())
    content[-1] ^= 1
    damaged = {"cut": content[:-9], "byte": content, "text": b"x" * 99, "empty": b""}[damage]
    cache.path.write_bytes(damaged)
    again = cache_of(made, tmp_path)
    with pytest.raises(FeatureCacheError) as caught:
        again.load()
    message = f"{cache.path}: the feature cache is damaged ({reason})"
    assert str(caught.value) == message
    lines: list[str] = []
    again.load_or_forget(lines.append)
    assert lines == [f"{message}; computing the features again"]
    assert again.add(pictures) == 5
    assert torch.equal(again.get(pictures), cache.get(pictures))


def test_the_file_is_in_opsins_home(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    assert FeatureCache(*made).path.parent == tmp_path / "home" / "features"


def test_computing_leaves_no_graph(made: Made, pictures: list[Seen], tmp_path: Path) -> None:
    made[0].encoder.requires_grad_(requires_grad=True)
    cache = FeatureCache(made[0], replace(made[1]), tmp_path)
    cache.add(pictures)
    assert not cache.get(pictures).requires_grad


def test_bytes_of_pictures_are_not_kept(made: Made, tmp_path: Path) -> None:
    """Rows of a Parquet file bring their pictures' bytes with them: more than memory takes."""
    cache = cache_of(made, tmp_path)

    def rows() -> Iterator[Seen]:
        for number in range(12):
            data = draw_picture(tmp_path / f"{number}.png", number).read_bytes()
            yield from seen_alone([Picture(data=data)], made[1])

    def alive() -> int:
        gc.collect()
        return sum(isinstance(one, Picture) and one.data is not None for one in gc.get_objects())

    before = alive()
    assert cache.add(rows()) == 12
    assert alive() == before
