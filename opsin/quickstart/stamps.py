"""The Tux Paint stamps: cut-out pictures with an English caption, in a folder tree that says what they are."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from opsin.core.errors import AssetError
from opsin.quickstart.captions import clean_caption, noun_phrase
from opsin.quickstart.groups import LEFT_OUT_FOLDERS, MISFILED, READABLE_FOLDERS, STYLE_FOLDERS
from opsin.synthesize.context import Box, Context, Thing

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable
    from pathlib import Path

MAX_SIDE = 256
"""Longest side of a cut-out as it is kept in memory."""

VISIBLE_ALPHA = 24
"""Pixels at least this opaque belong to the outline; fainter ones are soft shadows."""

BACKGROUNDS = ((255, 255, 255), (246, 246, 240), (238, 244, 250), (250, 240, 238), (240, 248, 240))
WHITE = BACKGROUNDS[0]


@dataclass(frozen=True, slots=True)
class Stamp:
    """A cut-out picture: PNG bytes with transparency, cropped to its outline.

    `id` is its path below the stamps folder, without the ending. `mirrors` is false where left and right carry meaning.
    """

    id: str
    caption: str
    name: str
    category: tuple[str, ...]
    cutout: bytes
    mirrors: bool = True

    @property
    def group(self) -> str:
        """The top folder."""
        return self.category[0]

    def open(self) -> Image.Image:
        """The cut-out, RGBA."""
        with Image.open(io.BytesIO(self.cutout)) as image:
            return image.convert("RGBA")

    def thing(self, box: Box | None = None) -> Thing:
        """What the teacher is told about it."""
        return Thing(self.name, self.category, box)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A stamp that is not used, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Collection:
    """The stamps that can be used and those that cannot, both ordered by id."""

    stamps: tuple[Stamp, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True, slots=True)
class View:
    """A stamp on a background, and what is true of that picture."""

    image: Image.Image
    context: Context


def read_stamps(folder: Path) -> Collection:
    """Read every PNG below `folder` that has a caption; what cannot be used is listed with the reason, not raised."""
    if not folder.is_dir():
        raise AssetError(f"{folder}: no such folder; expected the unpacked tree .../tuxpaint/stamps")
    outcomes = [_read_stamp(path, folder) for path in sorted(_pictures(folder), key=lambda path: path.as_posix())]
    stamps = tuple(outcome for outcome in outcomes if isinstance(outcome, Stamp))
    skipped = tuple(outcome for outcome in outcomes if isinstance(outcome, Skipped))
    if not stamps:
        raise AssetError(
            f"{folder}: no usable stamp, {len(skipped)} skipped; "
            "expected GROUP/.../NAME.png with its caption in NAME.txt beside it"
        )
    return Collection(stamps, skipped)


def make_stamp(identity: str, caption: str, category: tuple[str, ...], image: Image.Image) -> Stamp | Skipped:
    """Crop a picture with transparency to its outline, shrink it, and describe it."""
    box = outline(image)
    if box is None:
        return Skipped(identity, "the picture is fully transparent")
    cutout = image.crop(box)
    cutout.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    cutout.save(buffer, "PNG")
    mirrors = "road signs" not in category and '"' not in caption
    return Stamp(identity, caption, noun_phrase(caption), category, buffer.getvalue(), mirrors)


def outline(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Box of the visible pixels of an RGBA picture, or None if there are none."""
    return image.getchannel("A").point(lambda alpha: 255 if alpha >= VISIBLE_ALPHA else 0).getbbox()


def place(stamp: Stamp, longest: int, *, mirror: bool = False) -> Image.Image:
    """The cut-out scaled so that its longest side is `longest` pixels."""
    image = stamp.open()
    scale = longest / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resized = image.resize(size, Image.Resampling.LANCZOS)
    return ImageOps.mirror(resized) if mirror else resized


def view(stamp: Stamp, index: int, side: int, rng: random.Random) -> View:
    """The stamp alone on a square.

    View 0 is large and centred on white; the others are smaller, shifted and on a tinted ground, the odd ones mirrored.
    """
    plain = index == 0
    longest = round(side * (0.94 if plain else rng.uniform(0.65, 0.95)))
    cutout = place(stamp, longest, mirror=stamp.mirrors and index % 2 == 1)
    spare = (side - cutout.width, side - cutout.height)
    corner = (spare[0] // 2, spare[1] // 2) if plain else (rng.randint(0, spare[0]), rng.randint(0, spare[1]))
    canvas = Image.new("RGB", (side, side), WHITE if plain else rng.choice(BACKGROUNDS))
    box = paste(canvas, cutout, corner)
    return View(canvas, Context((stamp.caption,), (stamp.thing(box),)))


def paste(canvas: Image.Image, cutout: Image.Image, corner: tuple[int, int]) -> Box:
    """Composite a cut-out onto the canvas; the box of its visible pixels, as fractions of the canvas."""
    canvas.paste(cutout, corner, cutout)
    x1, y1, x2, y2 = outline(cutout) or (0, 0, cutout.width, cutout.height)
    x, y = corner
    width, height = canvas.size
    return ((x + x1) / width, (y + y1) / height, (x + x2) / width, (y + y2) / height)


def readable_category(folders: Iterable[str]) -> tuple[str, ...]:
    """Folder names as words, without the folders that only name a style."""
    return tuple(READABLE_FOLDERS.get(name, name.replace("_", " ")) for name in folders if name not in STYLE_FOLDERS)


def _pictures(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.png") if path.relative_to(folder).parts[0] not in LEFT_OUT_FOLDERS]


def _read_stamp(path: Path, folder: Path) -> Stamp | Skipped:
    relative = path.relative_to(folder)
    identity = relative.with_suffix("").as_posix()
    if identity in MISFILED:
        return Skipped(identity, "it is not what its folder says")
    if len(relative.parts) < 2:
        return Skipped(identity, "it lies in no group folder")
    try:
        caption = clean_caption(_first_line(path.with_suffix(".txt")))
    except FileNotFoundError:
        return Skipped(identity, "no caption file beside it")
    except UnicodeDecodeError as error:
        return Skipped(identity, f"the caption is not UTF-8: {error.reason} at byte {error.start}")
    if not caption:
        return Skipped(identity, "the caption is empty")
    try:
        with Image.open(path) as image:
            cutout = image.convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises on bad files
        return Skipped(identity, f"the picture does not open: {type(error).__name__}")
    return make_stamp(identity, caption, readable_category(relative.parts[:-1]), cutout)


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").split("\n", 1)[0]
