"""An example as pieces a person can read: runs of tokens by what becomes of them, media folded to one line.

Nothing is rendered again: ids, supervision and places are those that training takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from opsin.core.types import Clip, Example, Layout, Medium
from opsin.report.words import counted
from opsin.text.tokenizer import StreamDecoder, Tokenizer

Kind = Literal["text", "control", "medium"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of one kind, all learned or none of them.

    `texts` are the tokens' own texts, of a medium its folded run. A token that ends within a character has no text: the
    token that completes the character has all of it.
    """

    kind: Kind
    learned: bool
    texts: tuple[str, ...]

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.texts)


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start` to `end` (exclusive) of an example: text, or the medium with the index `medium`."""

    start: int
    end: int
    medium: int | None = None

    @property
    def tokens(self) -> int:
        """How many."""
        return self.end - self.start


def spans(example: Example) -> list[Span]:
    """Text and media in turns; by cross-attention a medium takes no token, and its span is empty."""
    spliced = bool(example.visual_T.any())
    found: list[Span] = []
    done = 0
    for index, (place, layout) in enumerate(zip(example.places, example.layouts, strict=True)):
        if place > done:
            found.append(Span(done, place))
        done = place + (layout.tokens if spliced else 0)
        found.append(Span(place, done, index))
    if done < example.num_tokens:
        found.append(Span(done, example.num_tokens))
    return found


def pieces(example: Example, tokenizer: Tokenizer) -> list[Piece]:
    """The whole example, in order."""
    found: list[Piece] = []
    for span in spans(example):
        if span.medium is None:
            found += _text(example, span, tokenizer)
        else:
            medium, layout = example.seen[span.medium]
            found.append(Piece("medium", False, (folded(medium, layout, span.tokens),)))
    return found


def _text(example: Example, span: Span, tokenizer: Tokenizer) -> Iterator[Piece]:
    """A run without media, cut where control tokens stand and where supervision changes."""
    ids = [int(i) for i in example.tokens_T[span.start : span.end]]
    # Nothing predicts the first token of a document, so it is not learned whatever it is marked as.
    learned = [bool(flag) and at > 0 for at, flag in enumerate(example.supervised_T[span.start : span.end], span.start)]
    names = [i in tokenizer.control_ids for i in ids]
    # One decoder for the whole run: where a text begins, some tokenizers drop a space that belongs inside of it.
    decoder = StreamDecoder(tokenizer)
    texts: list[str] = []
    for at, i in enumerate(ids):
        shown = decoder.feed(i)
        if names[at]:
            if texts:  # what was held back belongs to the tokens before
                texts[-1] += shown
            shown = tokenizer.decode([i], keep_control=True)
        texts.append(shown)
    texts[-1] += decoder.flush()
    cuts = [at for at in range(1, len(ids)) if names[at] or names[at - 1] or learned[at] != learned[at - 1]]
    for start, end in pairwise([0, *cuts, len(ids)]):
        yield Piece("control" if names[start] else "text", learned[start], tuple(texts[start:end]))


def folded(medium: Medium, layout: Layout, tokens: int) -> str:
    """A medium's run of visual tokens as one line, such as `<image: 4 tiles, 2,340 tokens>`."""
    taken = counted(tokens, "token") if tokens else "no tokens: seen by cross-attention"
    if isinstance(medium, Clip):
        return f"<video: {counted(shown_frames(medium, layout), 'frame')}, {taken}>"
    tiles = layout.frames - 1  # the base is not one of them
    return f"<image: {counted(tiles, 'tile')}, {taken}>" if tiles else f"<image: {taken}>"


def shown_frames(clip: Clip, layout: Layout) -> int:
    """How many frames of a clip the model is given, without those repeated to fill the last patches."""
    return len(clip.taken or clip.frames) or layout.frames


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of so many, the first and the last among them."""
    return (
        sorted({round(i * (count - 1) / max(1, most - 1)) for i in range(most)}) if count > most else list(range(count))
    )
