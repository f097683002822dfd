"""Files in COCO's format: images, categories, captions, instances. They are large, so unused parts are not kept."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opsin.core.errors import DataError
from opsin.synthesize.context import Thing
from opsin.synthesize.english import noun_phrase
from opsin.synthesize.sources.base import box_of, caption_of, identity_of, is_clean, name_of

MOST_BYTES = 4_000_000_000

USED = frozenset({
    *("images", "annotations", "categories"),
    *("id", "file_name", "width", "height"),
    *("image_id", "caption", "category_id", "bbox", "iscrowd", "score", "name", "supercategory"),
})  # fmt: skip
"""Keys that are read; segmentations are nine tenths of a file."""


@dataclass
class CocoImage:
    """One picture and all that the files say of it."""

    id: int
    file_name: str
    width: float = 0.0
    height: float = 0.0
    captions: list[str] = field(default_factory=list)
    things: list[Thing] = field(default_factory=list)
    annotated: bool = False
    """Whether a file of instances lists it."""
    damaged: bool = False
    """Whether one of its instances could not be used."""

    @property
    def name(self) -> str:
        """The id of its samples."""
        return identity_of(self.file_name)


@dataclass
class CocoImages:
    """The pictures of several files together, and what is wrong with some entries."""

    images: dict[int, CocoImage] = field(default_factory=dict)
    categories: dict[int, Thing] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    lost: bool = False
    """Whether it is unknown of an instance which picture it belongs to: then no picture's things are surely all."""

    def add_images(self, path: Path, content: dict[str, Any], *, annotated: bool = False) -> None:
        """The list of pictures of a file."""
        for entry in _entries(path, content, "images"):
            image = _image(entry)
            if isinstance(image, str):
                self.problems.append(f"{path}: image {_id(entry)}: {image}")
                continue
            known = self.images.setdefault(image.id, image)
            if known.file_name != image.file_name:
                self.problems.append(f"{path}: image {image.id}: {image.file_name!r} here, {known.file_name!r} before")
                continue
            known.width, known.height = known.width or image.width, known.height or image.height
            known.annotated = known.annotated or annotated

    def add_categories(self, path: Path, content: dict[str, Any]) -> None:
        """The categories of a file, as things: a noun phrase, and the path of supercategory and category."""
        for entry in _entries(path, content, "categories"):
            name, group = name_of(entry.get("name")), name_of(entry.get("supercategory", entry.get("name")))
            if not isinstance(entry.get("id"), int) or name is None or group is None:
                self.problems.append(f"{path}: category {_id(entry)}: expected an id, a name and a supercategory")
                continue
            thing = Thing(noun_phrase(name), (group, name))
            if self.categories.setdefault(entry["id"], thing) != thing:
                self.problems.append(
                    f"{path}: category {entry['id']} is both {name!r} and {self.categories[entry['id']].category[-1]!r}"
                )

    def add_captions(self, path: Path, content: dict[str, Any]) -> None:
        """The captions of a file."""
        seen: dict[int, dict[str, Any]] = {}
        for entry in _entries(path, content, "annotations"):
            image, caption = self._image_of(path, entry), caption_of(entry.get("caption"))
            if image is not None and caption is None:
                what = "control characters" if entry.get("caption") else "no caption"
                self.problems.append(f"{path}: annotation {_id(entry)} of {image.name}: {what}")
            elif image is not None and caption is not None and not self._is_repeated(path, entry, image, seen):
                image.captions.append(caption)

    def add_things(self, path: Path, entries: list[Any], least_score: float | None = None) -> None:
        """Instances or detections; of detections those with less than the least score are left out."""
        seen: dict[int, dict[str, Any]] = {}
        for entry in entries:
            if not isinstance(entry, dict):
                self.problems.append(f"{path}: expected an object of keys, got {type(entry).__name__}")
                continue
            image = self._image_of(path, entry)
            if image is None:
                self.lost = self.lost or not isinstance(entry.get("image_id"), int)
                continue
            if least_score is not None and _is_number(entry.get("score")) and entry["score"] < least_score:
                continue
            thing = self._thing(entry, image, scored=least_score is not None)
            if self._is_repeated(path, entry, image, seen):
                continue
            if isinstance(thing, str):
                self.problems.append(f"{path}: annotation {_id(entry)} of {image.name}: {thing}")
                image.damaged = True
            else:
                image.things.append(thing)

    def _is_repeated(
        self, path: Path, entry: dict[str, Any], image: CocoImage, seen: dict[int, dict[str, Any]]
    ) -> bool:
        """Whether the file had the same annotation before, as `seen` tells: one dog twice would make two dogs.

        An id alone tells nothing: files that were joined have it of several annotations.
        """
        number = entry.get("id")
        if not isinstance(number, int):
            return False
        first = seen.setdefault(number, entry)
        if first is entry or first != entry:
            return False
        self.problems.append(f"{path}: annotation {number} of {image.name}: it stands there twice, and counts once")
        return True

    def _image_of(self, path: Path, entry: dict[str, Any]) -> CocoImage | None:
        image_id = entry.get("image_id")
        image = self.images.get(image_id) if isinstance(image_id, int) else None
        if image is None:
            self.problems.append(f"{path}: annotation {_id(entry)}: no image {image_id!r} is listed")
        return image

    def _thing(self, entry: dict[str, Any], image: CocoImage, *, scored: bool) -> Thing | str:
        category = self.categories.get(entry.get("category_id", -1)) if _is_hashable(entry.get("category_id")) else None
        if category is None:
            return f"no category {entry.get('category_id')!r} is listed"
        if scored and not _is_number(entry.get("score")):
            return f"no score: {entry.get('score')!r}"
        corners = entry.get("bbox")
        if not isinstance(corners, list) or len(corners) != 4 or not all(_is_number(value) for value in corners):
            return f"expected a bbox of four numbers, got {corners!r}"[:200]
        if not image.width or not image.height:
            return "the image has no width and height, which its boxes are shares of"
        x, y, width, height = corners
        box = box_of((x / image.width, y / image.height, (x + width) / image.width, (y + height) / image.height))
        if box is None:
            return f"the bbox {corners} has no area inside of {image.width:g}x{image.height:g} pixels (WxH)"
        return Thing(category.name, category.category, box, crowd=entry.get("iscrowd") == 1)


