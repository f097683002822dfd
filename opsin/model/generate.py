"""Generation with a key-value cache: greedy or sampled, streamed, several prompts at a time.

Prompts are one packed `Batch` (no padding, no left side to get wrong); each document gets one row of the cache.
`score` reads the log-probabilities of given continuations from the same cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opsin.core.types import Batch
from opsin.model.attention import CachedAttention, KeyValueCache, PackedAttention, PrefillAttention
from opsin.model.connection import Sights
from opsin.model.vlm import Vlm

SCORED_TOGETHER = 16
"""Continuations that `score` pads to one length."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy; `top_p` keeps the smallest set with that probability."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 2):
            raise ValueError(f"temperature must lie in 0..2, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")


class Continuation:
    """Prompts that have been read, one row each, and what their next tokens need: a cache, positions, sights."""

    def __init__(self, cache: KeyValueCache, next_B: Tensor, sights: Sights | None, seen_B: Tensor) -> None:
        """`next_B`: the position after each row's last; `seen_B`: the sight its new tokens see, -1 for none."""
        self.cache = cache
        self.next_B = next_B
        self.sights, self.seen_B = _needed(sights, seen_B)

    def advance(self, tokens: int) -> None:
        """Commit `tokens` new tokens of every row."""
        self.cache.advance(tokens)
        self.next_B = self.next_B + tokens

    def keep(self, rows_B: Tensor) -> None:
        """Drop all but the named rows."""
        self.cache.keep(rows_B)
        self.next_B = self.next_B[rows_B]
        self.sights, self.seen_B = _needed(self.sights, self.seen_B[rows_B])

    def repeated(self, row: int, times: int) -> Continuation:
        """`times` copies of one row."""
        rows = torch.full((times,), row, device=self.next_B.device)
        return Continuation(self.cache.repeated(row, times), self.next_B[rows], self.sights, self.seen_B[rows])


def _needed(sights: Sights | None, seen_B: Tensor) -> tuple[Sights | None, Tensor]:
    """Only the sights that rows still see, and their numbers among those."""
    if sights is None:
        return None, seen_B
    kept = sorted({i for i in seen_B.tolist() if i >= 0})
    numbers = {-1: -1} | {i: number for number, i in enumerate(kept)}
    return sights.only(kept), torch.tensor([numbers[i] for i in seen_B.tolist()], device=seen_B.device)


@torch.no_grad()
def prefill(model: Vlm, prompts: Batch, extra: int) -> tuple[Continuation, Tensor]:
    """Run the prompts once; `extra` more tokens will fit each row. Returns also the last hidden states (B, D)."""
    device = prompts.tokens_T.device
    lengths = torch.tensor(prompts.lengths, device=device)
    cache = KeyValueCache(len(lengths), int(lengths.max()) + extra, device)
    ends = lengths.cumsum(0)
    rows_T = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
    slots_T = torch.arange(len(rows_T), device=device) - (ends - lengths)[rows_T]
    attend = PrefillAttention(PackedAttention.plan(prompts.lengths, device), cache, rows_T, slots_T)
    hidden_TD, sights = model.read(prompts, attend)
    cache.advance(lengths)
    # Not the length: under M-RoPE a picture takes fewer positions than tokens, and a clip can end on its last frame.
    highest_T = prompts.positions_AT.amax(0)
    next_B = torch.zeros_like(lengths).scatter_reduce(0, rows_T, highest_T, "amax") + 1
    return Continuation(cache, next_B, sights, prompts.seen_T[ends - 1]), hidden_TD[ends - 1]


@torch.no_grad()
def extend(model: Vlm, rows: Continuation, tokens_BS: Tensor) -> Tensor:
    """Hidden states (B, S, D) of new text tokens behind every row. The caller commits them with `rows.advance`."""
    positions_BS = rows.next_B[:, None] + torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
    positions_ABS = positions_BS.expand(model.config.positions.axes, *positions_BS.shape)
    gaze = model.connection.gaze(rows.sights, rows.seen_B[:, None].expand(tokens_BS.shape))
    hidden: Tensor = model.decoder(model.decoder.embed(tokens_BS), positions_ABS, CachedAttention(rows.cache), gaze)
    return hidden


