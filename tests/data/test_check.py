from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from opsin.cli import app
from opsin.core.errors import DataError
from opsin.data.check import check, source_of
from opsin.train.hooks import Hooks
from opsin.train.recipe import load_recipe
from opsin.train.run import start
from tests.support.models import draw_picture, recipe_value

if TYPE_CHECKING:
    from pathlib import Path


def said(*texts: str, **fields: Any) -> dict[str, Any]:
    turns = [{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(texts)]
    return {"id": f"s{len(texts)}", "conversations": turns, **fields}


def data_file(folder: Path) -> Path:
    """Two good records, and one of each kind of problem."""
    draw_picture(folder / "good.png", 1)
    (folder / "page.png").write_text("<html>", encoding="utf-8")
    (folder / "empty.mp4").write_bytes(b"")
    cut = draw_picture(folder / "cut.png", 2)
    cut.write_bytes(cut.read_bytes()[:-40])
    records: list[Any] = [
        said("<image>What?", "A cat.", image="good.png"),
        said("<image>What?", "A cat.", image="gone.png"),
        said("<image>What?", "A cat.", image="page.png"),
        said("Hi", "Hello", "Bye"),
        said("<video>What?", "It moves.", video="empty.mp4"),
        said("<image>Again?", "A cat.", image="page.png"),
        said("<image>What?", "A cat.", image="cut.png"),
        said("Hi", "Hello"),
    ]
    path = folder / "data.jsonl"
    lines = [json.dumps(record | {"id": f"s{number}"}) for number, record in enumerate(records, start=1)]
    lines.insert(3, '{"id": "cut",')
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_every_problem_is_listed_in_the_order_of_the_file_with_its_kind(tmp_path: Path) -> None:
    path = data_file(tmp_path)
    found = check(source_of(path))
    assert [(p.kind, p.text.removeprefix(f"{path}:").split(" ")[0]) for p in found.problems] == [
        ("record", "2:"),
        ("picture", "3:"),
        ("record", "4:14:"),
        ("turns", "5:"),
        ("video", "6:"),
        ("picture", "7:"),
    ]
    assert found.kinds == {"record": 2, "picture": 2, "turns": 1, "video": 1}
    assert (found.records, found.read, found.usable) == (9, 7, 3)
    assert found.counts == {"conversations": 3, "turns": 6, "pictures": 2}
    assert f"{path}:3: (s3) {tmp_path / 'page.png'}: not a readable image" in found.problems[1].text
    deep = check(source_of(path), decode=True)
    assert deep.usable == 2
    assert [p.text for p in deep.problems if p not in found.problems] == [
        f"{path}:8: (s7) {tmp_path / 'cut.png'}: the file is damaged or cut short; it cannot be decoded"
    ]


def test_the_command_lists_counts_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data_file(tmp_path)
    assert run("data", "check", str(path)) == 2
    shown = capsys.readouterr().out
    assert shown.count(f"{path}:") == 7  # six problems, one summary
    assert shown.endswith(
        f"\n{path}: 3 of 9 records can be used (6 turns, 2 pictures); "
        "6 problems: 2 with records, 2 with pictures, 1 with turns, 1 with videos\n"
    )
    assert run("data", "check", str(path), "--json") == 2
    (value,) = json.loads(capsys.readouterr().out)
    assert value["kinds"] == {"record": 2, "picture": 2, "turns": 1, "video": 1}
    assert (value["records"], value["usable"], value["counts"]["conversations"]) == (9, 3, 3)
    good = tmp_path / "good.jsonl"
    good.write_text(json.dumps(said("Hi", "Hello")), encoding="utf-8")
    assert run("data", "check", str(good)) == 0
    assert capsys.readouterr().out == f"{good}: 1 of 1 records can be used (2 turns, 0 pictures); no problems\n"


def test_what_stops_nothing_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [Image.new("RGB", (8, 6), (0, 80 * number, 0)) for number in range(3)]
    for name in "abcd":
        frames[0].save(tmp_path / f"{name}.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "still.gif")
    names = ["a", "a", "b", "still", "c", "d"]
    path = tmp_path / "data.jsonl"
    lines = [json.dumps(said("<image>What?", "A cat.", image=f"{name}.gif") | {"id": name}) for name in names]
    path.write_text("\n".join(lines), encoding="utf-8")
    notes = [
        f"{path}:2: (a) an earlier record has this id; in all 1 id is repeated. "
        "Messages and reports name samples by their ids",
        "of animated pictures (4) the first frame is taken: "
        f"{tmp_path / 'a.gif'}, {tmp_path / 'b.gif'}, {tmp_path / 'c.gif'}, ...",
    ]
    assert run("data", "check", str(path)) == 0
    assert capsys.readouterr().out.splitlines() == [
        *(f"note: {note}" for note in notes),
        f"{path}: 6 of 6 records can be used (12 turns, 6 pictures, 1 repeated id); no problems",
    ]
    assert run("data", "check", str(path), "--json") == 0
    (value,) = json.loads(capsys.readouterr().out)
    assert (value["notes"], value["problems"]) == (notes, [])


def run(*arguments: str) -> int:
    import sys

    sys.argv = ["opsin", *arguments]
    with pytest.raises(SystemExit) as left:
        app()
    return int(left.value.code or 0)


EXPECTED = "expected 'conversations' (LLaVA, ShareGPT) or 'messages'"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", ": the file is empty; is it the right file?"),
        (b"[]", ": has no record; is it the right file?"),
        (b'[{"image": "a.jpg", "caption": "A"}]', f":1: the first record has the keys 'image', 'caption'; {EXPECTED}"),
        (
            b'{"v": 1, "data": [{"conversations": []}]}',
            f":1: the first record has the keys 'v', 'data'; {EXPECTED}; "
            "if 'data' holds the records, save that list alone",
        ),
        (b'["a"]', f":1: the first record is str 'a'; {EXPECTED} in an object"),
        (b'[\n{"a": [1,]}]', ":2:10: not valid JSON (Expecting value); the rest of the file is not read"),
        (b"a,b\n", ":1:1: not valid JSON (Expecting value); every line must hold one whole record"),
        (b'{"a": "caf\xe9"}', ":1:11: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("[]".encode("utf-16"), ": text in UTF-16; save the file as UTF-8"),
        (b"PAR1....", ": a Parquet file, not JSON; its kind is parquet, its name ends in .parquet"),
        (
            b"a.json".ljust(257, b"\0") + b"ustar",
            ": a tar file, not JSON; its kind is webdataset, its name ends in .tar",
        ),
    ],
)
def test_a_file_of_no_known_format_is_told_what_is_there(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        source_of(path)
    assert caught.value.problems == (f"{path}{problem}",)


def test_a_file_that_cannot_be_checked_keeps_no_other_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, gone = tmp_path / "good.jsonl", tmp_path / "gone.jsonl"
    good.write_text(json.dumps(said("Hi", "Hello")), encoding="utf-8")
    assert run("data", "check", str(gone), str(good)) == 2
    assert capsys.readouterr().out.splitlines() == [
        f"{gone}: no such file; correct the path",
        f"{gone}: not checked",
        f"{good}: 1 of 1 records can be used (2 turns, 0 pictures); no problems",
    ]


def test_paths_out_of_the_folder_are_checked_where_they_are_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "data.jsonl"
    path.write_text(json.dumps(said("<image>", "A", image=str(draw_picture(tmp_path / "a.png", 1)))), encoding="utf-8")
    assert run("data", "check", str(path)) == 2
    assert "absolute path out of" in capsys.readouterr().out
    assert run("data", "check", str(path), "--allow-outside") == 0


def test_of_problems_with_one_cause_the_first_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "data.jsonl"
    records = [said("<image>", "A", image=f"{n}.jpg") | {"id": f"s{n}"} for n in range(1, 1031)]
    path.write_text("\n".join(map(json.dumps, [*records, said("Hi", "")])), encoding="utf-8")
    assert run("data", "check", str(path)) == 2
    shown = capsys.readouterr().out.splitlines()
    cause = f"no such file under {tmp_path}; correct the path or image_root"
    assert len(shown) == 23
    assert shown[19] == f"{path}:20: (s20) image '20.jpg': {cause}"
    assert "nothing to learn" in shown[20]
    assert shown[21] == f"... and 1,010 more of this kind: {cause}"
    assert run("data", "check", str(path), "--json") == 2
    (value,) = json.loads(capsys.readouterr().out)
    assert len(value["problems"]) == 1031
    told = str(DataError([problem["text"] for problem in value["problems"]])).splitlines()
    assert told == ["1031 problems in the data", *shown[:-1]]


def test_training_refuses_what_check_lists_unless_told_to_skip_it(tmp_path: Path) -> None:
    path = data_file(tmp_path)
    value = recipe_value(tmp_path)
    value["stages"] = [value["stages"][1] | {"data": [{"kind": "llava", "path": str(path)}]}]
    recipe_path = tmp_path / "recipe.json"
    recipe_path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        start(load_recipe(recipe_path), tmp_path / "refused")
    listed = [problem.text for problem in check(source_of(path)).problems]
    assert sorted(caught.value.problems) == sorted(listed)
    lines: list[str] = []
    # The picture that is damaged behind its header is found when it is decoded: it is taken out here.
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if "cut.png" not in line]
    path.write_text("\n".join(kept), encoding="utf-8")
    start(load_recipe(recipe_path, ["skip_bad=true"]), tmp_path / "run", Hooks(on_line=lines.append))
    skipped = (tmp_path / "run" / "skipped.txt").read_text(encoding="utf-8").splitlines()
    assert len(skipped) == 6
    assert all(line.startswith(f"instruct: {path}:") for line in skipped)
    assert f"stage 'instruct': 2 samples; problems skipped: 6, see {tmp_path / 'run' / 'skipped.txt'}" in lines
