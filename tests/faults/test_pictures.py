"""Rows D3 and D4 of the fault matrix: what good pictures look like to the last pixel, and how bad ones are refused.

Every expected pixel is worked out here, from the samples that were written. tests/vision/test_picture.py has the rest:
limits of size, orientation, transparency, what is no picture.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import struct
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from opsin.core.errors import PictureError
from opsin.core.types import Picture
from opsin.data.check import check, source_of
from opsin.data.collate import collate
from opsin.data.example import make_example
from opsin.vision.picture import FORMATS, open_picture, picture_size
from tests.support.damage import CHANGES, mutated
from tests.support.inks import black_only_profile, grey_of_lightness, ink_jpeg, without_inks, ycck_jpeg
from tests.support.models import tiny_vlm
from tests.support.pngs import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, png, png_of

if TYPE_CHECKING:
    from pathlib import Path

NOISE = np.random.default_rng(0).integers(0, 65_536, (13, 11, 4))
"""Samples of 16 bits; no side is a multiple of 8."""


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(open_picture(Picture(data=content)))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def refusal(content: bytes) -> str:
    with pytest.raises(PictureError) as caught:
        open_picture(Picture(data=content))
    return str(caught.value)


def on_white(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Colours (h, w, 3) and opacity (h, w), both 0..255, in front of white."""
    share = opacity[..., None] / 255
    return colours * share + 255 * (1 - share)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_grey_of_every_depth(depth: int, interlaced: bool) -> None:
    samples = NOISE[..., :1] >> (16 - depth)
    expected = samples * (255 // (2**depth - 1))
    assert np.array_equal(pixels(png(samples, depth, GREY, interlaced=interlaced)), np.repeat(expected, 3, axis=2))


@pytest.mark.parametrize("interlaced", [False, True])
def test_16_bit_grey_with_a_grey_that_is_not_shown(interlaced: bool) -> None:
    samples = NOISE[..., :1]
    key = int(samples[5, 5, 0])
    expected = np.where(samples == key, 255, np.rint(samples / 257))
    found = pixels(png(samples, 16, GREY, interlaced=interlaced, tRNS=key.to_bytes(2, "big")))
    assert np.array_equal(found, np.repeat(expected, 3, axis=2))


@pytest.mark.parametrize("interlaced", [False, True])
def test_colours_of_16_bits(interlaced: bool) -> None:
    found = pixels(png(NOISE[..., :3], 16, RGB, interlaced=interlaced))
    assert np.abs(found - NOISE[..., :3] / 257).max() <= 1


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("colour", [GREY_ALPHA, RGBA])
def test_opacity_of_every_pixel(colour: int, interlaced: bool) -> None:
    samples = NOISE[..., : 2 if colour == GREY_ALPHA else 4] >> 8
    colours = np.repeat(samples[..., :1], 3, axis=2) if colour == GREY_ALPHA else samples[..., :3]
    found = pixels(png(samples, 8, colour, interlaced=interlaced))
    assert np.abs(found - on_white(colours, samples[..., -1])).max() <= 1


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_palette_whose_colours_have_opacities(depth: int) -> None:
    count = 2**depth
    palette, opacity = np.outer(np.arange(count), (1, 7, 101)) % 256, (np.arange(count) * 37) % 256
    indices = NOISE[..., :1] >> (16 - depth)
    chunks = {"PLTE": palette.astype(np.uint8).tobytes(), "tRNS": opacity.astype(np.uint8).tobytes()}
    found = pixels(png(indices, depth, PALETTE, **chunks))
    assert np.abs(found - on_white(palette[indices[..., 0]], opacity[indices[..., 0]])).max() <= 1


INKS = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 255, 0), (200, 100, 30, 0), (0, 0, 0, 60), (90, 0, 20, 128)]


@pytest.mark.parametrize("inks", INKS)
def test_inks_without_a_profile(inks: tuple[int, int, int, int]) -> None:
    content = ink_jpeg(inks)
    assert b"Adobe" in content
    assert np.abs(pixels(content) - without_inks(np.array(inks))).max() <= 3  # what JPEG costs


