"""The page of a synthesis: its numbers, and samples by chance with pictures, contexts, provenance and reasons.

Everything that comes from data passes through `html.escape`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.text import Text

from opsin.core.terminal import printable
from opsin.report.document import counts, document, folded_list, section
from opsin.report.file_page import medium_html
from opsin.report.synthesis_view import (
    Fault,
    Made,
    Provenance,
    Refused,
    SynthesisView,
    look_at_synthesis,
    media,
    told,
)

MOST_RAW = 20_000
"""Characters of a refused answer that are shown."""


def synthesis_page(directory: Path, samples: int, seed: int) -> str:
    """The HTML of a directory that `opsin synthesize` wrote, with so many samples, chosen by the seed.

    Raises:
        OpsinError: a file of it cannot be read.
    """
    return page(look_at_synthesis(directory, samples, seed))


def page(view: SynthesisView) -> str:
    """The HTML."""
    header = f'<header>\n<h1>{_shown(view.name)}</h1>\n<p class="soft">{_shown(str(view.directory))}</p></header>\n'
    problems = folded_list("Lines that cannot be read", view.problems) if view.problems else ""
    body = section("What came of it", _numbers(view.statistics) + problems)
    body += section("Samples", _cards(_made(one) for one in view.made))
    body += section("Refused", _cards(_refused(one) for one in view.refused))
    return document(f"{view.name}: instruction data", header + body, "inspect.css", "synthesis.css")


def _shown(text: str) -> str:
    return escape(printable(text))


def _cards(cards: Iterator[str]) -> str:
    joined = "".join(cards)
    return f'<div class="samples">{joined}</div>' if joined else ""


def _numbers(statistics: Mapping[str, Any]) -> str:
    """Cards of the numbers that are there; a file of another version may lack some."""
    cards = [_counts("Tasks", statistics.get("states"))]
    cards += [_counts(f"of them {kind}", states) for kind, states in _mapping(statistics.get("kinds")).items()]
    findings = _mapping(statistics.get("findings"))
    cards += [_counts(f"Wrong with the {when} answers", findings.get(when)) for when in ("first", "last")]
    cards.append(_table("Things that are not there", _rates(_mapping(statistics.get("hallucination")))))
    cards.append(_table("Words of a sample's answers: median (5% to 95%)", _words(_mapping(statistics.get("words")))))
    usage = _mapping(statistics.get("usage"))
    cards.append(_table("Asked", [(name.replace("_", " "), _number(value)) for name, value in usage.items()]))
    suspicious = _mapping(statistics.get("suspicious"))
    ids = suspicious.get("ids")
    orders = folded_list("Pictures whose captions read like orders", list(map(str, ids))) if ids else ""
    return f'<div class="columns">{"".join(cards)}</div>{orders}'


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _counts(heading: str, numbers: Any) -> str:
    whole = [(name, number) for name, number in _mapping(numbers).items() if isinstance(number, int)]
    return counts(heading, whole) if whole else ""


def _table(heading: str, rows: Sequence[tuple[str, str]]) -> str:
    body = "".join(f"<tr><th scope='row'>{_shown(name)}</th><td>{_shown(text)}</td></tr>" for name, text in rows)
    return f'<div class="card"><h3>{escape(heading)}</h3><table>{body}</table></div>' if rows else ""


def _rates(rates: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (f"in {when} answers", f"{rate['rate']:.1%} of {rate['examined']:,}")
        for when, rate in rates.items()
        if isinstance(rate, dict) and isinstance(rate.get("rate"), float)
    ]


def _words(words: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (kind, f"{_number(spread['50%'])} ({_number(spread['5%'])} to {_number(spread['95%'])})")
        for kind, spread in words.items()
        if isinstance(spread, dict) and {"5%", "50%", "95%"} <= spread.keys()
    ]


def _number(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _made(made: Made) -> str:
    origin = made.origin
    turns = "".join(
        f'<div class="turn {role}"><b>{role}</b><div class="said">{_shown(text)}</div></div>'
        for role, text in made.turns
    )
    repaired = _faults(origin.repaired)
    mended = f"<details><summary>Repaired: {len(origin.repaired):,}</summary>{repaired}</details>" if repaired else ""
    head = f'{_head(origin)}<p class="soft">{_shown(told(origin))}</p>'
    return f'<article class="card sample">{head}{_seen(origin, origin.query)}{turns}{mended}</article>\n'


def _refused(refused: Refused) -> str:
    tries = "".join(
        f"<details><summary>Answer {number} ({_shown(one.finish)})</summary>{_faults(one.findings)}"
        f"<pre>{_shown(one.raw[:MOST_RAW])}</pre></details>"
        for number, one in enumerate(refused.attempts, 1)
    )
    head = f'{_head(refused)}<p class="soft">{_shown(refused.kind)}</p>{_faults(refused.reasons)}'
    return f'<article class="card sample">{head}{_seen(refused, refused.context)}{tries}</article>\n'


def _head(origin: Provenance | Refused) -> str:
    return f'<h3>{_shown(origin.id)} <span class="soft">{_shown(origin.where)}</span></h3>'


def _faults(faults: Sequence[Fault]) -> str:
    items = "".join(f"<li><b>{_shown(fault.check)}</b> {_shown(fault.text)}</li>" for fault in faults)
    return f'<ul class="faults">{items}</ul>' if items else ""


def _seen(origin: Provenance | Refused, context: str) -> str:
    """The pictures, and what the teacher knew of them."""
    shown = "".join(
        f'<div class="seen"><p class="problem">{_shown(one)}</p></div>'
        if isinstance(one, str)
        else medium_html(one, name)
        for one, name in zip(media(origin), origin.images, strict=True)
    )
    known = f"<details><summary>What the teacher was given</summary><pre>{_shown(context)}</pre></details>"
    return shown + (known if context else "")


def sample_lines(view: SynthesisView) -> Iterator[Text]:
    """The chosen samples and the refused ones for a terminal."""
    for problem in view.problems:
        yield Text(f"problem: {printable(problem)}", style="red")
    for made in view.made:
        yield from _terminal_head(made.origin, told(made.origin))
        for role, text in made.turns:
            yield Text.assemble((f"{role}: ", "yellow"), printable(text))
    for refused in view.refused:
        yield from _terminal_head(refused, refused.kind)
        for fault in refused.reasons:
            yield Text(f"  refused: {fault.check}: {printable(fault.text)}", style="red")
        for one in refused.attempts[-1:]:
            yield Text(printable(one.raw[:MOST_RAW]), style="dim")


def _terminal_head(origin: Provenance | Refused, facts: str) -> Iterator[Text]:
    yield Text("")
    yield Text.assemble((printable(origin.id), "bold"), f"  {printable(origin.where)}")
    yield Text(f"  {printable(facts)}; {printable(', '.join(origin.images))}")


def synthesis_value(view: SynthesisView) -> dict[str, Any]:
    """What is shown, for JSON."""
    return {
        "directory": str(view.directory),
        "statistics": view.statistics,
        "problems": list(view.problems),
        "samples": [
            {**made.origin.model_dump(), "turns": [{"role": role, "text": text} for role, text in made.turns]}
            for made in view.made
        ],
        "refused": [refused.model_dump() for refused in view.refused],
    }
