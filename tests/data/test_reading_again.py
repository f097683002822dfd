"""Records are found again at their addresses, by any process, for as long as their files stay as they are (row D10)."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tarfile
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from pydantic import TypeAdapter

from opsin.core.errors import DataError
from opsin.data import parquet_file, records
from opsin.data.sources import LlavaFile, Source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from opsin.core.types import Conversation
    from opsin.data.record_file import Address, Reader

SOURCE: TypeAdapter[Source] = TypeAdapter(Source)
COUNT = 90


@pytest.fixture(autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path_factory.mktemp("home")))


def said(number: int, **fields: Any) -> dict[str, Any]:
    """Every third record has a picture, some are longer than others, and not all is ASCII."""
    shown = number % 3 == 0
    text = "<image>" * shown + "é日" * (number % 7) + str(number)
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "x" * number}]
    return {"id": f"s{number}", "conversations": turns} | ({"image": "a.png"} if shown else {}) | fields


def lines(folder: Path) -> dict[str, Any]:
    path = folder / "data.jsonl"
    written = [json.dumps(said(n), ensure_ascii=False) + ("\r\n" if n % 5 else "\n\n") for n in range(COUNT)]
    path.write_bytes(b"\xef\xbb\xbf  " + "".join(written).encode())
    return {"kind": "llava", "path": path}


def array(folder: Path) -> dict[str, Any]:
    path = folder / "data.json"
    path.write_text(json.dumps([said(n) for n in range(COUNT)], ensure_ascii=False, indent=1), encoding="utf-8")
    return {"kind": "llava", "path": path}


def messages(folder: Path) -> dict[str, Any]:
    path = folder / "messages.jsonl"
    spoken = [[{"role": "user", "content": str(n)}, {"role": "assistant", "content": "A"}] for n in range(COUNT)]
    path.write_text("\n".join(json.dumps({"messages": one}) for one in spoken), encoding="utf-8")
    return {"kind": "messages", "path": path}


def rows(folder: Path) -> dict[str, Any]:
    path = folder / "data.parquet"
    values = [said(n) | {"image": {"bytes": b"%d" % n, "path": None} if n % 3 == 0 else None} for n in range(COUNT)]
    parquet.write_table(pa.Table.from_pylist(values), path, row_group_size=40)
    return {"kind": "parquet", "path": path}


def shards(folder: Path) -> dict[str, Any]:
    for form, first in ((tarfile.PAX_FORMAT, 0), (tarfile.GNU_FORMAT, 40), (tarfile.USTAR_FORMAT, 80)):
        with tarfile.open(folder / f"{first:02}.tar", "w", format=form) as tar:
            for number in range(first, min(first + 40, COUNT)):
                key = f"{'long/' * 40 * (form != tarfile.USTAR_FORMAT)}{number}"
                members = {"json": json.dumps(said(number, image=None)).encode(), "txt": b"beside it"}
                members |= {"png": b"%d" % number} if number % 3 == 0 else {}
                for ending, content in members.items():
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size, info.mtime = len(content), 1.5 if form == tarfile.PAX_FORMAT else 1
                    tar.addfile(info, io.BytesIO(content))
    return {"kind": "webdataset", "path": folder / "*.tar"}


def problems(folder: Path) -> dict[str, Any]:
    path = folder / "problems.json"
    one = {"choices": ["a", "b"], "answer": 1, "hint": "", "lecture": "", "solution": "", "image": None}
    path.write_text(json.dumps({str(n): one | {"question": f"Is it {n}?"} for n in range(COUNT)}), encoding="utf-8")
    split = {"train": [str(n) for n in reversed(range(COUNT))], "test": ["3"]}
    path.with_name("pid_splits.json").write_text(json.dumps(split), encoding="utf-8")
    return {"kind": "science_qa", "path": path}


KINDS = (lines, array, messages, rows, shards, problems)
every_kind = pytest.mark.parametrize("kind", KINDS)


def source_of(kind: Callable[[Path], dict[str, Any]], folder: Path) -> Source:
    (folder / "a.png").write_bytes(b"x")
    return SOURCE.validate_python(kind(folder))


Located = list[tuple["Address", "Conversation"]]


def located(source: Source) -> Located:
    found = list(source.located(Counter()))
    assert len(found) == COUNT
    return found


def wrong(reader: Reader, found: Located, seed: int, reads: int = 200) -> int:
    """How many of some random reads give something else than the first reading did."""
    chosen = random.Random(seed).choices(found, k=reads)
    return sum(reader.conversation(address) != conversation for address, conversation in chosen)


@every_kind
def test_every_record_is_found_again_in_any_order(tmp_path: Path, kind: Any) -> None:
    source = source_of(kind, tmp_path)
    found = located(source)
    assert [conversation for _, conversation in found] == list(source.conversations(Counter()))
    reader = source.reader()
    assert all(reader.conversation(address) == conversation for address, conversation in reversed(found))
    assert wrong(reader, found, seed=0) == 0
    reader.close()
    assert wrong(reader, found, seed=1, reads=3) == 0  # what was let go is opened again


@every_kind
def test_parent_and_children_read_with_one_reader_at_the_same_time(tmp_path: Path, kind: Any) -> None:
    source = source_of(kind, tmp_path)
    found, reader = located(source), source.reader()
    assert wrong(reader, found, seed=0) == 0  # what is open now is inherited
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=lambda seed=seed: os._exit(min(wrong(reader, found, seed), 99))) for seed in (1, 2)
    ]
    for child in children:
        child.start()
    assert wrong(reader, found, seed=3) == 0
    for child in children:
        child.join(20)
    assert [child.exitcode for child in children] == [0, 0]


TEXT = st.text(max_size=6)
GAP = st.text(alphabet=" \t\r\n", max_size=3)


@given(st.lists(st.tuples(GAP, TEXT, GAP), max_size=6), st.integers(1, 40), st.booleans(), st.booleans(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_offsets_are_in_bytes_whatever_the_text_and_wherever_the_reading_pauses(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[tuple[str, str, str]],
    chunk: int,
    as_array: bool,
    ascii_only: bool,
    marked: bool,
) -> None:
    path = tmp_path_factory.mktemp("again") / "data.json"
    texts = [
        before + json.dumps(said(0, id=text, image=None, conversations=[{"from": "human", "value": text}]),
                            ensure_ascii=ascii_only, indent=1 if as_array else None) + after
        for before, text, after in items
    ]  # fmt: skip
    whole = "[" + ",".join(texts) + "]" if as_array else "\n".join(text.replace("\n", " ") for text in texts)
    path.write_bytes(b"\xef\xbb\xbf" * marked + whole.encode("utf-8"))
    source = LlavaFile(path=path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "CHUNK_BYTES", chunk)
        found = list(source.located(Counter()))
    assert [conversation.id for _, conversation in found] == [text for _, text, _ in items]
    reader = source.reader()
    assert all(reader.conversation(address) == conversation for address, conversation in found)


def test_reading_again_counts_nothing(tmp_path: Path) -> None:
    source = source_of(lines, tmp_path)
    counts: Counter[str] = Counter()
    found = list(source.located(counts))
    before = dict(counts)
    source.reader().conversation(found[3][0])
    assert counts == before == {"conversations": COUNT, "turns": 2 * COUNT, "pictures": COUNT // 3}


def test_bad_records_have_no_address_and_are_said_behind_the_last_good_one(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([json.dumps(said(1)), "{", json.dumps(said(2))]), encoding="utf-8")
    found: list[int] = []
    with pytest.raises(DataError) as caught:
        found.extend(address.line for address, _ in LlavaFile(path=path).located(Counter()))
    assert found == [1, 3]
    assert caught.value.problems[0].startswith(f"{path}:2:2: not valid JSON")


@every_kind
@pytest.mark.parametrize("damage", ["longer", "touched", "gone"])
def test_a_file_that_changed_or_is_gone_is_named_and_nothing_of_it_is_read(
    tmp_path: Path, kind: Any, damage: str
) -> None:
    source = source_of(kind, tmp_path)
    found, reader = located(source), source.reader()
    address, _ = found[-1]
    path = source.files[address.file]
    if damage == "longer":
        facts = path.stat()
        path.write_bytes(path.read_bytes() + b"\n")
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    elif damage == "touched":
        os.utime(path, ns=(1, 1))
    else:
        path.unlink()
    said = f"{path}: {'gone' if damage == 'gone' else 'changed'} while it was read"
    again = "start again when it is back" if damage == "gone" else "start again when it is at rest"
    for use in (lambda: reader.conversation(address), source.identity):
        with pytest.raises(DataError) as caught:
            use()
        (problem,) = caught.value.problems
        assert problem.startswith(said)
        assert problem.endswith(again)


def test_a_file_that_changes_while_it_is_read_through_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    source = source_of(lines, tmp_path)
    reading = source.located(Counter())
    next(reading)
    os.utime(source.files[0], ns=(1, 1))
    with pytest.raises(DataError, match="changed while it was read"):
        list(reading)


def test_a_picture_that_is_gone_is_named_with_its_sample(tmp_path: Path) -> None:
    source = source_of(lines, tmp_path)
    (address, _), *_ = located(source)
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError) as caught:
        source.reader().conversation(address)
    assert caught.value.problems[0].startswith(f"{tmp_path}/data.jsonl:1: (s0) image 'a.png': no such file")


@every_kind
def test_an_identity_names_content_and_reading_and_not_how_much_is_used(tmp_path: Path, kind: Any) -> None:
    (tmp_path / "one").mkdir()
    source = source_of(kind, tmp_path / "one")
    options = source.model_dump(exclude_unset=True) | {"kind": source.kind}
    options = {"path": options.pop("shards"), **options} if "shards" in options else options
    name = source.identity()
    assert SOURCE.validate_python(options).identity() == name
    assert SOURCE.validate_python(options | {"weight": 2, "name": "other", "pick": "first"}).identity() == name
    others = [{"allow_outside": True}, {"image_root": tmp_path}] if kind is not shards else []
    others += [{"split": "test"}, {"prompt": "letter"}] if kind is problems else []
    names = {SOURCE.validate_python(options | other).identity() for other in others}
    if kind is shards:
        os.utime(source.files[-1], ns=(1, 1))
    else:
        path = source.files[-1]
        path.write_bytes(path.read_bytes().replace(b"s8", b"S8").replace(b'"3"', b'"4"').replace(b': "8', b': "9'))
        os.utime(path, ns=(2, 2))
    names.add(SOURCE.validate_python(options).identity())
    assert len(names | {name}) == 2 + len(others)


def test_rows_are_kept_in_bounded_memory_and_read_in_order_without_beginning_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(rows, tmp_path)
    found = located(source)
    begun: list[int] = []
    rows_of = parquet_file._Table.rows

    def counted(table: parquet_file._Table, group: int) -> Any:
        begun.append(group)
        return rows_of(table, group)

    monkeypatch.setattr(parquet_file._Table, "rows", counted)
    monkeypatch.setattr(parquet_file, "ROWS", 7)
    monkeypatch.setattr(parquet_file, "CACHE_BYTES", 10_000)
    reader = source.reader()
    assert all(reader.conversation(address) == conversation for address, conversation in found)
    assert begun == [0, 1, 2]
    assert wrong(reader, found, seed=0, reads=40) == 0
    assert len(begun) > 3  # they were not all kept
    monkeypatch.setattr(parquet_file, "CACHE_BYTES", 10**9)
    reader = source.reader()
    assert wrong(reader, found, seed=1, reads=500) == 0
    del begun[:]
    assert wrong(reader, found, seed=2, reads=500) == 0
    assert begun == []


MEASURE = """
import json, random, resource, sys
from collections import Counter
from pathlib import Path
from opsin.data.sources import LlavaFile

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def read(count, before, between, after):
    path = Path(sys.argv[1]) / "data.json"
    with path.open("w") as file:
        for number in range(count):
            turns = [{"from": "human", "value": f"é {number}"}, {"from": "gpt", "value": "Hello"}]
            text = json.dumps({"id": str(number), "conversations": turns}, ensure_ascii=False)
            file.write((between if number else before) + text)
        file.write(after)
    source, chosen, some = LlavaFile(path=path), set(random.Random(0).sample(range(count), 1000)), []
    for number, (address, conversation) in enumerate(source.located(Counter())):
        if number in chosen:
            some.append((address, str(number), conversation))
    assert number == count - 1
    random.Random(1).shuffle(some)
    reader = source.reader()
    for address, name, conversation in some:
        again = reader.conversation(address)
        assert again == conversation and again.id == name

forms = [("", "\\n", ""), ("[", ",\\n", "]")]
for form in forms:
    read(5_000, *form)
small = peak()
for form in forms:
    read(100_000, *form)
print(peak() - small)
"""


def test_memory_stays_flat_over_a_hundred_thousand_records(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout)
    assert grown < 4_000  # KiB; the records alone are some 12,000 KiB of text, and ten times that as objects
