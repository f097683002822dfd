"""A dry run of a recipe: its plan, and what every stage would train."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from opsin.commands.options import FAILED
from opsin.core.terminal import printable

if TYPE_CHECKING:
    from opsin.train.recipe import Recipe


def dry_run(recipe: Recipe, *, as_json: bool) -> None:
    """Print what `opsin plan` prints and what the gradient audit finds; exits with 2 if samples are refused.

    Raises:
        OpsinError: whatever would end the run before its first step.
    """
    console = Console(stderr=True)
    console.print("loading libraries", style="dim")
    from opsin.train.outlook import look_ahead
    from opsin.train.outlook_table import lines as plan_lines
    from opsin.train.progress import ProgressHooks
    from opsin.train.rehearsal import lines, rehearse

    with ProgressHooks(console) as progress:
        planned = look_ahead(recipe, on_progress=progress.on_read)
    if not as_json:
        for line in plan_lines(planned, None):
            typer.echo(printable(line))
    refused = any(stage.refused for stage in planned) and not recipe.skip_bad
    found = [] if refused else list(rehearse(recipe))
    if as_json:
        value = {"plan": [stage.as_dict() for stage in planned], "audit": [stage.as_dict() for stage in found]}
        typer.echo(json.dumps(value))
    else:
        for line in lines(found):
            typer.echo(printable(line))
    if refused:
        raise typer.Exit(FAILED)
