"""From a stamp's description to a clean caption and a noun phrase."""

from __future__ import annotations

import re
import unicodedata

from opsin.synthesize.english import DETERMINERS, sentence, with_right_article

_PLAIN = str.maketrans({"“": '"', "”": '"', "’": "'", "‘": "'", "–": "-", "—": " - ", "…": "..."})
_FIRST_SENTENCE = re.compile(r"(.+?[.!?]+\"?)(?=\s+[A-Z])")
_CUT = re.compile(r"\s*(?:\(|, (?=also |from |an? |or |in )|\s-\s)")
_CLAUSE = re.compile(
    r"\b(is|are|was|were|has|have|lets?|means?|must|should|you can|gets?|carry|carries|contains?|resembles?|stands?"
    r"|like|used|called|ahead|inside|from|with fruit|eating)\b"
)
_NOT_ONE_THING = re.compile(r"^(a (pair|bunch|cluster|string|couple) of (?!pants|pliers|binoculars|.*scissors))")
MAX_NAME_WORDS = 5


def clean_caption(line: str) -> str:
    """One plain sentence: the first of the line, with straight quotes and the right article; empty if there is none."""
    text = unicodedata.normalize("NFC", line).translate(_PLAIN)
    text = re.sub(r"\s+", " ", text).strip(" -")
    if not re.search(r"\w", text):
        return ""
    first = _FIRST_SENTENCE.match(text)
    text = first.group(1) if first else text
    text = re.sub(r"!+$", ".", text)
    return sentence(with_right_article(text))


def noun_phrase(caption: str) -> str:
    """`"A violin."` -> `"a violin"`; empty where the caption is not a noun phrase with an article."""
    text = _CUT.split(caption.rstrip(".!? "), maxsplit=1)[0].strip().replace('"', "").replace("''", "")
    name = text[:1].lower() + text[1:]
    if not name.startswith(DETERMINERS) or _CLAUSE.search(name) or len(name.split()) > MAX_NAME_WORDS:
        return ""
    return name


def names_one_thing(name: str) -> bool:
    """Whether the phrase counts as exactly one thing: "a pair of pants" does, "a bunch of grapes" does not."""
    return name.startswith(("a ", "an ")) and not _NOT_ONE_THING.match(name)


def caption_key(text: str) -> str:
    """The words of a caption or name without case, punctuation and articles: equal keys say the same."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(word for word in words if word not in {"a", "an", "the"})
