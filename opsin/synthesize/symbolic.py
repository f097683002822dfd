"""A context as the text that a teacher reads in place of the picture: LLaVA's symbolic form (2304.08485, section 3).

Captions stand one on a line; behind a blank line, `category: [x1, y1, x2, y2]`, 0..1 of the picture, three decimals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from opsin.synthesize.english import bare, plural

if TYPE_CHECKING:
    from opsin.synthesize.context import Context, Thing
    from opsin.synthesize.subject import Subject

MOST_CHARACTERS = 20_000
"""Of the symbolic form of one subject: five captions and a hundred boxes take 5,000."""


def captions(context: Context) -> str:
    """The captions, one on a line."""
    return "\n".join(context.captions)


def captions_and_boxes(context: Context) -> str:
    """The captions, a blank line, and a line for every thing."""
    things = "\n".join(_line(thing) for thing in context.things)
    return "\n\n".join(part for part in (captions(context), things) if part)


def document(context: Context) -> str:
    """What is written in the picture."""
    return context.text


def several(subject: Subject) -> str:
    """The captions of each of several pictures, under its number."""
    parts = [f"Picture {number}\n{_in_brief(context)}" for number, context in enumerate(subject.contexts, start=1)]
    return "\n\n".join(parts)


def frames(subject: Subject) -> str:
    """The captions of each described frame of a video, under its second."""
    pairs = zip(subject.times, subject.contexts, strict=True)
    return "\n\n".join(f"At {seconds(time)}\n{_in_brief(context)}" for time, context in pairs)


def everything(subject: Subject) -> str:
    """All that is known of a subject: what its size is bounded by."""
    return "\n\n".join(f"{context.text}\n{captions_and_boxes(context)}" for context in subject.contexts)


def seconds(time: float) -> str:
    """`"1 second"`, `"2.5 seconds"`."""
    return f"{time:g} second{'' if time == 1 else 's'}"


def category(thing: Thing) -> str:
    """What a thing is called in a list: `"dog"`, `"people"` of a crowd, the innermost category of what has no name."""
    if not thing.name:
        return thing.category[-1]
    return (thing.crowd and plural(thing.name)) or bare(thing.name)


def _line(thing: Thing) -> str:
    if thing.box is None:
        return category(thing)
    return f"{category(thing)}: [{', '.join(f'{side:.3f}' for side in thing.box)}]"


def _in_brief(context: Context) -> str:
    """Captions, and the things without their places."""
    counted: dict[str, int] = {}
    for thing in context.things:
        counted[category(thing)] = counted.get(category(thing), 0) + 1
    things = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in counted.items())
    return "\n".join(part for part in (captions(context), things and f"In it: {things}") if part)
