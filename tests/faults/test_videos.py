"""Row D5 of the fault matrix, of which tests/vision/test_video.py has the most: cut, damaged, turned, of variable rate.

Here: what opening a video must never do, and files that are odd but not wrong.
"""

from __future__ import annotations

import json
import re
import socket
import struct
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.core.errors import VideoError
from opsin.core.types import Clip
from opsin.data.check import check, source_of
from opsin.data.collate import collate, medium_pixels
from opsin.data.example import make_example, seen_alone
from opsin.vision import video
from opsin.vision.sampling import EvenFrames, LlavaFrames
from opsin.vision.video import read_frames, video_facts
from tests.support.damage import CHANGES, mutated
from tests.support.models import tiny_vlm
from tests.support.videos import (
    CONTAINERS,
    HEIGHT,
    WIDTH,
    number_of,
    write_growing,
    write_no_frame,
    write_sound,
    write_video,
    write_with_sound,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def refused(path: Path, wanted: tuple[int, ...] = (0,)) -> str:
    with pytest.raises(VideoError) as caught:
        list(read_frames(path, wanted))
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.fixture
def canary() -> Iterator[socket.socket]:
    """A server on this machine that nobody may call."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("scheme", ["http", "https", "rtmp", "tcp", "concat:tcp", "crypto+http"])
def test_an_address_is_a_file_that_is_not_there(canary: socket.socket, scheme: str) -> None:
    assert refused(Path(f"{scheme}://127.0.0.1:{canary.getsockname()[1]}/a.mp4")).startswith("no such file")


@pytest.mark.parametrize("name", ["a.m3u8", "a.mp4", "a.mkv", "a.avi", "a.mpd", "a.sdp"])
@pytest.mark.parametrize("where", ["network", "file"])
def test_a_playlist_is_never_followed(tmp_path: Path, canary: socket.socket, name: str, where: str) -> None:
    secret = write_video(tmp_path / "secret.mp4", range(3))
    target = f"http://127.0.0.1:{canary.getsockname()[1]}/a.ts" if where == "network" else str(secret)
    path = tmp_path / name
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n", encoding="utf-8")
    assert refused(path).startswith("not a video that opsin opens")


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_video_of_no_frame_is_refused(tmp_path: Path, kind: str) -> None:
    message = refused(write_no_frame(tmp_path / f"a.{kind}"))
    assert message.startswith(("has no video", "damaged or cut short", "its header tells neither", "damaged: not one"))


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("resolution", ["square", "any_res", "native"])
def test_a_video_of_one_frame_is_a_clip(tmp_path: Path, kind: str, resolution: str) -> None:
    path = write_video(tmp_path / f"a.{kind}", [0])
    prepare = tiny_vlm(tmp_path, encoder="native_vit", resolution=resolution)[1]
    for rule in (LlavaFrames(), EvenFrames()):
        assert rule.take(1, 10.0) == (0,)
    ((clip, layout),) = seen_alone([Clip(path=path)], prepare)
    assert medium_pixels(clip, layout, prepare).nbytes == layout.bytes
    ((_, image),) = read_frames(path, [0])
    assert number_of(image) == 0


@pytest.mark.parametrize("kind", [kind for kind in CONTAINERS if kind != "avi"])
@pytest.mark.parametrize("seconds", [0.5, 6.0])
def test_sound_may_be_longer_or_shorter_than_the_pictures(tmp_path: Path, kind: str, seconds: float) -> None:
    path = write_with_sound(tmp_path / f"a.{kind}", 20, seconds)
    assert video_facts(path).frames == 20
    assert [number_of(image) for _, image in read_frames(path, [0, 19])] == [0, 19]


@pytest.mark.parametrize(
    "tag", [b"99:99:99.999999999", b"00:00:00.000000000", b"two seconds, about", b"-1:00:02.00000000"]
)
def test_a_length_that_cannot_be_is_not_believed(tmp_path: Path, tag: bytes) -> None:
    content = write_video(tmp_path / "a.mkv", range(20)).read_bytes()
    assert content.count(b"00:00:02.000000000") == 1
    path = tmp_path / "b.mkv"
    path.write_bytes(content.replace(b"00:00:02.000000000", tag.ljust(18)[:18]))
    assert video_facts(path).frames == 20


@pytest.mark.parametrize("kind", ["avi", "mkv"])
def test_frames_that_grow_behind_the_header_stay_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    small, large = (HEIGHT, WIDTH), (10 * HEIGHT, 10 * WIDTH)
    path = write_growing(tmp_path / f"a.{kind}", [small, small, large, large])
    assert [image.size for _, image in read_frames(path, [0, 2])] == [(WIDTH, HEIGHT), (10 * WIDTH, 10 * HEIGHT)]
    monkeypatch.setattr(video, "MAX_PIXELS", 2 * HEIGHT * WIDTH)
    assert refused(path, (0, 2)) == "damaged: a part of it cannot be decoded"


@pytest.mark.timeout(20)
def test_of_a_video_of_hours_only_what_is_near_the_taken_frames_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mkv", range(250), rate=Fraction(1, 144), key_every=5)  # 10 hours
    facts = video_facts(path)
    assert facts.seconds == 36_000
    steps: list[None] = []
    step = video._Shown._step

    def counted(shown: Any) -> None:
        steps.append(None)
        step(shown)

    monkeypatch.setattr(video._Shown, "_step", counted)
    taken = LlavaFrames(most=4).take(facts.frames, facts.rate)
    assert [number_of(image) for _, image in read_frames(path, taken)] == list(taken)
    assert len(steps) < 30  # of 250


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good video of every kind."""
    folder = tmp_path_factory.mktemp("originals")
    for kind in CONTAINERS:
        write_video(folder / f"a.{kind}", range(6))
    return folder


def test_frames_in_an_unknown_code_are_refused(tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.mkv", range(3)).read_bytes()
    assert content.count(b"V_MPEG4/ISO/ASP") == 1
    path = tmp_path / "b.mkv"
    path.write_bytes(content.replace(b"V_MPEG4/ISO/ASP", b"V_MPEG4/ISO/???"))
    assert refused(path).startswith("its frames are in a code that no decoder here knows")


@settings(deadline=None, max_examples=60)
@given(kind=st.sampled_from(CONTAINERS), changes=CHANGES, cut=st.integers(0, 1 << 16), whole=st.booleans())
def test_no_damage_gives_anything_but_frames_or_one_line(
    originals: Path, kind: str, changes: list[tuple[int, bytes]], cut: int, whole: bool
) -> None:
    path = originals / f"damaged.{kind}"
    path.write_bytes(mutated((originals / f"a.{kind}").read_bytes(), changes, 0 if whole else cut))
    message = ""
    try:
        assert all(image.mode == "RGB" for _, image in read_frames(path, [0, 3, 5]))
    except VideoError as error:
        message = str(error)
    assert "\n" not in message
    assert not re.search(r"0x[0-9a-f]{4}", message)


def test_checking_and_training_refuse_the_same_videos_in_the_same_words(tmp_path: Path) -> None:
    good = write_video(tmp_path / "good.mkv", range(20))
    write_sound(tmp_path / "sound.mp4")
    (tmp_path / "cut.mkv").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "list.mp4").write_bytes(b"#EXTM3U\n/etc/hostname\n")
    (tmp_path / "box.mp4").write_bytes(struct.pack(">I", 16) + b"ftypisom" + bytes(4))
    names = ["good.mkv", "sound.mp4", "cut.mkv", "empty.mp4", "list.mp4", "box.mp4"]
    turns = [{"from": "human", "value": "<video>What?"}, {"from": "gpt", "value": "It moves."}]
    records = [{"id": name, "video": name, "conversations": turns} for name in names]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    prepare = tiny_vlm(tmp_path)[1]
    training = []
    for conversation in source_of(path).conversations(Counter()):
        try:
            collate([make_example(conversation, prepare)], prepare)
        except VideoError as error:
            training.append(str(error))
    checking = [problem.text for problem in check(source_of(path), decode=True).problems]
    assert len(training) == len(checking) == len(names) - 1
    # A file cut short is refused at the first frame that is missing, and training may take another one than checking.
    assert [text.split("; ")[0].split(", but")[0] for text in training] == [
        text.split("; ")[0].split(", but")[0] for text in checking
    ]
