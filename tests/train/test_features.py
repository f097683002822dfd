from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from safetensors import SafetensorError, safe_open

from opsin.core.types import Picture
from opsin.data.collate import medium_pixels
from opsin.data.example import Preparation, Seen, seen_alone
from opsin.model.vlm import Vlm
from opsin.train import feature_chunks, features
from opsin.train.feature_chunks import FeatureCacheError
from opsin.train.features import FeatureCache, one
from opsin.vision.square import Square
from tests.support.models import build, draw_picture, tiny_vlm
from tests.support.ranks import Two, by_two

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


def added(cache: FeatureCache, pictures: Sequence[Seen]) -> tuple[int, int]:
    """Computed, read."""
    done = cache.add(pictures, one)
    return done.computed, done.read


def chunks(cache: FeatureCache) -> list[Path]:
    return sorted(cache.path.iterdir())


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
    assert added(cache, pictures) == (5, 0)
    chosen = [pictures[3], pictures[0], pictures[3]]
    with made[0].computing():
        expected = fresh(made, pictures)[[3, 0, 3]].flatten(0, 1)
    torch.testing.assert_close(cache.get(chosen), expected.to(cache.get(chosen).dtype), atol=0, rtol=0)


def test_a_second_cache_reads_what_the_first_computed(made: Made, pictures: list[Seen], tmp_path: Path) -> None:
    first, second = cache_of(made, tmp_path), cache_of(made, tmp_path)
    assert added(first, pictures[:3]) == (3, 0)
    assert added(second, pictures) == (2, 3)
    assert torch.equal(second.get(pictures[:3]), first.get(pictures[:3]))
    third = cache_of(made, tmp_path)
    assert added(third, pictures) == (0, 5)
    assert torch.equal(third.get(pictures), second.get(pictures))


def test_it_says_what_was_saved(made: Made, pictures: list[Seen], tmp_path: Path) -> None:
    first = cache_of(made, tmp_path).add(pictures[:3], one)
    assert first.seconds > 0
    assert first.saved == 0
    second = cache_of(made, tmp_path).add(pictures, one)
    assert 0 < second.saved <= first.seconds
    told = r"features of 5 pictures: 2 computed in [0-9.]+ s, 3 read, about [0-9.]+ s saved"
    assert re.fullmatch(told, str(second))


def test_a_picture_is_known_by_its_bytes(made: Made, pictures: list[Seen], tmp_path: Path) -> None:
    cache = cache_of(made, tmp_path)
    original = tmp_path / "0.png"
    copy = tmp_path / "copy.png"
    copy.write_bytes(original.read_bytes())
    same, copied = seen_alone([Picture(data=original.read_bytes()), Picture(path=copy)], made[1])
    assert added(cache, [pictures[0], same, copied]) == (1, 0)
    assert torch.equal(cache.get([same]), cache.get([pictures[0]]))


def test_another_encoder_or_resolution_has_another_folder(made: Made, tmp_path: Path) -> None:
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
    [
        ("cut", "is damaged (not whole)"),
        ("byte", "is damaged (its checksum differs)"),
        ("text", "is damaged (not whole)"),
        ("empty", "is damaged (not whole)"),
    ],
)
def test_a_damaged_chunk_is_named_and_its_features_computed_again(
    made: Made, pictures: list[Seen], tmp_path: Path, damage: str, reason: str
) -> None:
    cache = cache_of(made, tmp_path)
    cache.add(pictures[:2], one)
    (path,) = chunks(cache)
    cache.add(pictures, one)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes({"cut": content[:-9], "byte": content, "text": b"x" * 99, "empty": b""}[damage])
    lines: list[str] = []
    again = FeatureCache(*made, tmp_path / "features", on_line=lines.append)
    assert added(again, pictures) == (2, 3)
    assert lines == [f"{path}: this chunk of the feature cache {reason}; computing its features again"]
    fresh_one = cache_of(made, tmp_path)
    assert added(fresh_one, pictures) == (0, 5)
    torch.testing.assert_close(fresh_one.get(pictures).view(5, 4, -1), fresh(made, pictures))


