"""Features of a frozen encoder, computed once: a folder per (encoder weights, resolution, precision), rows by a
medium's bytes and its layout (the same picture is cut in another way when it is one of several).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from opsin.core.errors import DamagedError
from opsin.core.files import home, sha256_bytes, sha256_file
from opsin.core.ranks import ALONE, Ranks
from opsin.core.types import Clip, Medium, Picture
from opsin.data.collate import medium_pixels
from opsin.data.example import Preparation, Seen
from opsin.model.vlm import Vlm
from opsin.report.words import counted, duration
from opsin.train import feature_chunks
from opsin.train.feature_chunks import ChunkFolder, FeatureCacheError
from opsin.vision.picture import picture_bytes
from opsin.vision.resolution import Resolution

Sample = TypeVar("Sample")
Progress = Callable[[int, int], None]
"""Told (done, to do)."""

BATCH_BYTES = 16 * 3 * 384 * 384
"""Pixels decoded and encoded at a time, at least one medium."""

LIMIT_GB = 50.0
"""What all features together may take of the disk, by default."""


def encoder_digest(model: Vlm, resolution: Resolution) -> str:
    """Names the encoder's weights and everything that shapes its input; a call of all ranks, if weights are sharded."""
    facts = {
        "encoder": model.config.encoder.model_dump(mode="json", exclude={"path"}),
        "resolution": resolution.model_dump(mode="json"),
        "precision": model.precision,
    }
    parts = [json.dumps(facts, sort_keys=True)]
    for name, tensor in sorted(model.encoder.state_dict().items()):
        parts.append(f"{name} {_tensor_digest(tensor)}")
    return sha256_bytes("\n".join(parts).encode())


def medium_digest(medium: Medium) -> str:
    """Names a picture or clip by its bytes."""
    if isinstance(medium, Clip) and medium.path is None:
        return sha256_bytes("\n".join(map(medium_digest, medium.frames)).encode())
    if isinstance(medium, Picture):
        return sha256_bytes(picture_bytes(medium))
    return f"{sha256_file(Path(medium.path or ''))} {medium.taken}"


@dataclass(frozen=True, slots=True)
class Added:
    """What `FeatureCache.add` did, on all ranks: media whose features it computed, in so many seconds, and media whose
    features were there, which had taken `saved` seconds.
    """

    computed: int
    read: int
    seconds: float
    saved: float

    def __str__(self) -> str:
        computed = f"{self.computed:,} computed" + (f" in {duration(self.seconds)}" if self.computed else "")
        read = f"{self.read:,} read" + (f", about {duration(self.saved)} saved" if self.read else "")
        return f"features of {counted(self.computed + self.read, 'picture')}: {computed}, {read}"


