"""What is to be done: sides that no picture crosses, and what one source knows is not said of another's pictures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from opsin.core.errors import DataError
from opsin.synthesize.recipe import Synthesis
from opsin.synthesize.run import synthesize
from opsin.synthesize.work import Work, plan

if TYPE_CHECKING:
    from pathlib import Path


def described(folder: Path, name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """A JSONL source of pictures that exist."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    for line in lines:
        Image.new("RGB", (8, 8)).save(folder / name / line["image"])
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"kind": "jsonl", "path": path, "image_root": folder / name, "exhaustive": "categories"}


def recipe(*sources: dict[str, Any], **more: Any) -> Synthesis:
    value = {"name": "x", "pictures": sources, "kinds": [{"kind": "conversation"}], "teacher": {"kind": "rules"}}
    return Synthesis.model_validate(value | more)


def sides(work: Work) -> tuple[set[str], set[str]]:
    found: tuple[set[str], set[str]] = (set(), set())
    for task in work.tasks:
        found[task.id in work.held_out].update(task.subject.images)
    return found


def thing(name: str) -> dict[str, Any]:
    return {"name": name, "box": [0.1, 0.1, 0.4, 0.6], "category": "thing"}


@pytest.mark.parametrize("seed", range(4))
def test_a_picture_with_several_entries_is_on_one_side(tmp_path: Path, seed: int) -> None:
    lines = [
        {
            "id": f"{number}-{again}",
            "image": f"{number}.png",
            "captions": [f"Thing {number}."],
            "objects": [thing("dog")],
        }
        for number in range(20)
        for again in range(3)
    ]
    kinds = [{"kind": "conversation"}, {"kind": "differences"}]
    work = plan(recipe(described(tmp_path, "a", lines), held_out=0.4, seed=seed, kinds=kinds), tmp_path / "out")
    trained, held_out = sides(work)
    assert trained
    assert held_out
    assert not trained & held_out


def test_what_only_another_source_looks_for_is_not_called_absent(tmp_path: Path) -> None:
    """A file that annotates dogs says nothing about trees, whatever a second file annotates."""
    dogs = [{"image": f"d{n}.png", "captions": ["A dog."], "objects": [thing("dog")]} for n in range(30)]
    trees = [{"image": f"t{n}.png", "captions": ["A tree."], "objects": [thing("tree")]} for n in range(30)]
    sources = described(tmp_path, "dogs", dogs), described(tmp_path, "trees", trees)
    synthesize(recipe(*sources, checks={"near_duplicate": None}), tmp_path / "out")
    records = json.loads((tmp_path / "out" / "instruct.json").read_text())
    assert len(records) == 60
    assert {record["image"].partition("/")[0] for record in records} == {"dogs", "trees"}
    for record in records:
        other = "tree" if record["image"].startswith("dogs") else "dog"
        assert other not in " ".join(turn["value"] for turn in record["conversations"])


def test_the_same_id_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    lines = [{"id": "one", "image": "a.png", "captions": ["A."]}, {"id": "one", "image": "b.png", "captions": ["B."]}]
    with pytest.raises(DataError, match=r"a\.jsonl:2: .*'one' is also that of .*a\.jsonl:1"):
        plan(recipe(described(tmp_path, "a", lines)), tmp_path / "out")


def test_two_sources_with_the_same_names_are_told_apart_by_a_prefix(tmp_path: Path) -> None:
    dogs = described(tmp_path, "dogs", [{"image": f"{n}.png", "captions": ["A dog."]} for n in range(20)])
    cats = described(tmp_path, "cats", [{"image": f"{n}.png", "captions": ["A cat."]} for n in range(20)])
    with pytest.raises(DataError, match="and a source an `id_prefix`"):
        plan(recipe(dogs, cats), tmp_path / "out")
    work = plan(recipe(dogs, cats | {"id_prefix": "cats/"}), tmp_path / "out")
    expected = [f"{n}#conversation" for n in range(20)] + [f"cats/{n}#conversation" for n in range(20)]
    assert [task.id for task in work.tasks] == expected
    assert {task.subject.id.startswith("cats/") for task in work.tasks if task.subject.images[0][:4] == "cats"} == {
        True
    }


def test_two_sources_of_documents_do_not_draw_over_each_other(tmp_path: Path) -> None:
    sources = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps({"id": "page", "title": "", "text": f"This is the page of {name}."}))
        sources.append({"kind": "documents", "path": str(path), "id_prefix": f"{name}-"})
    kinds = [{"kind": "document"}]
    first, second = (task.subject for task in plan(recipe(*sources, kinds=kinds), tmp_path / "out").tasks)
    assert (first.id, second.id) == ("one-page", "two-page")
    pages = [(subject.root / subject.images[0]).read_bytes() for subject in (first, second)]
    assert pages[0] != pages[1]


def test_ids_that_come_from_file_names_are_explained_and_many_are_counted(tmp_path: Path) -> None:
    lines = [{"image": f"{n}.{end}", "captions": ["A."]} for end in ("png", "jpg") for n in range(30)]
    with pytest.raises(DataError) as caught:
        plan(recipe(described(tmp_path, "a", lines)), tmp_path / "out")
    head, first, *_, more, advice = str(caught.value).splitlines()
    path = tmp_path / "a.jsonl"
    assert head == "30 problems in the data"
    assert first == f"{path}:31: the id '0' is also that of {path}:1"
    assert more.startswith("... and 10 more of this kind: ")
    assert "paths without their endings where no `id` is given; list each picture once" in advice


def test_a_picture_that_cannot_be_opened_is_named_and_nothing_is_made_of_it(tmp_path: Path) -> None:
    lines = [{"image": f"{n}.png", "captions": ["A dog."]} for n in range(4)]
    source = described(tmp_path, "a", lines)
    (tmp_path / "a" / "1.png").write_bytes(b"no picture")
    work = plan(recipe(source), tmp_path / "out", most_pictures=2)
    assert [task.subject.id for task in work.tasks] == ["0", "2"]
    (problem,) = work.problems
    assert problem.startswith(f"{tmp_path / 'a.jsonl'}:2: 1: {tmp_path / 'a' / '1.png'}: ")


def test_only_the_first_pictures_of_each_source_for_a_trial(tmp_path: Path) -> None:
    lines = [{"image": f"{n}.png", "captions": ["A dog."]} for n in range(9)]
    others = [{"image": f"other{n}.png", "captions": ["A cat."]} for n in range(3)]
    sources = recipe(described(tmp_path, "a", lines), described(tmp_path, "b", others))
    work = plan(sources, tmp_path / "out", most_pictures=2)
    assert work.pictures == 4
    assert [task.subject.id for task in work.tasks] == ["0", "1", "other0", "other1"]
