from __future__ import annotations

import io
import os
import re
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from opsin.core.errors import PictureError
from opsin.core.types import Picture
from opsin.vision.picture import PictureSize, open_picture, picture_size

if TYPE_CHECKING:
    from collections.abc import Callable

CORNERS = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [40, 50, 60], [70, 80, 90]]], dtype=np.uint8
)
"""Two rows, three columns, every pixel different."""


def opened(image: Image.Image, path: Path, **options: object) -> np.ndarray:
    """Save, open through the package, and check that the header alone tells the decoded size."""
    image.save(path, **options)
    decoded = open_picture(Picture(path=path))
    assert decoded.mode == "RGB"
    assert picture_size(Picture(path=path)) == PictureSize(decoded.height, decoded.width)
    from_bytes = open_picture(Picture(data=path.read_bytes()))
    assert np.array_equal(np.asarray(from_bytes), np.asarray(decoded))
    return np.asarray(decoded)


def refusal(picture: Picture, reading: Callable[[Picture], object] = open_picture) -> str:
    with pytest.raises(PictureError) as caught:
        reading(picture)
    message = str(caught.value)
    assert not re.search(r"\b0x[0-9a-f]", message)
    assert picture.name in message
    return message.removeprefix(f"{picture.name}: ")


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header claims any size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("bmp", {}), ("webp", {"lossless": True})])
def test_rgb_is_read_exactly(tmp_path: Path, suffix: str, options: dict[str, object]) -> None:
    assert np.array_equal(opened(Image.fromarray(CORNERS), tmp_path / f"a.{suffix}", **options), CORNERS)


def test_the_extension_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(CORNERS).save(path, format="PNG")
    assert np.array_equal(np.asarray(open_picture(Picture(path=path))), CORNERS)


def test_rgba_is_composited_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 2), (100, 50, 0, 51))  # opacity 0.2
    image.putpixel((0, 0), (1, 2, 3, 0))
    image.putpixel((1, 0), (1, 2, 3, 255))
    pixels = opened(image, tmp_path / "a.png")
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 1].tolist() == [1, 2, 3]
    assert pixels[1, 2].tolist() == [224, 214, 204]  # 0.2 x colour + 0.8 x 255


def test_grey_with_alpha_is_composited_on_white(tmp_path: Path) -> None:
    image = Image.new("LA", (3, 2), (0, 0))
    image.putpixel((1, 0), (100, 255))
    pixels = opened(image, tmp_path / "a.png")
    assert pixels[0, 0].tolist() == [255] * 3
    assert pixels[0, 1].tolist() == [100] * 3


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (3, 2), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((2, 1), 1)
    pixels = opened(image, tmp_path / "a.png", transparency=0)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 2].tolist() == [0, 0, 200]
    assert opened(image, tmp_path / "b.png")[0, 0].tolist() == [200, 0, 0]


def test_one_bit_and_8_bit_grey(tmp_path: Path) -> None:
    bits = Image.new("1", (3, 2), 1)
    bits.putpixel((0, 0), 0)
    pixels = opened(bits, tmp_path / "a.png")
    assert pixels[0, 0].tolist() == [0] * 3
    assert pixels[1, 1].tolist() == [255] * 3
    assert opened(Image.new("L", (3, 2), 77), tmp_path / "b.png")[0, 0].tolist() == [77] * 3


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129], [32768, 65407, 65535]], dtype=np.uint16)
    pixels = opened(Image.fromarray(values), tmp_path / "a.png")
    assert pixels[:, :, 0].tolist() == [[0, 0, 1], [128, 255, 255]]
    assert (pixels == pixels[:, :, :1]).all()


def test_cmyk_jpeg(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    red, green, blue = opened(image, tmp_path / "a.jpg", quality=100)[8, 8].tolist()
    assert red > 245
    assert max(green, blue) < 10


UPRIGHT = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: np.rot90,
}
"""EXIF orientation -> what a viewer does to the stored pixels."""


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = opened(Image.fromarray(CORNERS), tmp_path / "a.png", exif=exif)  # `opened` also compares the header's size
    assert np.array_equal(pixels, UPRIGHT[orientation](CORNERS))