class FeatureCache:
    """Features (P, C) of media, in files below `folder`, of which all together take at most `limit_gb`.

    Every rank makes the same calls and computes a share; all of them must see the same folder. `on_line` is told of
    files that are damaged.
    """

    def __init__(
        self,
        model: Vlm,
        preparation: Preparation,
        folder: Path | None = None,
        *,
        limit_gb: float = LIMIT_GB,
        ranks: Ranks = ALONE,
        on_line: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._model = model
        self._preparation = preparation
        self._limit_gb = limit_gb
        self._ranks = ranks
        self._dtype = torch.bfloat16 if model.precision == "bf16" else torch.float32
        self.path = (folder or home() / "features") / encoder_digest(model, preparation.resolution)[:16]
        self._chunks = ChunkFolder(self.path, on_line)
        self._damaged: dict[str, str] = {}
        self._digests: dict[Medium, str] = {}

    @property
    def damaged(self) -> int:
        """Media that `add` could not decode."""
        return len(self._damaged)

    def add(
        self,
        samples: Sequence[Sample],
        seen_of: Callable[[Sample], Iterable[Seen]],
        on_progress: Progress = lambda _done, _all: None,
    ) -> Added:
        """Compute what is not there yet of what some samples show.

        Samples are asked for one after the other, once to see what is missing, then again those of which something
        is; none is kept. Media that are damaged are told by `get`, to whom needs them.

        Raises:
            FeatureCacheError: there is no room; or media changed meanwhile, or the ranks have different folders.
        """
        found = dict(self._find(samples, seen_of, on_progress))
        everyones = self._ranks.gather({key: patches for key, (_, patches) in found.items()})
        patches = {key: count for others in reversed(everyones) for key, count in others.items()}
        missing = self._missing(patches)
        self._check_space(sum(patches[key] for key in missing))
        there = patches.keys() - missing - self._damaged.keys()
        saved = sum(patches[key] * self._chunks.seconds_per_patch(key) for key in there)
        earlier = set[str]().union(*everyones[: self._ranks.rank])
        mine = {key: number for key, (number, _) in found.items() if key in missing and key not in earlier}
        began = time.perf_counter()
        self._compute(mine, samples, seen_of, on_progress)
        for damaged in self._ranks.gather(self._damaged):
            self._damaged |= damaged
        seconds = max(self._ranks.gather(time.perf_counter() - began))
        if lost := self._missing(patches):
            raise FeatureCacheError(
                f"{self.path}: {counted(len(lost), 'picture')} without features after they were computed; either files "
                "changed meanwhile (start again when they are at rest), or processes see different folders (set "
                "OPSIN_HOME to one that all of them see)"
            )
        computed = len(missing - self._damaged.keys())
        return Added(computed, len(there), seconds, saved)

    def get(self, seen: Sequence[Seen]) -> Tensor:
        """Features (P, C) of media, one after the other, that were added before.

        Raises:
            DamagedError: one of them cannot be decoded.
        """
        keys = [self._key(pair) for pair in seen]
        for key in keys:
            if key in self._damaged:
                raise DamagedError(self._damaged[key])
        return torch.cat([self._chunks.rows(key) for key in keys])

    def _find(
        self, samples: Sequence[Sample], seen_of: Callable[[Sample], Iterable[Seen]], on_progress: Progress
    ) -> Iterator[tuple[str, tuple[int, int]]]:
        """The media of this rank's share of the samples by their keys: the last sample with it, and its patches."""
        share = range(self._ranks.rank, len(samples), self._ranks.size)
        for done, number in enumerate(share, start=1):
            for pair in seen_of(samples[number]):
                yield self._key(pair), (number, pair[1].patches)
            on_progress(done, len(share))

    def _missing(self, patches: Mapping[str, int]) -> set[str]:
        """What a rank does not find, of all keys but those of damaged media."""
        here = patches.keys() - self._chunks.open(patches) - self._damaged.keys()
        return set[str]().union(*self._ranks.gather(sorted(here)))

    def _check_space(self, patches: int) -> None:
        needed = patches * self._model.encoder.width * self._dtype.itemsize
        for problem in self._ranks.gather(self._chunks.check_space(needed, self._limit_gb) if needed else ""):
            if problem:
                raise FeatureCacheError(problem)

    def _compute(
        self,
        mine: Mapping[str, int],
        samples: Sequence[Sample],
        seen_of: Callable[[Sample], Iterable[Seen]],
        on_progress: Progress,
    ) -> None:
        """Encode media of some samples, by their keys, and write them chunk by chunk."""
        rows: dict[str, Tensor] = {}
        size, began = 0, time.perf_counter()
        for encoded in self._batches(mine, samples, seen_of, on_progress):
            rows |= encoded
            size += sum(row.nbytes for row in encoded.values())
            seconds = time.perf_counter() - began
            if size >= feature_chunks.CHUNK_BYTES or seconds >= feature_chunks.CHUNK_SECONDS:
                self._chunks.write(rows, seconds)
                rows, size, began = {}, 0, time.perf_counter()
        if rows:
            self._chunks.write(rows, time.perf_counter() - began)

    def _batches(
        self,
        mine: Mapping[str, int],
        samples: Sequence[Sample],
        seen_of: Callable[[Sample], Iterable[Seen]],
        on_progress: Progress,
    ) -> Iterator[dict[str, Tensor]]:
        """Features of media, a few media at a time."""
        waiting: dict[str, Seen] = {}
        size = 0
        left = set(mine)
        numbers = sorted(set(mine.values()))
        for done, number in enumerate(numbers, start=1):
            for pair in seen_of(samples[number]):
                key = self._key(pair)
                if key not in left:
                    continue
                if waiting and size + pair[1].bytes > BATCH_BYTES:
                    yield self._encode(waiting)
                    waiting, size = {}, 0
                left.remove(key)
                waiting[key] = pair
                size += pair[1].bytes
            on_progress(done, len(numbers))
        yield self._encode(waiting)

    def _encode(self, seen: Mapping[str, Seen]) -> dict[str, Tensor]:
        pixels: dict[str, np.ndarray] = {}
        for key, pair in seen.items():
            try:
                pixels[key] = medium_pixels(*pair, self._preparation).reshape(-1)
            except DamagedError as error:
                self._damaged[key] = str(error)
        if not pixels:
            return {}
        layouts = [seen[key][1] for key in pixels]
        pixels_X = torch.from_numpy(np.concatenate(list(pixels.values()))).to(self._model.device)
        with torch.no_grad(), self._model.computing():
            features_PC = self._model.encoder(pixels_X, layouts)
        rows = features_PC.to(self._dtype).cpu().split([layout.patches for layout in layouts])
        return dict(zip(pixels, (row.clone() for row in rows), strict=True))

    def _key(self, pair: Seen) -> str:
        """What decides the features: the medium's bytes, and what is cut from it; the folder's name has the rest."""
        medium, layout = pair
        return sha256_bytes(
            f"{self._digest(medium)} {layout.frames} x {layout.canvas} in tiles {layout.tiles}".encode()
        )[:32]

    def _digest(self, medium: Medium) -> str:
        if isinstance(medium, Picture) and medium.data is not None:  # keeping it would keep its bytes
            return medium_digest(medium)
        if medium not in self._digests:
            self._digests[medium] = medium_digest(medium)
        return self._digests[medium]


def one(pair: Seen) -> tuple[Seen]:
    """What there is to see where a sample is nothing but a medium."""
    return (pair,)


def _tensor_digest(tensor: Tensor) -> str:
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    # bfloat16 has no numpy twin; its bytes do.
    return sha256_bytes(whole.cpu().contiguous().view(torch.uint8).numpy().tobytes())
