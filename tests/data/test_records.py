"""Files of records that are long, damaged, or written by other systems (row D1 of the fault matrix)."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.core.errors import DataError
from opsin.data import records
from opsin.data.check import check
from opsin.data.record_file import BadRecord, Record
from opsin.data.records import read_records
from opsin.data.sources import LlavaFile, MessagesFile
from tests.support.damage import CHANGES, mutated, read_through
from tests.support.memory import growth

if TYPE_CHECKING:
    from pathlib import Path

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SPACE = st.text(alphabet=" \t\r\n", max_size=4)
HI = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}


def found(path: Path) -> list[tuple[int | str, Any]]:
    """(line, value), or (line:column, problem), of every record."""
    read = list(read_records(path))
    return [
        (r.address.line, r.value) if isinstance(r, Record) else (r.where.removeprefix(f"{path}:"), f"! {r.problem}")
        for r in read
    ]


def joined(lines: list[str], array: bool) -> str:
    return "[\n" + ",\n".join(lines) + "\n]" if array else "\n".join(lines)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "CHUNK_BYTES", 7)


@given(st.lists(st.tuples(SPACE, JSON, SPACE)), st.integers(1, 40), st.booleans())
@settings(max_examples=150, deadline=None)
def test_an_array_read_in_pieces_gives_what_json_gives_with_the_lines_they_start_on(
    tmp_path_factory: pytest.TempPathFactory, items: list[tuple[str, Any, str]], chunk: int, ascii_only: bool
) -> None:
    path = tmp_path_factory.mktemp("array") / "data.json"
    text, expected = "[", []
    for number, (before, value, after) in enumerate(items):
        text += "," * bool(number) + before
        expected.append((text.count("\n") + 1, value))
        text += json.dumps(value, indent=1, ensure_ascii=ascii_only) + after
    path.write_bytes((text + "\n]\n").encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "CHUNK_BYTES", chunk)
        assert found(path) == expected


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("content", "place", "problem"),
    [
        (b'[{"a": 1},\n{"b": tru}]', "2:7", "not valid JSON (Expecting value)"),
        (b'[{"a": 1},\n{"b": "never closed', "2:7", "not valid JSON (Unterminated string starting at)"),
        (b'[{"a": 1},\n\n{"b": 1} {"c": 1}]', "3:10", "expected ',' or ']' after a record, found '{'"),
        (b'[{"a": 1},\n{"b": 1},', "2:10", "not valid JSON (Expecting value)"),
        ("[1, \n'é']".encode(), "2:1", "not valid JSON (Expecting value)"),
        ("[1, \n'é', é]".encode(), "2:1", "not valid JSON (Expecting value)"),
        ('["é", "日本", oh]'.encode(), "1:13", "not valid JSON (Expecting value)"),
        (b"\xef\xbb\xbf[1, oh]", "1:5", "not valid JSON (Expecting value)"),
        (b'[1,\n"\xc3(", 3]', "2:2", "byte 0xc3 is not UTF-8"),
        (b"[1,\n2]\n\xff", "3:1", "byte 0xff is not UTF-8"),
        (b"[1,\n2\xc3", "2:2", "byte 0xc3 is not UTF-8"),
        (b"[1]\n" + b"x" * 100 + b"\n", "2:1", "101 characters after the closing ']'"),
    ],
)
def test_damage_is_found_where_it_is_also_far_behind_the_first_piece(
    tmp_path: Path, content: bytes, place: str, problem: str
) -> None:
    path = tmp_path / "data.json"
    path.write_bytes(content)
    *_, (at, said) = found(path)
    assert at == place
    assert said.startswith(f"! {problem}")


@pytest.mark.parametrize("array", [True, False])
def test_a_line_of_ten_megabytes_is_read_and_one_over_the_limit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: bool
) -> None:
    path = tmp_path / "data.json"
    long = HI | {"id": "long", "note": "é" * 5_000_000}
    lines = [json.dumps(record, ensure_ascii=False) for record in (HI, long, HI)]
    path.write_text(joined(lines, array), encoding="utf-8")
    reader = LlavaFile(path=path)
    assert [c.id for c in reader.conversations(Counter())] == [f"line {1 + array}", "long", f"line {3 + array}"]
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 2_000_000)
    with pytest.raises(DataError) as caught:
        list(reader.conversations(Counter()))
    limit = "the record is larger than 2,000,000 bytes, which is the limit; split or remove it"
    assert caught.value.problems == (f"{path}:{2 + array}:1: {limit}",)


def test_lines_after_one_that_is_too_large_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 50)
    path = tmp_path / "data.jsonl"
    path.write_text("1\n" + "2" * 500 + "\n3", encoding="utf-8")
    assert [place for place, _ in found(path)] == [1, "2:1", 3]
    assert found(path)[2] == (3, 3)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path, end: str) -> None:
    path = tmp_path / "data.json"
    for text in (f"[{end}1,{end}{end}2{end}]{end}", f"{end}1{end}2"):
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert found(path) == [(2, 1), (4 if "[" in text else 3, 2)]


def test_a_last_line_that_is_cut_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    whole = json.dumps(HI)
    path.write_text(f"{whole}\n{whole}\n{whole[:-9]}", encoding="utf-8")
    checked = check(LlavaFile(path=path))
    assert checked.counts["conversations"] == 2
    (problem,) = checked.problems
    assert problem.text.startswith(f"{path}:3:{len(whole) - 9}: not valid JSON")


def test_repeated_ids_are_a_note_with_their_number_and_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    ids = ["a", "b", "a", None, None, "b", "a"]
    path.write_text("\n".join(json.dumps(HI | {"id": name}) for name in ids), encoding="utf-8")
    checked = check(LlavaFile(path=path))
    assert checked.problems == ()
    assert checked.counts["repeated ids"] == 3
    (note,) = checked.notes
    assert note.startswith(f"{path}:3: (a) an earlier record has this id; in all 3 ids are repeated.")


def valid_file(array: bool) -> bytes:
    messages = {"id": 3, "messages": [{"role": "user", "content": [{"type": "text", "text": "é\ud83d"}]}]}
    lines = [json.dumps(record) for record in (HI, messages, HI | {"image": "a.jpg"}, HI | {"id": "x"})]
    return joined(lines, array).encode()


@given(st.booleans(), CHANGES, st.integers(0, 400))
@settings(max_examples=200, deadline=None)
def test_whatever_happens_to_a_file_is_said_as_data_error(
    tmp_path_factory: pytest.TempPathFactory, array: bool, changes: list[tuple[int, bytes]], cut: int
) -> None:
    path = tmp_path_factory.mktemp("mutated") / "data.json"
    path.write_bytes(mutated(valid_file(array), changes, cut))
    for source in (LlavaFile(path=path), MessagesFile(path=path)):
        _, problems = read_through(source)
        assert all(problem.startswith(f"{path}:") for problem in problems)


@pytest.mark.slow
def test_memory_stays_flat_over_a_hundred_thousand_records_of_a_hundred_megabytes(tmp_path: Path) -> None:
    code = """
        from opsin.data.sources import LlavaFile

        def written(count):
            path = folder / "data.json"
            turns = [{"from": "human", "value": "Hi " * 400}, {"from": "gpt", "value": "Hello"}]
            with path.open("w") as file:
                for number in range(count):
                    file.write("[,"[number > 0] + "\\n" + json.dumps({"id": str(number), "conversations": turns}))
                file.write("]")
            return LlavaFile(path=path)
    """
    grown = growth(code, tmp_path)
    assert (tmp_path / "data.json").stat().st_size > 120_000_000
    assert grown < 30_000  # the window, and the hashes of the ids


def test_a_file_that_holds_no_record_yields_none(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_bytes(b"")
    assert not any(isinstance(record, BadRecord) for record in read_records(tmp_path / "data.json"))
