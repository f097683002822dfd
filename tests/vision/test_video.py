from __future__ import annotations

import os
import random
import struct
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest

from opsin.core.errors import MissingExtraError, VideoError
from opsin.vision import video
from opsin.vision.video import MAX_TAKEN, VideoFacts, read_frames, video_facts
from tests.support.videos import CONTAINERS, HEIGHT, WIDTH, number_of, write_sound, write_video

if TYPE_CHECKING:
    from collections.abc import Iterable

COUNT = 30


def numbers(path: Path, wanted: Iterable[int] = range(COUNT)) -> list[int]:
    return [number_of(image) for _, image in read_frames(path, list(wanted))]


def decoded(path: Path) -> list[tuple[float, int]]:
    """(seconds, number) of every frame, decoded from the beginning to the end."""
    with av.open(str(path)) as container:
        frames = [(float(frame.time), number_of(frame.to_image())) for frame in container.decode(video=0)]
    return [(seconds - frames[0][0], number) for seconds, number in frames]


def refused(path: Path, wanted: Iterable[int] = range(COUNT)) -> str:
    """The message of the refusal, without the path that it begins with; no more than one line of our own."""
    with pytest.raises(VideoError) as caught:
        numbers(path, wanted)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "Errno" not in message
    assert "0x" not in message
    assert "libav" not in message.lower()
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("kind", CONTAINERS)
class TestEveryContainer:
    def test_the_header_tells_size_length_and_rate(self, tmp_path: Path, kind: str) -> None:
        facts = video_facts(write_video(tmp_path / f"a.{kind}", range(COUNT)))
        assert facts == VideoFacts(HEIGHT, WIDTH, COUNT, 10.0)
        assert facts.seconds == 3.0

    def test_a_number_gives_exactly_that_frame(self, tmp_path: Path, kind: str) -> None:
        path = write_video(tmp_path / f"a.{kind}", range(COUNT))
        assert numbers(path) == list(range(COUNT))
        assert numbers(path, [COUNT - 1]) == [COUNT - 1]
        assert numbers(path, [0, 0, 7, 7, 7, 20]) == [0, 0, 7, 7, 7, 20]
        shown = list(read_frames(path, [3, 17]))
        assert [round(seconds, 2) for seconds, _ in shown] == [0.3, 1.7]
        assert {(image.mode, image.size) for _, image in shown} == {("RGB", (WIDTH, HEIGHT))}

    @pytest.mark.parametrize("key_every", [7, 250])
    def test_far_frames_are_sought_and_are_those_of_a_whole_decode(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, key_every: int
    ) -> None:
        path = write_video(tmp_path / f"a.{kind}", range(160), rate=4, key_every=key_every)
        steps: list[None] = []
        step = video._Shown._step

        def counted(shown: Any) -> None:
            steps.append(None)
            step(shown)

        monkeypatch.setattr(video._Shown, "_step", counted)
        wanted = [0, 1, 30, 31, 83, 159]
        assert numbers(path, wanted) == wanted == [decoded(path)[i][1] for i in wanted]
        if key_every == 7:
            assert len(steps) < 60  # of 160 frames

    def test_a_file_cut_anywhere_or_damaged_in_its_middle_is_named(self, tmp_path: Path, kind: str) -> None:
        content = write_video(tmp_path / f"a.{kind}", range(COUNT)).read_bytes()
        damaged = tmp_path / f"damaged.{kind}"
        for share in (0.01, 0.3, 0.6, 0.9):
            damaged.write_bytes(content[: int(share * len(content))])
            assert refused(damaged).startswith(("damaged", "cut short", "not a video that opsin opens"))
        start, length = 4 * len(content) // 10, len(content) // 4
        for noise in (random.Random(0).randbytes(length), bytes(length)):
            damaged.write_bytes(content[:start] + noise + content[start + length :])
            assert refused(damaged).startswith(("damaged", "cut short"))


