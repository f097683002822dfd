"""Commands about data: what is wrong with files, and what a recipe's will cost."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from opsin.commands.options import FAILED, Json
from opsin.core.errors import DataError, collapsed
from opsin.core.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opsin.data.check import Checked

PLURALS = {"file": "the file", "record": "records", "turns": "turns", "picture": "pictures", "video": "videos"}
"""What problems of each kind are with."""


def check_data(
    files: Annotated[
        list[Path], typer.Argument(help="JSON or JSON Lines (LLaVA, ShareGPT, messages), Parquet files, tar shards.")
    ],
    image_root: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Where media lie; by default beside each file."),
    ] = None,
    allow_outside: Annotated[
        bool, typer.Option("--allow-outside", help="Let paths lead out of there, as allow_outside in a recipe does.")
    ] = False,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every picture too (slow).")] = False,
    as_json: Json = False,
) -> None:
    """List every problem of every record, and count them by kind; exits with 2 if there are any."""
    from opsin.data.check import Checked, Problem, check, source_of

    found: list[Checked] = []
    with Console(stderr=True).status("") as status:
        for path in files:
            shown = printable(str(path))
            try:
                source = source_of(path, image_root, allow_outside=allow_outside)
            except DataError as error:
                found.append(Checked(path, problems=tuple(Problem("file", text) for text in error.problems)))
                continue
            on_progress = lambda done, shown=shown: status.update(Text(f"{shown}: {done:,} records"))  # noqa: E731
            found.append(check(source, decode=decode, on_progress=on_progress))
    if as_json:
        typer.echo(json.dumps([_checked(one) for one in found]))
    else:
        for one in found:
            for line in _lines(one):
                typer.echo(printable(line))
    if any(one.problems for one in found):
        raise typer.Exit(FAILED)


def _lines(one: Checked) -> Iterator[str]:
    """What is said of a file: problems with one cause are not all listed."""
    yield from collapsed([problem.text for problem in one.problems])
    for note in one.notes:
        yield f"note: {note}"
    if not one.records and one.problems:
        yield f"{one.path}: not checked"
        return
    held = ", ".join(_counted(number, name) for name, number in one.counts.items() if name != "conversations")
    wrong = ", ".join(f"{number:,} with {PLURALS[kind]}" for kind, number in one.kinds.items())
    problems = f"{_counted(len(one.problems), 'problems')}: {wrong}" if wrong else "no problems"
    usable = f"{one.usable:,} of {one.records:,} records can be used"
    yield f"{one.path}: {usable}{f' ({held})' if held else ''}; {problems}"


def _counted(number: int, name: str) -> str:
    """`1 picture`, `2 pictures`, `1 repeated id`."""
    one = re.sub(r"s\b", "", name, count=1)
    return f"{number:,} {one if number == 1 else name}"


def _checked(one: Checked) -> dict[str, Any]:
    problems = [{"kind": problem.kind, "text": problem.text} for problem in one.problems]
    return {
        "path": str(one.path),
        "records": one.records,
        "usable": one.usable,
        "counts": dict(one.counts),
        "kinds": one.kinds,
        "problems": problems,
        "notes": list(one.notes),
    }


def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML), or a packaged recipe's name.")],
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
