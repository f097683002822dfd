"""Words, clauses and sentences, as the checks read them."""

from __future__ import annotations

import re
from functools import lru_cache

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Letters of scripts that put no space between words (Thai, Lao, Burmese, Khmer, kana, Han)."""

_UNSPACED = re.compile(f"[{UNSPACED}]")
_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+(?:['’][^\W_{UNSPACED}]+)*")
_GENITIVE = re.compile(r"['’]s\b|(?<=s)['’](?=\s)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")


def word_set(listed: str) -> frozenset[str]:
    """The words of a list that is written as a line of text."""
    return frozenset(listed.split())


EMPTY = word_set(
    "a an the this that these those it its they them he she his her their there here is are was were be been being "
    "am do does did has have had and of to i you we what which who whom whose how why when where image picture "
    "photo scene"
)
"""Words that tell nothing about a picture."""
BE = word_set("is are was were")
COLOURS = word_set("red blue green yellow orange purple pink brown black white gray grey silver beige")


@lru_cache(maxsize=256)  # every check of a sample reads the same texts
def words(text: str) -> tuple[str, ...]:
    """The words in lower case; in scripts without spaces, every letter is one."""
    return tuple(_WORD.findall(text.casefold().replace("’", "'")))


def spoken(text: str) -> tuple[str, ...]:
    """The words without hyphens and the English genitive: "a child's toy-car" speaks of a child and a toy car."""
    return words(_GENITIVE.sub("", text.replace("-", " ")))


def word_at(said: tuple[str, ...], at: int) -> str:
    """The word at a place from 0 on, or nothing behind the last one."""
    return said[at] if at < len(said) else ""


def number_of_words(text: str) -> int:
    """Words as a person counts them: two letters of a script without spaces make one."""
    unspaced = len(_UNSPACED.findall(text))
    return len(_WORD.findall(text)) - unspaced + (unspaced + 1) // 2


def sentences(text: str) -> list[str]:
    """The sentences, as well as their ends tell."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]


def content(text: str) -> set[str]:
    """The words that tell something, without an English s at their end: "stands" tells what "stand" does."""
    return {word.removesuffix("s") for word in words(text) if word not in EMPTY}


def shown(text: str, most: int = 60) -> str:
    """A short quotation for a message."""
    line = " ".join(text.split())
    return repr(line if len(line) <= most else f"{line[: most - 3]}...")
