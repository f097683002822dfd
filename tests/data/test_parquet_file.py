from __future__ import annotations

import io
import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from opsin.core.errors import DataError, MissingExtraError
from opsin.core.types import Clip, Picture, Turn
from opsin.data.check import check, source_of
from opsin.data.parquet_file import ParquetFile
from tests.support.damage import CHANGES, mutated, read_through
from tests.support.memory import growth
from tests.support.models import draw_picture

if TYPE_CHECKING:
    from pathlib import Path


def said(*texts: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(texts)]


def written(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Path:
    path = folder / "data.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


@pytest.fixture
def png(tmp_path: Path) -> bytes:
    return draw_picture(tmp_path / "a.png", 1).read_bytes()


@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("form", ["bytes", "struct", "path", "list"])
def test_pictures_are_bytes_structs_or_paths_and_turns_are_structs_or_text(
    tmp_path: Path, png: bytes, form: str, as_text: bool
) -> None:
    struct = {"bytes": png, "path": "gone.png"}
    column: Any = {"bytes": png, "struct": struct, "path": {"bytes": None, "path": "a.png"}, "list": [struct]}[form]
    turns: Any = said("<image>What?", "A cat.")
    path = written(
        tmp_path,
        [
            {"id": "x", "conversations": json.dumps(turns) if as_text else turns, "image": column},
            {"id": None, "conversations": json.dumps(said("Hi")) if as_text else said("Hi"), "image": None},
        ],
    )
    counts: Counter[str] = Counter()
    first, second = source_of(path).conversations(counts)
    picture = Picture(path=tmp_path / "a.png") if form == "path" else Picture(data=png)
    assert first.turns == (Turn("user", (picture, "What?")), Turn("assistant", ("A cat.",)))
    assert (first.id, first.where) == ("x", f"{path}:row 1")
    assert (second.id, second.where, second.media) == ("row 2", f"{path}:row 2", ())
    assert counts == {"conversations": 2, "turns": 3, "pictures": 1}


def test_messages_of_typed_items_take_the_pictures_of_the_row(tmp_path: Path, png: bytes) -> None:
    items = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}, {"type": "image", "text": None}]
    messages = [{"role": "user", "content": items}, {"role": "assistant", "content": [{"type": "text", "text": "A."}]}]
    path = written(tmp_path, [{"messages": messages, "images": [{"bytes": png}, {"bytes": b"other"}]}])
    (found,) = ParquetFile(path=path).conversations(Counter())
    assert found.turns[0].parts == (Picture(data=png), "What?", Picture(data=b"other"))
    assert found.turns[1] == Turn("assistant", ("A.",))


def test_videos_are_paths(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    path = written(tmp_path, [{"conversations": said("<video>What?", "It moves."), "video": "a.mp4"}])
    (found,) = ParquetFile(path=path).conversations(Counter())
    assert found.media == (Clip(path=tmp_path / "a.mp4"),)


def test_every_problem_is_named_by_its_row_in_their_order(tmp_path: Path, png: bytes) -> None:
    rows = [
        {"id": "1", "conversations": json.dumps(said("<image>What?", "A cat.")), "image": {"bytes": b"<html>"}},
        {"id": "2", "conversations": "{", "image": None},
        {"id": "3", "conversations": json.dumps(said("<image>", "A")), "image": None},
        {"id": "4", "conversations": json.dumps(said("<image>", "A")), "image": {"bytes": png}},
        {"id": "5", "conversations": None, "image": None},
        {"id": "4", "conversations": json.dumps(said("Hi", "Hello")), "image": None},
    ]
    path = written(tmp_path, rows)
    checked = check(source_of(path), decode=True)
    assert [problem.text.removeprefix(f"{path}:").split(" ", 3)[:3] for problem in checked.problems] == [
        ["row", "1:", "(1)"],
        ["row", "2:", "(2)"],
        ["row", "3:", "(3)"],
        ["row", "5:", "(5)"],
    ]
    assert checked.kinds == {"picture": 1, "record": 3}
    assert checked.notes[0].startswith(f"{path}:row 6: (4) an earlier record has this id")


def test_row_numbers_go_on_over_row_groups(tmp_path: Path) -> None:
    path = written(tmp_path, [{"conversations": said(str(n), "A")} for n in range(100)], row_group_size=7)
    found = list(ParquetFile(path=path).conversations(Counter()))
    assert [(c.where, c.turns[0].parts) for c in found] == [(f"{path}:row {n + 1}", (str(n),)) for n in range(100)]


def test_a_file_without_turns_is_told_its_columns(tmp_path: Path) -> None:
    path = written(tmp_path, [{"text": "x", "label": 1}])
    with pytest.raises(DataError, match="no column 'conversations' or 'messages'; the columns are 'label', 'text'"):
        list(source_of(path).conversations(Counter()))


def test_a_file_that_is_cut_or_no_parquet_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, [{"conversations": said("Hi", "Hello")}])
    whole = path.read_bytes()
    cut = "not a readable Parquet file; was it cut short? fetch it again"
    for content, problem in (
        (b"PAR1", cut),
        (whole[:-1], cut),
        (whole[: len(whole) // 2], cut),
        (b"", "not a Parquet file (it is empty); correct the path or the source's kind"),
        (b"<html>", "not a Parquet file (its first bytes are b'<html>'); correct the path or the source's kind"),
    ):
        path.write_bytes(content)
        _, problems = read_through(ParquetFile(path=path))
        assert problems == (f"{path}:row 1: {problem}",)


def test_without_pyarrow_the_command_that_installs_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, [{"conversations": said("Hi", "Hello")}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'opsin\[data\]'"):
        list(ParquetFile(path=path).conversations(Counter()))


@given(CHANGES, st.integers(0, 60), st.sampled_from(["none", "snappy", "zstd"]))
@settings(max_examples=150, deadline=None)
def test_whatever_happens_to_a_file_is_said_as_data_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]], cut: int, compression: str
) -> None:
    rows = [{"id": str(n), "conversations": said(f"<image>{n}", "A"), "image": {"bytes": b"x" * 9}} for n in range(9)]
    content = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), content, row_group_size=3, compression=compression)
    path = tmp_path_factory.mktemp("mutated") / "data.parquet"
    # A Parquet file that is cut at all has no footer, so most are only overwritten.
    path.write_bytes(mutated(content.getvalue(), changes, max(0, cut - 50)))
    _, problems = read_through(ParquetFile(path=path))
    assert all(problem.startswith(f"{path}:") for problem in problems)


@pytest.mark.slow
def test_memory_stays_flat_over_a_hundred_thousand_rows_with_pictures(tmp_path: Path) -> None:
    draw_picture(tmp_path / "a.png", 1)
    code = """
        import pyarrow as pa
        from pyarrow import parquet
        from opsin.data.parquet_file import ParquetFile

        turns = [{"from": "human", "value": "<image>Hi"}, {"from": "gpt", "value": "Hello"}]
        row = {"id": "0", "conversations": turns, "image": (folder / "a.png").read_bytes() + bytes(4_000)}

        def written(count):
            path, schema = folder / "data.parquet", pa.Table.from_pylist([row]).schema
            with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
                for start in range(0, count, 1_000):
                    rows = [row | {"id": str(start + number)} for number in range(1_000)]
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            return ParquetFile(path=path)
    """
    grown = growth(code, tmp_path)
    assert (tmp_path / "data.parquet").stat().st_size > 400_000_000
    assert grown < 60_000
