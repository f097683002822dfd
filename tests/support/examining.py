"""What the checks find in a sample, with everything that a test does not care about filled in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opsin.synthesize.check_values import Checks
from opsin.synthesize.checks import examine
from opsin.synthesize.context import Context, Thing, Vocabulary
from opsin.synthesize.kinds.base import Expected
from opsin.synthesize.subject import Exchange

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opsin.synthesize.outcome import Finding

NOTHING = Vocabulary(())
DOG = Context(
    ("A dog lies on a couch.", "A brown dog on a sofa."),
    (Thing("a dog", ("animal", "dog")), Thing("a couch", ("furniture", "couch"))),
    "categories",
)


def findings(
    said: Iterable[tuple[str, str] | Exchange],
    context: Context,
    *,
    vocabulary: Vocabulary = NOTHING,
    options: Checks | None = None,
    **expected: Any,
) -> tuple[Finding, ...]:
    """All findings about exchanges of one picture; of one to nine exchanges, unless something else is `expected`."""
    return examine(
        tuple(exchange if isinstance(exchange, Exchange) else Exchange(*exchange) for exchange in said),
        expected=Expected(**({"exchanges": (1, 9), "words": (1, 300)} | expected)),
        contexts=(context,),
        vocabulary=vocabulary,
        options=options or Checks(),
        finish="stop",
    )


def checks(
    *exchanges: tuple[str, str], context: Context = DOG, options: Checks | None = None, **expected: Any
) -> list[str]:
    """The names of the checks that find something, in answers of up to 90 words."""
    found = findings(exchanges, context, options=options, **({"words": (1, 90)} | expected))
    return [finding.check for finding in found]


def answered(answer: str, **kinds: Any) -> list[str]:
    """The same of one answer."""
    return checks(("What is shown?", answer), **kinds)