def test_inks_that_are_told_as_luma() -> None:
    assert np.abs(pixels(ycck_jpeg(100, 40)) - without_inks(np.array((100, 100, 100, 40)))).max() <= 3


@pytest.mark.parametrize("inks", INKS)
def test_inks_by_their_profile(inks: tuple[int, int, int, int]) -> None:
    expected = grey_of_lightness(100 * (1 - inks[3] / 255))
    assert np.abs(pixels(ink_jpeg(inks, black_only_profile())) - expected).max() <= 3


@pytest.mark.parametrize(
    "profile",
    [
        b"no profile at all",
        black_only_profile()[:300],
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ],
    ids=["words", "cut short", "of a screen"],
)
def test_a_profile_that_cannot_be_used_is_as_none(profile: bytes) -> None:
    inks = (200, 100, 30, 60)
    assert np.array_equal(pixels(ink_jpeg(inks, profile)), pixels(ink_jpeg(inks)))


@settings(deadline=None, max_examples=60)
@given(changes=CHANGES, cut=st.integers(0, 400))
def test_no_damaged_profile_stops_a_picture(changes: list[tuple[int, bytes]], cut: int) -> None:
    profile = mutated(black_only_profile(), changes, cut)
    assert pixels(ink_jpeg((200, 100, 30, 60), profile)).shape == (16, 16, 3)


def test_of_a_cameras_file_of_several_pictures_the_first_is_taken() -> None:
    first, second = (Image.new("RGB", (32, 16), colour) for colour in ((250, 5, 5), (5, 5, 250)))
    content = encoded(first, "MPO", save_all=True, append_images=[second])
    assert np.abs(pixels(content).astype(int) - (250, 5, 5)).max() <= 3


def test_of_an_animation_the_first_frame_is_taken_in_front_of_white() -> None:
    shown = Image.new("RGBA", (8, 6), (255, 0, 0, 255))
    shown.paste((0, 0, 0, 0), (2, 2, 6, 4))
    expected = np.full((6, 8, 3), (255, 0, 0))
    expected[2:4, 2:6] = 255
    for kind, options in (("GIF", {"disposal": 2}), ("WEBP", {"lossless": True}), ("PNG", {})):
        other = Image.new("RGBA", (8, 6), (0, 0, 255, 255))
        content = encoded(shown, kind, save_all=True, append_images=[other], **options)
        assert picture_size(Picture(data=content)).animated
        assert np.array_equal(pixels(content), expected)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", [0, 1, 3, 6, 8, 9])