def test_an_unreadable_exif_block_is_ignored(tmp_path: Path) -> None:
    pixels = opened(Image.fromarray(CORNERS), tmp_path / "a.png", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert np.array_equal(pixels, CORNERS)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    for suffix in ("gif", "webp", "png"):
        pixels = opened(frames[0], tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
        red, green, blue = pixels[3, 3].tolist()
        assert red > 250
        assert max(green, blue) < 5


@pytest.mark.parametrize(("suffix", "kind"), [("gif", "GIF"), ("webp", "WEBP"), ("png", "PNG"), ("jpg", "MPO")])
@pytest.mark.parametrize("count", [1, 3])
def test_an_animation_is_told_from_its_header_and_a_jpeg_with_further_pictures_is_none(
    tmp_path: Path, suffix: str, kind: str, count: int
) -> None:
    frames = [Image.new("RGB", (8, 6), (0, 80 * number, 0)) for number in range(count)]
    frames[0].save(tmp_path / f"a.{suffix}", kind, save_all=True, append_images=frames[1:])
    size = picture_size(Picture(path=tmp_path / f"a.{suffix}"))
    assert (size.height, size.width) == (6, 8)
    assert size.animated == (count > 1 and kind in ("GIF", "WEBP", "PNG"))


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
def test_a_truncated_file(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    assert refusal(Picture(path=path)) in {
        "the file is damaged or cut short; it cannot be decoded",
        "not a readable image; supported formats are JPEG, PNG, WEBP, GIF, BMP",
    }


def test_a_damaged_png_chunk(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)
    assert refusal(Picture(path=path)) == "the file is damaged or cut short; it cannot be decoded"


NOT_AN_IMAGE = "not a readable image; supported formats are JPEG, PNG, WEBP, GIF, BMP"


@pytest.mark.parametrize("reading", [open_picture, picture_size])
def test_what_is_no_picture(tmp_path: Path, reading: Callable[[Picture], object]) -> None:
    page, svg, tiff = tmp_path / "page.png", tmp_path / "a.svg", tmp_path / "a.tiff"
    page.write_text("<!DOCTYPE html><title>404</title>", encoding="utf-8")
    svg.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>", encoding="utf-8")
    Image.fromarray(CORNERS).save(tiff)
    for path in (page, svg, tiff):
        assert refusal(Picture(path=path), reading) == NOT_AN_IMAGE
    assert refusal(Picture(data=b""), reading) == NOT_AN_IMAGE
    (tmp_path / "empty.png").touch()
    assert refusal(Picture(path=tmp_path / "empty.png"), reading) == "the file is empty (0 bytes)"
    assert refusal(Picture(path=tmp_path), reading) == "not a regular file"
    missing = refusal(Picture(path=tmp_path / "none.png"), reading)
    assert missing == "no such file; check the path"


@pytest.mark.timeout(10)
def test_a_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert refusal(Picture(path=tmp_path / "pipe.png")) == "not a regular file"


def test_a_name_that_no_file_system_takes(tmp_path: Path) -> None:
    assert refusal(Picture(path=tmp_path / f"{'a' * 300}.png")) == "cannot be read (File name too long)"
    assert refusal(Picture(path=tmp_path / "a\0b.png")) == "cannot be read (embedded null byte)"


def test_a_folder_that_may_not_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    assert refusal(Picture(path=tmp_path / "a.png")) == "cannot be read (Permission denied)"


@pytest.mark.parametrize("reading", [open_picture, picture_size])
@pytest.mark.parametrize(
    ("width", "height", "limit"),
    [
        (30_000, 30_000, "far more than 64,000,000 pixels, which is the limit"),
        (10_000, 10_000, "16,384 a side and 64,000,000 in all"),
        (65_500, 1, "each side must be at least 2"),
        (16_385, 100, "16,384 a side"),
        (2_000, 9, "222:1; the limit is 200:1"),
        (1, 1, "each side must be at least 2"),
    ],
)
def test_sizes_out_of_bounds_are_refused_from_the_header(
    reading: Callable[[Picture], object], width: int, height: int, limit: str
) -> None:
    assert limit in refusal(Picture(data=png(width, height)), reading)


def test_the_aspect_limit_itself_is_allowed() -> None:
    assert picture_size(Picture(data=png(400, 2))) == PictureSize(2, 400)


def test_too_many_bytes(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.truncate(20_000_001)
    assert refusal(Picture(path=path)) == "20,000,001 bytes; the limit is 20,000,000"
    assert "20,000,001 bytes" in refusal(Picture(data=path.read_bytes()))


def test_floating_point_pixels_have_no_range() -> None:
    stream = io.BytesIO()
    Image.new("F", (4, 4), 0.5).save(stream, format="TIFF")
    assert refusal(Picture(data=stream.getvalue())) == NOT_AN_IMAGE  # no format of the policy holds them


def test_the_size_of_a_png_is_read_without_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((400, 300), 60).save(path)

    def decoded(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decoded)
    assert picture_size(Picture(path=path)) == PictureSize(300, 400)


@pytest.mark.parametrize("late", [False, True])
def test_a_png_may_be_rotated_by_a_block_on_either_side_of_its_pixels(tmp_path: Path, late: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = io.BytesIO()
    Image.effect_noise((40, 30), 60).save(whole, "PNG", exif=exif)
    content = whole.getvalue()
    start = content.index(b"eXIf") - 4
    length = struct.unpack(">I", content[start : start + 4])[0] + 12
    block, rest = content[start : start + length], content[:start] + content[start + length :]
    at = len(rest) - 12 if late else rest.index(b"IDAT") - 4
    path = tmp_path / "a.png"
    path.write_bytes(rest[:at] + block + rest[at:])
    assert picture_size(Picture(path=path)) == PictureSize(40, 30)
    assert open_picture(Picture(path=path)).size == (30, 40)
