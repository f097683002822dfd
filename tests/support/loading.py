"""Samples of every modality for the loader, and what can go wrong with one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import torch

from opsin.core.types import Batch, Clip, Conversation, Example, Picture, Turn
from opsin.data.collate import TENSORS
from opsin.data.example import Preparation
from opsin.data.plan import Pack
from tests.support.models import dialogue, draw_picture, examples_of


class Watched(Sequence[Example]):
    """Examples that call `reading(i)` before sample i is given; what it raises or where it blocks, they do."""

    def __init__(self, examples: Sequence[Example], reading: Callable[[int], object]) -> None:
        self.examples = examples
        self.reading = reading

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Any:
        assert isinstance(index, int)
        self.reading(index)
        return self.examples[index]


def samples(folder: Path, prepare: Preparation) -> list[Example]:
    """Twelve: of no picture, of one, of two of different sizes, and of a clip, three times over."""
    conversations = []
    for number in range(3):
        pictures = [
            Picture(path=draw_picture(folder / f"{number}-{n}.png", 7 * number + n, (40 + 9 * n, 30))) for n in range(4)
        ]
        frames = tuple(
            Picture(path=draw_picture(folder / f"{number}-frame-{n}.png", 31 * number + n)) for n in range(3)
        )
        turns = (Turn("user", (Clip(frames), "What moves?")), Turn("assistant", ("A square.",)))
        conversations += [
            dialogue(f"text-{number}", "Hello?", "Hi, how are you." * (number + 1)),
            dialogue(f"one-{number}", "What?", "A cat.", pictures[:1]),
            dialogue(f"two-{number}", "Both?", "Two cats.", pictures[1:3]),
            Conversation(f"clip-{number}", turns, where=f"clips.json:{number}"),
        ]
    return examples_of(conversations, prepare)


PACKS = tuple(Pack(one, 0, 0, 0) for one in ((0,), (5, 1), (3, 2, 4), (8,), (9, 10, 11), (6, 7)))
"""Every one of the samples once; two packs are of text alone."""


def assert_equal(batches: Sequence[Batch], expected: Sequence[Batch]) -> None:
    """The same batches bit for bit, in the same order."""
    assert [batch.ids for batch in batches] == [batch.ids for batch in expected]
    for batch, other in zip(batches, expected, strict=True):
        assert (batch.lengths, batch.sights, batch.layouts) == (other.lengths, other.sights, other.layouts)
        for name in TENSORS:
            one, two = getattr(batch, name), getattr(other, name)
            assert (one is None) == (two is None), name
            assert one is None or (one.dtype == two.dtype and torch.equal(one, two)), name


def children() -> set[int]:
    """Processes whose parent is this one, dead ones that nobody has waited for included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == os.getpid():
            found.add(int(stat.parent.name))
    return found


@contextmanager
def nothing_left() -> Iterator[None]:
    """No process, open file or shared memory of this process more than before."""

    def things() -> tuple[set[int], int, int]:
        files = sum(1 for _ in Path("/proc/self/fd").iterdir())
        return children(), files, Path("/proc/self/maps").read_text(encoding="utf-8").count("memfd:")

    before = things()
    yield
    assert things() == before