def test_orientation_in_files_that_lose_detail(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("RGB", (48, 32))
    image.paste((255, 255, 255), (0, 0, 16, 32))  # bright on the left
    content = encoded(image, kind, exif=exif)
    found = pixels(content).mean(axis=2)
    turns = {3: 2, 6: -1, 8: 1}.get(orientation, 0)
    expected = np.rot90(np.asarray(image).mean(axis=2), turns)
    assert (picture_size(Picture(data=content)).height, picture_size(Picture(data=content)).width) == expected.shape
    assert np.abs(found - expected).mean() < 10


@pytest.mark.parametrize(
    "options",
    [{"progressive": True}, {"subsampling": 2}, {"restart_marker_rows": 1}, {"optimize": True, "quality": 30}],
    ids=str,
)
def test_every_way_to_write_a_jpeg(options: dict[str, Any]) -> None:
    image = Image.new("RGB", (50, 33), (120, 60, 200))
    assert np.abs(pixels(encoded(image, "JPEG", **options)).astype(int) - (120, 60, 200)).max() <= 4


REFUSED = {
    "avif": b"\0\0\0\x1cftypavif" + bytes(40),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "svg": b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>",
    "psd": b"8BPS\0\1" + bytes(60),
    "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60),
    "tiff": encoded(Image.new("F", (4, 4), 0.5), "TIFF"),
    "html": b"<!DOCTYPE html><title>Not found</title>",
    "nothing": b"",
    "a signature": b"\x89PNG\r\n\x1a\n",
    "the start of a JPEG": b"\xff\xd8\xff\xe0",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_on_the_list_is_refused_by_name(name: str) -> None:
    assert refusal(REFUSED[name]).endswith(f": not a readable image; supported formats are {', '.join(FORMATS)}")


@settings(deadline=None, max_examples=150)
@given(kind=st.sampled_from(FORMATS), changes=CHANGES, cut=st.integers(0, 1 << 16), whole=st.booleans())
def test_no_damage_gives_anything_but_a_picture_or_one_line(
    kind: str, changes: list[tuple[int, bytes]], cut: int, whole: bool
) -> None:
    image = Image.fromarray((NOISE[..., :3] >> 8).astype(np.uint8))
    content = mutated(encoded(image, kind), changes, 0 if whole else cut)
    message = ""
    try:
        assert pixels(content).shape[2] == 3
    except PictureError as error:
        message = str(error)
    assert "\n" not in message
    assert not re.search(r"0x[0-9a-f]{4}", message)


def test_checking_and_training_refuse_the_same_samples_in_the_same_words(tmp_path: Path) -> None:
    good = encoded(Image.fromarray((NOISE[..., :3] >> 8).astype(np.uint8)), "PNG")
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0x55
    files = REFUSED | {
        "good": good,
        "flipped": bytes(flipped),
        "cut": good[:-60],
        "cut jpeg": encoded(Image.new("RGB", (90, 90)), "JPEG")[:-80],
        "tiny": encoded(Image.new("RGB", (1, 9)), "PNG"),
        "strip": encoded(Image.new("RGB", (900, 3)), "GIF"),
        "inks": ink_jpeg((0, 9, 9, 9)),
        "a bomb": png_of(30_000, 30_000, b""),
    }
    records = []
    for name, content in files.items():
        (tmp_path / f"{name}.png").write_bytes(content)  # whatever it is called
        turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A cat."}]
        records.append({"id": name, "image": f"{name}.png", "conversations": turns})
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    prepare = tiny_vlm(tmp_path)[1]
    refused = []
    for conversation in source_of(path).conversations(Counter()):
        try:
            collate([make_example(conversation, prepare)], prepare)
        except PictureError as error:
            refused.append(str(error))
    assert len(refused) == len(files) - 2
    assert [problem.text for problem in check(source_of(path), decode=True).problems] == refused


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_a_cut_animation_is_a_picture_or_refused(kind: str) -> None:
    """Wherever it is cut: never another error, which would not name the file."""
    frames = [Image.effect_noise((24, 16), 80).convert("RGB") for _ in range(3)]
    whole = io.BytesIO()
    frames[0].save(whole, kind, save_all=True, append_images=frames[1:])
    content = whole.getvalue()
    for end in range(1, len(content), max(1, len(content) // 400)):
        picture = Picture(data=content[:end])
        for look in (picture_size, open_picture):
            with contextlib.suppress(PictureError):
                look(picture)


def test_a_bent_exif_block_turns_the_picture_as_its_header_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = io.BytesIO()
    Image.effect_noise((40, 30), 60).save(whole, "PNG", exif=exif)
    content = whole.getvalue()
    start = content.index(b"eXIf")
    noise = np.random.default_rng(0)
    for _ in range(300):
        bent = bytearray(content)
        for place in noise.integers(start + 4, start + 60, 3):
            bent[place] = noise.integers(256)
        length = struct.unpack(">I", content[start - 4 : start])[0]
        bent[start + 4 + length : start + 8 + length] = struct.pack(">I", zlib.crc32(bent[start : start + 4 + length]))
        picture = Picture(data=bytes(bent))
        with contextlib.suppress(PictureError):
            size = picture_size(picture)
            assert open_picture(picture).size == (size.width, size.height)
