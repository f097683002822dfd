"""Features of a frozen encoder, computed once: a file per (encoder weights, resolution), rows by a medium's bytes and
its layout (the same picture is cut in another way when it is one of several).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from opsin.core.errors import DamagedError, OpsinError
from opsin.core.files import home, replacing, sha256_bytes, sha256_file
from opsin.core.types import Clip, Medium, Picture
from opsin.data.collate import medium_pixels
from opsin.data.example import Preparation, Seen
from opsin.model.vlm import Vlm
from opsin.vision.picture import picture_bytes
from opsin.vision.resolution import Resolution

Item = TypeVar("Item")
Progress = Callable[[int, int], None]
"""Told (done, to do)."""

BATCH_BYTES = 16 * 3 * 384 * 384
"""Pixels decoded and encoded at a time, at least one medium."""


class FeatureCacheError(OpsinError):
    """A feature file that is damaged."""


def encoder_digest(model: Vlm, resolution: Resolution) -> str:
    """Names the encoder's weights and everything that shapes its input."""
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


class FeatureCache:
    """Features (P, C) of each medium in memory, loaded from and saved to one safetensors file in the cache folder."""

    def __init__(self, model: Vlm, preparation: Preparation, folder: Path | None = None) -> None:
        self._model = model
        self._preparation = preparation
        self.path = (
            folder or home() / "features"
        ) / f"{encoder_digest(model, preparation.resolution)[:16]}.safetensors"
        self._dtype = torch.bfloat16 if model.precision == "bf16" else torch.float32
        self._rows: dict[str, Tensor] = {}
        self._damaged: dict[str, str] = {}
        self._digests: dict[Medium, str] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def damaged(self) -> int:
        """Media that `add` could not decode."""
        return len(self._damaged)

    def load(self) -> None:
        """Read what an earlier run computed.

        Raises:
            FeatureCacheError: the file is damaged.
        """
        if not self.path.exists():
            return
        try:
            with safe_open(self.path, framework="pt") as file:
                lengths: dict[str, int] = json.loads(file.metadata()["media"])
                features_PC, recorded = file.get_tensor("features"), file.metadata()["sha256"]
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            raise FeatureCacheError(f"{self.path}: the feature cache is damaged (not whole)") from None
        if _tensor_digest(features_PC) != recorded or len(features_PC) != sum(lengths.values()):
            raise FeatureCacheError(f"{self.path}: the feature cache is damaged (its checksum differs)")
        self._rows = dict(zip(lengths, features_PC.split(list(lengths.values())), strict=True))

    def load_or_forget(self, on_line: Callable[[str], None]) -> None:
        """`load`; a damaged file is named, deleted, and its features will be computed again."""
        try:
            self.load()
        except FeatureCacheError as error:
            on_line(f"{error}; computing the features again")
            self.path.unlink()

    def add(self, seen: Iterable[Seen]) -> int:
        """Compute what is not there yet and save; returns how many media were computed.

        Media are taken one after the other, and none is kept. Those that are damaged are told by `get`, to whom needs
        them.
        """
        before, size = len(self), 0
        missing: dict[str, Seen] = {}
        for pair in seen:
            key = self._key(pair)
            if key in self._rows or key in self._damaged or key in missing:
                continue
            if missing and size + pair[1].bytes > BATCH_BYTES:
                self._encode(missing)
                missing, size = {}, 0
            missing[key] = pair
            size += pair[1].bytes
        self._encode(missing)
        if len(self) > before:
            self._save()
        return len(self) - before

    def get(self, seen: Sequence[Seen]) -> Tensor:
        """Features (P, C) of media, one after the other, that were added before.

        Raises:
            DamagedError: one of them cannot be decoded.
        """
        keys = [self._key(pair) for pair in seen]
        for key in keys:
            if key in self._damaged:
                raise DamagedError(self._damaged[key])
        return torch.cat([self._rows[key] for key in keys])

    def _encode(self, seen: Mapping[str, Seen]) -> None:
        pixels: dict[str, np.ndarray] = {}
        for key, pair in seen.items():
            try:
                pixels[key] = medium_pixels(*pair, self._preparation).reshape(-1)
            except DamagedError as error:
                self._damaged[key] = str(error)
        if not pixels:
            return
        layouts = [seen[key][1] for key in pixels]
        pixels_X = torch.from_numpy(np.concatenate(list(pixels.values()))).to(self._model.device)
        with torch.no_grad(), self._model.computing():
            features_PC = self._model.encoder(pixels_X, layouts)
        rows = features_PC.to(self._dtype).cpu().split([layout.patches for layout in layouts])
        self._rows |= {key: row.clone() for key, row in zip(pixels, rows, strict=True)}

    def _key(self, pair: Seen) -> str:
        """What decides the features: the medium's bytes, and what is cut from it (the file's name has all the rest)."""
        medium, layout = pair
        return f"{self._digest(medium)} {layout.frames} x {layout.canvas} in tiles {layout.tiles}"

    def _digest(self, medium: Medium) -> str:
        if isinstance(medium, Picture) and medium.data is not None:  # keeping it would keep its bytes
            return medium_digest(medium)
        if medium not in self._digests:
            self._digests[medium] = medium_digest(medium)
        return self._digests[medium]

    def _save(self) -> None:
        features_PC = torch.cat(list(self._rows.values()))
        lengths = {key: len(row) for key, row in self._rows.items()}
        metadata = {"media": json.dumps(lengths), "sha256": _tensor_digest(features_PC)}
        with replacing(self.path) as temporary:
            save_file({"features": features_PC}, temporary, metadata=metadata)


def telling(items: Sequence[Item], on_progress: Progress) -> Iterator[Item]:
    """The items, each told when the next one is asked for."""
    for done, item in enumerate(items, start=1):
        yield item
        on_progress(done, len(items))


def _tensor_digest(tensor: Tensor) -> str:
    # bfloat16 has no numpy twin; its bytes do.
    return sha256_bytes(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
