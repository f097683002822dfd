from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from opsin.core.errors import AssetError
from opsin.quickstart.captions import clean_caption, names_one_thing, noun_phrase
from opsin.quickstart.stamps import MAX_SIDE, Skipped, read_stamps, view
from tests.support.stamps import write_stamp

if TYPE_CHECKING:
    from pathlib import Path


def reasons(skipped: tuple[Skipped, ...]) -> dict[str, str]:
    return {skip.id: skip.reason for skip in skipped}


def test_stamps_carry_caption_name_and_readable_category(stamps_dir: Path) -> None:
    stamps = {stamp.id: stamp for stamp in read_stamps(stamps_dir).stamps}
    assert stamps["animals/birds/owl"].caption == "An owl."
    assert stamps["animals/birds/owl"].name == "an owl"
    assert stamps["animals/birds/owl"].category == ("animals", "birds")
    assert stamps["naturalforces/fire"].group == "natural forces"
    assert not any(identity.startswith("symbols") for identity in stamps)


def test_bad_stamps_are_listed_with_the_reason_and_do_not_stop_the_rest(stamps_dir: Path) -> None:
    whole = len(read_stamps(stamps_dir).stamps)
    write_stamp(stamps_dir, "plants/blank", " \t ", 1)
    write_stamp(stamps_dir, "plants/cut", "A cut file.", 2)
    cut = stamps_dir / "plants/cut.png"
    cut.write_bytes(cut.read_bytes()[:90])
    write_stamp(stamps_dir, "plants/noise", "Noise.", 3)
    (stamps_dir / "plants/noise.png").write_bytes(b"this is no picture")
    write_stamp(stamps_dir, "plants/silent", "Silent.", 4)
    (stamps_dir / "plants/silent.txt").unlink()
    write_stamp(stamps_dir, "plants/latin", "x", 5)
    (stamps_dir / "plants/latin.txt").write_bytes(b"Caf\xe9.\n")
    write_stamp(stamps_dir, "plants/clear", "A clear one.", 6)
    Image.new("RGBA", (20, 20), (9, 9, 9, 0)).save(stamps_dir / "plants/clear.png")
    write_stamp(stamps_dir, "loose", "A loose one.", 7)
    collection = read_stamps(stamps_dir)
    told = reasons(collection.skipped)
    assert len(collection.stamps) == whole
    assert told["plants/blank"] == "the caption is empty"
    assert told["plants/cut"].startswith("the picture does not open")
    assert told["plants/noise"].startswith("the picture does not open")
    assert told["plants/silent"] == "no caption file beside it"
    assert told["plants/latin"].startswith("the caption is not UTF-8")
    assert told["plants/clear"] == "the picture is fully transparent"
    assert told["loose"] == "it lies in no group folder"


def test_a_folder_without_stamps_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="no such folder"):
        read_stamps(tmp_path / "nowhere")
    with pytest.raises(AssetError, match="no usable stamp, 0 skipped"):
        read_stamps(tmp_path)


def test_cutouts_are_cropped_to_the_outline_and_small(stamps_dir: Path) -> None:
    image = Image.new("RGBA", (900, 500), (0, 0, 0, 0))
    image.paste((200, 30, 30, 255), (100, 50, 700, 350))
    image.save(stamps_dir / "plants/rose.png")
    stamp = next(stamp for stamp in read_stamps(stamps_dir).stamps if stamp.id == "plants/rose")
    assert stamp.open().size == (MAX_SIDE, MAX_SIDE // 2)
    assert stamp.open().getextrema()[3] == (255, 255)


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_the_box_of_a_view_surrounds_exactly_the_visible_pixels(stamps_dir: Path, index: int) -> None:
    for stamp in read_stamps(stamps_dir).stamps[:6]:
        seen = view(stamp, index, 100, random.Random(index))
        (thing,) = seen.context.things
        assert thing.box is not None
        ground = seen.image.getpixel((0, 0)) if index == 0 else None
        x1, y1, x2, y2 = (round(100 * edge) for edge in thing.box)
        assert 0 <= x1 < x2 <= 100
        assert 0 <= y1 < y2 <= 100
        if ground == (255, 255, 255):
            inside = seen.image.crop((x1, y1, x2, y2))
            blanked = seen.image.copy()
            blanked.paste(ground, (x1, y1, x2, y2))
            assert blanked.getextrema() == ((255, 255),) * 3
            assert inside.getextrema() != ((255, 255),) * 3


def test_signs_with_text_are_not_mirrored(stamps_dir: Path) -> None:
    write_stamp(stamps_dir, "town/roadsigns/stop", "A “Stop” sign. Stop here.", 9)
    stamps = {stamp.id: stamp for stamp in read_stamps(stamps_dir).stamps}
    assert not stamps["town/roadsigns/stop"].mirrors
    assert stamps["town/roadsigns/stop"].caption == 'A "Stop" sign.'
    assert stamps["plants/rose"].mirrors


@pytest.mark.parametrize(
    ("line", "caption", "name"),
    [
        ("A violin.", "A violin.", "a violin"),
        ("An hippopotamus.", "A hippopotamus.", "a hippopotamus"),
        ("A ripe, red tomato!", "A ripe, red tomato.", "a ripe, red tomato"),
        ("A Seville orange, also called bitter.", "A Seville orange, also called bitter.", "a Seville orange"),
        ("A wheelie bin! Give me your trash!", "A wheelie bin.", "a wheelie bin"),
        ("Mercury—the planet closest to the Sun.", "Mercury - the planet closest to the Sun.", ""),
        ("An albino peahen (a female peafowl).", "An albino peahen (a female peafowl).", "an albino peahen"),
        ("A stethoscope lets your doctor listen.", "A stethoscope lets your doctor listen.", ""),
        ("A “Fuji” apple.", 'A "Fuji" apple.', "a Fuji apple"),
        ("Hibiscus ", "Hibiscus.", ""),
        ("  ", "", ""),
        ("...", "", ""),
    ],
)
def test_captions_and_names(line: str, caption: str, name: str) -> None:
    assert clean_caption(line) == caption
    assert noun_phrase(clean_caption(line)) == name


@pytest.mark.parametrize(
    ("name", "one"),
    [("a cow", True), ("a pair of pants", True), ("a pair of open scissors", True), ("a pair of cherries", False),
     ("two flowers", False), ("a bunch of grapes", False), ("the Sun", False)],
)  # fmt: skip
def test_what_counts_as_one_thing(name: str, one: bool) -> None:
    assert names_one_thing(name) == one
