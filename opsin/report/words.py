"""Numbers and names as all views of data say them."""

from __future__ import annotations

from collections.abc import Iterator

from opsin.core.types import Clip, Conversation, Medium


def counted(number: int, name: str) -> str:
    """A number of things, such as `1 tile` or `2 tiles`."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def amounts(available: int, epoch: int | None, held: int, packs: int, efficiency: float) -> str:
    """How many samples there are, how many an epoch takes, and how many different ones lie in packs how full.

    `epoch` are those that an epoch takes; None is a stream, of which so many are `available` as were read to plan it.
    """
    filled = f"{counted(packs, 'pack')} ({efficiency:.1%} full)"
    if epoch is None:
        return f"{held:,} of the first {counted(available, 'sample')} of a stream in {filled}"
    if available == epoch == held:
        return f"{counted(available, 'sample')}, {filled}"
    return f"{counted(available, 'sample')} available, {epoch:,} an epoch; {held:,} different ones in {filled}"


def medium_name(medium: Medium, number: int) -> str:
    """What to call the medium with a number (from 1) of a record: its file, or its place where there is none."""
    first = medium.frames[0] if isinstance(medium, Clip) and medium.frames else medium
    if isinstance(first, Clip) or first.data is None:
        return medium.name
    return f"{'video' if isinstance(medium, Clip) else 'picture'} {number} of the record"


def medium_names(conversation: Conversation) -> Iterator[str]:
    """The names of all media of a conversation, in order."""
    return (medium_name(medium, number) for number, medium in enumerate(conversation.media, 1))
