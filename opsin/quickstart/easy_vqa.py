"""Easy-VQA (PyPI `easy-vqa`): drawn shapes with official questions, the fallback where the stamps cannot be had."""

from __future__ import annotations

import json
import random
import zipfile
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from opsin.core.errors import AssetError
from opsin.quickstart.stamps import Skipped
from opsin.synthesize.english import article, capitalised
from opsin.synthesize.rules import BRIEF_INSTRUCTIONS, BRIEF_QUESTION, YES_NO
from opsin.synthesize.subject import Exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from opsin.quickstart.records import Dataset, DatasetSize, Writer

SHAPES = ("circle", "rectangle", "triangle")
ANSWERS = {"yes": YES_NO[True], "no": YES_NO[False]}
DATA = "easy_vqa/data"

Part = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Drawing:
    """One official picture and its official questions, which tell its shape and colour."""

    index: int
    part: Part
    shape: str
    colour: str
    questions: tuple[Exchange, ...]

    @property
    def id(self) -> str:
        """`test/17`."""
        return f"{self.part}/{self.index}"

    @property
    def caption(self) -> str:
        """`"A red circle."`"""
        return f"{capitalised(article(self.colour))} {self.colour} {self.shape}."

    def with_answers(self, answers: Sequence[str]) -> list[Exchange]:
        """Its questions that have one of these answers."""
        return [exchange for exchange in self.questions if exchange.answer in answers]


def write_easy_vqa(source: Path, writer: Writer, seed: int, size: DatasetSize) -> Dataset:
    """Fill a dataset folder: `size.scenes` pictures of the training part, `size.held_out` of the test part."""
    rng = random.Random(f"{seed}/easy_vqa")
    with _reading(source) as read:
        all_train, skipped_train = _drawings(read, "train")
        all_test, skipped_test = _drawings(read, "test")
        train, test = _sample(all_train, size.scenes, rng), _sample(all_test, size.held_out, rng)
        images = {
            drawing.id: writer.copy(
                f"{drawing.part}_{drawing.index}.png", read(f"{drawing.part}/images/{drawing.index}.png")
            )
            for drawing in (*train, *test)
        }
    for drawing in train:
        writer.labels[images[drawing.id]] = drawing.shape
        writer.caption(drawing.id, images[drawing.id], rng.choice(BRIEF_INSTRUCTIONS), drawing.caption)
        writer.converse("conversation", drawing.id, images[drawing.id], _turns(drawing, rng))
    for drawing in test:
        writer.ask("category", drawing.id, images[drawing.id], rng.choice(drawing.with_answers(SHAPES)), SHAPES)
        writer.ask("caption", drawing.id, images[drawing.id], Exchange(BRIEF_QUESTION, drawing.caption))
    for number, (drawing, exchange) in enumerate(balanced(test, rng)):
        writer.ask("yes_no", f"{drawing.id}.{number}", images[drawing.id], exchange, tuple(ANSWERS.values()))
    num_train, num_test = (Counter(drawing.shape for drawing in part) for part in (train, test))
    groups = {shape: {"train": num_train[shape], "held_out": num_test[shape]} for shape in SHAPES}
    return writer.finish(seed, size, groups, (*skipped_train, *skipped_test))


def sample_drawings(source: Path, count: int, rng: random.Random) -> list[tuple[Drawing, bytes]]:
    """Some drawings of the training part, each with its PNG bytes.

    Raises:
        AssetError: the source is not Easy-VQA's data.
    """
    with _reading(source) as read:
        chosen = _sample(_drawings(read, "train")[0], count, rng)
        return [(drawing, read(f"{drawing.part}/images/{drawing.index}.png")) for drawing in chosen]


def balanced(drawings: Sequence[Drawing], rng: random.Random) -> list[tuple[Drawing, Exchange]]:
    """Yes/no questions, each text with as many yes as no."""
    by_text: dict[str, dict[str, list[tuple[Drawing, Exchange]]]] = defaultdict(lambda: defaultdict(list))
    for drawing in drawings:
        for exchange in drawing.with_answers(tuple(ANSWERS.values())):
            by_text[exchange.question][exchange.answer].append((drawing, exchange))
    chosen = []
    for text in sorted(by_text):
        count = min(len(by_text[text][answer]) for answer in ANSWERS.values())
        for answer in ANSWERS.values():
            chosen.extend(rng.sample(by_text[text][answer], count))
    return chosen


def _turns(drawing: Drawing, rng: random.Random) -> list[Exchange]:
    """Two of the official questions with a word for an answer, and up to one of each of yes and no."""
    words = [exchange for exchange in drawing.questions if exchange.answer not in ANSWERS.values()]
    turns = rng.sample(words, min(2, len(words)))
    for answer in ANSWERS.values():
        found = drawing.with_answers((answer,))
        turns.extend(rng.sample(found, min(1, len(found))))
    rng.shuffle(turns)
    return turns


def _drawings(read: Callable[[str], bytes], part: Part) -> tuple[list[Drawing], list[Skipped]]:
    by_picture: dict[int, list[Exchange]] = defaultdict(list)
    for question, answer, index in json.loads(read(f"{part}/questions.json")):
        by_picture[index].append(Exchange(capitalised(question), ANSWERS.get(answer, answer)))
    drawings: list[Drawing] = []
    for index, exchanges in sorted(by_picture.items()):
        words = Counter(exchange.answer for exchange in exchanges if exchange.answer not in ANSWERS.values())
        shapes, colours = [w for w in words if w in SHAPES], [w for w in words if w not in SHAPES]
        if shapes and colours:
            drawings.append(Drawing(index, part, shapes[0], colours[0], tuple(exchanges)))
    untold = len(by_picture) - len(drawings)
    reason = f"{untold} pictures: no official question tells both the shape and the colour"
    return drawings, [Skipped(part, reason)] if untold else []


def _sample(drawings: Sequence[Drawing], count: int, rng: random.Random) -> list[Drawing]:
    chosen = rng.sample(drawings, min(count, len(drawings)))
    return sorted(chosen, key=lambda drawing: drawing.index)


@contextmanager
def _reading(source: Path) -> Iterator[Callable[[str], bytes]]:
    """Yield a function that reads a file of the data, out of the wheel or of the unpacked folder."""
    try:
        if source.is_dir():
            yield lambda name: (source / DATA / name).read_bytes()
        else:
            with zipfile.ZipFile(source) as wheel:
                yield lambda name: wheel.read(f"{DATA}/{name}")
    except (FileNotFoundError, KeyError, zipfile.BadZipFile) as error:
        raise AssetError(f"{source}: not the data of easy-vqa ({error}); expected the wheel of easy-vqa 1.0") from error
