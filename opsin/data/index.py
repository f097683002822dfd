"""What every sample of a source costs and where it stands: worked out once, from texts and media headers alone.

An index is made and kept in chunks. They lie in a folder of the cache named by the source's content and by everything
else that the numbers depend on, so a changed file or setting makes another one, and what was interrupted goes on where
it was. A chunk with a record that cannot be used is made anew every time, since what is missing may be there by then.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from opsin.core.files import home, replacing, sha256_bytes
from opsin.core.types import Conversation
from opsin.data.costs import Costs
from opsin.data.example import Preparation
from opsin.data.measure import TIMEOUT, Measured, Stamp, measure, stamp
from opsin.data.record_file import Address, Counts, Located, Unusable
from opsin.data.sources import Source

FORMAT = 1
CHUNK = 8192
"""Records of a chunk, good or bad ones, so that a picture that comes or goes moves no other record."""

Progress = Callable[[int], None]
"""Told how many more samples are done."""


@dataclass(frozen=True)
class Index:
    """Samples of a source, in its order; `problems` are of its records that cannot be used.

    `counts` are what the source's reader counted, `last` says that the source ends here, `cut` are those of `problems`
    behind which the rest of a file cannot be read.
    """

    costs: Costs
    addresses_N4: np.ndarray
    ids: tuple[str, ...]
    counts: Counts
    problems: tuple[str, ...] = ()
    last: bool = True
    cut: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def address(self, sample: int) -> Address:
        """Where a sample stands."""
        return Address(*self.addresses_N4[sample].tolist())

    @staticmethod
    def joined(parts: Sequence[Index]) -> Index:
        """One after the other."""
        return Index(
            costs=Costs.joined([part.costs for part in parts]),
            addresses_N4=np.concatenate([part.addresses_N4 for part in parts]),
            ids=tuple(itertools.chain.from_iterable(part.ids for part in parts)),
            counts=sum((part.counts for part in parts), Counter()),
            problems=tuple(itertools.chain.from_iterable(part.problems for part in parts)),
            last=parts[-1].last,
            cut=tuple(itertools.chain.from_iterable(part.cut for part in parts)),
        )


class Chunks:
    """The index of a source in pieces of `CHUNK` records, each made when it is first asked for."""

    def __init__(
        self,
        source: Source,
        preparation: Preparation,
        on_progress: Progress = lambda _more: None,
        *,
        workers: int = 0,
        timeout: float = TIMEOUT,
        folder: Path | None = None,
    ) -> None:
        """Find the folder of a source's index; this reads the source's files once, to name their content.

        `workers` processes render samples and read headers, 0 does it here; `timeout` is that of `measure`.

        Raises:
            DataError: a file is not there, or changes while it is read.
        """
        key = sha256_bytes(f"{FORMAT} {source.identity()} {preparation.digest}".encode())
        self._folder = (folder or home() / "lengths") / key[:32]
        self._source = source
        self._preparation = preparation
        self._on_progress = on_progress
        self._workers = workers
        self._timeout = timeout
        self._begin()

    def chunk(self, number: int) -> Index:
        """A chunk, from the cache if nothing that it depends on has changed.

        Raises:
            DataError: a file is gone, or changes while it is read.
        """
        path = self._folder / f"{number:06d}.npz"
        if (kept := _load(path)) is not None:
            self._on_progress(len(kept))
            return kept
        try:
            index, media = self._measured(number)
        except BaseException:
            self._begin()  # what was read of a chunk is lost: the next one is counted from the start
            raise
        self._source.check_at_rest()  # before anything is kept under the name of its content
        if not index.problems:
            _save(path, index, media)
        return index

    def _begin(self) -> None:
        self._counts: Counts = Counter()
        self._records = self._source.scan(self._counts)
        self._next = 0
        self._ended = False

    def _measured(self, number: int) -> tuple[Index, dict[str, Stamp]]:
        """Render the chunk's samples and read the headers of their media; also the stamps of the media files."""
        if number < self._next:
            self._begin()
        while self._next < number:
            deque(itertools.islice(self._records, CHUNK), maxlen=0)
            self._next += 1
        before = self._counts.copy()
        made = _Chunk()
        read: deque[Located | Unusable] = deque()  # records that were read, in order, until they are measured
        for measured in measure(self._passing(read), self._preparation, self._workers, self._timeout):
            while isinstance(found := read.popleft(), Unusable):
                made.refuse(found)
            made.add(found, measured)
            self._counts.update(measured.notes)
            self._on_progress(int(measured.row is not None))
        for found in read:  # behind the last good one
            if isinstance(found, Unusable):
                made.refuse(found)
        self._next += 1
        return made.index(self._counts - before, last=self._ended), made.media

    def _passing(self, read: deque[Located | Unusable]) -> Iterator[Conversation]:
        """The chunk's conversations; every record is put into `read`."""
        for _ in range(CHUNK):
            found = next(self._records, None)
            if found is None:
                self._ended = True
                return
            read.append(found)
            if not isinstance(found, Unusable):
                yield found[1]


