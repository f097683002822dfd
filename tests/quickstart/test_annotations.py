"""The quick start's pictures, annotated in COCO's format."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from opsin.quickstart.annotations import write_annotations
from opsin.quickstart.dataset import TINY, build_drawn
from opsin.synthesize.context import Context, Thing

if TYPE_CHECKING:
    from pathlib import Path


def test_boxes_are_pixels_and_categories_have_their_group(tmp_path: Path) -> None:
    cow = Thing("a cow", ("animals",), (0.1, 0.2, 0.5, 0.6))
    car = Thing("an old car", ("vehicles",), (0.5, 0.5, 1.0, 1.0))
    unnamed = Thing("", ("animals",), (0.0, 0.0, 1.0, 1.0))
    pictures = [("a.jpg", Context(("A cow.",), (cow, car, cow))), ("b.jpg", Context(("Leaping!",), (unnamed,)))]
    write_annotations(tmp_path, pictures, 200)
    instances = json.loads((tmp_path / "instances.json").read_text())
    assert instances["categories"] == [
        {"id": 1, "name": "cow", "supercategory": "animals"},
        {"id": 2, "name": "old car", "supercategory": "vehicles"},
    ]
    boxes = [(one["image_id"], one["category_id"], one["bbox"]) for one in instances["annotations"]]
    assert boxes == [
        (1, 1, [20.0, 40.0, 80.0, 80.0]),
        (1, 2, [100.0, 100.0, 100.0, 100.0]),
        (1, 1, [20.0, 40.0, 80.0, 80.0]),
    ]
    captions = json.loads((tmp_path / "captions.json").read_text())
    assert [(one["image_id"], one["caption"]) for one in captions["annotations"]] == [(1, "A cow."), (2, "Leaping!")]
    assert captions["images"] == instances["images"]


def test_a_thing_without_a_box_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a cow' has no box"):
        write_annotations(tmp_path, [("a.jpg", Context((), (Thing("a cow", ("animals",)),)))], 200)


def test_every_training_picture_is_annotated_and_no_held_out_one(tmp_path: Path) -> None:
    dataset = build_drawn(tmp_path / "data", 0, TINY)
    instances = json.loads((dataset.folder / "instances.json").read_text())
    trained = {
        record["image"] for file in (dataset.align, *dataset.instruct) for record in json.loads(file.read_text())
    }
    assert {image["file_name"] for image in instances["images"]} == trained
    assert {one["image_id"] for one in instances["annotations"]} == {image["id"] for image in instances["images"]}
