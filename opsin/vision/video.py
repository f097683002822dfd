"""The one place where opsin opens videos: bounded, from a file object, without a network, without whole decodes.

Policy: MP4/MOV, Matroska/WebM and AVI, told by their first bytes; at most 4 GB, 12 hours, and a picture's limits for
every frame; rotation applied. What follows a playlist or a URL is not a video file and is refused. A file that ends
before its header says so is told by timestamps, since Matroska does not count its frames.
"""

from __future__ import annotations

import io
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from opsin.core.errors import DamagedVideoError, MissingExtraError, PictureError, VideoError
from opsin.vision.picture import MAX_PIXELS, check_size

if TYPE_CHECKING:
    from PIL import Image

MAX_BYTES = 4_000_000_000
MAX_SECONDS = 12 * 3600
MAX_TAKEN = 1024
"""Frames that can be taken of one video."""

SEEK_SECONDS = 5.0
"""Frames further apart than this are sought by way of the nearest key frame, instead of decoding all between them."""

HEAD_BYTES = 16

CLOCK = re.compile(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d{1,12})?)")
"""Hours, minutes and seconds."""


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What the header says: size as it is seen (rotation applied), how many frames, how many a second."""

    height: int
    width: int
    frames: int
    rate: float

    @property
    def seconds(self) -> float:
        """Length."""
        return self.frames / self.rate

    @property
    def tolerance(self) -> float:
        """How far header and frames can disagree at the end of a whole file: its sound can be a little longer."""
        return max(1.5 / self.rate, min(0.02 * self.seconds, 2.0))


def video_facts(path: Path) -> VideoFacts:
    """Read a video's header (and decode one frame, which tells its rotation).

    Raises:
        VideoError: it cannot be opened, or is over a limit.
        MissingExtraError: PyAV is not installed.
    """
    with _opened(path) as (container, stream):
        return _facts(path, container, stream)


def read_frames(path: Path, wanted: Sequence[int]) -> Iterator[tuple[float, Image.Image]]:
    """Seconds and RGB image of the frames with these numbers (rising, from 0), one at a time.

    A number stands for the moment number / rate, and the frame that is shown then is given: in videos of variable rate
    that is what a viewer sees.

    Raises:
        DamagedVideoError: the video is damaged or ends before the last of them.
        VideoError: it cannot be opened, or is over a limit.
        MissingExtraError: PyAV is not installed.
    """
    if len(wanted) > MAX_TAKEN:
        raise VideoError(f"{path}: {len(wanted)} frames are to be taken; the limit is {MAX_TAKEN}: sample fewer")
    with _opened(path) as (container, stream):
        facts = _facts(path, container, stream)
        shown = _Shown(path, container, stream)
        for number in wanted:
            seconds = number / facts.rate
            frame = shown.at(seconds, slack=0.5 / facts.rate)
            if frame is None or shown.until + facts.tolerance < seconds:
                raise DamagedVideoError(
                    f"{path}: cut short: its header says {facts.seconds:.1f} s, but its frames end at "
                    f"{shown.last_seconds:.1f} s; replace the file"
                )
            yield shown.last_seconds, _upright(frame)


class _Shown:
    """Walks through a video: which frame is shown at a moment."""

    def __init__(self, path: Path, container: Any, stream: Any) -> None:
        self._path, self._container, self._stream = path, container, stream
        self._start = float((stream.start_time or 0) * stream.time_base)
        self._frames: Iterator[Any] = iter(())
        self._current: Any = None
        self._next: Any = None
        self.last_seconds = 0.0

    @property
    def until(self) -> float:
        """When the frame that `at` gave goes: as the next one begins (a slide can stand long), or as it says itself."""
        if self._next is not None:
            return self._seconds(self._next)
        return self.last_seconds + float((self._current.duration or 0) * self._stream.time_base)

    def at(self, seconds: float, slack: float) -> Any:
        """The last frame that begins at or before `seconds`; moments must not go back."""
        if self._current is None or seconds - self.last_seconds > SEEK_SECONDS:
            self._seek(seconds)
        while self._next is not None and self._seconds(self._next) <= seconds + slack:
            self._step()
        if self._current is None:  # the first frame begins later than asked
            self._step()
        self.last_seconds = 0.0 if self._current is None else self._seconds(self._current)
        return self._current

    def _seek(self, seconds: float) -> None:
        target = int((seconds + self._start) / self._stream.time_base)
        with _naming(self._path):
            self._container.seek(max(target, 0), stream=self._stream, backward=True)
            self._frames = self._container.decode(self._stream)
        self._current, self._next = None, None
        self._step()

    def _step(self) -> None:
        with _naming(self._path):
            self._current, self._next = self._next, next(self._frames, None)

    def _seconds(self, frame: Any) -> float:
        return float(frame.pts * self._stream.time_base) - self._start if frame.pts is not None else 0.0


def _upright(frame: Any) -> Image.Image:
    image: Image.Image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation % 360 else image


def _facts(path: Path, container: Any, stream: Any) -> VideoFacts:
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    frames = stream.frames or round(_seconds(container, stream) * rate)
    if rate <= 0 or frames < 1:
        raise VideoError(f"{path}: its header tells neither a number of frames nor a length; convert it to MP4")
    if frames / rate > MAX_SECONDS:
        raise VideoError(f"{path}: {frames / rate / 3600:.1f} hours; the limit is {MAX_SECONDS // 3600}")
    height, width = stream.codec_context.height, stream.codec_context.width
    try:
        check_size(str(path), height, width)
    except PictureError as error:
        raise VideoError(str(error)) from None
    with _naming(path):
        first = next(container.decode(stream), None)
    if first is None:
        raise VideoError(f"{path}: damaged: not one frame can be decoded")
    if first.rotation % 180:
        height, width = width, height
    return VideoFacts(height, width, frames, rate)


def _seconds(container: Any, stream: Any) -> float:
    """Length of the pictures. Matroska tells only that of the file, whose sound can be longer, and theirs in a tag."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    whole = (container.duration or 0) / 1e6
    tag = CLOCK.fullmatch(stream.metadata.get("DURATION", ""))
    own = float(tag[1]) * 3600 + float(tag[2]) * 60 + float(tag[3]) if tag else 0
    return min(own or whole, whole or own)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream."""
    if find_spec("av") is None:
        raise MissingExtraError("av", "video")
    import av

    with _stream(path) as file:
        name = _format(path, file)
        try:
            container = av.open(file, format=name, options={"protocol_whitelist": "file"})
        except (av.FFmpegError, OSError, ValueError):
            raise VideoError(f"{path}: damaged or cut short: the {name} header cannot be read") from None
        with container:
            if not container.streams.video:
                raise VideoError(f"{path}: has no video, only sound or text")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise VideoError(f"{path}: its frames are in a code that no decoder here knows; convert it to MP4")
            stream.thread_type, stream.thread_count = "AUTO", 2
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # frames can grow behind the header
            yield container, stream


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """A decoder's error as ours; its own text can hold addresses."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, OSError) and not isinstance(error, av.FFmpegError):  # of the disk or network
            raise VideoError(f"{path}: cannot be read ({error.strerror})") from None
        raise DamagedVideoError(f"{path}: damaged: a part of it cannot be decoded") from None


def _stream(path: Path) -> BinaryIO:
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # a FIFO would block for ever
            raise VideoError(f"{path}: not a regular file")
        if facts.st_size == 0:
            raise VideoError(f"{path}: the file is empty (0 bytes)")
        if facts.st_size > MAX_BYTES:
            raise VideoError(f"{path}: {facts.st_size:,} bytes; the limit is {MAX_BYTES:,}")
        return path.open("rb")
    except FileNotFoundError:
        raise VideoError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise VideoError(f"{path}: cannot be read ({reason})") from None


def _format(path: Path, file: BinaryIO) -> str:
    """The container by its first bytes, so that no other demuxer is ever tried."""
    head = file.read(HEAD_BYTES)
    file.seek(0, io.SEEK_SET)
    if head[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}:
        return "mp4"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    raise VideoError(f"{path}: not a video that opsin opens; supported are MP4, MOV, Matroska, WebM and AVI")
