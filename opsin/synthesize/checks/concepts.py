"""Words for things: which things a text mentions, and what may be said of a picture that has them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

from opsin.core.errors import RecipeError
from opsin.synthesize.checks.words import word_at, word_set, words

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.synthesize.context import Vocabulary

MAX_BYTES = 1_000_000
NO_THINGS, NOT_BEFORE, KINDS_OF = "not things", "not before", "kinds of "

DETERMINERS = word_set(
    "a an the this that these those some any no another one two three four five six seven eight nine ten several many "
    "his her its their my your our each every both few of other numerous multiple various"
)
_AFTER_NOUN = word_set(
    "is are was were has have had and or but on in at by with of to from near next beside behind under above over "
    "that which who while as for it into onto there here can will does do stands sits lies hangs stand sit lie hang"
)


@dataclass(frozen=True, slots=True)
class Mention:
    """A thing in a list of words, those from `start` to before `end`; `things` are what they can mean ("bike")."""

    things: tuple[str, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Phrase:
    words: tuple[str, ...]
    things: tuple[str, ...]
    """None for a phrase that names nothing."""
    unsure: bool = False
    known_only: bool = False
    """Whether it only tells what there is: nobody looks it up in an answer."""


@dataclass(frozen=True)
class Concepts:
    """A table of words; `sayable` are, of each thing, all things that may be said where it is (itself among them)."""

    phrases: dict[str, list[_Phrase]]
    """By their first words, the longest ones first."""
    sayable: dict[str, frozenset[str]]
    not_before: frozenset[str]

    def mentions(self, said: tuple[str, ...], *, strict: bool) -> Iterator[Mention]:
        """The things that a text's words name, in order.

        `strict` is for claims: a word that can mean something else counts only as a noun with its article, and mere
        kinds of a thing are not looked up. Without it, for what is known of a picture, both count; kinds only as nouns.
        """
        end = 0
        for at, word in enumerate(said):
            if at < end or word not in self.phrases:
                continue
            phrase = self._longest(said, at)
            if phrase is None:
                continue
            end = at + len(phrase.words)
            if phrase.things and self._counts(phrase, said, at, word_at(said, end), strict=strict):
                yield Mention(phrase.things, at, end)

    def _counts(self, phrase: _Phrase, said: tuple[str, ...], at: int, after: str, *, strict: bool) -> bool:
        if phrase.known_only:  # a nurse is a person, a nurse uniform is none; but a nurse waits
            return not strict and after not in self.not_before and (may_follow_noun(after) or after.endswith("s"))
        if not strict:
            return True
        return after not in self.not_before and not (phrase.unsure and not _is_noun(said, at, after))

    def _longest(self, said: tuple[str, ...], at: int) -> _Phrase | None:
        for phrase in self.phrases[said[at]]:
            length = len(phrase.words)
            if length == 1 or said[at : at + length] == phrase.words:
                return phrase
        return None


def _is_noun(said: tuple[str, ...], at: int, after: str) -> bool:
    """Whether a word has its article, and nothing behind it that it could describe ("an orange cat")."""
    determined = any(word in DETERMINERS for word in said[max(0, at - 2) : at])
    return determined and may_follow_noun(after)


def may_follow_noun(word: str) -> bool:
    """Whether a word behind another one lets that be a noun, and no part of a longer one."""
    return not word or word in _AFTER_NOUN or word.endswith(("ing", "ed"))


def concepts(vocabulary: Vocabulary, synonyms: Path | None) -> Concepts:
    """The table for a collection: that of the file (by default the built-in one), and the collection's own things.

    Raises:
        RecipeError: the file cannot be read, with its line.
    """
    return _concepts(_Same(vocabulary), synonyms)


class _Same:
    """A vocabulary as a key, by identity: to hash its thousands of things takes longer than all checks of an answer."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def __hash__(self) -> int:
        return id(self.vocabulary)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.vocabulary is other.vocabulary


@lru_cache(maxsize=8)
def _concepts(same: _Same, synonyms: Path | None) -> Concepts:
    name = "synonyms.txt" if synonyms is None else str(synonyms)
    phrases, wider, not_before = _read(name, _text(synonyms))
    looked_up = {phrase.words for phrase in phrases if not phrase.known_only}
    table = _table(phrases, wider, not_before)
    for thing in same.vocabulary.catalogue:
        said = noun(thing.name)
        if not said or said in looked_up:
            continue
        own = " ".join(said)
        # A single word may be a verb or an adjective as well ("a watch"); the hand-made table says which of its are.
        phrases += _forms(said, own, unsure=len(said) == 1)
        looked_up.add(said)
        around = (*said, "/", *(word for part in thing.category for word in words(part)))
        wider[own] = {name for mention in table.mentions(around, strict=False) for name in mention.things}
    return _table(phrases, wider, not_before)


