"""Examples -> Batch: the pack's numbers laid out flat, and its pixels opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from opsin.core.errors import OpsinError
from opsin.core.types import IGNORE_INDEX, Batch, Example, Picture
from opsin.data.example import Preparation
from opsin.vision.picture import open_picture


class Features(Protocol):
    """Cached features of a frozen encoder."""

    def get(self, pictures: Sequence[Picture]) -> Tensor:
        """Features (G, P, C) of pictures that were computed before."""
        ...


def picture_pixels(picture: Picture, preparation: Preparation) -> np.ndarray:
    """Decode one picture to what the encoder takes: uint8 (3, height, width)."""
    return preparation.resolution.pixels(open_picture(picture), preparation.mean)


def collate(examples: Sequence[Example], preparation: Preparation, features: Features | None = None) -> Batch:
    """Lay examples out as one flat pack.

    Raises:
        OpsinError: a picture cannot be decoded; the message names the sample.
    """
    tokens = np.concatenate([example.tokens_T for example in examples])
    targets = np.concatenate([_targets(example) for example in examples])
    visual = np.concatenate([example.visual_T for example in examples])
    pictures = [picture for example in examples for picture in example.pictures]
    pixels = features_GPC = None
    if pictures and features is not None:
        features_GPC = features.get(pictures)
    elif pictures:
        pixels = torch.from_numpy(np.stack([p for example in examples for p in _pixels(example, preparation)]))
    return Batch(
        tokens_T=torch.from_numpy(tokens),
        targets_T=torch.from_numpy(targets),
        positions_T=torch.cat([torch.arange(example.num_tokens) for example in examples]),
        lengths=tuple(example.num_tokens for example in examples),
        visual_N=torch.from_numpy(np.flatnonzero(visual)),
        layouts=tuple(layout for example in examples for layout in example.layouts),
        ids=tuple(example.id for example in examples),
        pixels=pixels,
        features_GPC=features_GPC,
    )


def _targets(example: Example) -> np.ndarray:
    """The next token where it is supervised; the last position of a document predicts nothing."""
    targets = np.full(example.num_tokens, IGNORE_INDEX, dtype=np.int64)
    learned = np.flatnonzero(example.supervised_T[1:])
    targets[learned] = example.tokens_T[learned + 1]
    return targets


def _pixels(example: Example, preparation: Preparation) -> list[np.ndarray]:
    try:
        return [picture_pixels(picture, preparation) for picture in example.pictures]
    except OpsinError as error:
        raise type(error)(f"{example.where or 'sample'}: ({example.id}) {error}") from None


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    if device.type == "cpu":
        return batch
    names = ("tokens_T", "targets_T", "positions_T", "visual_N", "pixels", "features_GPC")
    moved = {name: value.to(device) for name in names if (value := getattr(batch, name)) is not None}
    return replace(batch, **moved)
