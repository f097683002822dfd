"""Features of a frozen encoder, computed once: a file per (encoder weights, resolution), rows by picture bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from opsin.core.errors import OpsinError
from opsin.core.files import home, replacing, sha256_bytes, sha256_file
from opsin.core.types import Picture
from opsin.data.example import Preparation
from opsin.data.loader import picture_pixels
from opsin.model.vlm import Vlm

Progress = Callable[[int, int], None]
"""Told (pictures done, pictures to do)."""

BATCH = 16
"""Pictures encoded at a time."""


class FeatureCacheError(OpsinError):
    """A feature file that is damaged."""


def encoder_digest(model: Vlm) -> str:
    """Names the encoder's weights and everything that shapes its input."""
    facts = model.config.model_dump(mode="json", include={"encoder": True, "resolution": True})
    facts["encoder"].pop("path", None)
    facts["precision"] = model.precision
    parts = [json.dumps(facts, sort_keys=True)]
    for name, tensor in sorted(model.encoder.state_dict().items()):
        parts.append(f"{name} {_tensor_digest(tensor)}")
    return sha256_bytes("\n".join(parts).encode())


def picture_digest(picture: Picture) -> str:
    """Names a picture by its bytes."""
    return sha256_bytes(picture.data) if picture.data is not None else sha256_file(Path(picture.path or ""))


class FeatureCache:
    """Rows (P, C) in memory, loaded from and saved to one safetensors file in the cache folder."""

    def __init__(self, model: Vlm, preparation: Preparation, folder: Path | None = None) -> None:
        self._model = model
        self._preparation = preparation
        self.path = (folder or home() / "features") / f"{encoder_digest(model)[:16]}.safetensors"
        self._dtype = torch.bfloat16 if model.precision == "bf16" else torch.float32
        self._rows: dict[str, Tensor] = {}
        self._digests: dict[Picture, str] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def load(self) -> None:
        """Read what an earlier run computed.

        Raises:
            FeatureCacheError: the file is damaged.
        """
        if not self.path.exists():
            return
        try:
            with safe_open(self.path, framework="pt") as file:
                digests = json.loads(file.metadata()["pictures"])
                rows, recorded = file.get_tensor("features"), file.metadata()["sha256"]
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            raise FeatureCacheError(f"{self.path}: the feature cache is damaged (not whole)") from None
        if _tensor_digest(rows) != recorded or len(rows) != len(digests):
            raise FeatureCacheError(f"{self.path}: the feature cache is damaged (its checksum differs)")
        self._rows = dict(zip(digests, rows, strict=True))

    def load_or_forget(self, on_line: Callable[[str], None]) -> None:
        """`load`; a damaged file is named, deleted, and its features will be computed again."""
        try:
            self.load()
        except FeatureCacheError as error:
            on_line(f"{error}; computing the features again")
            self.path.unlink()

    def add(self, pictures: Iterable[Picture], on_progress: Progress = lambda _done, _all: None) -> int:
        """Compute what is not there yet and save; returns how many pictures were computed."""
        missing: dict[str, Picture] = {}
        for picture in pictures:
            digest = self._digest(picture)
            if digest not in self._rows:
                missing[digest] = picture
        todo = list(missing.items())
        for start in range(0, len(todo), BATCH):
            part = todo[start : start + BATCH]
            pixels = torch.stack([torch.from_numpy(picture_pixels(p, self._preparation)) for _, p in part])
            with torch.no_grad(), self._model.computing():
                features = self._model.encode(pixels.to(self._model.device)).to(self._dtype).cpu()
            self._rows |= {digest: row.clone() for (digest, _), row in zip(part, features, strict=True)}
            on_progress(start + len(part), len(todo))
        if todo:
            self._save()
        return len(todo)

    def get(self, pictures: Sequence[Picture]) -> Tensor:
        """Features (G, P, C) of pictures that were added before."""
        return torch.stack([self._rows[self._digest(picture)] for picture in pictures])

    def _digest(self, picture: Picture) -> str:
        if picture not in self._digests:
            self._digests[picture] = picture_digest(picture)
        return self._digests[picture]

    def _save(self) -> None:
        rows = torch.stack(list(self._rows.values()))
        metadata = {"pictures": json.dumps(list(self._rows)), "sha256": _tensor_digest(rows)}
        with replacing(self.path) as temporary:
            save_file({"features": rows}, temporary, metadata=metadata)


def _tensor_digest(tensor: Tensor) -> str:
    # bfloat16 has no numpy twin; its bytes do.
    return sha256_bytes(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
