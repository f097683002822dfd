"""Generation by a model that looks at pictures by cross-attention: rows that end, copies of rows, rows without any."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from opsin.core.types import Batch, Conversation, Picture, Turn
from opsin.data.collate import collate
from opsin.data.example import make_example
from opsin.data.user_turn import user_turn
from opsin.model.generate import Sampling, extend, generate, prefill, score, stream
from opsin.model.vlm import Vlm
from tests.support.models import appended, draw_picture, open_gates, tiny_vlm

if TYPE_CHECKING:
    from pathlib import Path

NEVER: frozenset[int] = frozenset()
LAST_SIGHT = {0: 0, 2: 2, 3: 3, 4: 4}
"""Of the rows that end with one: the sight that their new tokens see."""


@dataclass(frozen=True)
class Made:
    """Prompts with one picture, with none, with two at two places, with two at one place, and one of another size."""

    model: Vlm
    alone: list[Batch]
    together: Batch


@pytest.fixture
def made(tmp_path: Path) -> Made:
    model, prepare = tiny_vlm(tmp_path, fusion="gated_cross_attention", encoder="native_vit", resolution="native")
    open_gates(model)
    model.eval()
    sizes = [(40, 30), (33, 90), (50, 50), (70, 40), (64, 64), (90, 32)]
    pictures = [Picture(path=draw_picture(tmp_path / f"{n}.png", n, size)) for n, size in enumerate(sizes)]
    turns = [
        user_turn("What is in this picture?", pictures[:1]),
        user_turn("Hi?"),
        Turn("user", (pictures[1], "is one, and another is", pictures[2], "here.")),
        Turn("user", (*pictures[3:5], "Both?")),
        user_turn("And this?", pictures[5:]),
    ]
    examples = [
        make_example(Conversation(str(n), (turn,)), prepare, open_for_generation=True) for n, turn in enumerate(turns)
    ]
    return Made(model, [collate([example], prepare) for example in examples], collate(examples, prepare))


@torch.no_grad()
def logits_of(model: Vlm, prompt: Batch, tokens: list[int]) -> torch.Tensor:
    """Logits (T + new, V) of one prompt and tokens behind it, without a cache."""
    return model.decoder.logits(model(appended(prompt, tokens)))


def test_the_prompts_have_the_sights_that_they_should(made: Made) -> None:
    assert [len(prompt.sights) for prompt in made.alone] == [1, 0, 2, 1, 1]
    ends = torch.tensor(made.together.lengths).cumsum(0) - 1
    assert made.together.seen_T[ends].tolist() == [0, -1, 2, 3, 4]
    assert len(set(made.together.sights)) > 2  # of several sizes


def test_every_row_answers_as_it_does_alone_and_without_a_cache(made: Made) -> None:
    sampling = Sampling(max_new_tokens=8)
    answers = generate(made.model, made.together, sampling, NEVER)
    assert answers == [generate(made.model, prompt, sampling, NEVER)[0] for prompt in made.alone]
    for prompt, answer in zip(made.alone, answers, strict=True):
        whole = logits_of(made.model, prompt, answer)[prompt.num_tokens - 1 : -1]
        assert whole.argmax(-1).tolist() == answer
    assert len({tuple(answer) for answer in answers}) > 1


def test_rows_that_end_at_different_times_leave_the_others_as_they_were(made: Made) -> None:
    sampling = Sampling(max_new_tokens=8)
    free = generate(made.model, made.together, sampling, NEVER)
    ended: set[int] = set()
    for stop in sorted({token for answer in free for token in answer}):
        expected = [answer[: answer.index(stop)] if stop in answer else answer for answer in free]
        assert generate(made.model, made.together, sampling, frozenset({stop})) == expected
        ended |= {len(answer) for answer in expected}
    assert len(ended) > 3


@pytest.mark.parametrize("kept", [[0, 2, 4], [4], [1], [1, 3], [2, 3], [3, 1, 0]])
def test_rows_that_are_kept_see_what_they_saw_and_nothing_else_is_held(made: Made, kept: list[int]) -> None:
    tokens_BS = torch.arange(20, 20 + 2 * len(made.alone)).view(-1, 2)
    rows, _ = prefill(made.model, made.together, extra=2)
    # The row with two places goes on from the second: the sight of its first picture is needed by nobody.
    assert rows.sights is not None
    assert rows.sights.counts == tuple(made.together.sights[i] for i in LAST_SIGHT.values())
    hidden = extend(made.model, rows, tokens_BS[:, :1])
    rows.advance(1)
    rows.keep(torch.tensor(kept))
    expected = [made.together.sights[LAST_SIGHT[row]] for row in sorted(kept) if row != 1]
    assert rows.sights.counts == tuple(expected)
    assert {len(tensor) for tensor in rows.sights.keys_values.values()} == {sum(expected)}
    after = extend(made.model, rows, tokens_BS[kept, 1:])
    for place, row in enumerate(kept):
        whole = logits_of(made.model, made.alone[row], tokens_BS[row].tolist())[-2:]
        cached = made.model.decoder.logits(torch.cat([hidden[row], after[place]]))
        torch.testing.assert_close(cached, whole, atol=1e-4, rtol=0)


def test_scores_of_several_prompts_are_those_of_each_alone_and_without_a_cache(made: Made) -> None:
    continuations = [[5], [7, 300, 12, 9], [44, 3], [5, 6]]
    scores = score(made.model, made.together, continuations)
    alone = torch.cat([score(made.model, prompt, continuations) for prompt in made.alone])
    torch.testing.assert_close(scores, alone, atol=1e-4, rtol=1e-5)
    for row, prompt in enumerate(made.alone):
        for column, ids in enumerate(continuations):
            logits = logits_of(made.model, prompt, ids)[prompt.num_tokens - 1 : -1]
            expected = torch.log_softmax(logits, dim=-1)[torch.arange(len(ids)), ids].sum()
            torch.testing.assert_close(scores[row, column], expected, atol=1e-4, rtol=1e-5)


def test_media_are_projected_once_however_many_tokens_follow(made: Made) -> None:
    calls: Counter[str] = Counter()
    gated = made.model.connection.gated
    assert gated is not None
    for layer, block in gated.blocks.items():

        def note(_module: Any, inputs: tuple[torch.Tensor], _output: Any, layer: str = layer) -> None:
            assert len(inputs[0]) == sum(made.together.sights)
            calls[layer] += 1

        block.key_value.register_forward_hook(note)
    assert len(list(stream(made.model, made.together, Sampling(max_new_tokens=6), NEVER))) == 6
    assert calls == dict.fromkeys(gated.blocks, 1)
    score(made.model, made.together, [[1], [2, 3]])
    assert calls == dict.fromkeys(gated.blocks, 2)


def test_the_picture_reaches_every_generated_token(made: Made) -> None:
    """Inverting the pixels of one prompt moves its own logits, and no other's."""
    pixels = made.together.pixels_X
    assert pixels is not None
    sizes = [sum(layout.bytes for layout in prompt.layouts) for prompt in made.alone]
    tokens = torch.full((len(made.alone), 1), 9)
    rows, _ = prefill(made.model, made.together, extra=1)
    before = extend(made.model, rows, tokens)
    for row, size in enumerate(sizes):
        inverted = pixels.clone()
        inverted[sum(sizes[:row]) : sum(sizes[:row]) + size] ^= 255
        others, _ = prefill(made.model, replace(made.together, pixels_X=inverted), extra=1)
        moved = (extend(made.model, others, tokens) - before).abs().amax(dim=(1, 2)) > 1e-5
        assert moved.tolist() == [other == row and size > 0 for other in range(len(sizes))]
