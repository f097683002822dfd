from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from opsin.core.errors import DataError, PictureError
from opsin.core.types import IGNORE_INDEX, Conversation, Picture, Turn
from opsin.data.collate import collate, medium_pixels
from opsin.data.example import Preparation, Seen, make_example
from opsin.data.user_turn import user_turn
from tests.support.models import dialogue, draw_picture, examples_of, tiny_vlm


@pytest.fixture
def prepare(tmp_path: Path) -> Preparation:
    return tiny_vlm(tmp_path)[1]


@pytest.fixture
def conversations(tmp_path: Path) -> list[Conversation]:
    pictures = [Picture(path=draw_picture(tmp_path / f"{n}.png", n)) for n in range(3)]
    return [
        dialogue("a", "What?", "A cat.", pictures[:1]),
        dialogue("b", "Hello?", "Hi, how are you."),
        dialogue("c", "Both?", "Yes.", pictures[1:]),
    ]


def test_a_pack_is_its_documents_one_after_the_other(prepare: Preparation, conversations: list[Conversation]) -> None:
    examples = examples_of(conversations, prepare)
    batch = collate(examples, prepare)
    assert batch.ids == ("a", "b", "c")
    assert batch.lengths == tuple(example.num_tokens for example in examples)
    assert batch.num_tokens == len(batch.tokens_T) == len(batch.targets_T) == batch.positions_AT.shape[1]
    assert batch.tokens_T.tolist() == [int(t) for example in examples for t in example.tokens_T]
    assert batch.positions_AT.tolist() == [[p for length in batch.lengths for p in range(length)]]
    assert batch.visual_N.tolist() == np.flatnonzero(np.concatenate([e.visual_T for e in examples])).tolist()
    assert len(batch.visual_N) == sum(layout.tokens for layout in batch.layouts) == 12


def test_a_target_is_the_next_token_and_never_of_another_document(
    prepare: Preparation, conversations: list[Conversation]
) -> None:
    examples = examples_of(conversations, prepare)
    batch = collate(examples, prepare)
    start = 0
    for example in examples:
        targets = batch.targets_T[start : start + example.num_tokens].tolist()
        assert targets[-1] == IGNORE_INDEX
        for at, target in enumerate(targets[:-1]):
            expected = int(example.tokens_T[at + 1]) if example.supervised_T[at + 1] else IGNORE_INDEX
            assert target == expected
        start += example.num_tokens
    learned = batch.targets_T[batch.targets_T != IGNORE_INDEX].tolist()
    assert len(learned) == sum(example.num_supervised for example in examples)
    assert prepare.tokenizer.decode(learned, keep_control=True) == (
        "A cat.<|im_end|>Hi, how are you.<|im_end|>Yes.<|im_end|>"
    )


def test_a_document_that_begins_with_a_learned_token_is_not_predicted_by_the_one_before(
    prepare: Preparation, conversations: list[Conversation]
) -> None:
    first, second = examples_of(conversations[1:2] * 2, prepare)
    all_learned = np.ones_like(second.supervised_T)
    second = replace(second, supervised_T=all_learned)
    batch = collate([first, second], prepare)
    assert batch.targets_T[first.num_tokens - 1] == IGNORE_INDEX
    assert (batch.targets_T != IGNORE_INDEX).sum() == first.num_supervised + second.num_supervised


def test_pixels_are_those_of_the_pictures_in_order(prepare: Preparation, conversations: list[Conversation]) -> None:
    batch = collate(examples_of(conversations, prepare), prepare)
    assert batch.pixels_X is not None
    assert batch.pixels_X.dtype == torch.uint8
    seen = [pair for example in examples_of(conversations, prepare) for pair in example.seen]
    expected = np.stack([medium_pixels(*pair, prepare) for pair in seen])
    assert np.array_equal(batch.pixels_X.numpy(), expected.flatten())


def test_a_batch_of_text_has_no_pixels(prepare: Preparation, conversations: list[Conversation]) -> None:
    batch = collate(examples_of(conversations[1:2], prepare), prepare)
    assert batch.pixels_X is None
    assert batch.features_PC is None
    assert len(batch.visual_N) == 0


def test_cached_features_take_the_place_of_pixels(prepare: Preparation, conversations: list[Conversation]) -> None:
    class Cached:
        def get(self, seen: Sequence[Seen]) -> torch.Tensor:
            stems = [medium.path.stem for medium, _ in seen if isinstance(medium, Picture) and medium.path]
            return torch.cat([torch.full((4, 2), float(stem)) for stem in stems])

    batch = collate(examples_of(conversations, prepare), prepare, Cached())
    assert batch.pixels_X is None
    assert batch.features_PC is not None
    assert batch.features_PC[::4, 0].tolist() == [0, 1, 2]
    assert collate(examples_of(conversations[1:2], prepare), prepare, Cached()).features_PC is None


def test_a_picture_damaged_behind_its_header_is_named_with_its_sample(prepare: Preparation, tmp_path: Path) -> None:
    path = draw_picture(tmp_path / "cut.png", 1)
    path.write_bytes(path.read_bytes()[:-40])
    turns = (user_turn("What?", [Picture(path=path)]), Turn("assistant", ("A cat.",)))
    example = make_example(Conversation("cat", turns, "data.json:4"), prepare)
    with pytest.raises(PictureError) as caught:
        collate([example], prepare)
    assert str(caught.value) == (f"data.json:4: (cat) {path}: the file is damaged or cut short; it cannot be decoded")


def test_places_that_are_not_the_pictures_are_refused_before_anything_is_run(
    prepare: Preparation, conversations: list[Conversation]
) -> None:
    good, text, _ = examples_of(conversations, prepare)
    (layout,) = good.layouts
    larger = replace(layout, blocks=(replace(layout.blocks[0], tail=1),))
    with pytest.raises(DataError, match=r"sample: \(a\) 4 places in the text for 5 visual tokens of 1 pictures; make"):
        collate([text, replace(good, layouts=(larger,))], prepare)
