from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from opsin.core.errors import DataError, PictureError
from opsin.core.types import Picture, Turn
from opsin.data import tar_index as tar_index_module
from opsin.data.check import check, source_of
from opsin.data.file_state import states_of
from opsin.data.sources import Source
from opsin.data.tar_index import TarIndex, tar_index
from opsin.data.tar_shards import TarShards
from opsin.train.features import medium_digest
from opsin.vision.picture import PictureSize, open_picture, picture_bytes, picture_size
from tests.support.damage import CHANGES, mutated, read_through
from tests.support.memory import growth

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def png(width: int, height: int = 4) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (width, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def turns(*texts: str, **fields: Any) -> bytes:
    said = [{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(texts)]
    return json.dumps({"conversations": said, **fields}).encode()


def shard(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1  # a pax header before every member
            tar.addfile(info, io.BytesIO(content))
    return path


def two_samples(folder: Path, form: int = tarfile.PAX_FORMAT) -> Path:
    members = {
        "a/0.json": turns("<image>What?", "A cat.", id="first"),
        "a/0.png": png(5),
        "b.2.png": png(8),
        "b.10.png": png(9),
        "b.1.png": png(7),
        "b.json": turns("<image><image>", "Yes.", "<image>?", "No."),
        "b.txt": b"something else",
    }
    return shard(folder / "data.tar", members, form)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_of_one_key_are_a_sample_and_pictures_are_opened_where_they_lie(tmp_path: Path, form: int) -> None:
    path = two_samples(tmp_path, form)
    counts: Counter[str] = Counter()
    first, second = source_of(path).conversations(counts)
    assert (first.id, first.where) == ("first", f"{path}:a/0.json")
    assert (second.id, second.where) == ("b", f"{path}:b.json")
    assert first.turns[1:] == (Turn("assistant", ("A cat.",)),)
    assert [picture_size(p).width for p in (*first.media, *second.media)] == [5, 7, 8, 9]
    assert [open_picture(p).getpixel((0, 0)) for p in second.media] == [(7, 0, 0), (8, 0, 0), (9, 0, 0)]
    assert picture_bytes(first.media[0]) == png(5)
    assert counts == {"conversations": 2, "turns": 6, "pictures": 4, "members ignored": 1}
    assert not (tmp_path / "a").exists()


def test_a_cached_feature_belongs_to_the_bytes_wherever_they_lie(tmp_path: Path) -> None:
    first, second = TarShards(shards=(two_samples(tmp_path),)).conversations(Counter())
    (tmp_path / "same.png").write_bytes(png(5))
    digests = {medium_digest(p) for p in (*first.media, Picture(data=png(5)), Picture(path=tmp_path / "same.png"))}
    assert len(digests) == 1
    assert medium_digest(second.media[0]) not in digests


def test_long_and_foreign_names(tmp_path: Path) -> None:
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        key = "é" * 70 + "/x" * 60
        path = shard(tmp_path / "long.tar", {f"{key}.json": turns("<image>", "A"), f"{key}.png": png(5)}, form)
        (found,) = TarShards(shards=(path,)).conversations(Counter())
        assert found.id == key
        assert picture_size(found.media[0]) == PictureSize(4, 5)
        path.unlink()


@pytest.mark.parametrize("name", ["1.png", "k.1.png", "d/k.1.png"])
def test_a_record_can_name_its_pictures(tmp_path: Path, name: str) -> None:
    items = [{"type": "text", "text": "See"}, {"type": "image", "image": name}]
    messages = json.dumps({"messages": [{"role": "user", "content": items}, {"role": "assistant", "content": "A"}]})
    pictures = {"d/k.0.png": png(5), "d/k.1.png": png(6)}
    for text in (messages.encode(), turns("See<image>", "A", image=[name])):
        path = shard(tmp_path / "named.tar", {"d/k.json": text, **pictures})
        (found,) = TarShards(shards=(path,)).conversations(Counter())
        assert found.turns[0].parts[0] == "See"
        assert [picture_size(picture).width for picture in found.media] == [6]
        path.unlink()


def test_a_list_or_a_pattern_of_shards_is_read_in_order(tmp_path: Path) -> None:
    for number in (1, 0, 10):
        shard(tmp_path / f"s-{number:02}.tar", {f"k{number}.json": turns("Hi", "Hello")})
    adapter: TypeAdapter[Source] = TypeAdapter(Source)
    context = {"folder": tmp_path}
    for paths, keys in (("s-*.tar", ["k0", "k1", "k10"]), (["s-10.tar", "s-0?.tar"], ["k10", "k0", "k1"])):
        source = adapter.validate_python({"kind": "webdataset", "path": paths}, context=context)
        assert [c.id for c in source.conversations(Counter())] == keys
        assert [path.name for path in source.files] == [f"s-{int(key[1:]):02}.tar" for key in keys]
        assert adapter.validate_python(source.model_dump()) == source
    with pytest.raises(ValidationError, match="no such file"):
        adapter.validate_python({"kind": "webdataset", "path": "t-*.tar"}, context=context)


def index_of(path: Path) -> TarIndex:
    return tar_index(path, states_of((path,))[path])


def test_the_index_is_made_once_and_again_when_the_shard_or_the_index_changed(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks = []
    walk = tar_index_module._Walk

    def counted(*arguments: Any) -> Any:
        walks.append(arguments)
        return walk(*arguments)

    monkeypatch.setattr(tar_index_module, "_Walk", counted)
    path = two_samples(tmp_path)
    assert index_of(path) == index_of(path)
    assert len(walks) == 1
    (cached,) = (home / "tar").iterdir()
    for damage in ("", "[]", cached.read_text().replace('"places": [[', '"places": [[3, '), "{"):
        cached.write_text(damage)
        assert len(index_of(path).places) == 7
    assert len(walks) == 5
    shard(path, {"other.json": turns("Hi", "Hello")})
    assert [name for name, _, _ in index_of(path).places] == ["other.json"]
    assert len(walks) == 6


def test_a_shard_that_changes_while_it_is_read_stops_the_reader(tmp_path: Path) -> None:
    path = two_samples(tmp_path)
    reader = TarShards(shards=(path,)).conversations(Counter())
    first = next(reader)
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match=rf"{path}: changed while it was read"):
        next(reader)
    with pytest.raises(PictureError, match=rf"{path}:a/0.png: the file has changed since it was indexed"):
        open_picture(first.media[0])
    path.unlink()
    with pytest.raises(PictureError, match=rf"{path}: no such file"):
        open_picture(first.media[0])


def test_a_shard_that_is_removed_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = two_samples(tmp_path)
    reader = TarShards(shards=(path,)).conversations(Counter())
    next(reader)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path}: gone while it was read"):
        next(reader)


def problems_of(path: Path) -> list[str]:
    return [problem.removeprefix(f"{path}:") for problem in read_through(TarShards(shards=(path,)))[1]]


def test_every_problem_of_a_shard_is_listed(tmp_path: Path) -> None:
    members = {
        "no_json.png": png(5),
        "bad.json": b"{",
        "marks.json": turns("<image><image>", "A"),
        "marks.png": png(5),
        "named.json": turns("<image>", "A", image="gone.png"),
        "video.json": turns("<video>", "A", video="a.mp4"),
        "fine.json": turns("Hi", "Hello"),
        "utf.json": b"\xff",
        "list.json": b"[]",
        "../up.json": turns("Hi", "Hello"),
        "/root.json": turns("Hi", "Hello"),
    }
    path = shard(tmp_path / "data.tar", members)
    marks = "every mark needs one image and every image one mark"
    *listed, up, root = problems_of(path)
    assert listed == [
        "no_json: has no 'no_json.json', only no_json.png; add it, with 'conversations' or 'messages'",
        "bad.json:1:2: not valid JSON (Expecting property name enclosed in double quotes); repair or remove the record",
        f"marks.json: (marks) the text has 2 <image> and 'image' has 1 path(s); {marks}",
        "named.json: (named) the sample has no picture 'gone.png'; it has none: "
        "name the picture as its member is called, or leave it out and all are taken in order",
        "video.json: (video) videos are not read from shards; keep them as files beside a file of records",
        "utf.json:1:1: byte 0xff is not UTF-8; save the file as UTF-8",
        "list.json: (list) the record must be a JSON object, got list []",
    ]
    assert up.endswith("'../up.json' is absolute or has '..'; pack files with relative names")
    assert root.endswith("'/root.json' is absolute or has '..'; pack files with relative names")
    assert check(source_of(path)).counts["conversations"] == 1


def test_links_and_devices_are_refused_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "data.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, kind in (("a.json", tarfile.SYMTYPE), ("b.json", tarfile.LNKTYPE), ("c.json", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    refused = "is a link or a device; pack plain files"
    assert problems_of(path) == [
        f"byte 0: 'a.json' {refused}",
        f"byte 512: 'b.json' {refused}",
        f"byte 1024: 'c.json' {refused}",
    ]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda c: c[:512] + c[512:1024] + b"x" * 512 + c[1536:], "byte 1024: not a tar header; is the file damaged"),
        (lambda c: c[:550], "byte 0: a member of 88 bytes, but 38 are left; was the file cut short?"),
        (lambda c: c[:1024], "byte 1024: the file ends without tar's end mark; was it cut short?"),
        (lambda _: b"", "byte 0: not a tar file (it is empty)"),
        (lambda _: b"<html>" * 100, "byte 0: not a tar file (its first bytes are b'<html><html><htm')"),
        (lambda _: b"\x1f\x8b" + bytes(600), "byte 0: a tar compressed with gzip has no random access"),
    ],
)  # fmt: skip
def test_damage_is_named_with_its_offset_and_what_is_before_it_is_read(
    tmp_path: Path, damage: Any, problem: str
) -> None:
    text = turns("Hi", "Hello").ljust(88)
    path = shard(tmp_path / "data.tar", {"a.json": text, "b.json": text}, tarfile.USTAR_FORMAT)
    path.write_bytes(damage(path.read_bytes()))
    conversations, (said,) = read_through(TarShards(shards=(path,)))
    assert said.startswith(f"{path}:{problem}")
    assert [c.id for c in conversations] == (["a"] if problem.startswith("byte 1024") else [])


