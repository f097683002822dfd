"""Training and held-out stamps: no caption, file-name variant or look-alike on both sides."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from opsin.core.errors import AssetError
from opsin.quickstart.captions import caption_key
from opsin.quickstart.stamps import WHITE

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping, Sequence

    from opsin.quickstart.stamps import Stamp

THUMBNAIL_SIDE = 12
LOOK_ALIKE = 4.0
"""Mean difference of two thumbnails, in grey levels, below which the pictures count as the same."""

_VARIANT_WORDS = frozenset(
    {"mirror", "mirrored", "flip", "flipped", "left", "right", "photo", "outline", "small", "large"}
)


@dataclass(frozen=True, slots=True)
class Split:
    """Two lists of stamps, both ordered by id."""

    train: tuple[Stamp, ...]
    held_out: tuple[Stamp, ...]


def split(stamps: Sequence[Stamp], num_held_out: int, rng: random.Random) -> Split:
    """Hold out about `num_held_out` stamps, each group in proportion.

    Only stamps without any relative are held out, whose caption and name are not part of another caption either: so no
    held-out text is ever trained on. Of those, the ones with a name come first; they make the better references.
    """
    if not 0 < num_held_out < len(stamps):
        raise AssetError(f"cannot hold out {num_held_out} of {len(stamps)} stamps: leave some on both sides")
    single = [family[0] for family in families(stamps) if len(family) == 1]
    candidates: dict[str, list[Stamp]] = defaultdict(list)
    for stamp in _unspoken(single, stamps):
        candidates[stamp.group].append(stamp)
    sizes: dict[str, int] = defaultdict(int)
    for stamp in stamps:
        sizes[stamp.group] += 1
    held: set[str] = set()
    for label, quota in quotas(sizes, num_held_out).items():
        rng.shuffle(candidates[label])
        best = sorted(candidates[label], key=lambda stamp: not stamp.name)
        held.update(stamp.id for stamp in best[: min(quota, sizes[label] - 1)])
    if not held:
        raise AssetError(f"every one of the {len(stamps)} stamps has a twin, so none can be held out")
    return Split(
        tuple(stamp for stamp in stamps if stamp.id not in held), tuple(stamp for stamp in stamps if stamp.id in held)
    )


def _unspoken(candidates: Sequence[Stamp], stamps: Sequence[Stamp]) -> list[Stamp]:
    """The candidates whose caption and name occur in nobody else's caption ("a pig" does, in "a Tamworth pig")."""
    spoken = {stamp.id: f" {caption_key(stamp.caption)} " for stamp in stamps}
    return [
        stamp
        for stamp in candidates
        if not any(
            f" {key} " in text
            for kind, key in _keys(stamp)
            if kind == "text"
            for other, text in spoken.items()
            if other != stamp.id
        )
    ]


def quotas(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Share `total` among groups in proportion to their sizes (largest remainder), at least one if there are two."""
    shares = {label: size * total / sum(sizes.values()) for label, size in sizes.items()}
    quota = {label: max(int(share), int(sizes[label] > 1)) for label, share in shares.items()}
    by_remainder = sorted(shares, key=lambda label: (quota[label] - shares[label], label))
    for label in by_remainder[: max(0, total - sum(quota.values()))]:
        quota[label] += 1
    return quota


def families(stamps: Sequence[Stamp]) -> list[list[Stamp]]:
    """Group the stamps that share a caption, a name or a file name but for variants, or that look alike."""
    parent = list(range(len(stamps)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, stamp in enumerate(stamps):
        for key in _keys(stamp):
            parent[root(index)] = root(first.setdefault(key, index))
    for a, b in look_alikes(stamps):
        parent[root(a)] = root(b)
    members: dict[int, list[Stamp]] = defaultdict(list)
    for index, stamp in enumerate(stamps):
        members[root(index)].append(stamp)
    return list(members.values())


def stem_key(identity: str) -> str:
    """The file name without numbers, single letters and words for variants: `Candy_cane_photo_2` -> `candycane`."""
    stem = identity.rsplit("/", 1)[-1].lower()
    words = [word for word in re.split(r"[\W_\d]+", stem) if len(word) > 1 and word not in _VARIANT_WORDS]
    return "".join(words) or stem


def look_alikes(stamps: Sequence[Stamp]) -> list[tuple[int, int]]:
    """Pairs of indices whose thumbnails, or one and the mirror image of the other, hardly differ."""
    thumbnails_SK = np.stack([_thumbnail(stamp) for stamp in stamps])
    mirrored_SK = thumbnails_SK[:, :, ::-1]
    pairs: list[tuple[int, int]] = []
    for index in range(1, len(stamps)):
        for others_SK in (thumbnails_SK, mirrored_SK):
            difference_S = np.abs(others_SK[:index] - thumbnails_SK[index]).mean(axis=(1, 2, 3))
            pairs.extend((int(other), index) for other in np.flatnonzero(difference_S < LOOK_ALIKE))
    return pairs


def _keys(stamp: Stamp) -> list[tuple[str, str]]:
    keys = [("text", caption_key(stamp.caption)), ("stem", stem_key(stamp.id))]
    return [*keys, ("text", caption_key(stamp.name))] if stamp.name else keys


def _thumbnail(stamp: Stamp) -> np.ndarray:
    cutout = stamp.open()
    canvas = Image.new("RGB", cutout.size, WHITE)
    canvas.paste(cutout, (0, 0), cutout)
    small = canvas.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)
