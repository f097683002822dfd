"""The files of the quick start's data: LLaVA JSON to train on, questions to evaluate with, statistics."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from opsin.core.errors import AssetError
from opsin.core.files import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL import Image

    from opsin.evaluate.questions import Task
    from opsin.quickstart.stamps import Skipped
    from opsin.synthesize.subject import Exchange

Kind = Literal["conversation", "detail", "reasoning"]

TOKENS_PER_WORD = 1.35
"""Rule of thumb for English short answers, to say what an epoch costs before any tokenizer is loaded."""


@dataclass(frozen=True, slots=True)
class DatasetSize:
    """How much data to make. The defaults suit about five minutes of training on a CPU."""

    held_out: int = 90
    """Pictures to evaluate on."""
    views: int = 2
    """Files made of each training picture; the first is plain, the others are mirrored, shifted and tinted."""
    scenes: int = 450
    """Composed training scenes."""
    counting: int = 80
    """Composed evaluation scenes, of held-out pictures."""
    detail: int = 30
    """Detailed descriptions, half of them of scenes."""
    reasoning: int = 60
    """Questions that combine facts, most of them about scenes."""
    side: int = 224
    """Width and height of the pictures."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be made."""
        lowest = {"held_out": 1, "views": 1, "side": 24}
        for name, value in asdict(self).items():
            if value < lowest.get(name, 0):
                raise ValueError(f"DatasetSize.{name} is {value}; it must be at least {lowest.get(name, 0)}")


TINY = DatasetSize(held_out=12, views=2, scenes=40, counting=20, detail=8, reasoning=12, side=64)
"""For drawn pictures: a smoke run of seconds."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A finished dataset folder."""

    folder: Path
    statistics: dict[str, Any]

    @property
    def align(self) -> Path:
        """LLaVA JSON of captions."""
        return self.folder / "align.json"

    @property
    def instruct(self) -> tuple[Path, Path]:
        """LLaVA JSON of conversations, descriptions and reasoning, in two parts to be learned one after the other.

        The first names things, the second asks about them: what a picture shows has to be known before "Is this ...?"
        can be learned from it.
        """
        return self.folder / "instruct-1.json", self.folder / "instruct-2.json"

    @property
    def held_out(self) -> Path:
        """Questions to evaluate with."""
        return self.folder / "heldout.json"

    @property
    def images(self) -> Path:
        """The pictures; paths in the JSON files are relative to it."""
        return self.folder / "images"


@dataclass(frozen=True, slots=True)
class Writer:
    """Collects records in order, writes pictures at once and the JSON files at the end."""

    folder: Path
    align: list[dict[str, Any]] = field(default_factory=list)
    instruct: tuple[list[dict[str, Any]], list[dict[str, Any]]] = field(default_factory=lambda: ([], []))
    questions: list[dict[str, Any]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    labels: dict[str, str] = field(default_factory=dict)
    """Group of each training picture (one file a picture), to measure the encoder's own level with."""

    @classmethod
    def start(cls, folder: Path) -> Writer:
        """Make the folder, which must not hold anything yet: stale pictures would pass for data."""
        if folder.exists() and any(folder.iterdir()):
            raise AssetError(f"{folder} is not empty: remove it, or choose another folder for the data")
        (folder / "images").mkdir(parents=True, exist_ok=True)
        return cls(folder)

    def picture(self, identity: str, image: Image.Image) -> str:
        """Write a picture; its path relative to the images folder."""
        name = f"{file_stem(identity)}.jpg"
        image.save(self.folder / "images" / name, "JPEG", quality=90)
        return name

    def copy(self, name: str, data: bytes) -> str:
        """Write the bytes of a picture as they are; its path relative to the images folder."""
        (self.folder / "images" / name).write_bytes(data)
        return name

    def caption(self, identity: str, image: str, instruction: str, caption: str) -> None:
        """Add one record to align.json."""
        self.align.append(_llava(identity, image, [(instruction, caption)]))

    def converse(
        self, kind: Kind, identity: str, image: str, exchanges: Sequence[Exchange], *, part: Literal[1, 2] = 1
    ) -> None:
        """Add one record to a part of the instructions, 1 or 2; without exchanges there is nothing to add."""
        if exchanges:
            turns = [(exchange.question, exchange.answer) for exchange in exchanges]
            self.instruct[part - 1].append(_llava(f"{identity}#{kind}", image, turns))
            self.kinds[kind] += 1

    def ask(self, task: Task, identity: str, image: str, exchange: Exchange, choices: Sequence[str] = ()) -> None:
        """Add one record to heldout.json."""
        record: dict[str, Any] = {"id": f"{identity}#{task}", "image": image, "task": task}
        record |= {"question": exchange.question, "answer": exchange.answer}
        self.questions.append(record | ({"choices": list(choices)} if choices else {}))

    def finish(self, seed: int, size: DatasetSize, groups: dict[str, Any], skipped: Sequence[Skipped]) -> Dataset:
        """Write the JSON files, the statistics last: where they are, the dataset is complete."""
        statistics = {
            "seed": seed,
            "size": asdict(size),
            "pictures": sum(1 for _ in (self.folder / "images").iterdir()),
            "groups": groups,
            "labels": self.labels,
            "align": {"records": len(self.align), "estimated_tokens": _tokens(self.align)},
            "instruct": {
                "records": sum(map(len, self.instruct)),
                "kinds": dict(sorted(self.kinds.items())),
                "estimated_tokens": sum(map(_tokens, self.instruct)),
            },
            "heldout": dict(sorted(Counter(record["task"] for record in self.questions).items())),
            "skipped": [asdict(skip) for skip in skipped],
        }
        dataset = Dataset(self.folder, statistics)
        write_json(dataset.align, self.align)
        for path, part in zip(dataset.instruct, self.instruct, strict=True):
            write_json(path, part)
        write_json(dataset.held_out, self.questions)
        write_json(self.folder / "statistics.json", statistics)
        return dataset


def file_stem(identity: str) -> str:
    """An id as a file name."""
    return identity.replace("/", "__")


def _llava(identity: str, image: str, turns: Sequence[tuple[str, str]]) -> dict[str, Any]:
    conversations = []
    for index, (question, answer) in enumerate(turns):
        conversations.append({"from": "human", "value": f"<image>\n{question}" if index == 0 else question})
        conversations.append({"from": "gpt", "value": answer})
    return {"id": identity, "image": image, "conversations": conversations}


def _tokens(records: Sequence[dict[str, Any]]) -> int:
    words = sum(len(turn["value"].split()) for record in records for turn in record["conversations"])
    return round(words * TOKENS_PER_WORD)
