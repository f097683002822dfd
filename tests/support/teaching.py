"""A small collection in COCO's format, and a teacher at the other end of a socket that answers as its prompt asks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.chat_endpoint import Asked, Reply, completion

NOUNS = ("dog", "cat", "bicycle", "car")
PLACES = ("street", "beach", "lawn", "bridge", "square", "path", "field", "hill", "yard", "market", "harbour", "island")


def write_collection(folder: Path, pictures: int = 12) -> Path:
    """Pictures of one or two known things each, with captions and instances; the folder."""
    (folder / "images").mkdir(parents=True)
    images, captions, instances = [], [], []
    for number in range(1, pictures + 1):
        name = f"{number:012d}.jpg"
        Image.new("RGB", (32, 24), (number * 9 % 256, 80, 160)).save(folder / "images" / name)
        images.append({"id": number, "file_name": name, "width": 320, "height": 240})
        first, second, place = NOUNS[number % 4], NOUNS[(number + 1) % 4], PLACES[number % 12]
        for caption in (f"A {first} beside a {second}.", f"A {second} and a {first} at the {place}."):
            captions.append({"id": len(captions) + 1, "image_id": number, "caption": caption})
        for side, noun in enumerate((first, second)):
            box = [20 + 150 * side, 40, 100, 120]
            instance = {"image_id": number, "category_id": NOUNS.index(noun) + 1, "bbox": box, "area": 1, "iscrowd": 0}
            instances.append({"id": len(instances) + 1, **instance})
    groups = ("animal", "animal", "vehicle", "vehicle")
    categories = [
        {"id": index + 1, "name": noun, "supercategory": group}
        for index, (noun, group) in enumerate(zip(NOUNS, groups, strict=True))
    ]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (folder / "instances.json").write_text(
        json.dumps({"images": images, "annotations": instances, "categories": categories})
    )
    return folder


def recipe_text(folder: Path, url: str | None = None, **more: Any) -> str:
    """YAML of a synthesis of the three kinds: by rules, or with the endpoint at an address."""
    teacher = {"kind": "rules"} if url is None else {"kind": "openai", "model": "tiny-1", "base_url": url}
    value: dict[str, Any] = {
        "name": "small",
        "pictures": [
            {
                "kind": "coco",
                "captions": str(folder / "captions.json"),
                "instances": str(folder / "instances.json"),
                "image_root": str(folder / "images"),
            }
        ],
        "kinds": [{"kind": "conversation"}, {"kind": "detail"}, {"kind": "reasoning"}],
        "teacher": teacher,
    }
    return json.dumps(value | more)  # JSON is YAML


def things_of(asked: Asked) -> list[str]:
    """The things that the last context of a request names."""
    text = next(message["content"] for message in reversed(asked.body["messages"]) if "<context>" in message["content"])
    return [noun for noun in NOUNS if noun in text.lower()]


def good_answer(asked: Asked) -> str:
    """An answer of the form that the system message asks for, true of the context."""
    first, second = things_of(asked)[:2]
    system = asked.body["messages"][0]["content"]
    few_shot = asked.body["messages"][2]["content"]
    if "Question:" not in few_shot:
        return (
            f"The picture shows a {first} and a {second} next to each other on a street. The {first} stands "
            f"quite close to the {second}, and both can be seen clearly. The street around them looks calm, and "
            "nothing else draws the eye in this quiet scene."
        )
    if "reason" in system.lower() and few_shot.count("Question:") == 1:
        return (
            "Question:\nWhat might somebody who passes by have to watch out for?\n===\n"
            f"Answer:\nThe {first} and the {second} take up room on the street, so go around them.\n===\n"
        )
    return (
        f"Question:\nWhat is next to the {first}?\n===\nAnswer:\nNext to it is a {second}.\n===\n"
        f"Question:\nWhere are the two of them?\n===\nAnswer:\nThe {first} and the {second} are on a street.\n===\n"
    )


def batch_line(asked: dict[str, Any], text: str | None = None) -> str:
    """The line of a batch's output to a line of its requests: a text, by default a good answer."""
    answer = good_answer(Asked(0, "", asked["body"], "", 0.0)) if text is None else text
    response = {"status_code": 200, "body": json.loads(completion(answer))}
    return json.dumps({"custom_id": asked["custom_id"], "response": response}) + "\n"


def well(asked: Asked) -> Reply:
    """A good answer to anything."""
    return Reply(body=completion(good_answer(asked)))
