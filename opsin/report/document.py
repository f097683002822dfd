"""The shell of every page: one HTML file that needs nothing else, no network and no JavaScript."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from opsin.core.terminal import printable

OPEN_UP_TO = 20
"""Longer lists are folded at first."""

MOST_LISTED = 1000
"""Lines of a list that are written."""


def document(name: str, body: str, *sheets: str) -> str:
    """A whole page; `sheets` are style sheets of this package beside the common one."""
    style = "".join(
        files("opsin.report").joinpath(sheet).read_text(encoding="utf-8") for sheet in ("page.css", *sheets)
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(printable(name))}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def section(heading: str, body: str) -> str:
    """A heading and what is below it; nothing where there is nothing below it."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n{body}\n</section>\n" if body else ""


def counts(heading: str, numbers: Iterable[tuple[str, int]]) -> str:
    """A card of named numbers."""
    body = "".join(f"<tr><th scope='row'>{escape(name)}</th><td>{count:,}</td></tr>" for name, count in numbers)
    return f'<div class="card"><h3>{escape(heading)}</h3><table>{body}</table></div>'


def folded_list(heading: str, lines: Sequence[str]) -> str:
    """A numbered list of texts with their count; a long one is folded, the end of a very long one left out."""
    items = "".join(f"<li>{escape(printable(line))}</li>" for line in lines[:MOST_LISTED])
    if len(lines) > MOST_LISTED:
        items += f"<li>and {len(lines) - MOST_LISTED:,} more</li>"
    shown = " open" if len(lines) <= OPEN_UP_TO else ""
    summary = f"<summary>{escape(heading)}: {len(lines):,}</summary>"
    return f'<details class="card listed"{shown}>{summary}<ol>{items}</ol></details>'
