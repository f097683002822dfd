"""What becomes of a sample that is too long, decided from its layouts before a pixel is decoded.

A sample is never cut: whole exchanges go, or its media are shown smaller, or all of it is left out.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from opsin.core.errors import ModelError, RenderError
from opsin.core.types import Clip, Conversation, Example, Picture
from opsin.data.example import WHOLE, Fit, Preparation, make_example, shrunk
from opsin.data.plan import Budget
from opsin.vision.shrinking import ladder

TooLong = Literal["error", "drop", "shrink_images", "truncate_turns"]
"""What is done with a sample that is over a budget:

- `error`: it is a problem of the data
- `drop`: it is left out
- `shrink_images`: its pictures are shown smaller, and where that is not enough, fewer frames of its clips
- `truncate_turns`: its last exchanges are left out with their pictures, as few as needed
"""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a policy decided; there is no example where the sample cannot be used.

    `text` names the sample and says what was done to it, or why it cannot be used; "" where it is within the budget.
    """

    example: Example | None
    fit: Fit = WHOLE
    text: str = ""


def fit(conversation: Conversation, preparation: Preparation, most: Budget, policy: TooLong) -> Fitted:
    """A conversation's example within the budget, by the policy.

    Raises:
        OpsinError: the conversation cannot be rendered, or a medium is unusable; the message names the sample.
    """
    example = make_example(conversation, preparation)
    over = _over(example.num_tokens, example.num_patches, most)
    if not over:
        return Fitted(example)
    if policy == "truncate_turns":
        fitted = _truncated(conversation, preparation, most)
    elif policy == "shrink_images":
        fitted = _shrunk(conversation, example, preparation, most)
    elif policy == "drop":
        fitted = _unusable("dropped")
    else:
        fitted = _unusable("shorten it, raise the budget, or choose a policy for samples that are too long")
    return replace(fitted, text=f"{example.name} {over}: {fitted.text}")


def _over(tokens: int, patches: int, most: Budget) -> str:
    """`9,000 tokens, over 8,192`; nothing where it is within the budget."""
    costs = (("tokens", tokens, most.tokens), ("patches", patches, most.patches))
    return " and ".join(f"{cost:,} {unit}, over {limit:,}" for unit, cost, limit in costs if cost > limit)


def _unusable(reason: str) -> Fitted:
    return Fitted(None, text=reason)


def _truncated(conversation: Conversation, preparation: Preparation, most: Budget) -> Fitted:
    """The most exchanges that fit, found by halving: more of them cost more, with one exception.

    A picture that is left alone can cost more than several did, so those with several are searched before the others.
    """
    shown = [
        sum(isinstance(part, Picture) for part in turn.parts) for turn in conversation.turns if turn.role == "user"
    ]
    exchanges = len(shown)
    alone = min(bisect_right(list(accumulate(shown)), 1), exchanges - 1)  # so many have at most one picture
    reason = "dropped, since no fewer exchanges have anything to learn"
    for low, high in ((alone + 1, exchanges), (1, alone + 1)):
        longest = None
        while low < high:
            kept = (low + high) // 2
            truncated = Fit(exchanges=kept)
            try:
                example = make_example(conversation, preparation, fit=truncated)
            except RenderError:  # no answer among them has text
                low = kept + 1
                continue
            if over := _over(example.num_tokens, example.num_patches, most):
                reason = f"dropped, since the first {kept} of its {exchanges} exchanges have {over}"
                high = kept
            else:
                text = f"{kept} of {exchanges} exchanges kept, {example.num_tokens:,} tokens"
                longest = Fitted(example, truncated, text)
                low = kept + 1
        if longest is not None:
            return longest
    return _unusable("dropped, since it has only one exchange" if exchanges == 1 else reason)


def _shrunk(conversation: Conversation, example: Example, preparation: Preparation, most: Budget) -> Fitted:
    """The first step of the ladder that fits; rounding can make a step cost more than the one before it."""
    if not example.media:
        return _unusable("dropped, since it has no picture or clip to shrink")
    words = int((~example.visual_T).sum())
    whole = over = _over(example.num_tokens, example.num_patches, most)
    for level in range(1, len(ladder(preparation.resolution))):
        try:
            layouts = [shrunk(pair, preparation, level)[1] for pair in example.seen]
        except ModelError:  # a connector that makes so many tokens of any picture needs as many patches
            continue
        visual = sum(layout.tokens for layout in layouts) if preparation.spliced else 0
        over = _over(words + visual, sum(layout.patches for layout in layouts), most)
        if not over:
            smaller = Fit(level=level)
            made = make_example(conversation, preparation, fit=smaller)
            return Fitted(made, smaller, _difference(example, made))
    if over == whole:
        return _unusable("dropped, since its pictures cannot be made to cost less")
    return _unusable(f"dropped, since with its pictures at their smallest it has {over}")


def _difference(before: Example, after: Example) -> str:
    """`2 pictures shrunk from 7,290 to 4,374 visual tokens`."""
    clips = sum(isinstance(medium, Clip) for medium in before.media)
    counts = (("picture", len(before.media) - clips), ("clip", clips))
    media = " and ".join(f"{count} {name}{'s' if count > 1 else ''}" for name, count in counts if count)
    tokens = [sum(layout.tokens for layout in example.layouts) for example in (before, after)]
    if tokens[0] != tokens[1]:
        return f"{media} shrunk from {tokens[0]:,} to {tokens[1]:,} visual tokens"
    return f"{media} shrunk from {before.num_patches:,} to {after.num_patches:,} patches"
