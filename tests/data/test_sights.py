"""What each token looks at in a model with gated cross-attention: its document's latest medium, at or before it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from opsin.core.types import Batch, Conversation, Picture, Turn
from opsin.data.collate import collate
from opsin.data.example import Preparation
from opsin.model.vlm import Vlm
from tests.support.models import dialogue, draw_picture, examples_of, open_gates, packed, tiny_vlm

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.core.types import Part

TOKENS = 4
"""Visual tokens of a picture."""


@pytest.fixture
def made(tmp_path: Path) -> tuple[Vlm, Preparation]:
    model, prepare = tiny_vlm(tmp_path, fusion="gated_cross_attention")
    open_gates(model)
    return model.eval(), prepare


@pytest.fixture
def pictures(tmp_path: Path) -> list[Picture]:
    return [Picture(path=draw_picture(tmp_path / f"{n}.png", n)) for n in range(4)]


def asked(identity: str, *parts: Part) -> Conversation:
    return Conversation(identity, (Turn("user", parts), Turn("assistant", ("Yes.",))))


def moved(model: Vlm, batch: Batch, medium: int) -> list[bool]:
    """Which hidden states another picture in a medium's place moves."""
    assert batch.pixels_X is not None
    pixels = batch.pixels_X.clone()
    start = sum(layout.bytes for layout in batch.layouts[:medium])
    pixels[start : start + batch.layouts[medium].bytes] ^= 255
    with torch.no_grad():
        difference = model(batch) - model(replace(batch, pixels_X=pixels))
    return (difference.abs().amax(dim=1) > 1e-5).tolist()


def test_a_token_at_the_place_itself_already_sees_the_medium(
    made: tuple[Vlm, Preparation], pictures: list[Picture]
) -> None:
    model, prepare = made
    (example,) = examples_of([asked("a", "one", pictures[0], "two", pictures[1], "three")], prepare)
    first, second = example.places
    assert 0 < first < second < example.num_tokens
    batch = collate([example], prepare)
    assert batch.seen_T.tolist() == [-1] * first + [0] * (second - first) + [1] * (example.num_tokens - second)
    assert batch.sights == (TOKENS, TOKENS)
    assert len(batch.visual_N) == 0
    # The first token that the second picture moves is the one at its place; the first picture moves all from its own
    # on, directly or through what they attend to.
    assert moved(model, batch, 0) == [False] * first + [True] * (example.num_tokens - first)
    assert moved(model, batch, 1) == [False] * second + [True] * (example.num_tokens - second)


def test_media_at_one_place_are_seen_together(made: tuple[Vlm, Preparation], pictures: list[Picture]) -> None:
    model, prepare = made
    batch = packed([asked("a", "Both: ", pictures[0], pictures[1], "which?")], prepare)
    place = batch.seen_T.tolist().index(0)
    assert batch.sights == (2 * TOKENS,)
    assert set(batch.seen_T[place:].tolist()) == {0}
    for medium in (0, 1):
        assert moved(model, batch, medium) == [False] * place + [True] * (batch.num_tokens - place)


def test_media_at_the_very_beginning_and_at_the_end(made: tuple[Vlm, Preparation], pictures: list[Picture]) -> None:
    (example,) = examples_of([asked("a", pictures[0], "x")], made[1])
    at_start = replace(example, places=(0,))
    assert set(collate([at_start], made[1]).seen_T.tolist()) == {0}
    at_end = replace(example, places=(example.num_tokens,))
    batch = collate([at_end, at_start], made[1])
    assert batch.seen_T.tolist() == [-1] * example.num_tokens + [1] * example.num_tokens
    assert batch.sights == (TOKENS, TOKENS)


def test_a_document_sees_nothing_of_another(made: tuple[Vlm, Preparation], pictures: list[Picture]) -> None:
    model, prepare = made
    conversations = [
        asked("a", pictures[0], "x"),
        dialogue("b", "Hello?", "Hi."),
        asked("c", "First ", pictures[1], pictures[2], " then ", pictures[3]),
    ]
    batch = packed(conversations, prepare)
    documents = batch.seen_T.split(batch.lengths)
    assert [sorted(set(seen.tolist())) for seen in documents] == [[-1, 0], [-1], [-1, 1, 2]]
    assert batch.sights == (TOKENS, 2 * TOKENS, TOKENS)
    for medium, document in enumerate([0, 2, 2, 2]):
        touched = torch.tensor(moved(model, batch, medium)).split(batch.lengths)
        assert [bool(one.any()) for one in touched] == [index == document for index in range(3)]


def test_text_alone_sees_nothing(made: tuple[Vlm, Preparation]) -> None:
    batch = packed([dialogue("a", "Hello?", "Hi."), dialogue("b", "Hello?", "Hi.")], made[1])
    assert set(batch.seen_T.tolist()) == {-1}
    assert batch.sights == ()
