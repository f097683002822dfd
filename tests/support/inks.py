"""An ICC profile of four inks, and JPEG files that hold inks."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image


def black_only_profile() -> bytes:
    """A printer that has run out of colours: lightness falls from 100 to 0 with the black ink, the others do nothing.

    An ICC profile of version 2 with one table (`lut8Type`, ICC.1:2001-04, 6.5.8): two points for each ink, in Lab.
    """
    linear = bytes(range(256))
    grid = b"".join(bytes([255 * (1 - black), 128, 128]) for _ in range(8) for black in (0, 1))
    identity = struct.pack(">9i", *(x << 16 for x in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + 4 * linear + grid + 3 * linear
    tags = struct.pack(">I", 1) + b"A2B0" + struct.pack(">II", 144, len(table))
    header = bytearray(128)
    struct.pack_into(">I", header, 0, 128 + len(tags) + len(table))
    header[8:12] = b"\x02\x40\x00\x00"
    header[12:24] = b"prtrCMYKLab "
    header[36:40] = b"acsp"
    struct.pack_into(">3i", header, 68, 63190, 65536, 54061)  # D50, in 1/65536
    return bytes(header) + tags + table


def grey_of_lightness(lightness: float) -> float:
    """The sRGB grey (0..255) of a CIE L*: IEC 61966-2-1 after CIE 15."""
    linear = ((lightness + 16) / 116) ** 3 if lightness > 8 else lightness / 903.3
    return 255 * (1.055 * linear ** (1 / 2.4) - 0.055 if linear > 0.0031308 else 12.92 * linear)


def ink_jpeg(inks: tuple[int, int, int, int], profile: bytes | None = None) -> bytes:
    """One colour, 16 x 16, as Adobe writes it: the samples are 255 - ink, and a marker says so."""
    file = io.BytesIO()
    Image.new("CMYK", (16, 16), inks).save(file, "JPEG", quality=100, icc_profile=profile)
    return file.getvalue()


def ycck_jpeg(luma: int, black: int) -> bytes:
    """The same in Adobe's YCCK: cyan, magenta and yellow, each of `luma`, told as luma without chroma."""
    content = bytearray(ink_jpeg((255 - luma, 127, 127, black)))
    at = content.index(b"Adobe")
    content[at + 11] = 2  # the colour transform of the marker
    return bytes(content)


def without_inks(inks: np.ndarray) -> np.ndarray:
    """Pillow's formula, in RGB: (255 - ink) (255 - black) / 255."""
    return (255 - inks[:3]) * (255 - inks[3]) / 255
