"""A cheap start for a connector: point its visual tokens at the embeddings of their captions' words.

A connector that starts from random weights speaks noise to the language model, and the first thing that captions
teach it is what captions look like, not what the pictures show. This fits it, before step 1 of a stage and without
running the language model, so that the mean of a picture's visual tokens (less the mean embedding) points to the words
of its caption among all words of the captions: cross entropy over cosines, words weighted by inverse document
frequency, and every token's length kept near that of real embeddings. It takes seconds where a pass of the language
model takes minutes; what it is worth on the quick start's pictures is in docs/performance.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's usual name)

from opsin.core.errors import DamagedError, TrainError
from opsin.core.types import Example, Layout
from opsin.data.collate import Features
from opsin.model.vlm import Vlm
from opsin.train.optimiser import rate_factor
from opsin.train.recipe import WarmStart

BATCH = 64
TEMPERATURE = 0.07
RISING = 0.05
"""Share of the steps over which the rate rises."""


@dataclass(frozen=True, slots=True)
class WarmStarted:
    """What the warm start did: pictures it used and the mean loss of its first and last epoch."""

    pictures: int
    first: float
    last: float


@dataclass(frozen=True)
class Captioned:
    """Pictures, as features (P, C) each, with the words of their captions.

    `words_GW` rows sum to 1 over the vocabulary `directions_WD`.

    Directions are taken from the mean of the captions' own words, so that what all of them share does not count.
    """

    layouts: tuple[Layout, ...]
    features: tuple[Tensor, ...]
    words_GW: Tensor
    directions_WD: Tensor


def warm_start(
    model: Vlm, examples: Iterable[Example], features: Features, settings: WarmStart, seed: int
) -> WarmStarted:
    """Fit the connector in place. Samples whose picture is damaged are left out, as they are of the steps.

    Raises:
        TrainError: no sample has one picture and words that tell it from the others, or the model does not splice.
    """
    if not model.config.spliced:
        raise TrainError(
            "warm_start points visual tokens at words, but under fusion gated_cross_attention they never stand among "
            "words; remove it from the stage"
        )
    embeddings_VD = model.decoder.input_weight.detach().float()
    data = _captioned(examples, features, embeddings_VD)
    centre_D, length = embeddings_VD.mean(0), embeddings_VD.norm(dim=1).mean()
    optimiser = torch.optim.AdamW(model.connection.parameters(), lr=settings.lr, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    count = len(data.words_GW)
    steps, step = settings.epochs * math.ceil(count / BATCH), 0
    epochs = []
    for _ in range(settings.epochs):
        total = 0.0
        for rows in torch.randperm(count, generator=generator).split(BATCH):  # type: ignore[no-untyped-call]
            optimiser.param_groups[0]["lr"] = settings.lr * rate_factor(step, steps, math.ceil(RISING * steps))
            visual_ND, means_GD = _tokens(model, data, rows.tolist(), centre_D)
            cosines_GW = F.normalize(means_GD, dim=-1) @ data.directions_WD.T
            loss = -(data.words_GW[rows].to(model.device) * (cosines_GW / TEMPERATURE).log_softmax(-1)).sum(-1).mean()
            stretch = (visual_ND.norm(dim=-1) / length - 1).square().mean()
            (loss + stretch).backward()
            nn.utils.clip_grad_norm_(model.connection.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            total += loss.item() * len(rows)
            step += 1
        epochs.append(total / count)
    return WarmStarted(pictures=count, first=epochs[0], last=epochs[-1])


def _tokens(model: Vlm, data: Captioned, rows: Sequence[int], centre_D: Tensor) -> tuple[Tensor, Tensor]:
    """Visual tokens (N, D) of some pictures, less the centre, and their mean for each picture (G, D)."""
    layouts = [data.layouts[row] for row in rows]
    features_PC = torch.cat([data.features[row] for row in rows]).float().to(model.device)
    visual_ND = model.connection(features_PC, layouts) - centre_D
    means = [part.mean(0) for part in visual_ND.split([layout.tokens for layout in layouts])]
    return visual_ND, torch.stack(means)


def _pictured(examples: Iterable[Example], features: Features) -> Iterator[tuple[Layout, Tensor, set[int]]]:
    """Layout, features (P, C) and learned words of every sample of one medium."""
    for example in examples:
        if len(example.media) == 1:
            with suppress(DamagedError):
                words = set(example.tokens_T[example.supervised_T].tolist())
                yield example.layouts[0], features.get(example.seen), words


def _captioned(examples: Iterable[Example], features: Features, embeddings_VD: Tensor) -> Captioned:
    captions = list(_pictured(examples, features))
    in_captions = Counter(word for *_, words in captions for word in words)
    # A word of every caption (the article, the final mark) tells nothing: its weight is log(1) = 0.
    weights = {word: math.log(len(captions) / n) for word, n in in_captions.items() if n < len(captions)}
    usable = [(layout, rows, words & weights.keys()) for layout, rows, words in captions if words & weights.keys()]
    if not usable:
        raise TrainError("warm_start: no sample has one picture and words of its own; it needs captions that differ")
    vocabulary = {word: column for column, word in enumerate(sorted(weights))}
    words_GW = torch.zeros(len(usable), len(vocabulary))
    for row, (*_, words) in enumerate(usable):
        for word in words:
            words_GW[row, vocabulary[word]] = weights[word]
    directions_WD = embeddings_VD[sorted(weights)] - embeddings_VD[sorted(weights)].mean(0)
    return Captioned(
        layouts=tuple(layout for layout, _, _ in usable),
        features=tuple(rows for _, rows, _ in usable),
        words_GW=words_GW / words_GW.sum(1, keepdim=True),
        directions_WD=F.normalize(directions_WD, dim=1),
    )
