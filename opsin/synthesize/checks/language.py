"""Whether a sample is written in the language that was asked for: by script, and by its commonest words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from opsin.synthesize.checks.words import sentences, shown, word_set, words
from opsin.synthesize.outcome import Finding

if TYPE_CHECKING:
    from opsin.synthesize.subject import Exchange

LANGUAGE = "language"

_SCRIPTS = {
    "Latin": "A-Za-z\u00aa-\u024f\u1e00-\u1eff",
    "Han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff",
    "kana": "\u3041-\u30ff",
    "Hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "Cyrillic": "\u0400-\u04ff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f",
    "Devanagari": "\u0900-\u097f",
    "Thai": "\u0e00-\u0e7f",
    "Greek": "\u0370-\u03ff",
    "Hebrew": "\u0590-\u05ff",
}
_LETTERS = {name: re.compile(f"[{letters}]") for name, letters in _SCRIPTS.items()}

_FOREIGN = re.compile(
    f"[{''.join(letters for name, letters in _SCRIPTS.items() if name not in ('Latin', 'Greek'))}]{{2,}}"
)
"""What no word of a language in Latin letters holds; Greek letters are symbols as well."""

_OF_LANGUAGE = {
    **dict.fromkeys(("zh",), ("Han",)),
    **dict.fromkeys(("ja",), ("kana", "Han")),
    **dict.fromkeys(("ko",), ("Hangul",)),
    **dict.fromkeys(("ru", "uk", "be", "bg"), ("Cyrillic",)),
    **dict.fromkeys(("ar", "fa", "ur"), ("Arabic",)),
    **dict.fromkeys(("hi", "mr", "ne"), ("Devanagari",)),
    **dict.fromkeys(("th",), ("Thai",)),
    **dict.fromkeys(("el",), ("Greek",)),
    **dict.fromkeys(("he", "yi"), ("Hebrew",)),
}
"""Every other language is taken to be written in Latin letters."""

_COMMON = {
    "en": "the and is are of with that there this it on a an in they has be for from which at or his her its their do "
    "as no not i you we so to what can",
    "de": "der die das und ist sind nicht ein eine einen mit auf von zu im dem den es sie auch für wie bei wird "
    "dass man hier kann aber sehr",
    "fr": "le la les et est sont un une des du avec sur dans que qui pas il elle ce cette au aux pour plus ils",
    "es": "el la los las y es son un una unos con en del que no hay se su por para está están al lo más",
    "it": "il la lo gli le e è sono un una con su di che non c'è nel nella della del si per ci dei alla due",
    "pt": "o a os as e é são um uma com em do da dos das que não há no na se está estão por para mais ao",
    "nl": "de het een en is zijn van met op niet dat er in die aan voor ook naar bij hij zij deze te",
    "sv": "och är en ett det som på med inte av den för att till har de i från om sig",
    "pl": "i w na jest są nie z się to do że jak po dla o przy ten która który obok",
    "tr": "ve bir bu da de ile için var yok olan çok daha gibi üzerinde yanında",
    "vi": "là và có của một trong trên với không được những các này người cho",
    "id": "yang dan di dengan ada ini itu tidak sebuah untuk dari pada adalah seorang",
}
"""The commonest words, in texts about pictures."""

_SPEAKERS: dict[str, list[str]] = {}
"""The languages that each of these words is common in."""
for _name, _listed in _COMMON.items():
    for _word in _listed.split():
        _SPEAKERS.setdefault(_word, []).append(_name)

_QUOTED = re.compile('["“”„«»‹›「『‘]([^"“”„«»‹›「」『』’\\n]{1,200})["“”«»‹›」』’]')
_MOST_FOREIGN = 20
"""A few letters of another script are a name ("Coca-Cola"), or a quotation; so many are a language."""
_FEWEST_WORDS = 6
"""Fewer words decide nothing: "Yes", "2", "Pizza" are the same in many languages."""
_FEWEST_COMMON, _FEWEST_COMMON_OF_SENTENCE = 3, 4
"""Common words of another language that a text, or one sentence of it, must have: a name may have two or three."""
_FEWEST_IN_A_ROW = 8
"""Words without a common one of the expected language among them."""
_IN_NAMES = word_set(
    "de la le les los las el il lo di du des del della dei alla al con da do das dos au aux à y e et und en van von "
    "der het sur na no i"
)
"""Common words that names of places and dishes have as well."""
_FEWEST_LETTERS = 6
"""Of another script in one sentence: fewer may be a sign that is read out."""
_MUCH_MORE = 2.0
"""So many times the common words of the expected language must another one have: some are common to both."""
_FEWEST_KANA = 0.1
"""Share of kana from which letters of Han and kana are Japanese; pure Han of some length is Chinese."""


def language(
    exchanges: Sequence[Exchange], expected: str, there: str = "", *, grounded: bool = False
) -> Iterator[Finding]:
    """Questions, or answers, in another language for the greater part, or a whole sentence; short ones are let pass.

    What is quoted of the text `there`, which is known of the picture, is in any language. If a sample is `grounded` in
    that text, no word in another script may come from elsewhere.
    """
    code = expected.lower().split("-")[0]
    for name, text in (
        ("questions", "\n".join(exchange.question for exchange in exchanges)),
        ("answers", "\n".join(exchange.answer for exchange in exchanges)),
    ):
        text = _QUOTED.sub(lambda quoted: "" if quoted[1] in there else quoted[0], text)
        found = _other_script(text, code) or _other_language(text, code)
        if found:
            yield Finding(LANGUAGE, f"the {name} are in {found}, and {expected!r} is asked for")
            continue
        known = text if not grounded or code in _OF_LANGUAGE else there
        if unknown := next((word for word in _FOREIGN.findall(text) if word not in known), None):
            yield Finding(LANGUAGE, f"of the {name}, {shown(unknown)} is not in {expected!r}, and in no caption")
            continue
        for sentence in sentences(text):
            if (
                foreign := _other_script(sentence, code, fewest=_FEWEST_LETTERS)
                or _other_language(sentence, code, fewest=_FEWEST_COMMON_OF_SENTENCE)
                or _inserted(sentence, code)
            ):
                yield Finding(LANGUAGE, f"of the {name}, {shown(sentence)} is in {foreign}, and not in {expected!r}")
                break


def _other_script(text: str, code: str, fewest: int = 1) -> str:
    """The script that a text is in, if it is not one of the language."""
    scripts = ("Latin",) if text.isascii() else tuple(_LETTERS)
    counts = {name: len(_LETTERS[name].findall(text)) for name in scripts}
    counts = {name: count for name, count in counts.items() if count}
    if not counts:
        return ""
    wanted = _OF_LANGUAGE.get(code, ("Latin",))
    right = sum(counts.get(name, 0) for name in wanted)
    most = max(counts, key=lambda name: counts[name])
    if counts[most] >= fewest and most not in wanted and right < sum(counts.values()) / 2:
        # A Latin word is no sign: names and units are written so in all languages.
        return f"{most} letters" if most != "Latin" or counts[most] >= _MOST_FOREIGN else ""
    kana, han = counts.get("kana", 0), counts.get("Han", 0)
    if code == "zh" and kana > _FEWEST_KANA * (kana + han):
        return "Japanese"
    if code == "ja" and not kana and han >= _MOST_FOREIGN:
        return "Chinese"
    return ""


def _most_common(said: Sequence[str], code: str) -> tuple[str, Counter[str]]:
    """The language that most of the words are common in, by default the expected one; and how many are in each."""
    votes = Counter(name for word in said for name in _SPEAKERS.get(word, ()))
    return max(votes, key=lambda name: votes[name], default=code), votes


def _inserted(sentence: str, code: str) -> str:
    """Another language of the same script that so many words of a sentence in a row are in."""
    if code not in _COMMON:
        return ""
    run: list[str] = []
    for word in (*words(sentence), ""):
        spoken_in = _SPEAKERS.get(word, ())
        if word and (code not in spoken_in or len(spoken_in) > 1):
            run.append(word)
            continue
        if len(run) >= _FEWEST_IN_A_ROW:
            most, votes = _most_common([one for one in run if one not in _IN_NAMES], code)
            if most != code and votes[most] >= _FEWEST_COMMON:
                return f"the language {most!r}"
        run = []
    return ""


def _other_language(text: str, code: str, fewest: int = _FEWEST_COMMON) -> str:
    """Another language of the same script that has far more of its common words in the text."""
    if code not in _COMMON:
        return ""
    said = words(text)
    if len(said) < _FEWEST_WORDS:
        return ""
    most, votes = _most_common(said, code)
    if most != code and votes[most] >= fewest and votes[most] >= _MUCH_MORE * votes[code]:
        return f"the language {most!r}"
    return ""
