"""Tiny videos made in the test, every frame of which shows its own number."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from PIL import Image

CODECS = {"mp4": "libx264", "mkv": "mpeg4", "avi": "mjpeg", "webm": "libvpx"}
CONTAINERS = tuple(kind for kind, codec in CODECS.items() if codec in av.codecs_available)
"""Kinds of files that the installed PyAV can write."""

HEIGHT, WIDTH = 32, 48


def write_video(
    path: Path,
    frames: Iterable[int],
    *,
    rate: int | Fraction = 10,
    codec: str | None = None,
    key_every: int = 12,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    options: dict[str, str] | None = None,
) -> Path:
    """A video whose frames begin at these multiples of 1 / `rate` seconds, each showing the multiple's number."""
    codec = codec or CODECS[path.suffix[1:]]
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = key_every
        stream.codec_context.time_base = 1 / Fraction(rate)
        if codec == "libx264":
            stream.options = {"crf": "10", "preset": "ultrafast", "bf": "2"}
        else:
            stream.bit_rate = 400_000
        for number in frames:
            frame = av.VideoFrame.from_ndarray(numbered(number, size), format="rgb24")
            frame.pts, frame.time_base = number, 1 / Fraction(rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_with_sound(path: Path, frames: int, sound_seconds: float) -> Path:
    """Frames at 10 a second, and silence that is shorter or longer than they are."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(CODECS[path.suffix[1:]], rate=10)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        sound: Any = container.add_stream("libopus" if path.suffix == ".webm" else "aac", rate=48_000)
        sound.layout = "mono"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        for start in range(0, int(48_000 * sound_seconds), 960):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 960), dtype=np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 48_000, start
            container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    return path


def write_growing(path: Path, sizes: Iterable[tuple[int, int]]) -> Path:
    """Frames (JPEG) of these sizes, (height, width), while the header tells the usual one."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        container.start_encoding()
        for number, size in enumerate(sizes):
            encoder: Any = av.CodecContext.create("mjpeg", "w")
            encoder.height, encoder.width, encoder.pix_fmt = *size, "yuvj420p"
            encoder.time_base = Fraction(1, 10)
            frame = av.VideoFrame.from_ndarray(numbered(number, size), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            for packet in [*encoder.encode(frame), *encoder.encode(None)]:
                packet.stream = stream
                container.mux(packet)
    return path


def write_no_frame(path: Path) -> Path:
    """A header that promises a video, and no frame of it."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(CODECS[path.suffix[1:]], rate=10)
        stream.height, stream.width = HEIGHT, WIDTH
        stream.pix_fmt = "yuvj420p" if path.suffix == ".avi" else "yuv420p"
        container.start_encoding()
    return path


def numbered(number: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """A picture (height, width, 3) that holds a number below 256: a grey level on the left, another on the right."""
    picture = np.empty((*size, 3), dtype=np.uint8)
    picture[:, : size[1] // 2] = 8 + 16 * (number // 16)
    picture[:, size[1] // 2 :] = 8 + 16 * (number % 16)
    return picture


def number_of(image: Image.Image) -> int:
    """The number that a decoded frame holds."""
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    width = grey.shape[1]
    high, low = grey[:, : width // 2 - 6].mean(), grey[:, width // 2 + 6 :].mean()
    return 16 * int(high // 16) + int(low // 16)


def write_sound(path: Path) -> Path:
    """A tenth of a second of silence."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
