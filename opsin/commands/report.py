"""Commands about runs: their report, and several of them side by side. Nothing here needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from opsin.commands.options import Json
from opsin.core.errors import OpsinError
from opsin.core.files import write_text


def report(
    run: Annotated[Path, typer.Argument(help="Run directory; it may still be training.")],
    out: Annotated[Path | None, typer.Option(help="HTML file, by default RUN/report.html.")] = None,
    as_json: Json = False,
) -> None:
    """Write the page of a run from its files: losses, rates, norms, speed, packing, checks, samples."""
    from opsin.report.page import rewrite

    path = rewrite(run, out)
    typer.echo(json.dumps({"report": str(path)}) if as_json else f"report  {path}")


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two run directories or more.")],
    out: Annotated[Path | None, typer.Option(help="Write an HTML page with a plot of the losses too.")] = None,
    as_json: Json = False,
) -> None:
    """Say what differs between runs (recipe, data, versions) and what came of it."""
    if len(runs) < 2:
        raise OpsinError("give two runs or more to compare")
    from opsin.report.compare import compare as compared
    from opsin.report.compare import compare_page, shown
    from opsin.report.run import read_run

    found = compared([read_run(run) for run in runs])
    if out is not None:
        write_text(out, compare_page(found))
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
        return
    console = Console()
    if not found.differences:
        console.print("nothing differs in recipes, data and versions")
    for title, rows in (("What differs", found.differences), ("Results", found.results)):
        if not rows:
            continue
        table = Table(title=title, title_justify="left")
        for name in ("", *found.names):
            table.add_column(Text(name), overflow="fold")
        for name, values in rows:
            table.add_row(Text(name), *(Text(shown(name, value)) for value in values))
        console.print(table)
    if out is not None:
        console.print(f"page  {out}", markup=False, highlight=False, soft_wrap=True)
