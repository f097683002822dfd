"""A user turn about pictures, written the way the training data writes it."""

from __future__ import annotations

from collections.abc import Sequence

from opsin.core.types import Part, Picture, Turn


def user_turn(text: str, pictures: Sequence[Picture] = ()) -> Turn:
    r"""A user turn of pictures and then text: LLaVA's `<image>\n{text}`, one line for every picture.

    A model that was tuned on such turns must be asked in such turns. `text` is literal, `<image>` in it stays text.
    """
    parts: list[Part] = []
    for picture in pictures:
        parts += [picture, "\n"]
    return Turn("user", (*parts, text))
