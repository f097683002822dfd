"""What every sample of a source costs and where it stands: worked out once, from texts and media headers alone.

An index is kept in the cache folder under a name made of the source's content and of everything else that the numbers
depend on; a changed file or setting makes another one. A source with a record that cannot be used is read anew every
time, since what is missing may be there by then.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from opsin.core.errors import DataError, OpsinError
from opsin.core.files import home, replacing, sha256_bytes
from opsin.core.types import Clip, Medium, Picture
from opsin.data.costs import Costs, cost_of
from opsin.data.example import Preparation, make_example
from opsin.data.record_file import Address, Counts
from opsin.data.sources import Source

FORMAT = 1
Progress = Callable[[int], None]
"""Told how many samples are done."""

Stamp = tuple[int, int]
"""Size and time (ns) of a file; it is taken to hold the same bytes while they stay."""


@dataclass(frozen=True)
class Index:
    """The samples of a source, in its order; `problems` are of its records that cannot be used."""

    costs: Costs
    addresses_N4: np.ndarray
    ids: tuple[str, ...]
    counts: Counts
    problems: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def address(self, sample: int) -> Address:
        """Where a sample stands."""
        return Address(*self.addresses_N4[sample].tolist())


def index_of(
    source: Source, preparation: Preparation, on_progress: Progress = lambda _done: None, folder: Path | None = None
) -> Index:
    """The index of a source, from the cache if nothing that it depends on has changed.

    Raises:
        DataError: a file is not there, or changes while it is read.
    """
    key = sha256_bytes(f"{FORMAT} {source.identity()} {preparation.digest}".encode())
    path = (folder or home() / "lengths") / f"{key[:32]}.npz"
    if (kept := _load(path)) is not None:
        on_progress(len(kept))
        return kept
    index, media = measure(source, preparation, on_progress)
    if not index.problems:
        _save(path, index, media)
    return index


def measure(
    source: Source, preparation: Preparation, on_progress: Progress = lambda _done: None
) -> tuple[Index, dict[str, Stamp]]:
    """Render every sample and read the headers of its media; also the stamps of the media files."""
    counts: Counts = Counter()
    rows: list[tuple[int, ...]] = []
    addresses: list[Address] = []
    ids: list[str] = []
    media: dict[str, Stamp] = {}
    problems: list[str] = []
    try:
        for address, conversation in source.located(counts):
            try:
                example = make_example(conversation, preparation)
            except OpsinError as error:
                problems.append(str(error))
                continue
            rows.append(cost_of(example))
            addresses.append(address)
            ids.append(conversation.id)
            for path in _files(conversation.media):
                if path not in media:
                    media[path] = _stamp(path)
            on_progress(len(ids))
    except DataError as error:  # raised behind the last record: the good ones have been given
        problems += error.problems
    places = np.array(addresses, dtype=np.int64).reshape(len(addresses), len(Address._fields))
    return Index(Costs.from_rows(rows), places, tuple(ids), counts, tuple(problems)), media


def _files(media: Iterable[Medium]) -> Iterable[str]:
    """The files that media lie in alone; a shard is part of its source's content."""
    for medium in media:
        pictures = medium.frames if isinstance(medium, Clip) else (medium,)
        if isinstance(medium, Clip) and medium.path is not None:
            yield str(medium.path)
        yield from (str(p.path) for p in pictures if isinstance(p, Picture) and p.path is not None and p.member is None)


def _stamp(path: str) -> Stamp:
    try:
        facts = Path(path).stat()
    except OSError:
        return (-1, -1)
    return facts.st_size, facts.st_mtime_ns


def _save(path: Path, index: Index, media: dict[str, Stamp]) -> None:
    columns = {field.name: getattr(index.costs, field.name) for field in fields(Costs)}
    stamps = np.array(list(media.values()), dtype=np.int64).reshape(len(media), 2)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            addresses=index.addresses_N4,
            stamps=stamps,
            texts=_packed({"ids": index.ids, "media": list(media), "counts": index.counts}),
            **columns,
        )


def _load(path: Path) -> Index | None:
    """A kept index; None if there is none, it is damaged, or a media file is not as it was."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            texts = _unpacked(kept["texts"])
            stamps = kept["stamps"].tolist()
            index = Index(
                Costs(*(kept[field.name] for field in fields(Costs))),
                kept["addresses"],
                tuple(texts["ids"]),
                Counter(texts["counts"]),
            )
        media: list[str] = texts["media"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    if not len(index) == len(index.costs) == len(index.addresses_N4):
        return None
    return index if all(_stamp(name) == tuple(stamp) for name, stamp in zip(media, stamps, strict=True)) else None


def _packed(texts: object) -> np.ndarray:
    # Paths that are not UTF-8 hold lone surrogates, which JSON's escapes keep.
    return np.frombuffer(json.dumps(texts).encode("ascii"), dtype=np.uint8)


def _unpacked(packed: np.ndarray) -> dict[str, Any]:
    texts: dict[str, Any] = json.loads(packed.tobytes())
    return texts
