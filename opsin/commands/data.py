"""Commands about a recipe's data: what is wrong with it, what it costs, and what it looks like."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from opsin.commands.options import FAILED, Json
from opsin.core.errors import OpsinError
from opsin.core.files import write_text
from opsin.core.terminal import printable

if TYPE_CHECKING:
    from opsin.data.check import Checked
    from opsin.report.stage_view import StageView
    from opsin.text.tokenizer import Tokenizer
    from opsin.train.recipe import Recipe, Stage

SHOWN = 6
STREAMED = 20
"""Steps that are looked at of a stage that streams."""


def check_data(
    files: Annotated[list[Path], typer.Argument(help="LLaVA, ShareGPT or messages files, JSON or JSON Lines.")],
    image_root: Annotated[Path | None, typer.Option(help="Where media lie; by default beside each file.")] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every picture too (slow).")] = False,
    as_json: Json = False,
) -> None:
    """List every problem of every record, and count them by kind; exits with 2 if there are any."""
    from opsin.data.check import check, source_of

    found = [check(source_of(path, image_root), decode=decode) for path in files]
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


def inspect(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes: model.template.kind=plain")] = None,
    out: Annotated[Path | None, typer.Option(help="Write an HTML page; by default it is shown here.")] = None,
    stage: Annotated[str | None, typer.Option(help="Only this stage.")] = None,
    samples: Annotated[int, typer.Option(min=1, max=1000, help="How many of each stage, spread evenly.")] = SHOWN,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Show this sample; may be repeated.")] = None,
) -> None:
    """Show what the model sees: tokens, which are learned, pictures with tiles and patches, packs."""
    from opsin.train.recipe import load_recipe

    value = load_recipe(recipe, overrides or [])
    names = [one.name for one in value.stages]
    if stage is not None and stage not in names:
        raise OpsinError(f"--stage {stage}: the recipe has no such stage; it has {', '.join(names)}")
    from opsin.report.stage_view import check_found
    from opsin.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(value.composition.language.tokenizer_path)
    wanted = [one for one in value.stages if stage in (None, one.name)]
    views = [_view(value, one, tokenizer, ids or (), samples) for one in wanted]
    check_found(views, ids or ())
    if out is not None:
        from opsin.report.inspect import page

        write_text(out, page(value.name, views))
        typer.echo(f"page  {printable(str(out))}")
        return
    from opsin.report.inspect_terminal import lines

    console = Console(highlight=False)
    for view in views:
        for line in lines(view):
            console.print(line, soft_wrap=True)


def _view(recipe: Recipe, stage: Stage, tokenizer: Tokenizer, ids: Sequence[str], samples: int) -> StageView:
    """A stage's data as training will take it; what it would refuse is listed instead of raised."""
    from opsin.report.stage_view import StageView, named, spread
    from opsin.train.data import plan_steps, read_stage

    data = read_stage(stage, recipe.composition, tokenizer, skip_bad=True)
    steps = plan_steps(data, stage, recipe.seed)
    return StageView(
        name=stage.name,
        examples=data.examples,
        patch=recipe.composition.encoder.patch_size,
        budget=stage.budget,
        steps=steps[:STREAMED] if stage.order == "stream" else steps,
        refused=data.found.refused,
        dropped=data.found.dropped,
        shortened=data.found.shortened,
        chosen=named(data.examples, ids) if ids else spread(len(data.examples), samples),
    )