@torch.no_grad()
def stream(model: Vlm, prompts: Batch, sampling: Sampling, stop_ids: frozenset[int]) -> Iterator[list[int | None]]:
    """Yield one list a step: the new token of every prompt, None where that prompt has ended.

    A stop token ends its row and is not yielded.
    """
    rows, hidden_BD = prefill(model, prompts, extra=sampling.max_new_tokens)
    generator = torch.Generator(device=prompts.tokens_T.device).manual_seed(sampling.seed)
    alive = list(range(len(prompts.lengths)))
    for step in range(sampling.max_new_tokens):
        tokens_B = choose(model.decoder.logits(hidden_BD), sampling, generator)
        going_on = [row for row, token in enumerate(tokens_B.tolist()) if token not in stop_ids]
        if not going_on:
            return
        if len(going_on) < len(alive):  # rows that have ended cost nothing from here on
            kept_B = torch.tensor(going_on, device=tokens_B.device)
            tokens_B, alive = tokens_B[kept_B], [alive[row] for row in going_on]
            rows.keep(kept_B)
        new = dict(zip(alive, tokens_B.tolist(), strict=True))
        yield [new.get(row) for row in range(len(prompts.lengths))]
        if step + 1 < sampling.max_new_tokens:
            hidden_BD = extend(model, rows, tokens_B[:, None])[:, 0]
            rows.advance(1)


def generate(model: Vlm, prompts: Batch, sampling: Sampling, stop_ids: frozenset[int]) -> list[list[int]]:
    """All new tokens of every prompt, without the stop token."""
    answers: list[list[int]] = [[] for _ in prompts.lengths]
    for step in stream(model, prompts, sampling, stop_ids):
        for answer, token in zip(answers, step, strict=True):
            if token is not None:
                answer.append(token)
    return answers


def choose(logits_BV: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Next tokens (B,) from float32 logits."""
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    probabilities = torch.softmax(logits_BV / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        # A token stays while the probability before it is under top_p, so the most likely one always stays.
        ordered[ordered.cumsum(dim=-1) - ordered >= sampling.top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


@torch.no_grad()
def score(model: Vlm, prompts: Batch, continuations: Sequence[Sequence[int]]) -> Tensor:
    """Log-probability (prompts, continuations) of every continuation after every prompt.

    Each prompt is run once; all continuations read its cache, those of similar length together.
    """
    prompt, hidden_BD = prefill(model, prompts, extra=max(len(ids) for ids in continuations))
    by_length = sorted(range(len(continuations)), key=lambda i: len(continuations[i]))
    scores = torch.zeros(len(prompts.lengths), len(continuations), device=hidden_BD.device)
    for start in range(0, len(by_length), SCORED_TOGETHER):
        members = by_length[start : start + SCORED_TOGETHER]
        tokens, real = _padded([continuations[i] for i in members], hidden_BD.device)
        for row in range(len(prompts.lengths)):
            hidden = extend(model, prompt.repeated(row, len(members)), tokens)
            # The token at place i is predicted by the hidden state before it; the first one by the prompt's last.
            before = torch.cat([hidden_BD[row].expand(len(members), 1, -1), hidden[:, :-1]], dim=1)
            log_probabilities = torch.log_softmax(model.decoder.logits(before[real]), dim=-1)
            chosen = log_probabilities.gather(1, tokens[real][:, None])[:, 0]
            sums = torch.zeros(len(members), device=chosen.device).index_add(0, real.nonzero()[:, 0], chosen)
            scores[row, members] = sums
    return scores


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (rows, longest), padded on the right, and where they are real."""
    longest = max(len(ids) for ids in rows)
    tokens = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in rows], device=device)
    real = torch.tensor([[True] * len(ids) + [False] * (longest - len(ids)) for ids in rows], device=device)
    return tokens, real