class _Chunk:
    """A chunk while it is made."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []
        self.addresses: list[Address] = []
        self.ids: list[str] = []
        self.problems: list[str] = []
        self.cut: list[str] = []
        self.media: dict[str, Stamp] = {}

    def refuse(self, record: Unusable) -> None:
        """One more record that cannot be used."""
        self.problems += record.problems
        self.cut += record.problems if record.rest else ()

    def add(self, located: Located, measured: Measured) -> None:
        """One more sample."""
        if measured.row is None:
            self.problems.append(measured.problem)
            return
        address, conversation = located
        self.rows.append(measured.row)
        self.addresses.append(address)
        self.ids.append(conversation.id)
        self.media |= measured.stamps

    def index(self, counts: Counts, *, last: bool) -> Index:
        """All of them."""
        return Index(
            costs=Costs.from_rows(self.rows),
            addresses_N4=np.array(self.addresses, dtype=np.int64).reshape(-1, len(Address._fields)),
            ids=tuple(self.ids),
            counts=counts,
            problems=tuple(self.problems),
            last=last,
            cut=tuple(self.cut),
        )


def index_of(
    source: Source,
    preparation: Preparation,
    on_progress: Progress = lambda _more: None,
    *,
    workers: int = 0,
    timeout: float = TIMEOUT,
    folder: Path | None = None,
) -> Index:
    """The index of a whole source (`Chunks` has the arguments).

    Raises:
        DataError: a file is not there, or changes while it is read.
    """
    chunks = Chunks(source, preparation, on_progress, workers=workers, timeout=timeout, folder=folder)
    parts = [chunks.chunk(0)]
    while not parts[-1].last:
        parts.append(chunks.chunk(len(parts)))
    return Index.joined(parts)


def _save(path: Path, index: Index, media: dict[str, Stamp]) -> None:
    columns = {field.name: getattr(index.costs, field.name) for field in fields(Costs)}
    stamps = np.array(list(media.values()), dtype=np.int64).reshape(len(media), 2)
    texts = {"ids": index.ids, "media": list(media), "counts": index.counts, "last": index.last}
    with replacing(path) as temporary, temporary.open("wb") as file:
        # Paths that are not UTF-8 hold lone surrogates, which JSON's escapes keep.
        packed = np.frombuffer(json.dumps(texts).encode("ascii"), dtype=np.uint8)
        np.savez(file, addresses=index.addresses_N4, stamps=stamps, texts=packed, **columns)


def _load(path: Path) -> Index | None:
    """A kept chunk; None if there is none, it is damaged, or a media file is not as it was."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            texts: dict[str, Any] = json.loads(kept["texts"].tobytes())
            stamps = kept["stamps"].tolist()
            index = Index(
                Costs(*(kept[field.name] for field in fields(Costs))),
                kept["addresses"],
                tuple(texts["ids"]),
                Counter(texts["counts"]),
                last=texts["last"],
            )
        media: list[str] = texts["media"]
    except Exception:  # noqa: BLE001 (a damaged archive can raise anything, and is made anew)
        return None
    if not len(index) == len(index.costs) == len(index.addresses_N4):
        return None
    return index if all(stamp(name) == tuple(kept) for name, kept in zip(media, stamps, strict=True)) else None
