from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opsin.core.errors import ModelError
from opsin.core.types import Block, Grid, Layout
from opsin.model.encoder_values import CLIP_MEAN, HALF
from opsin.vision.canvas import MAX_SQUARE, expand_to_square
from opsin.vision.colour import mean_colour
from opsin.vision.square import Square
from opsin.vision.tower import Tower
from tests.support.golden import golden
from tests.support.models import build, model_value
from tests.support.pictures import drawing, tower
from tests.support.tokenizers import chatml_tokenizer_dir

GOLDEN = golden("expand2square")


def pixels_of(square: Square, image: Image.Image) -> np.ndarray:
    layout = square.plan(image.height, image.width, "single", tower())
    (pixels,) = square.pixels([image], layout, CLIP_MEAN)
    return pixels


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


def test_a_long_strip_needs_no_canvas_larger_than_the_largest_picture() -> None:
    square = expand_to_square(Image.new("RGB", (16_384, 82), (255, 255, 255)), CLIP_MEAN)
    assert square.size == (16_384 // 3 + 1, 16_384 // 3 + 1)
    assert square.width <= MAX_SQUARE
    assert square.getpixel((2000, square.height // 2)) == (255, 255, 255)


def test_pad_keeps_the_whole_picture_and_its_shape() -> None:
    pixels = pixels_of(Square(size=32, fit="pad"), Image.new("RGB", (64, 32), (255, 0, 0)))
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == np.uint8
    assert pixels[:, 16, :].tolist() == [[255] * 32, [0] * 32, [0] * 32]
    assert pixels[:, 2, 5].tolist() == [122, 116, 104]
    assert pixels[:, 29, 31].tolist() == [122, 116, 104]


def test_crop_takes_the_middle() -> None:
    image = Image.new("RGB", (96, 32), (255, 0, 0))
    image.paste((0, 255, 0), (32, 0, 64, 32))
    assert pixels_of(Square(size=32, fit="crop"), image).mean(axis=(1, 2)).tolist() == [0, 255, 0]


def test_stretch_fills_the_square_with_the_picture() -> None:
    pixels = pixels_of(Square(size=32, fit="stretch"), Image.new("RGB", (64, 32), (255, 0, 0)))
    assert (pixels[0] == 255).all()
    assert (pixels[1:] == 0).all()


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_a_picture_of_the_right_size_is_not_touched(fit: str) -> None:
    image = drawing(32, 32)
    value = Square.model_validate({"kind": "square", "size": 32, "fit": fit})
    assert np.array_equal(pixels_of(value, image), np.asarray(image).transpose(2, 0, 1))


def test_a_clip_is_a_square_for_every_frame() -> None:
    layout = Square(size=32).plan(20, 30, "video", tower(patch=8), frames=3)
    assert layout == Layout((20, 30), (32, 32), 3, Grid(3, 4, 4), (4, 4), (Block(3, 4, 4),), "video")
    frames = [Image.new("RGB", (30, 20), (shade, shade, shade)) for shade in (0, 90, 200)]
    pixels = Square(size=32).pixels(frames, layout, CLIP_MEAN)
    assert pixels.shape == (3, 3, 32, 32)
    assert pixels[:, 0, 16, 16].tolist() == [0, 90, 200]


def test_a_pool_changes_the_tokens_and_not_the_patches() -> None:
    layout = Square(size=64).plan(10, 20, "multi", tower("pool", patch=16))
    assert layout.grid == Grid(1, 4, 4)
    assert layout.blocks == (Block(1, 2, 2),)
    assert (layout.patches, layout.tokens) == (16, 4)


def test_an_encoder_that_trims_takes_siglips_384_pixels() -> None:
    assert Square(size=384).plan(10, 10, "single", tower(patch=14)).grid == Grid(1, 27, 27)


def test_a_size_that_is_no_multiple_of_the_patch_is_refused(tmp_path: Path) -> None:
    message = "resolution size 80 is not a multiple of the encoder's patch size 32"
    with pytest.raises(ValueError, match=message):
        Square(size=80).plan(10, 10, "single", Tower(patch=32, shrink=lambda rows, cols: (rows, cols)))
    value = model_value(chatml_tokenizer_dir(tmp_path)) | {"resolution": {"kind": "square", "size": 80}}
    with pytest.raises(ModelError, match=message):
        build(value)
