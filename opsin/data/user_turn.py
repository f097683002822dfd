"""A user turn about pictures, written the way the training data writes it."""

from __future__ import annotations

from collections.abc import Sequence

from opsin.core.types import Medium, Part, Turn


def user_turn(text: str, pictures: Sequence[Medium] = (), after_picture: str = "\n") -> Turn:
    r"""A user turn of pictures and then text: LLaVA's `<image>\n{text}`, one line for every picture.

    A model must be asked in such turns as it was tuned on: `after_picture` is its template's. `text` is literal,
    `<image>` in it stays text.
    """
    parts: list[Part] = []
    for picture in pictures:
        parts += [picture, after_picture] if after_picture else [picture]
    return Turn("user", (*parts, text))
