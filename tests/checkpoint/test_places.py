from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsin.checkpoint.places import Place, is_shard, place_of, shard_files, shard_name
from opsin.core.errors import CheckpointError

PLACES = st.builds(Place, st.integers(0, 200), st.integers(0, 10**10), st.booleans(), st.booleans())
STAGES = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=8)


@given(PLACES, STAGES)
def test_a_name_tells_its_place(place: Place, stage: str) -> None:
    assert place_of(Path("run") / "checkpoints" / place.name(stage)) == place


def test_names_are_those_of_the_documentation() -> None:
    assert Place(1, 120).name("instruct") == "01-instruct-000000120"
    assert Place(0, 54, done=True).name("align") == "00-align-000000054-done"
    assert Place(0, 54, ordinary=False).name("1.5") == "emergency-00-1.5-000000054"


def test_later_means_stage_then_step_then_done_then_ordinary() -> None:
    order = [
        Place(2, 999, ordinary=False),
        Place(2, 999),
        Place(2, 1_000_000_000),
        Place(2, 1_000_000_000, done=True),
        Place(10, 1),
        Place(100, 0),
    ]
    assert sorted(set(order)) == order


@pytest.mark.parametrize("ranks", [1, 2, 12])
def test_shards_of_any_number_of_ranks_are_found(tmp_path: Path, ranks: int) -> None:
    for stem in ("model", "optimiser"):
        for rank in range(ranks):
            (tmp_path / shard_name(stem, rank, ranks)).touch()
    (tmp_path / "model.json").touch()
    assert [path.name for path in shard_files(tmp_path, "model")] == [
        shard_name("model", r, ranks) for r in range(ranks)
    ]
    assert not is_shard(shard_name("model", 0, ranks), "optimiser")


def test_a_missing_shard_is_not_overlooked(tmp_path: Path) -> None:
    for rank in (0, 2):
        (tmp_path / shard_name("model", rank, 3)).touch()
    with pytest.raises(
        CheckpointError, match=r"2 shards, which are not all: model-00001-of-00003.safetensors, model-0"
    ):
        shard_files(tmp_path, "model")
