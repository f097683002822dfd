"""The one place where opsin opens images: everything is bounded before a pixel is decoded.

Policy: JPEG, PNG, WebP, GIF and BMP only; at most 20 MB, 64 megapixels, 16,384 pixels a side and an aspect of 200;
EXIF rotation applied; 16-bit grey scaled by 1/257 (of 16-bit colours Pillow gives the upper byte); inks (CMYK) by the
profile that comes with them; transparency composited on white; the first frame of an animation.
Messages never repeat the decoder's own text, which can contain memory addresses.
"""

from __future__ import annotations

import io
import stat
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from opsin.core.errors import DamagedPictureError, PictureError
from opsin.core.types import Member, Picture

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
ANIMATIONS = frozenset({"GIF", "WEBP", "PNG"})
MAX_BYTES = 20_000_000
MAX_PIXELS = 64_000_000
MAX_SIDE = 16_384
MIN_SIDE = 2
MAX_ASPECT = 200
ROTATED_BY_EXIF = frozenset({5, 6, 7, 8})
EXIF_ORIENTATION = 0x0112
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_CHUNKS = 20_000
"""Chunks of a PNG that are looked at: more than a picture of the size limit has."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its EXIF orientation."""

DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError),
    *(LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError),
)
"""What Pillow raises for damaged files; the second row is of plug-ins that compute with what they read."""


@dataclass(frozen=True, slots=True)
class PictureSize:
    """Height and width as the picture is seen (EXIF rotation applied), read from the header alone.

    `animated`: there are more frames than the first one, which is all that opsin takes of a picture.
    """

    height: int
    width: int
    animated: bool = field(default=False, compare=False)


def _open_stream(picture: Picture) -> BinaryIO:
    if picture.data is not None:
        if len(picture.data) > MAX_BYTES:
            raise PictureError(f"{picture.name}: {len(picture.data):,} bytes; the limit is {MAX_BYTES:,}")
        return io.BytesIO(picture.data)
    path = Path(picture.path or "")
    try:
        facts = path.stat()
    except FileNotFoundError:
        raise PictureError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:  # a folder that may not be entered, a name too long, a null character
        reason = error.strerror if isinstance(error, OSError) else error
        raise PictureError(f"{path}: cannot be read ({reason})") from None
    if not stat.S_ISREG(facts.st_mode):  # a FIFO would block for ever
        raise PictureError(f"{path}: not a regular file")
    member = picture.member
    if member is not None and (facts.st_size, facts.st_mtime_ns) != (member.file_bytes, member.file_mtime_ns):
        raise PictureError(f"{picture.name}: the file has changed since it was indexed; start again with files at rest")
    size = facts.st_size if member is None else member.length
    if size == 0:
        raise PictureError(f"{picture.name}: the file is empty (0 bytes)")
    if size > MAX_BYTES:
        raise PictureError(f"{picture.name}: {size:,} bytes; the limit is {MAX_BYTES:,}")
    try:
        return path.open("rb") if member is None else io.BufferedReader(_Part(path.open("rb", buffering=0), member))
    except OSError as error:
        raise PictureError(f"{path}: cannot be read ({error.strerror})") from None


class _Part(io.RawIOBase):
    """A part of a file as a file of its own, so that a header is read without the pixels behind it."""

    def __init__(self, file: io.FileIO, member: Member) -> None:
        self._file = file
        self._member = member
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._member.length}[whence]
        if start + offset < 0:
            raise OSError("before the start of the file")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        self._file.seek(self._member.offset + self._at)
        count = self._file.readinto(view[: max(0, self._member.length - self._at)]) or 0
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def picture_bytes(picture: Picture) -> bytes:
    """The encoded picture as it is stored.

    Raises:
        PictureError: the picture cannot be opened, or is too large.
    """
    with _open_stream(picture) as stream:
        return stream.read()


def check_size(name: str, height: int, width: int) -> None:
    """Hold a picture's size in pixels against the limits; `name` is what the message calls it.

    Raises:
        PictureError: it is too small, too large, or too long and thin.
    """
    if min(height, width) < MIN_SIDE:
        raise PictureError(f"{name}: {height}x{width} pixels (HxW); each side must be at least {MIN_SIDE}")
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise PictureError(
            f"{name}: {height}x{width} pixels (HxW); the limits are {MAX_SIDE:,} a side and {MAX_PIXELS:,} in all. "
            "Downscale the picture first"
        )
    aspect = max(height, width) / min(height, width)
    if aspect > MAX_ASPECT:
        raise PictureError(f"{name}: {height}x{width} pixels (HxW) is {aspect:.0f}:1; the limit is {MAX_ASPECT}:1")


