"""Files damaged at random, and what a reader may do with them."""

from __future__ import annotations

import io
from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from opsin.core.errors import DataError

if TYPE_CHECKING:
    from opsin.core.types import Conversation
    from opsin.data.sources import Source

CHANGES = st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=3)), max_size=4)
"""(position, new bytes)."""


def mutated(content: bytes, changes: list[tuple[int, bytes]], cut: int) -> bytes:
    """The content with bytes overwritten, and its end cut off."""
    stream = io.BytesIO(content)
    for at, new in changes:
        stream.seek(at % len(content))
        stream.write(new)
    return stream.getvalue()[: len(content) - cut % len(content)]


def read_through(source: Source) -> tuple[list[Conversation], tuple[str, ...]]:
    """The conversations that can be read, and all problems; any error but DataError is the reader's fault."""
    conversations: list[Conversation] = []
    try:
        conversations.extend(source.conversations(Counter()))
    except DataError as error:
        return conversations, error.problems
    return conversations, ()
