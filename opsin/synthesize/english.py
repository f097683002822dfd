"""The little English that rule-based answers need: articles, lists, sentences."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SPELLED_WITH_VOWEL = frozenset("AEFHILMNORSX")
"""Letters whose spoken name starts with a vowel: "an F-22", "an SUV"."""

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PLURAL_DETERMINERS = ("some ", "two ", "three ")
DETERMINERS = ("a ", "an ", "the ", *PLURAL_DETERMINERS)

PAIRS = frozenset(
    (
        "binoculars",
        "glasses",
        "goggles",
        "headphones",
        "jeans",
        "pants",
        "pliers",
        "scissors",
        "shorts",
        "skis",
        "sunglasses",
        "tights",
        "trousers",
    )
)
"""One of them is a pair: its instances are counted so."""
PIECES = frozenset(("bread", "broccoli", "cheese", "clothing", "equipment", "fruit", "furniture", "jewelry", "luggage"))
"""Things without a plural, of which there are pieces."""
IRREGULAR = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "mouse": "mice",
    "goose": "geese",
    "foot": "feet",
    "tooth": "teeth",
    "knife": "knives",
    "leaf": "leaves",
    "loaf": "loaves",
    "shelf": "shelves",
    "wolf": "wolves",
    "sheep": "sheep",
    "deer": "deer",
    "fish": "fish",
    "aircraft": "aircraft",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "tv": "TVs",
}
SAID = {"tv": "TV"}
"""Categories that are spelled otherwise in a sentence."""


def article(phrase: str) -> str:
    """`a` or `an`, by the sound of the first word as well as spelling tells it."""
    word = phrase.lstrip("\"'").split(" ", 1)[0]
    if re.match(r"[A-Z](?:[A-Z0-9-]|$)", word):
        return "an" if word[0] in SPELLED_WITH_VOWEL else "a"
    if re.match(r"(?i)(eu|one\b|uni(?!n)|use|ute|ura)", word):
        return "a"
    return "an" if re.match(r"(?i)([aeiou]|hour|honest|heir)", word) else "a"


def with_right_article(text: str) -> str:
    """Correct a leading `a` / `an`."""
    match = re.match(r"(?i)(an?) (?=\S)", text)
    if match is None:
        return text
    rest = text[match.end() :]
    right = article(rest)
    return f"{capitalised(right) if text[0].isupper() else right} {rest}"


def noun_phrase(category: str) -> str:
    """One thing of a category, with its article: `"a dog"`, `"an orange"`, `"a pair of skis"`.

    What has a determiner already (`"two flowers"`) is left as it is.
    """
    category = " ".join(category.replace("_", " ").split())
    if category.lower().startswith(DETERMINERS):
        return category
    if category.lower().startswith(("pair of ", "piece of ")):
        return f"a {category}"
    last = category.lower().rpartition(" ")[2]
    if last in PAIRS:
        return f"a pair of {category}"
    if last in PIECES:
        return f"a piece of {category}"
    said = SAID.get(category, category)
    return f"{article(said)} {said}"


def bare(name: str) -> str:
    """A noun phrase without its article: `"a dog"` -> `"dog"`; numbers stay."""
    for determiner in ("a ", "an ", "the ", "some "):
        if name.lower().startswith(determiner):
            return name[len(determiner) :]
    return name


def plural(name: str) -> str | None:
    """Several of what a noun phrase names: `"a dog"` -> `"dogs"`; None if it is not one thing."""
    if not name.lower().startswith(("a ", "an ")):
        return None
    head, of, rest = bare(name).partition(" of ")
    before, space, last = head.rpartition(" ")
    return f"{before}{space}{_plural_word(last)}{of}{rest}"


def _plural_word(word: str) -> str:
    irregular = IRREGULAR.get(word.lower())
    if irregular is not None:
        return irregular
    if re.search(r"(?i)(s|x|z|ch|sh)$", word):
        return f"{word}es"
    if re.search(r"(?i)[^aeiou]y$", word):
        return f"{word[:-1]}ies"
    return f"{word}s"


def is_plural(name: str) -> bool:
    """Whether a noun phrase with a determiner takes "are"."""
    return name.startswith(PLURAL_DETERMINERS)


def definite(name: str) -> str:
    """`"a violin"` -> `"the violin"`, `"two flowers"` -> `"the two flowers"`."""
    for determiner in ("a ", "an ", "the ", "some "):
        if name.startswith(determiner):
            return f"the {name[len(determiner) :]}"
    return f"the {name}" if is_plural(name) else name


def capitalised(text: str) -> str:
    """First letter in upper case, the rest as it is."""
    return text[:1].upper() + text[1:]


def sentence(text: str) -> str:
    """Capitalised and closed by a full stop, if nothing closes it yet; annotators leave `street,.` and `glass..`."""
    said = re.sub(r"[\s,;:]+(?=[.!?]*$)", "", text)
    said = re.sub(r"(?<!\.)\.\.$", ".", said)
    return capitalised(said if re.search(r"[.!?][\"'”’]?$", said) else f"{said}.")


def listing(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def number(count: int) -> str:
    """Small numbers in words, larger ones in digits."""
    return NUMBERS[count] if 0 <= count < len(NUMBERS) else str(count)


def verb(count: int) -> str:
    """`is` or `are`."""
    return "is" if count == 1 else "are"
