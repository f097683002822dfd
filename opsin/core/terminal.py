"""Text that others wrote, made safe for a terminal."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """Text without what could steer the terminal: a model, a file name or an error may hold escape sequences.

    Newlines and tabs are kept.
    """
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
