"""uint8 pixels against the processors of transformers: those that need no torchvision, and golden values of the others.

They are compared before normalisation, on the scale 0..1: 1/255 is one step of a colour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from opsin.model.encoder_values import CLIP_MEAN, CLIP_STD, HALF
from opsin.vision.any_res import NEXT_PINPOINTS, ONEVISION_PINPOINTS, AnyRes
from opsin.vision.native import Native
from opsin.vision.published import CLIP_L, NATIVE_VIT, SIGLIP
from opsin.vision.square import Square
from tests.support.golden import golden
from tests.support.pictures import drawing, tower

if TYPE_CHECKING:
    from PIL import Image

    from opsin.core.types import MediumRole
    from opsin.vision.colour import Colour
    from opsin.vision.resolution import Resolution
    from opsin.vision.tower import Tower

STEP = 1 / 255
ROUNDING = 1e-6
"""float32 error of normalising and undoing it."""

SIZES = [(60, 40), (40, 60), (33, 97), (48, 48), (20, 16), (100, 33), (641, 479)]
"""(width, height) of the pictures."""


def unnormalised(pixels: np.ndarray, mean: Colour = CLIP_MEAN, std: Colour = CLIP_STD) -> np.ndarray:
    """Normalised (..., 3, h, w) back to 0..1."""
    return pixels * np.array(std)[:, None, None] + np.array(mean)[:, None, None]


def ours(value: Resolution, image: Image.Image, role: MediumRole, model: Tower, mean: Colour = CLIP_MEAN) -> np.ndarray:
    layout = value.plan(image.height, image.width, role, model)
    return value.pixels([image], layout, mean) / 255


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_crop_and_pad_are_clips_and_llavas(width: int, height: int) -> None:
    image = drawing(width, height)
    square = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    crop = ours(Square(size=32, fit="crop"), image, "single", tower())
    pad = ours(Square(size=32, fit="pad"), image, "single", tower())
    for processor, pixels in (
        (CLIPImageProcessorPil(**square), crop),
        (LlavaImageProcessorPil(**square), crop),
        (LlavaImageProcessorPil(**square, do_pad=True), pad),
    ):
        theirs = unnormalised(processor(image, return_tensors="np")["pixel_values"])
        assert np.abs(theirs - pixels).max() <= ROUNDING


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_llava_nexts_tiles(width: int, height: int) -> None:
    image = drawing(width, height)
    value = AnyRes(size=336, pinpoints=NEXT_PINPOINTS, rule="transformers", multi="tiles")
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 336},
        crop_size={"height": 336, "width": 336},
        image_grid_pinpoints=[list(pinpoint) for pinpoint in NEXT_PINPOINTS],
    )
    (theirs,) = processor(image, return_tensors="np")["pixel_values"]
    assert np.abs(unnormalised(theirs) - ours(value, image, "multi", CLIP_L)).max() <= ROUNDING


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_onevisions_tiles_and_padded_bases(width: int, height: int) -> None:
    image = drawing(width, height)
    value = AnyRes(size=384, pinpoints=ONEVISION_PINPOINTS, rule="transformers", max_tiles=9)
    processor = LlavaOnevisionImageProcessorPil(image_mean=HALF, image_std=HALF)
    (alone,) = processor(image, return_tensors="np")["pixel_values"]
    assert np.abs(unnormalised(alone, HALF, HALF) - ours(value, image, "single", SIGLIP, HALF)).max() <= ROUNDING
    several = processor([[image, image]], return_tensors="np")["pixel_values"]
    assert np.abs(unnormalised(several[1], HALF, HALF) - ours(value, image, "multi", SIGLIP, HALF)).max() <= ROUNDING


def patchified(pixels: np.ndarray) -> np.ndarray:
    """A picture (3, H, W) as Qwen2-VL's rows (patches, 3 * 2 * 14 * 14): squares of 2 x 2 patches in turn."""
    rows, cols = pixels.shape[1] // 28, pixels.shape[2] // 28
    squares = pixels.reshape(3, rows, 2, 14, cols, 2, 14).transpose(1, 4, 2, 5, 0, 3, 6)
    twice = np.repeat(squares[:, :, :, :, :, None], 2, axis=5)
    return twice.reshape(rows * cols * 4, -1)


@pytest.mark.parametrize(("width", "height"), [*SIZES, (300, 3), (1200, 900)])
def test_qwens_patches(width: int, height: int) -> None:
    image = drawing(width, height)
    (pixels,) = ours(Native(max_pixels=1280 * 28 * 28, rule="transformers"), image, "single", NATIVE_VIT)
    theirs = Qwen2VLImageProcessorPil()(image, return_tensors="np")
    normalised = (pixels - np.array(CLIP_MEAN)[:, None, None]) / np.array(CLIP_STD)[:, None, None]
    smallest = min(CLIP_STD)
    assert np.abs(patchified(normalised) - theirs["pixel_values"]).max() * smallest <= ROUNDING


@pytest.mark.parametrize(
    "row", golden("onevision_preprocess_numeric")["rows"], ids=lambda row: f"{row['w']}x{row['h']}"
)
def test_tile_means_of_the_original_code(row: dict[str, list[float]]) -> None:
    image = drawing(row["w"], row["h"])
    pixels = ours(AnyRes(size=384, pinpoints=ONEVISION_PINPOINTS), image, "single", SIGLIP, HALF)
    assert list(pixels.shape) == row["shape"]
    assert np.allclose((pixels * 2 - 1).mean(axis=(1, 2, 3)), row["orig_tile_means"], atol=1e-5)


@pytest.mark.parametrize("row", golden("qwen2vl_preprocess_numeric")["rows"], ids=lambda row: f"{row['w']}x{row['h']}")
def test_qwens_patches_by_torchvision(row: dict[str, list[float]]) -> None:
    (pixels,) = ours(Native(max_pixels=1280 * 28 * 28), drawing(row["w"], row["h"]), "single", NATIVE_VIT)
    normalised = (pixels - np.array(CLIP_MEAN)[:, None, None]) / np.array(CLIP_STD)[:, None, None]
    rows = patchified(normalised)
    assert list(rows.shape) == row["shape"]
    step = STEP / min(CLIP_STD) + ROUNDING
    assert np.abs(rows[0, :8] - row["row0_first8"]).max() <= step
    assert np.abs(rows[: len(row["row_means"])].mean(axis=1) - row["row_means"]).max() <= step / 10