def read_coco(path: Path) -> Any:
    """The parts of a COCO file that are used.

    Raises:
        DataError: it cannot be read, or is not JSON.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DataError([f"{path}: {size:,} bytes; the limit is {MOST_BYTES:,}"])
        with path.open(encoding="utf-8-sig") as file:
            return json.load(file, object_hook=_used)
    except OSError as error:
        raise DataError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise DataError([f"{path}: not UTF-8 text ({error.reason})"]) from error
    except (ValueError, RecursionError) as error:
        raise DataError([f"{path}: not JSON: {error}"[:300]]) from error


def read_mapping(path: Path) -> dict[str, Any]:
    """As `read_coco`, for a file that is a mapping of lists.

    Raises:
        DataError: it is another form of JSON.
    """
    content = read_coco(path)
    if not isinstance(content, dict):
        raise DataError([f"{path}: expected COCO's mapping of images and annotations, got {type(content).__name__}"])
    return content


def listed(path: Path, content: dict[str, Any], key: str) -> list[Any]:
    """One of the lists of a file.

    Raises:
        DataError: it is not there.
    """
    found = content.get(key)
    if not isinstance(found, list):
        raise DataError([f"{path}: expected a list {key!r}; found the keys {', '.join(sorted(content)) or '(none)'}"])
    return found


def _entries(path: Path, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = listed(path, content, key)
    if wrong := [type(entry).__name__ for entry in entries if not isinstance(entry, dict)]:
        raise DataError(
            [f"{path}: expected a list of mappings in {key!r}; {len(wrong):,} are not (the first: {wrong[0]})"]
        )
    return entries


def _used(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key in USED}


def _image(entry: dict[str, Any]) -> CocoImage | str:
    file_name = entry.get("file_name")
    if not isinstance(entry.get("id"), int) or not isinstance(file_name, str) or not is_clean(file_name):
        return "expected an integer id and a file_name"
    sides = entry.get("width", 0), entry.get("height", 0)
    if not all(_is_number(side) and side >= 0 for side in sides):
        return f"width and height are not sizes: {sides!r}"[:200]
    return CocoImage(entry["id"], file_name, float(sides[0]), float(sides[1]))


def _id(entry: dict[str, Any]) -> str:
    return repr(entry.get("id", "without id"))[:40]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9  # NaN is not


def _is_hashable(value: object) -> bool:
    return isinstance(value, int | str)
