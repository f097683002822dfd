"""Commands about data: what is wrong with files, and what a recipe's will cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from opsin.commands.options import FAILED, Json
from opsin.core.terminal import printable

if TYPE_CHECKING:
    from opsin.data.check import Checked


def check_data(
    files: Annotated[list[Path], typer.Argument(help="LLaVA, ShareGPT or messages files, JSON or JSON Lines.")],
    image_root: Annotated[Path | None, typer.Option(help="Where media lie; by default beside each file.")] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every picture too (slow).")] = False,
    as_json: Json = False,
) -> None:
    """List every problem of every record, and count them by kind; exits with 2 if there are any."""
    from opsin.data.check import check, source_of

    found = []
    with Console(stderr=True).status("") as status:
        for path in files:
            shown = printable(str(path))
            found.append(
                check(
                    source_of(path, image_root),
                    decode=decode,
                    on_progress=lambda done, shown=shown: status.update(Text(f"{shown}: {done:,} records")),  # type: ignore[misc]
                )
            )
    if as_json:
        typer.echo(json.dumps([_checked(one) for one in found]))
    else:
        for one in found:
            for problem in one.problems:
                typer.echo(printable(problem.text))
            for note in one.notes:
                typer.echo(printable(f"note: {note}"))
            counted = ", ".join(f"{number:,} {name}" for name, number in one.counts.items()) or "no usable record"
            wrong = ", ".join(f"{number:,} {kind}" for kind, number in one.kinds.items())
            typer.echo(printable(f"{one.path}: {counted}; " + (f"problems: {wrong}" if wrong else "no problems")))
    if any(one.problems for one in found):
        raise typer.Exit(FAILED)


def _checked(one: Checked) -> dict[str, Any]:
    problems = [{"kind": problem.kind, "text": problem.text} for problem in one.problems]
    return {
        "path": str(one.path),
        "counts": dict(one.counts),
        "kinds": one.kinds,
        "problems": problems,
        "notes": list(one.notes),
    }


def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes: stages.0.batch_tokens=8192")] = None,
    rate: Annotated[float | None, typer.Option(min=1e-3, help="Tokens per second, to say how long it takes.")] = None,
    ranks: Annotated[int, typer.Option(min=1, max=4096, help="Processes that share the packs of a step.")] = 1,
    as_json: Json = False,
) -> None:
    """Say what a recipe will cost: tokens, packs, steps, memory, refused samples. Nothing is trained."""
    from opsin.train.recipe import load_recipe

    value = load_recipe(recipe, overrides or [])
    console = Console(stderr=True)
    console.print("loading libraries", style="dim")
    from opsin.train.outlook import look_ahead
    from opsin.train.outlook_table import lines
    from opsin.train.progress import ProgressHooks

    with ProgressHooks(console) as progress:
        stages = look_ahead(value, ranks, progress.on_read)
    if as_json:
        typer.echo(json.dumps([stage.as_dict() for stage in stages]))
    else:
        for line in lines(stages, rate):
            typer.echo(printable(line))
    if any(stage.refused for stage in stages):
        raise typer.Exit(FAILED)
