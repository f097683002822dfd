"""Examples -> Batch: the pack's numbers laid out flat, and its pixels opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opsin.core.errors import DamagedError, DataError, PictureError, VideoError
from opsin.core.types import IGNORE_INDEX, Batch, Clip, Example, Layout, Medium
from opsin.data.example import Preparation, Seen
from opsin.vision.picture import open_picture
from opsin.vision.video import read_frames

TENSORS = ("tokens_T", "targets_T", "positions_AT", "visual_N", "seen_T", "pixels_X", "features_PC")
"""Fields of a batch that are tensors; the last two may be None."""

NOTHING = np.empty(0, dtype=np.int64)
"""What stands before the first document, so that a pack of none can be laid out too."""


class Features(Protocol):
    """Cached features of a frozen encoder."""

    def get(self, seen: Sequence[Seen]) -> Tensor:
        """Features (P, C) of media, one after the other, that were computed before.

        Raises:
            DamagedError: those of a medium could not be computed.
        """
        ...


def medium_pixels(medium: Medium, layout: Layout, preparation: Preparation) -> np.ndarray:
    """Decode one medium to what the encoder takes: uint8 (frames, 3, *canvas).

    Raises:
        DamagedError: it cannot be decoded.
        PictureError, VideoError: it cannot be read, or is not what the layout was made for.
    """
    return preparation.resolution.pixels(_images(medium, layout), layout, preparation.mean)


def _images(medium: Medium, layout: Layout) -> Iterator[Image.Image]:
    """The pictures of a medium, one in memory at a time."""
    if isinstance(medium, Clip) and medium.path is not None:  # whose frames can be of several sizes
        yield from (image for _, image in read_frames(medium.path, medium.taken or ()))
        return
    for picture in medium.frames if isinstance(medium, Clip) else (medium,):
        image = open_picture(picture)
        if (image.height, image.width) != layout.source:
            height, width = layout.source
            raise PictureError(
                f"{picture.name}: changed while it was read ({width}x{height} pixels (WxH), now {image.width}x"
                f"{image.height}); start again when it is at rest"
            )
        yield image


def collate(
    examples: Sequence[Example],
    preparation: Preparation,
    features: Features | None = None,
    *,
    opening: Callable[[int], None] | None = None,
    skip_bad: bool = False,
) -> Batch:
    """Lay examples out as one flat pack; `opening` is told the place of each example before its media are decoded.

    With `skip_bad`, examples with a medium that is damaged are left out, each named in the batch's `skipped`.

    Raises:
        DamagedError: a medium cannot be decoded, unless `skip_bad`.
        OpsinError: a medium cannot be read or is another one by now, or the places of an example are not those of its
            layouts; the sample is named.
    """
    kept: list[Example] = []
    places: list[int] = []
    opened: list[Tensor] = []
    skipped: list[str] = []
    for place, example in enumerate(examples):
        _check_places(example, preparation)
        if opening is not None:
            opening(place)
        try:
            opened += _opened(example, preparation, features)
            kept.append(example)
            places.append(place)
        except DamagedError as error:
            if not skip_bad:
                raise
            skipped.append(str(error))
    seen_T, sights = _sights(kept)
    visual_X = torch.cat(opened) if opened else None
    return Batch(
        tokens_T=torch.from_numpy(np.concatenate([NOTHING, *(example.tokens_T for example in kept)])),
        targets_T=torch.from_numpy(np.concatenate([NOTHING, *map(_targets, kept)])),
        positions_AT=torch.from_numpy(
            np.concatenate([preparation.positions.ids(0, []), *(example.positions_AT for example in kept)], axis=1)
        ),
        lengths=tuple(example.num_tokens for example in kept),
        visual_N=torch.from_numpy(np.flatnonzero(np.concatenate([NOTHING, *(example.visual_T for example in kept)]))),
        seen_T=torch.from_numpy(seen_T),
        sights=sights,
        layouts=tuple(layout for example in kept for layout in example.layouts),
        ids=tuple(example.id for example in kept),
        pixels_X=visual_X if features is None else None,
        features_PC=None if features is None else visual_X,
        kept=tuple(places),
        skipped=tuple(skipped),
    )


def _check_places(example: Example, preparation: Preparation) -> None:
    places, tokens = int(example.visual_T.sum()), sum(layout.tokens for layout in example.layouts)
    if places != (tokens if preparation.spliced else 0):
        raise DataError(
            [
                f"{example.name} {places} places in the text for {tokens} visual tokens "
                f"of {len(example.layouts)} pictures; make the example with the model's own preparation"
            ]
        )


def _targets(example: Example) -> np.ndarray:
    """The next token where it is supervised; the last position of a document predicts nothing."""
    targets = np.full(example.num_tokens, IGNORE_INDEX, dtype=np.int64)
    learned = np.flatnonzero(example.supervised_T[1:])
    targets[learned] = example.tokens_T[learned + 1]
    return targets


def _sights(examples: Sequence[Example]) -> tuple[np.ndarray, tuple[int, ...]]:
    """For every token of the pack the latest sight of its document at or before it, and every sight's visual tokens.

    Media that stand at one place are one sight: no token stands between them that could see the first alone.
    """
    rows = [NOTHING]
    sights: list[int] = []
    for example in examples:
        at: dict[int, int] = {}
        for place, layout in zip(example.places, example.layouts, strict=True):
            at[place] = at.get(place, 0) + layout.tokens
        passed = np.searchsorted(list(at), np.arange(example.num_tokens), side="right")
        rows.append(np.where(passed > 0, len(sights) + passed - 1, -1))
        sights += at.values()
    return np.concatenate(rows).astype(np.int64), tuple(sights)


def _opened(example: Example, preparation: Preparation, features: Features | None) -> list[Tensor]:
    """The bytes of every medium, in reading order, or what is cached of them.

    Raises:
        DamagedError, PictureError, VideoError: a medium cannot be decoded, or not be read; the sample is named.
    """
    if not example.seen:
        return []
    try:
        if features is not None:
            return [features.get(example.seen)]
        return [torch.from_numpy(medium_pixels(*pair, preparation).reshape(-1)) for pair in example.seen]
    except (DamagedError, PictureError, VideoError) as error:
        raise type(error)(f"{example.name} {error}") from None


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device.

    They reach a GPU through page-locked memory, from which they are copied while it still works at the pack before, and
    this process prepares the next. (A worker's memory cannot be locked; torch keeps what is, until it is copied.)
    """
    if device.type == "cpu":
        return batch
    tensors = {name: value for name in TENSORS if (value := getattr(batch, name)) is not None}
    return replace(batch, **{name: x.pin_memory().to(device, non_blocking=True) for name, x in tensors.items()})