def test_an_mp4_with_its_header_at_the_front_is_cut_short_or_damaged_by_name(tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.mp4", range(COUNT), options={"movflags": "faststart"}).read_bytes()
    path = tmp_path / "cut.mp4"
    for share in (0.6, 0.97):
        path.write_bytes(content[: int(share * len(content))])
        assert refused(path) == "damaged: a part of it cannot be decoded"


def test_a_matroska_file_that_ends_early_is_told_by_its_timestamps(tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.mkv", range(COUNT)).read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(content[: 6 * len(content) // 10])
    assert numbers(path, [0, 5]) == [0, 5]
    assert refused(path).startswith("cut short: its header says 3.0 s, but its frames end at 1.")


def test_what_a_viewer_sees_at_a_moment_is_given_where_the_rate_varies(tmp_path: Path) -> None:
    begins = [0, 1, 2, 3, 12, 13, 24, 25, 26, 27]  # tenths of a second
    path = write_video(tmp_path / "a.mkv", begins)
    frames = decoded(path)
    assert [number for _, number in frames] == begins
    facts = video_facts(path)
    found = numbers(path, range(facts.frames))
    for number, shown in enumerate(found):
        moment = number / facts.rate
        exact = max(begun for begun in begins if begun / 10 <= moment + 1e-6)
        nearly = max(begun for begun in begins if begun / 10 <= moment + 0.5 / facts.rate + 1e-6)
        assert exact <= shown <= nearly
    assert found.count(3) > 2  # what stands still is shown again


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_a_slide_that_stands_for_long_is_no_damage(tmp_path: Path, kind: str) -> None:
    begins = [0, 1, 2, 90, 91, 200]
    path = write_video(tmp_path / f"a.{kind}", begins, codec="mpeg4")
    facts = video_facts(path)
    for number, shown in enumerate(numbers(path, range(facts.frames))):
        assert shown == max(begun for begun in begins if begun / 10 <= (number + 0.5) / facts.rate + 1e-6)


@pytest.mark.parametrize(
    ("matrix", "brightest", "size"),
    [
        ((0, 1, -1, 0), "top", (HEIGHT, WIDTH)),  # turned by 90 degrees clockwise, as phones write it
        ((0, -1, 1, 0), "bottom", (HEIGHT, WIDTH)),
        ((-1, 0, 0, -1), "right", (WIDTH, HEIGHT)),
    ],
)
def test_a_turned_video_is_seen_upright(
    tmp_path: Path, matrix: tuple[int, int, int, int], brightest: str, size: tuple[int, int]
) -> None:
    path = write_video(tmp_path / "a.mp4", [240, 241, 242])  # bright on the left
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (x << 16 for x in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    facts = video_facts(path)
    assert (facts.width, facts.height) == size
    ((_, image),) = read_frames(path, [0])
    assert image.size == size
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    h, w = grey.shape
    halves = {"top": grey[: h // 2], "bottom": grey[h // 2 :], "left": grey[:, : w // 2], "right": grey[:, w // 2 :]}
    assert max(halves, key=lambda name: halves[name].mean()) == brightest


NOT_VIDEOS = {
    "empty": (b"", "the file is empty (0 bytes)"),
    "text": (b"just some words, and no video at all\n", "not a video that opsin opens; supported are MP4, MOV, "),
    "playlist": (b"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n", "not a video that opsin opens; "),
    "concat": (b"ffconcat version 1.0\nfile /etc/hostname\n", "not a video that opsin opens; "),
    "mp4 of nothing": (b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isommp41", "damaged or cut short: the mp4 header"),
    "mkv of nothing": (b"\x1aE\xdf\xa3" + bytes(60), "damaged or cut short: the matroska header"),
}


@pytest.mark.parametrize("name", NOT_VIDEOS)
def test_what_is_no_video_is_refused_whatever_its_name(tmp_path: Path, name: str) -> None:
    content, message = NOT_VIDEOS[name]
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    assert refused(path, [0]).startswith(message)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone.mp4", [0]).startswith("no such file; check the path")
    assert refused(tmp_path, [0]) == "not a regular file"
    os.mkfifo(tmp_path / "pipe.mp4")
    assert refused(tmp_path / "pipe.mp4", [0]) == "not a regular file"


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    assert refused(write_sound(tmp_path / "a.mp4"), [0]) == "has no video, only sound or text"


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = write_video(tmp_path / "long.mkv", [0, 100, 200], rate=Fraction(1, 300))
    assert refused(long, [0]).endswith("hours; the limit is 12")
    wide = write_video(tmp_path / "wide.avi", [0], size=(16, 16_400))
    assert refused(wide, [0]).startswith("16x16400 pixels (HxW); the limits are 16,384 a side")
    small = write_video(tmp_path / "a.avi", range(3))
    assert refused(small, [0] * (MAX_TAKEN + 1)) == "1025 frames are to be taken; the limit is 1024: sample fewer"
    monkeypatch.setattr(video, "MAX_BYTES", 1000)
    assert refused(small, [0]) == f"{small.stat().st_size:,} bytes; the limit is 1,000"


def test_a_frame_behind_the_end_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", range(COUNT))
    assert refused(path, [2, COUNT + 5]).startswith("cut short: its header says 3.0 s, but its frames end at 2.9 s")


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.avi", range(3))
    monkeypatch.setattr(video, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"this needs the package 'av': pip install 'opsin\[video\]'"):
        video_facts(path)
