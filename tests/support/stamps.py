"""A little tree of stamps, drawn on the spot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from pathlib import Path

NOUNS = {
    "animals/birds": ["crow", "owl", "duck", "gull", "hen", "lark"],
    "food/fruit": ["apple", "pear", "plum", "lemon", "mango", "kiwi"],
    "vehicles/auto": ["truck", "bus", "tractor", "sedan", "van", "jeep"],
    "plants": ["rose", "iris", "tulip", "daisy"],
    "naturalforces": ["fire", "storm"],
}


def write_stamp(folder: Path, identity: str, caption: str, number: int) -> None:
    """A shape that differs from all others, on a transparent ground with a margin."""
    path = folder / f"{identity}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGBA", (60, 48), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    colour = (number * 67 % 256, number * 101 % 256, number * 151 % 256, 255)
    pen.rectangle((5, 4, 50, 40), fill=colour)
    pen.ellipse((8 + number % 20, 8, 30 + number % 20, 30), fill=(255 - colour[0], colour[2], colour[1], 255))
    image.save(path)
    path.with_suffix(".txt").write_text(f"{caption}\nde.utf8=Etwas.\n", encoding="utf-8")


def write_tree(folder: Path) -> Path:
    """Twenty-two single stamps, three variants of a crow, and a symbol."""
    number = 0
    for place, nouns in NOUNS.items():
        for noun in nouns:
            number += 1
            write_stamp(folder, f"{place}/{noun}", f"{'An' if noun[0] in 'aeiou' else 'A'} {noun}.", number)
    for variant in ("crow_mirror", "crow-2"):
        write_stamp(folder, f"animals/birds/{variant}", "A black crow.", number + len(variant))
    write_stamp(folder, "symbols/digits/one", "One.", 77)
    return folder
