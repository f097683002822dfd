from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from opsin.core.errors import ModelError
from opsin.core.types import Block, Grid
from opsin.model.config import CLIP_MEAN, CLIP_STD, HALF, LinearConnector, MlpConnector
from opsin.vision.resolution import Square, expand_to_square, mean_colour
from tests.support.models import build, model_value
from tests.support.tokenizers import chatml_tokenizer_dir

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "expand2square.json").read_text(encoding="utf-8"))


def drawing(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x + y) % 256], axis=-1)
    return Image.fromarray(smooth.astype(np.uint8))


def test_padding_colours_are_llavas() -> None:
    assert mean_colour(CLIP_MEAN) == tuple(GOLDEN["clip_mean_colour"]) == (122, 116, 104)
    assert mean_colour(HALF) == tuple(GOLDEN["siglip_mean_colour"]) == (127, 127, 127)


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['w']}x{case['h']}")
def test_expand_to_square_equals_llavas(case: dict[str, list[int]]) -> None:
    white = Image.new("RGB", (case["w"], case["h"]), (255, 255, 255))
    pixels = np.asarray(expand_to_square(white, CLIP_MEAN))
    assert list(pixels.shape[:2]) == case["out"]
    content_y, content_x = np.nonzero((pixels == 255).all(axis=-1))
    assert [content_y.min(), content_y.max()] == case["content_y"]
    assert [content_x.min(), content_x.max()] == case["content_x"]
    outside = pixels[~(pixels == 255).all(axis=-1)]
    assert (outside == (122, 116, 104)).all()


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60), (33, 97), (48, 48), (20, 16), (100, 33)])
def test_crop_equals_clips_own_processor(width: int, height: int) -> None:
    image = drawing(width, height)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    theirs = processor(image, return_tensors="np")["pixel_values"][0]
    pixels = Square(size=32, fit="crop").pixels(image, CLIP_MEAN)
    mean, std = (np.array(value)[:, None, None] for value in (CLIP_MEAN, CLIP_STD))
    assert np.abs((theirs * std + mean) - pixels / 255).max() <= 1 / 255


def test_pad_keeps_the_whole_picture_and_its_shape() -> None:
    image = Image.new("RGB", (64, 32), (255, 0, 0))
    pixels = Square(size=32, fit="pad").pixels(image, CLIP_MEAN)
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == np.uint8
    assert pixels[:, 16, :].tolist() == [[255] * 32, [0] * 32, [0] * 32]
    assert pixels[:, 2, 5].tolist() == [122, 116, 104]
    assert pixels[:, 29, 31].tolist() == [122, 116, 104]


def test_stretch_fills_the_square_with_the_picture() -> None:
    image = Image.new("RGB", (64, 32), (255, 0, 0))
    pixels = Square(size=32, fit="stretch").pixels(image, CLIP_MEAN)
    assert (pixels[0] == 255).all()
    assert (pixels[1:] == 0).all()


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    image = drawing(32, 32)
    for fit in ("pad", "crop", "stretch"):
        pixels = Square(size=32, fit=fit).pixels(image, CLIP_MEAN)
        assert np.array_equal(pixels, np.asarray(image).transpose(2, 0, 1))


@settings(deadline=None)
@given(
    height=st.integers(2, 5000),
    width=st.integers(2, 5000),
    side=st.integers(1, 48),
    patch=st.sampled_from([8, 14, 16, 32]),
    connector=st.sampled_from([LinearConnector(), MlpConnector(depth=3)]),
)
def test_a_patchwise_connector_keeps_one_token_a_patch(
    height: int, width: int, side: int, patch: int, connector: LinearConnector | MlpConnector
) -> None:
    layout = Square(size=side * patch).plan(height, width, "single", patch=patch, shrink=connector.shrink)
    assert layout.tokens == layout.patches == side * side
    assert layout.source == (height, width)
    assert layout.canvas == (side * patch, side * patch)


def test_a_pool_changes_the_tokens_and_not_the_patches() -> None:
    layout = Square(size=64).plan(10, 20, "multi", patch=16, shrink=lambda rows, cols: (rows // 2, cols // 2))
    assert layout.grids == (Grid(1, 4, 4),)
    assert layout.blocks == (Block(1, 2, 2),)
    assert (layout.patches, layout.tokens) == (16, 4)


def test_a_size_that_is_no_multiple_of_the_patch_is_refused(tmp_path: Path) -> None:
    message = "resolution size 80 is not a multiple of the encoder's patch size 32"
    with pytest.raises(ValueError, match=message):
        Square(size=80).plan(10, 10, "single", patch=32, shrink=lambda rows, cols: (rows, cols))
    value = model_value(chatml_tokenizer_dir(tmp_path)) | {"resolution": {"size": 80}}
    with pytest.raises(ModelError, match=message):
        build(value)
