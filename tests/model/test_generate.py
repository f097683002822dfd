from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from opsin.core.types import Batch, Conversation, Picture
from opsin.data.collate import collate
from opsin.data.example import Preparation, make_example
from opsin.data.user_turn import user_turn
from opsin.model.generate import Sampling, choose, generate, score, stream
from opsin.model.vlm import Vlm
from tests.support.models import appended, draw_picture, tiny_vlm

if TYPE_CHECKING:
    from pathlib import Path

NEVER: frozenset[int] = frozenset()
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"language": "llama"},
    "mistral, window": {"language": "mistral", "sliding_window": 6},
    "qwen3 and clip": {"language": "qwen3", "encoder": "clip"},
}


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Vlm, list[Batch], Batch]:
    """A model, three prompts of different lengths with 0, 1 and 2 pictures, and the three as one batch."""
    model, prepare = tiny_vlm(tmp_path, **KINDS[request.param])
    return model, *prompts(prepare, tmp_path)


@pytest.fixture
def llama(tmp_path: Path) -> tuple[Vlm, list[Batch], Batch]:
    model, prepare = tiny_vlm(tmp_path)
    return model, *prompts(prepare, tmp_path)


def prompts(prepare: Preparation, folder: Path) -> tuple[list[Batch], Batch]:
    pictures = [Picture(path=draw_picture(folder / f"{n}.png", n)) for n in range(3)]
    turns = [user_turn("Hi?"), user_turn("What is in this picture?", pictures[:1]), user_turn("Both?", pictures[1:])]
    examples = [
        make_example(Conversation(str(n), (turn,)), prepare, open_for_generation=True) for n, turn in enumerate(turns)
    ]
    assert len({example.num_tokens for example in examples}) == 3
    return [collate([example], prepare) for example in examples], collate(examples, prepare)


@torch.no_grad()
def logits_of(model: Vlm, prompt: Batch, tokens: list[int]) -> torch.Tensor:
    """Logits (T + new, V) of one prompt and tokens behind it, without a cache."""
    return model.decoder.logits(model(appended(prompt, tokens)))


def uncached(model: Vlm, prompt: Batch, count: int) -> list[int]:
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(int(logits_of(model, prompt, tokens)[-1].argmax()))
    return tokens


def test_cached_equals_uncached_and_batched_equals_one_by_one(made: tuple[Vlm, list[Batch], Batch]) -> None:
    model, alone, together = made
    sampling = Sampling(max_new_tokens=12)
    answers = generate(model, together, sampling, NEVER)
    assert answers == [uncached(model, prompt, 12) for prompt in alone]
    assert answers == [generate(model, prompt, sampling, NEVER)[0] for prompt in alone]
    assert len({tuple(answer) for answer in answers}) > 1  # the prompts matter


def test_streaming_equals_generate(llama: tuple[Vlm, list[Batch], Batch]) -> None:
    model, _, together = llama
    sampling = Sampling(max_new_tokens=7, temperature=1.0, seed=4)
    steps = list(stream(model, together, sampling, NEVER))
    assert len(steps) == 7
    assert [list(row) for row in zip(*steps, strict=True)] == generate(model, together, sampling, NEVER)


def test_a_stop_token_ends_its_row_only_and_is_not_given(llama: tuple[Vlm, list[Batch], Batch]) -> None:
    model, _, together = llama
    free = generate(model, together, Sampling(max_new_tokens=10), NEVER)
    stop = free[0][3]
    stopped = generate(model, together, Sampling(max_new_tokens=10), frozenset({stop}))
    expected = [answer[: answer.index(stop)] if stop in answer else answer for answer in free]
    assert stopped == expected
    assert len(stopped[0]) <= 3
    first = frozenset(answer[0] for answer in free)
    assert generate(model, together, Sampling(max_new_tokens=10), first) == [[], [], []]


def test_no_more_than_the_tokens_asked_for(llama: tuple[Vlm, list[Batch], Batch]) -> None:
    model, _, together = llama
    answers = generate(model, together, Sampling(max_new_tokens=1), NEVER)
    assert [len(answer) for answer in answers] == [1, 1, 1]


def test_a_seed_gives_the_same_answer_and_another_seed_another(llama: tuple[Vlm, list[Batch], Batch]) -> None:
    model, _, together = llama
    answers = [
        generate(model, together, Sampling(max_new_tokens=10, temperature=1.5, seed=seed), NEVER) for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


def test_a_tiny_top_p_is_greedy(llama: tuple[Vlm, list[Batch], Batch]) -> None:
    model, _, together = llama
    narrow = Sampling(max_new_tokens=8, temperature=2.0, top_p=1e-6, seed=9)
    assert generate(model, together, narrow, NEVER) == generate(model, together, Sampling(max_new_tokens=8), NEVER)


def test_top_p_draws_from_the_smallest_set_that_reaches_it() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.3, 0.1]])).expand(4000, -1)
    generator = torch.Generator().manual_seed(0)
    drawn = {
        p: choose(logits, Sampling(temperature=1.0, top_p=p), generator).bincount(minlength=4) / 4000
        for p in (0.4, 0.7, 1.0)
    }
    assert drawn[0.4].tolist() == [0, 1, 0, 0]
    torch.testing.assert_close(drawn[0.7], torch.tensor([0, 0.625, 0.375, 0]), atol=0.03, rtol=0)
    torch.testing.assert_close(drawn[1.0], torch.tensor([0.1, 0.5, 0.3, 0.1]), atol=0.03, rtol=0)


def test_a_low_temperature_sharpens() -> None:
    logits = torch.tensor([[0.0, 1.0]]).expand(4000, -1)
    generator = torch.Generator().manual_seed(0)
    shares = [choose(logits, Sampling(temperature=t), generator).float().mean().item() for t in (0.25, 1.0, 2.0)]
    expected = [1 / (1 + math.exp(-1 / t)) for t in (0.25, 1.0, 2.0)]
    assert shares == pytest.approx(expected, abs=0.03)


def test_scores_equal_the_log_probabilities_of_an_uncached_pass(made: tuple[Vlm, list[Batch], Batch]) -> None:
    model, alone, together = made
    continuations = [[5], [7, 300, 12, 9], [44, 3]]
    scores = score(model, together, continuations)
    assert scores.shape == (3, 3)
    for row, prompt in enumerate(alone):
        for column, ids in enumerate(continuations):
            logits = logits_of(model, prompt, ids)[prompt.num_tokens - 1 : -1]
            expected = torch.log_softmax(logits, dim=-1)[torch.arange(len(ids)), ids].sum()
            torch.testing.assert_close(scores[row, column], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -0.1}, r"temperature must lie in 0..2, got -0.1"),
        ({"temperature": math.nan}, r"temperature must lie in 0..2, got nan"),
        ({"top_p": 0}, r"top_p must lie in \(0, 1\], got 0"),
        ({"top_p": math.nan}, r"top_p must lie in \(0, 1\], got nan"),
    ],
)
def test_sampling_out_of_range_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**arguments)