def noun(name: str) -> tuple[str, ...]:
    """The words of a noun phrase without its determiner."""
    said = words(name)
    return said[1:] if said and said[0] in DETERMINERS else said


def _text(path: Path | None) -> str:
    if path is None:
        return files("opsin.synthesize.checks").joinpath("synonyms.txt").read_text(encoding="utf-8")
    try:
        content = path.read_bytes()
        if len(content) > MAX_BYTES:
            raise RecipeError(str(path), [f"{path}: {len(content):,} bytes; at most {MAX_BYTES:,} are read"])
        return content.decode("utf-8-sig")
    except OSError as error:
        raise RecipeError(
            str(path), [f"{path}: cannot be read: {error.strerror}; correct `checks.synonyms`"]
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(str(path), [f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8"]) from error


def _read(name: str, text: str) -> tuple[list[_Phrase], dict[str, set[str]], frozenset[str]]:
    """The lines of a table: phrases, what each thing leads to, and the words of `not before`."""
    phrases: list[_Phrase] = []
    wider: dict[str, set[str]] = {}
    not_before: frozenset[str] = frozenset()
    needed: dict[str, int] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        head, colon, rest = line.partition("#")[0].strip().partition(":")
        if not head:
            continue
        same, _, more = rest.partition("|")
        if not colon:
            problems.append(f"{name}:{number}: expected `thing: words | wider words`, got {line.strip()!r}")
        elif head == NO_THINGS:
            phrases += [_Phrase(words(phrase), ()) for phrase in _listed(same)]
        elif head == NOT_BEFORE:
            not_before = frozenset(_listed(same))
        elif head.startswith(KINDS_OF):
            thing = " ".join(words(head.removeprefix(KINDS_OF)))
            needed[thing] = number
            phrases += [kind for phrase in _listed(same) for kind in _forms(words(phrase), thing, known_only=True)]
        else:
            thing = " ".join(words(head))
            if thing in wider:
                problems.append(f"{name}:{number}: {thing!r} has a line already; join the two")
            wider[thing] = {" ".join(words(word)) for word in _listed(more)}
            needed |= dict.fromkeys(wider[thing], number)
            for phrase in (head, *_listed(same)):
                phrases += _forms(words(phrase), thing, unsure=phrase.endswith("?"))
    lost = ((word, number) for word, number in needed.items() if word not in wider)
    problems += [
        f"{name}:{number}: the wider word {word!r} has no line of its own; add `{word}:`" for word, number in lost
    ]
    if problems:
        raise RecipeError(name, problems)
    return phrases, wider, not_before


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _forms(said: tuple[str, ...], thing: str, *, unsure: bool = False, known_only: bool = False) -> list[_Phrase]:
    """A phrase and its regular plural."""
    return [_Phrase(form, (thing,), unsure, known_only) for form in (said, (*said[:-1], _plural(said[-1])))]


def _plural(word: str) -> str:
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "x", "z", "ch", "sh")) else f"{word}s"


def _table(phrases: Sequence[_Phrase], wider: dict[str, set[str]], not_before: frozenset[str]) -> Concepts:
    joined: dict[tuple[str, ...], _Phrase] = {}
    for phrase in sorted(phrases, key=lambda phrase: phrase.known_only):
        same = joined.setdefault(phrase.words, phrase)
        if same.known_only == phrase.known_only:  # else it is looked up, and more than a kind of something
            things = tuple(dict.fromkeys((*same.things, *phrase.things)))
            joined[phrase.words] = replace(same, things=things, unsure=same.unsure and phrase.unsure)
    by_first: dict[str, list[_Phrase]] = defaultdict(list)
    for phrase in sorted(joined.values(), key=lambda phrase: -len(phrase.words)):
        by_first[phrase.words[0]].append(phrase)
    return Concepts(dict(by_first), {thing: _closure(thing, wider) for thing in wider}, not_before)


def _closure(thing: str, wider: dict[str, set[str]]) -> frozenset[str]:
    found: set[str] = set()
    open_ = [thing]
    while open_:
        one = open_.pop()
        if one not in found:
            found.add(one)
            open_ += wider.get(one, ())
    return frozenset(found)
