"""COCO's files as they are, and as they should not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from opsin.core.errors import DataError
from opsin.synthesize.context import Thing
from opsin.synthesize.sources.coco import Coco
from opsin.synthesize.sources.detections import Detections

DOG = ("animal", "dog")
PERSON = ("person", "person")


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def image(number: int, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number:012}.jpg", "width": 640, "height": 480, "license": 1, **more}


def instance(number: int, image_id: int, category_id: int, bbox: Any, **more: Any) -> dict[str, Any]:
    outline = [[1.0, 2.0, 3.0, 4.0]]
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": 0,
            "segmentation": outline, "area": 1.0, **more}  # fmt: skip


CATEGORIES = [
    {"id": 1, "name": "person", "supercategory": "person"},
    {"id": 18, "name": "dog", "supercategory": "animal"},
    {"id": 50, "name": "tv", "supercategory": "electronic"},
]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "train2017"
    folder.mkdir()
    for number in (9, 25, 33471, 7):
        Image.new("RGB", (8, 6)).save(folder / f"{number:012}.jpg")
    return folder


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    captions = {
        "info": {"year": 2017},
        "images": [image(33471), image(9), image(25)],
        "annotations": [
            {"id": 1, "image_id": 33471, "caption": "A dog\n on a couch. "},
            {"id": 2, "image_id": 33471, "caption": "Some dog."},
            {"id": 3, "image_id": 9, "caption": "People."},
            {"id": 4, "image_id": 25, "caption": "A wall."},
        ],
    }
    instances = {
        "images": [image(33471), image(9), image(7)],
        "categories": CATEGORIES,
        "annotations": [
            instance(1, 33471, 18, [64, 48, 320, 240]),
            instance(2, 33471, 18, [600, 0, 80, 480.5]),
            instance(3, 9, 1, [0, 0, 640, 480], iscrowd=1, segmentation={"counts": [1, 2], "size": [480, 640]}),
            instance(4, 7, 50, [10, 10, 20, 20]),
        ],
    }
    return {"captions": write(tmp_path / "captions.json", captions), "instances": write(tmp_path / "i.json", instances)}


def test_both_files_together(files: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    found = Coco(**files, image_root=pictures).read(tmp_path)
    assert found.problems == ()
    assert found.root == pictures
    assert [subject.id for subject in found.subjects] == [
        "000000000007",
        "000000000009",
        "000000000025",
        "000000033471",
    ]
    tv, crowd, wall, dogs = found.subjects
    assert dogs.images == ("000000033471.jpg",)
    assert dogs.context.captions == ("A dog on a couch.", "Some dog.")
    assert dogs.context.things == (
        Thing("a dog", DOG, (0.1, 0.1, 0.6, 0.6)),
        Thing("a dog", DOG, (0.9375, 0.0, 1.0, 1.0)),  # clipped to the picture
    )
    assert dogs.context.exhaustive == "categories"
    assert crowd.context.things == (Thing("a person", PERSON, (0.0, 0.0, 1.0, 1.0), crowd=True),)
    assert tv.context.captions == ()
    assert wall.context.things == ()
    assert wall.context.exhaustive == "nothing"  # no file of instances lists it
    assert [group.label for group in found.vocabulary.groups] == ["person", "animal", "electronic"]
    assert found.vocabulary.group("animal").one == "an animal"
    assert found.vocabulary.group("electronic").one is None
    assert found.vocabulary.catalogue[2] == Thing("a TV", ("electronic", "tv"))


@pytest.mark.parametrize(("name", "subjects"), [("captions", 3), ("instances", 3)])
def test_one_file_is_enough(name: str, subjects: int, files: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    found = Coco(**{name: files[name]}, image_root=pictures).read(tmp_path)
    assert found.problems == ()
    assert len(found.subjects) == subjects


def test_an_annotation_that_stands_twice_counts_once(pictures: Path, tmp_path: Path, files: dict[str, Path]) -> None:
    once = Coco(image_root=pictures, **files).read(tmp_path)
    for path in files.values():
        content = json.loads(path.read_text())
        content["annotations"] += [one for one in content["annotations"] if "id" in one][:1]
        path.write_text(json.dumps(content))
    twice = Coco(image_root=pictures, **files).read(tmp_path)
    assert twice.subjects == once.subjects
    assert sum("it stands there twice, and counts once" in one for one in twice.problems) == len(files)


def test_annotations_of_joined_files_share_their_ids_and_all_count(
    pictures: Path, tmp_path: Path, files: dict[str, Path]
) -> None:
    once = Coco(image_root=pictures, **files).read(tmp_path)
    for path in files.values():
        content = json.loads(path.read_text())
        content["annotations"] = [one | {"id": 0} for one in content["annotations"]]
        path.write_text(json.dumps(content))
    joined = Coco(image_root=pictures, **files).read(tmp_path)
    assert joined.subjects == once.subjects
    assert joined.problems == once.problems


def test_neither_file_is_refused(pictures: Path) -> None:
    with pytest.raises(ValueError, match="give captions, instances or both"):
        Coco(image_root=pictures)


def test_what_cannot_be_used_is_named_and_its_picture_is_no_longer_exhaustive(pictures: Path, tmp_path: Path) -> None:
    annotations = [
        instance(1, 9, 18, [0, 0, 64, 48]),
        instance(2, 9, 18, [640, 0, 10, 10]),
        instance(3, 9, 99, [0, 0, 10, 10]),
        instance(4, 9, 18, [0, 0, "ten", 10]),
        instance(5, 9, 18, [0, 0, float("nan"), 10]),
        instance(6, 4711, 18, [0, 0, 10, 10]),
        instance(7, 25, 1, [0, 0, 64, 48]),
    ]
    images = [image(9), image(25), image(4712), {"id": "x", "file_name": 3}, image(7, file_name="../7.jpg")]
    path = write(
        tmp_path / "i.json", {"images": images, "annotations": annotations, "categories": [*CATEGORIES, {"id": 2}]}
    )
    found = Coco(instances=path, image_root=pictures).read(tmp_path)
    assert {subject.id: subject.context.exhaustive for subject in found.subjects} == {
        "000000000009": "nothing",
        "000000000025": "categories",
    }
    assert [len(subject.context.things) for subject in found.subjects] == [1, 1]
    said = "\n".join(found.problems)
    assert "image 'x': expected an integer id and a file_name" in said
    assert "category 2: expected an id, a name and a supercategory" in said
    assert "annotation 2 of 000000000009: the bbox [640, 0, 10, 10] has no area inside of 640x480" in said
    assert "annotation 3 of 000000000009: no category 99 is listed" in said
    assert "annotation 4 of 000000000009: expected a bbox of four numbers" in said
    assert "annotation 5 of 000000000009: expected a bbox of four numbers" in said
    assert "annotation 6: no image 4711 is listed" in said
    assert "'..' in the path" in said
    assert "000000004712: image '000000004712.jpg': no such file" in said
    assert len(found.problems) == 9
    assert all(problem.startswith(str(path)) for problem in found.problems)


def test_an_id_has_one_meaning(pictures: Path, tmp_path: Path) -> None:
    images = [image(9), image(9, file_name="000000000025.jpg")]
    categories = [*CATEGORIES, {"id": 18, "name": "cat", "supercategory": "animal"}]
    content = {"images": images, "categories": categories, "annotations": [instance(1, 9, 18, [0, 0, 64, 48])]}
    found = Coco(instances=write(tmp_path / "i.json", content), image_root=pictures).read(tmp_path)
    assert found.subjects[0].context.things[0].name == "a dog"
    assert "image 9: '000000000025.jpg' here, '000000000009.jpg' before" in found.problems[0]
    assert "category 18 is both 'cat' and 'dog'" in found.problems[1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "expected COCO's mapping"),
        ('{"images": []}', "expected a list 'annotations'; found the keys images"),
        ('{"images": [3], "annotations": []}', "expected a list of mappings in 'images'"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_file_of_another_form_is_refused(content: str, said: str, pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        Coco(captions=path, image_root=pictures).read(tmp_path)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 30)
    | st.just(10**400)
    | st.floats()
    | st.sampled_from(["", ".", "/", "\ud800", "9"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["id", "image_id"]), inner, max_size=2),
    max_leaves=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.sampled_from(["images", "annotations", "categories"]), data=st.data())
def test_one_entry_of_any_values_spoils_nothing_else(
    part: str, data: st.DataObject, pictures: Path, tmp_path: Path
) -> None:
    content: dict[str, Any] = {
        "images": [image(9)],
        "annotations": [instance(1, 9, 18, [0, 0, 64, 48])],
        "categories": CATEGORIES,
    }
    key = data.draw(st.sampled_from(sorted(content[part][0])))
    bad = {**content[part][0], "id": 25, key: data.draw(values)}
    content[part] = [*content[part], bad]
    found = Coco(instances=write(tmp_path / "i.json", content), image_root=pictures).read(tmp_path)
    first = found.subjects[0]
    assert first.id == "000000000009"
    assert first.context.things[0] == Thing("a dog", DOG, (0.0, 0.0, 0.1, 0.1))


def test_nouns_of_groups_can_be_given(files: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    groups = {"electronic": {"one": "a device", "many": "devices", "close": ["animal"]}}
    vocabulary = Coco(**files, image_root=pictures, groups=groups).read(tmp_path).vocabulary  # type: ignore[arg-type]
    assert vocabulary.group("electronic").many == "devices"
    assert not vocabulary.may_deny("animal", "electronic")


def test_more_annotations_than_a_teacher_can_be_told_are_refused(pictures: Path, tmp_path: Path) -> None:
    captions = [{"id": number, "image_id": 9, "caption": "A dog. " * 100} for number in range(40)]
    path = write(tmp_path / "c.json", {"images": [image(9)], "annotations": captions})
    found = Coco(captions=path, image_root=pictures).read(tmp_path)
    assert found.subjects == ()
    assert "000000000009: 28,000 characters of annotations; the limit is 20,000" in found.problems[0]


def test_detections_are_never_exhaustive_and_weak_ones_are_left_out(
    files: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    results = [
        {"image_id": 9, "category_id": 18, "bbox": [0, 0, 320, 240], "score": 0.9},
        {"image_id": 9, "category_id": 1, "bbox": [0, 0, 320, 240], "score": 0.4},
        {"image_id": 9, "category_id": 1, "bbox": [0, 0, 320, 240]},
        "box",
    ]
    path = write(tmp_path / "results.json", results)
    source = Detections(results=path, images=files["instances"], captions=files["captions"], image_root=pictures)
    found = source.read(tmp_path)
    (person,) = [subject for subject in found.subjects if subject.id == "000000000009"]
    assert person.context.things == (Thing("a dog", DOG, (0.0, 0.0, 0.5, 0.5)),)
    assert person.context.captions == ("People.",)
    assert {subject.context.exhaustive for subject in found.subjects} == {"nothing"}
    assert sum("no score: None" in problem for problem in found.problems) == 1
    assert sum("expected an object of keys, got str" in problem for problem in found.problems) == 1
    with pytest.raises(DataError, match="expected COCO's list of results, got dict"):
        Detections(results=files["captions"], images=files["instances"], image_root=pictures).read(tmp_path)
