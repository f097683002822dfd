"""Fields of a record, each checked as it is read; what is wrong is said in one line that a user can act on."""

from __future__ import annotations

from typing import Any

from opsin.core.types import Picture, Role

Named = str | Picture
"""A medium of a record: its path, or a picture that the reader has found already."""


class RecordError(Exception):
    """What is wrong with one record; caught by the reader, which adds file, line and id."""


def role_of(fields: dict[str, Any], key: str, roles: dict[str, Role], number: int) -> Role:
    """Who speaks in turn `number`."""
    value = fields.get(key)
    if not isinstance(value, str) or value not in roles:
        known = " or ".join(repr(role) for role in roles)
        raise RecordError(f"turn {number}: {key!r} must be {known}, got {shown(value)}")
    return roles[value]


def mapping(value: Any, name: str) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise RecordError(f"{name} must be a JSON object, got {shown(value)}")
    return value


def turns_of(fields: dict[str, Any], key: str) -> list[Any]:
    """A list of turns."""
    value = fields.get(key)
    if not isinstance(value, list):
        raise RecordError(f"{key!r} must be a list of turns, got {shown(value)}")
    return value


def string(fields: dict[str, Any], key: str, name: str) -> str:
    """A whole text."""
    value = fields.get(key)
    if not isinstance(value, str):
        raise RecordError(f"{name}: {key!r} must be a text, got {shown(value)}")
    return whole(value, name)


def media_of(fields: dict[str, Any], keys: tuple[str, str]) -> list[Named]:
    """Media under the first of `keys` (its singular and its plural) that is there: none, one, or a list."""
    present = [key for key in keys if fields.get(key) is not None]
    if len(present) > 1:
        raise RecordError(f"has both {present[0]!r} and {present[1]!r}; keep one of them")
    if not present:
        return []
    value = fields[present[0]]
    names = value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, Named):
            raise RecordError(f"{present[0]!r} must be a path or a list of paths, got {shown(name)}")
    return [whole(name, f"a path of {present[0]!r}") if isinstance(name, str) else name for name in names]


def whole(text: str, name: str) -> str:
    """The text, if it is valid Unicode: JSON can spell half a character."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise RecordError(
            f"{name}: half a character (lone surrogate {half}) at character {error.start}; was the text cut? remove it"
        ) from None
    return text


def listed(fields: dict[str, Any]) -> str:
    """The keys of an object as messages show them."""
    return ", ".join(map(ascii, list(fields)[:20])) or "none"


def shown(value: Any) -> str:
    """A value as messages show it: its type and its beginning."""
    if value is None:
        return "nothing"
    text = ascii(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
