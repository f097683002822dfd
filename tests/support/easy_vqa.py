"""A small stand-in for the wheel of easy-vqa."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path


def easy_vqa_wheel(path: Path) -> Path:
    """A wheel with 12 pictures a part, and one more that only a question of no use is about."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (240, 240, 240)).save(buffer, "PNG")
    with zipfile.ZipFile(path, "w") as wheel:
        for part in ("train", "test"):
            questions: list[list[str | int]] = []
            for index in range(12):
                shape, colour = ("circle", "rectangle")[index % 2], ("red", "gray", "yellow")[index % 3]
                questions += [
                    ["what is the shape?", shape, index],
                    [f"what color is the {shape}?", colour, index],
                    ["is there a circle?", "yes" if shape == "circle" else "no", index],
                    ["is there a red shape?", "yes" if colour == "red" else "no", index],
                ]
                wheel.writestr(f"easy_vqa/data/{part}/images/{index}.png", buffer.getvalue())
            questions.append(["is there a circle?", "no", 12])
            wheel.writestr(f"easy_vqa/data/{part}/questions.json", json.dumps(questions))
    return path