def test_only_chunks_that_are_needed_are_read(made: Made, pictures: list[Seen], tmp_path: Path) -> None:
    cache = cache_of(made, tmp_path)
    cache.add(pictures[:2], one)
    (path,) = chunks(cache)
    cache.add(pictures[2:], one)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert added(cache_of(made, tmp_path), pictures[2:]) == (0, 3)
    assert path.exists()


def test_a_chunk_that_vanishes_is_named(made: Made, pictures: list[Seen], tmp_path: Path) -> None:
    cache_of(made, tmp_path).add(pictures[:2], one)
    lines: list[str] = []
    cache = FeatureCache(*made, tmp_path / "features", on_line=lines.append)
    assert added(cache, [pictures[4]]) == (1, 0)  # the header of the first chunk is known now, but not its bytes
    (path,) = [path for path in chunks(cache) if len(safe_open(path, "pt").keys()) == 2]
    path.unlink()
    assert added(cache, pictures) == (4, 1)
    assert lines == [
        f"{path}: this chunk of the feature cache cannot be read (No such file or directory); "
        "computing its features again"
    ]


def test_what_a_killed_process_had_finished_is_kept(
    made: Made, pictures: list[Seen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_chunks, "CHUNK_BYTES", 1)
    monkeypatch.setattr(features, "BATCH_BYTES", 1)

    def killed(done: int, _all: int) -> None:
        nonlocal calls
        calls += 1
        if calls == len(pictures) + 4:  # all are looked for, then three are encoded, the fourth waits
            raise KeyboardInterrupt

    calls = 0
    with pytest.raises(KeyboardInterrupt):
        cache_of(made, tmp_path).add(pictures, one, killed)
    assert added(cache_of(made, tmp_path), pictures) == (2, 3)


def test_a_chunk_ends_after_some_time(
    made: Made, pictures: list[Seen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_chunks, "CHUNK_SECONDS", 0.0)
    monkeypatch.setattr(features, "BATCH_BYTES", 1)
    cache = cache_of(made, tmp_path)
    cache.add(pictures, one)
    assert len(chunks(cache)) == 5


def test_a_process_that_adds_the_same_meanwhile_does_no_harm(made: Made, pictures: list[Seen], tmp_path: Path) -> None:
    first, second = cache_of(made, tmp_path), cache_of(made, tmp_path)

    def interrupted(done: int, _all: int) -> None:
        told.append(done)
        if len(told) == len(pictures) + 1:  # all are looked for, the first one is about to be encoded
            assert added(second, pictures[:4]) == (4, 0)

    told: list[int] = []
    assert first.add(pictures, one, interrupted).computed == 5
    for cache in (first, second, cache_of(made, tmp_path)):
        assert added(cache, pictures) == (0, 5)
        torch.testing.assert_close(cache.get(pictures).view(5, 4, -1), fresh(made, pictures))


def test_leftovers_of_a_killed_process_are_swept(made: Made, pictures: list[Seen], tmp_path: Path) -> None:
    cache = cache_of(made, tmp_path)
    cache.path.mkdir(parents=True)
    old, new = cache.path / ".a.1.partial", cache.path / ".b.2.partial"
    for path, age in ((old, 4000), (new, 0)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age, time.time() - age))
    cache.add(pictures, one)
    assert (old.exists(), new.exists()) == (False, True)


def test_too_much_for_the_limit_is_refused_before_anything_is_computed(
    made: Made, pictures: list[Seen], tmp_path: Path
) -> None:
    other = tmp_path / "features" / "of-another-encoder"
    other.mkdir(parents=True)
    (other / "x.safetensors").write_bytes(bytes(30_000_000))
    cache = FeatureCache(*made, tmp_path / "features", limit_gb=0.03)
    with pytest.raises(FeatureCacheError, match=r"0\.00 GB are to be computed, 0\.03 GB are there, and cache_limit_gb"):
        cache.add(pictures, one)
    assert not cache.path.exists()
    assert added(FeatureCache(*made, tmp_path / "features", limit_gb=0.031), pictures) == (5, 0)
    assert added(cache, pictures) == (0, 5)  # reading needs no room


def test_too_much_for_the_disk_is_refused(
    made: Made, pictures: list[Seen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 5 * 4 * made[0].encoder.width * 4
    for free, fits in ((needed - 1, False), (needed, True)):
        monkeypatch.setattr(feature_chunks.shutil, "disk_usage", lambda _path, free=free: SimpleNamespace(free=free))
        cache = cache_of(made, tmp_path)
        if fits:
            assert added(cache, pictures) == (5, 0)
        else:
            with pytest.raises(FeatureCacheError, match=r"0\.00 GB are free; .* let OPSIN_HOME be on a larger disk"):
                cache.add(pictures, one)


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), SafetensorError("No space left on device")],
    ids=["os", "safetensors"],
)
def test_a_disk_that_is_full_after_all_is_told(
    made: Made, pictures: list[Seen], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(_tensors: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise error

    cache = cache_of(made, tmp_path)
    monkeypatch.setattr(feature_chunks, "save_file", failing)
    with pytest.raises(FeatureCacheError, match=r"features cannot be written \(No space left on device\)"):
        cache.add(pictures, one)
    assert chunks(cache) == []


def test_pictures_that_change_meanwhile_are_told(made: Made, pictures: list[Seen], tmp_path: Path) -> None:
    cache = cache_of(made, tmp_path)
    rows = [[pair] for pair in seen_alone([Picture(data=(tmp_path / "0.png").read_bytes())], made[1])]
    asked = iter([rows[0], [pictures[1]]])
    with pytest.raises(FeatureCacheError, match="1 picture without features after they were computed"):
        cache.add([0], lambda _number: next(asked))


def test_ranks_share_the_work_and_find_everything(made: Made, pictures: list[Seen], tmp_path: Path) -> None:
    def work(ranks: Two) -> tuple[Any, torch.Tensor]:
        cache = FeatureCache(*made, tmp_path / "features", ranks=ranks)
        return cache.add([*pictures, pictures[0]], one), cache.get(pictures)

    done, features_PC = zip(*by_two(work), strict=True)
    assert [(one_done.computed, one_done.read) for one_done in done] == [(5, 0), (5, 0)]
    for rows in features_PC:
        torch.testing.assert_close(rows.view(5, 4, -1), fresh(made, pictures))
    written = [len(safe_open(path, "pt").keys()) for path in chunks(cache_of(made, tmp_path))]
    assert sorted(written) == [2, 3]  # nothing twice


def test_ranks_that_see_different_folders_are_told(made: Made, pictures: list[Seen], tmp_path: Path) -> None:
    def work(ranks: Two) -> str:
        with pytest.raises(FeatureCacheError) as caught:
            FeatureCache(*made, tmp_path / str(ranks.rank), ranks=ranks).add(pictures, one)
        return str(caught.value)

    assert all("set OPSIN_HOME to one that all of them see" in message for message in by_two(work))


def test_ranks_refuse_together(made: Made, pictures: list[Seen], tmp_path: Path) -> None:
    def work(ranks: Two) -> str:
        limit = (1.0, 1e-6)[ranks.rank]
        with pytest.raises(FeatureCacheError) as caught:
            FeatureCache(*made, tmp_path / "features", limit_gb=limit, ranks=ranks).add(pictures, one)
        return str(caught.value)

    first, second = by_two(work)
    assert first == second


def test_the_folder_is_in_opsins_home(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    assert FeatureCache(*made).path.parent == tmp_path / "home" / "features"


def test_computing_leaves_no_graph(made: Made, pictures: list[Seen], tmp_path: Path) -> None:
    made[0].encoder.requires_grad_(requires_grad=True)
    cache = FeatureCache(made[0], replace(made[1]), tmp_path)
    cache.add(pictures, one)
    assert not cache.get(pictures).requires_grad


def test_bytes_of_pictures_are_not_kept(made: Made, tmp_path: Path) -> None:
    """Rows of a Parquet file bring their pictures' bytes with them: more than memory takes."""
    cache = cache_of(made, tmp_path)

    files = [draw_picture(tmp_path / f"{number}.png", number) for number in range(12)]

    def seen_of(path: Path) -> list[Seen]:
        return seen_alone([Picture(data=path.read_bytes())], made[1])

    def alive() -> int:
        gc.collect()
        return sum(isinstance(one, Picture) and one.data is not None for one in gc.get_objects())

    before = alive()
    assert cache.add(files, seen_of).computed == 12
    assert alive() == before
