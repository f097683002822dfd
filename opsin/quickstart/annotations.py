"""What is true of the quick start's training pictures, in COCO's format: something to try `opsin synthesize` on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from opsin.core.files import write_json, write_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from opsin.synthesize.context import Context, Group, Thing

CAPTIONS = "captions.json"
INSTANCES = "instances.json"
RECIPE = "synthesis.yaml"


def write_annotations(folder: Path, pictures: Sequence[tuple[str, Context]], side: int) -> None:
    """Write `captions.json` and `instances.json` about pictures (their path, what is true of them) of `side` pixels.

    A category is a thing's name without its article, its supercategory the thing's group. A thing without a name has
    no category, so its picture has captions alone.
    """
    images = [
        {"id": number, "file_name": name, "width": side, "height": side}
        for number, (name, _) in enumerate(pictures, start=1)
    ]
    captions: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    categories: dict[tuple[str, str], int] = {}
    for number, (_, context) in enumerate(pictures, start=1):
        for caption in context.captions:
            captions.append({"id": len(captions) + 1, "image_id": number, "caption": caption})
        if not all(thing.name for thing in context.things):
            continue
        for thing in context.things:
            category = categories.setdefault((_noun(thing), thing.group), len(categories) + 1)
            box = _pixels(thing, side)
            instances.append(
                {
                    "id": len(instances) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": box,
                    "area": round(box[2] * box[3], 1),
                    "iscrowd": 0,
                }
            )
    listed = [{"id": id_, "name": name, "supercategory": group} for (name, group), id_ in categories.items()]
    write_json(folder / CAPTIONS, {"images": images, "annotations": captions})
    write_json(folder / INSTANCES, {"images": images, "annotations": instances, "categories": listed})


def write_recipe(folder: Path, groups: Sequence[Group], close: frozenset[frozenset[str]]) -> None:
    """Write `synthesis.yaml`: the three kinds of the annotations beside it, by rules that know the groups' nouns."""
    namings: dict[str, dict[str, Any]] = {}
    for group in groups:
        nouns = {"one": group.one, "many": group.many} if group.one and group.many else {}
        others = sorted(other for pair in close if group.label in pair for other in pair - {group.label})
        if nouns or others:
            namings[group.label] = {**nouns, **({"close": others} if others else {})}
    pictures = {"kind": "coco", "captions": CAPTIONS, "instances": INSTANCES, "image_root": "images"}
    value = {
        "name": "scenes",
        "pictures": [pictures | {"exhaustive": "everything", "groups": namings}],
        "kinds": [{"kind": "conversation"}, {"kind": "detail", "share": 0.2}, {"kind": "reasoning", "share": 0.4}],
        "teacher": {"kind": "rules"},
    }
    head = (
        "# Instruction data from the annotations in this folder, by rules: opsin synthesize synthesis.yaml --out DIR\n"
    )
    write_text(folder / RECIPE, head + yaml.safe_dump(value, sort_keys=False))


def _noun(thing: Thing) -> str:
    """The name without its article: "two flowers" stays as it is."""
    for article in ("a ", "an ", "the "):
        if thing.name.startswith(article):
            return thing.name.removeprefix(article)
    return thing.name


def _pixels(thing: Thing, side: int) -> list[float]:
    """COCO's box: left, top, width, height."""
    if thing.box is None:
        raise ValueError(f"{thing.name!r} has no box; things of pictures that were composed all have one")
    x1, y1, x2, y2 = (value * side for value in thing.box)
    return [round(x1, 1), round(y1, 1), round(x2 - x1, 1), round(y2 - y1, 1)]
