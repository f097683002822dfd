"""What `ModelConfig` refuses before anything is built, and what a connection begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from opsin.core.errors import ModelError
from opsin.model.config import ModelConfig
from opsin.model.connection import Connection
from tests.support.models import TOWER, model_value
from tests.support.tokenizers import chatml_tokenizer_dir

if TYPE_CHECKING:
    from pathlib import Path


def config_of(folder: Path, changes: dict[str, Any] | None = None, **kinds: str) -> ModelConfig:
    value = model_value(chatml_tokenizer_dir(folder), **kinds) | (changes or {})
    return ModelConfig.model_validate(value).resolved()


def clip_of(side: int, *, interpolate: bool = False) -> dict[str, Any]:
    return {"kind": "clip", "config": TOWER | {"image_size": side}, "interpolate_positions": interpolate}


def any_res(size: int, pool: str, stride: int) -> dict[str, Any]:
    pinpoints = [[size, 2 * size]]
    return {"kind": "any_res", "size": size, "pinpoints": pinpoints, "video_pool": pool, "video_stride": stride}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "too few layers for a gated block": (
        {"fusion": {"kind": "gated_cross_attention", "every": 3}},
        "fusion.every is 3, but the language model has 2 layers: no block would stand before any of them; set it to 2 "
        "or less",
    ),
    "a pool that leaves nothing": (
        {"resolution": any_res(32, "average", 3), "encoder": clip_of(32)},
        "video_stride 3 is more than the 2 tokens along a frame's side",
    ),
    "a pool that is another's": (
        {"resolution": any_res(80, "max", 4), "encoder": clip_of(80)},
        "video_stride 4 with max pooling leaves 1 of 5 tokens, as video_stride 5 does; take that one",
    ),
    "part of a patch": (
        {"resolution": {"kind": "square", "size": 47}, "encoder": clip_of(32, interpolate=True)},
        "resolution size 47 is not a multiple of the encoder's patch size 16; near it: 32 and 48",
    ),
    "less than a patch": (
        {"resolution": {"kind": "square", "size": 10}, "encoder": clip_of(32, interpolate=True)},
        "resolution size 10 is not a multiple of the encoder's patch size 16; near it: 16, the smallest",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    changes, reason = REFUSED[name]
    with pytest.raises(ModelError) as caught:
        config_of(tmp_path, changes)
    assert str(caught.value) == reason


def test_only_a_towers_own_square_may_hold_part_of_a_patch(tmp_path: Path) -> None:
    config = config_of(tmp_path, {"resolution": {"kind": "square", "size": 47}, "encoder": clip_of(47)})
    assert config.layout(10, 20, "single").grid.patches == 4


@pytest.mark.parametrize("resolution", ["square", "any_res", "native"])
@pytest.mark.parametrize(("height", "width", "frames"), [(0, 5, 1), (-3, 5, 1), (5, 0, 1), (5, 5, 0), (5, 5, -2)])
def test_a_medium_of_nothing_is_refused(tmp_path: Path, resolution: str, height: int, width: int, frames: int) -> None:
    config = config_of(tmp_path, encoder="native_vit", resolution=resolution)
    for role in ("single", "multi", "video"):
        with pytest.raises(ModelError) as caught:
            config.layout(height, width, role, frames)
        assert str(caught.value) == f"{height}x{width} pixels (HxW), {frames} frames: each must be at least 1"


def test_a_newline_begins_as_llava_nexts_does(tmp_path: Path) -> None:
    config = config_of(tmp_path, encoder="siglip", resolution="any_res")
    newline = Connection(config, 16, 4096, 2).newline
    assert newline is not None
    assert newline.shape == (4096,)
    assert newline.std().item() == pytest.approx(1 / 64, rel=0.1)


@pytest.mark.parametrize(
    "kinds",
    [
        {"resolution": "square"},
        {"resolution": "native", "encoder": "native_vit"},
        {"resolution": "any_res", "connector": "perceiver"},
    ],
)
def test_where_no_row_ends_there_is_no_newline(tmp_path: Path, kinds: dict[str, str]) -> None:
    assert Connection(config_of(tmp_path, **kinds), 16, 24, 2).newline is None
