"""PNG files of any bit depth and colour type, also interlaced, which Pillow does not write."""

from __future__ import annotations

import struct
import zlib

import numpy as np

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""The seven passes of an interlaced PNG: first row, first column, and the steps to the next ones."""

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
"""Colour types."""


def png(samples: np.ndarray, depth: int = 8, colour: int = RGB, *, interlaced: bool = False, **chunks: bytes) -> bytes:
    """A PNG of samples (height, width, channels); `chunks` (PLTE, tRNS) stand before the pixels."""
    height, width, _ = samples.shape
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = (samples[top::down, left::across] for top, left, down, across in passes)
    raw = b"".join(b"\0" + _packed(row, depth) for part in parts if part.size for row in part)
    return png_of(width, height, zlib.compress(raw), depth=depth, colour=colour, interlaced=interlaced, **chunks)


def png_of(
    width: int,
    height: int,
    data: bytes,
    *,
    depth: int = 8,
    colour: int = RGB,
    interlaced: bool = False,
    **chunks: bytes,
) -> bytes:
    """A PNG of this compressed data, whose header may claim any size."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    before = b"".join(_chunk(name.encode(), content) for name, content in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + before + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _packed(row: np.ndarray, depth: int) -> bytes:
    """A row (width, channels) as bytes: small samples stand side by side, the first on the left."""
    if depth >= 8:
        return row.astype(f">u{depth // 8}").tobytes()
    bits = (row.reshape(-1, 1) >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