def test_headers_that_claim_too_much_are_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "data.tar"
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1_000_000
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"x" * 1_000_448 + bytes(1024))
    assert problems_of(path) == [
        "byte 0: an extended header of 1,000,000 bytes; the limit is 65,536; the rest of the shard is not read"
    ]


@given(CHANGES, st.integers(0, 3000), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
@settings(max_examples=200, deadline=None)
def test_whatever_happens_to_a_shard_is_said_as_data_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]], cut: int, form: int
) -> None:
    path = two_samples(tmp_path_factory.mktemp("mutated"), form)
    path.write_bytes(mutated(path.read_bytes(), changes, max(0, cut - 1000)))
    conversations, problems = read_through(TarShards(shards=(path,)))
    assert all(problem.startswith(f"{path}:") for problem in problems)
    for medium in (medium for conversation in conversations for medium in conversation.media):
        assert isinstance(medium, Picture)
        try:
            open_picture(medium)
        except PictureError as error:
            assert str(path) in str(error)  # noqa: PT017


@pytest.mark.slow
def test_memory_stays_flat_over_a_hundred_thousand_samples_in_shards(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(5))
    code = """
        import io, tarfile
        from opsin.data.tar_shards import TarShards

        turns = [{"from": "human", "value": "<image>Hi"}, {"from": "gpt", "value": "Hello"}]
        members = {"json": json.dumps({"conversations": turns}).encode(), "png": (folder / "a.png").read_bytes()}

        def written(count):
            for start in range(0, count, 5_000):
                with tarfile.open(folder / f"{count}-{start:06}.tar", "w") as tar:
                    for number in range(start, start + 5_000):
                        for ending, content in members.items():
                            info = tarfile.TarInfo(f"{number:06}.{ending}")
                            info.size = len(content)
                            tar.addfile(info, io.BytesIO(content))
                        tar.members = []
            return TarShards(shards=(folder / f"{count}-*.tar",))
    """
    assert growth(code, tmp_path) < 40_000
