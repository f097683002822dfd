"""Whether an answer only writes down what its teacher was told, as small models do: a description that is none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from opsin.synthesize.checks.words import sentences, shown, words
from opsin.synthesize.outcome import Finding

if TYPE_CHECKING:
    from opsin.synthesize.context import Context
    from opsin.synthesize.subject import Exchange

ECHO = "echo"

_FEWEST = 3
"""Sentences that are captions; one or two may well be the best way to say it."""
_ALIKE = 0.8
"""Jaccard similarity of the words from which a sentence is a caption ("a house is / being built with lots of wood")."""


def echo(exchanges: Sequence[Exchange], contexts: Sequence[Context]) -> Iterator[Finding]:
    """Answers of which most sentences are captions, word by word or nearly so."""
    captions = [set(words(caption)) for context in contexts for caption in context.captions]
    for number, exchange in enumerate(exchanges, 1):
        said = sentences(exchange.answer)
        copied = [sentence for sentence in said if _is_one_of(captions, set(words(sentence)))]
        if len(copied) >= max(_FEWEST, len(said) / 2):
            yield Finding(
                ECHO,
                f"{len(copied)} of {len(said)} sentences of answer {number} are copied from what you were given, such "
                f"as {shown(copied[0])}; say in sentences of your own what the picture shows as a whole",
            )


def _is_one_of(captions: Sequence[set[str]], said: set[str]) -> bool:
    return any(len(said & caption) >= _ALIKE * len(said | caption) for caption in captions if said)