@contextmanager
def _opened(picture: Picture) -> Iterator[Image.Image]:
    """The image with only its header read and its limits checked."""
    with _open_stream(picture) as stream, warnings.catch_warnings():
        # Our own limits stand above Pillow's warning threshold; other decoder warnings say nothing a user can act on.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(stream, formats=FORMATS)
        except Image.DecompressionBombError:  # the header claims so much that Pillow refuses before we can
            raise PictureError(
                f"{picture.name}: far more than {MAX_PIXELS:,} pixels, which is the limit. Downscale the picture first"
            ) from None
        except (UnidentifiedImageError, *DECODER_ERRORS):
            raise PictureError(
                f"{picture.name}: not a readable image; supported formats are {', '.join(FORMATS)}"
            ) from None
        with image:
            check_size(picture.name, image.height, image.width)
            with suppress(*DECODER_ERRORS):  # of an unreadable EXIF block, what could be read counts
                _read_exif(image, stream)
            yield image


def _read_exif(image: Image.Image, stream: BinaryIO) -> None:
    """Let Pillow read the EXIF block now and keep it; of a PNG its own way is to decode all of the pixels first."""
    if image.format == "PNG" and "exif" not in image.info and (block := _late_exif(stream)):
        image.info["exif"] = b"Exif\0\0" + block
    Image.Image.getexif(image)


def _late_exif(stream: BinaryIO) -> bytes:
    """The EXIF block of a PNG if it stands behind the pixels: found by going from chunk to chunk."""
    start = stream.tell()
    try:
        stream.seek(len(PNG_SIGNATURE))
        for _ in range(MOST_CHUNKS):
            length, kind = struct.unpack(">I4s", stream.read(8))
            if kind == b"eXIf":
                return stream.read(length)
            stream.seek(length + 4, io.SEEK_CUR)  # and its checksum
    except struct.error:  # the end of the file
        pass
    finally:
        stream.seek(start)
    return b""


def picture_size(picture: Picture) -> PictureSize:
    """Size from the header, without decoding.

    Raises:
        PictureError: the picture cannot be opened or is over a limit.
    """
    with _opened(picture) as image:
        rotated = _orientation(image) in ROTATED_BY_EXIF
        height, width = (image.width, image.height) if rotated else (image.height, image.width)
        return PictureSize(height, width, animated=_animated(image))


def frames_size(frames: Sequence[Picture]) -> PictureSize:
    """The one size that all frames of a clip have.

    Raises:
        PictureError: a frame cannot be opened, is over a limit, or has another size than the first.
    """
    sizes = [picture_size(frame) for frame in frames]
    for frame, size in zip(frames, sizes, strict=True):
        if size != sizes[0]:
            raise PictureError(
                f"{frame.name}: {size.height}x{size.width} pixels (HxW), but the clip's first frame has "
                f"{sizes[0].height}x{sizes[0].width}; all frames of a clip must have one size"
            )
    return sizes[0]


def _animated(image: Image.Image) -> bool:
    """Whether there is a second frame; the further pictures that a camera puts into a JPEG are none."""
    if image.format not in ANIMATIONS:
        return False
    try:
        return bool(image.is_animated)  # type: ignore[attr-defined]
    except DECODER_ERRORS:
        return False


def open_picture(picture: Picture) -> Image.Image:
    """Decode to RGB.

    Raises:
        PictureError: the picture cannot be opened or read, or is over a limit.
        DamagedPictureError: it cannot be decoded.
    """
    with _opened(picture) as image:
        try:
            image.load()
            return _to_rgb(_upright(image), picture.name)
        except DECODER_ERRORS as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk or network, not of the decoder
                raise PictureError(f"{picture.name}: cannot be read ({error.strerror})") from None
            raise DamagedPictureError(
                f"{picture.name}: the file is damaged or cut short; it cannot be decoded"
            ) from None


def _upright(image: Image.Image) -> Image.Image:
    turn = UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """As EXIF numbers it; 1 is upright, and so is a picture without a number."""
    value = Image.Image.getexif(image).get(EXIF_ORIENTATION)
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise PictureError(f"{name}: floating-point pixels have no declared range; convert to 8 or 16 bit first")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit values at 255; 65535/257 = 255 keeps black and white in place.
        grey = np.asarray(image, dtype=np.int64).clip(0, 65_535)
        if "transparency" in image.info:  # one grey that is not shown
            grey[grey == image.info["transparency"]] = 65_535
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8), mode="L").convert("RGB")
    if image.mode == "CMYK":
        return _inks_to_rgb(image)
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _inks_to_rgb(image: Image.Image) -> Image.Image:
    """By the profile of the inks; by Pillow's formula, (255 - ink) (255 - black) / 255, where there is none to use."""
    if profile := image.info.get("icc_profile"):
        with suppress(ImageCms.PyCMSError, *DECODER_ERRORS):  # damaged, or not of inks
            inks, screen = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            return ImageCms.buildTransform(inks, screen, "CMYK", "RGB").apply(image)
    return image.convert("RGB")
