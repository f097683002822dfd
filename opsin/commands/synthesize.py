"""The command that makes instruction data from annotated pictures, and the one that copies its prompts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from opsin.commands.options import Json
from opsin.core.errors import OpsinError
from opsin.core.terminal import printable

if TYPE_CHECKING:
    from opsin.synthesize.engine import Facts
    from opsin.synthesize.estimate import Estimate
    from opsin.synthesize.recipe import Synthesis
    from opsin.synthesize.run import Result, Watch

INCOMPLETE = 3
"""Exit code of a run that ended before every task had its outcome: the same command goes on."""
BAR_SECONDS = 0.2
"""Between two looks at a bar."""
PLAIN_SECONDS = 10.0
"""Between two lines where there is no terminal to draw a bar on."""
SPEED_SECONDS = 300.0
"""The tasks that a bar reckons the time left from: those of so many seconds."""


def synthesize(
    recipe: Annotated[Path, typer.Argument(help="Synthesis recipe (YAML), or a packaged one: llava-instruct, offline")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes: teacher.model=gpt-4o checks.repairs=2")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory, by default synthesis/NAME; goes on there.")] = None,
    pictures: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many of each source: for a trial.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(min=0, help="The most to spend on this directory, all runs together.")
    ] = None,
    max_requests: Annotated[int | None, typer.Option(min=0, help="The most requests, all runs together.")] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say what it would take, and stop; nothing is asked.")
    ] = False,
    export_batch: Annotated[
        Path | None, typer.Option(help="Write what is still to be asked as Batch API files into this folder.")
    ] = None,
    import_batch: Annotated[
        list[Path] | None, typer.Option(help="Take the answers of a Batch API output file; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make instruction data from pictures with captions and boxes: conversations, descriptions, complex reasoning.

    Every answer is kept when it comes: the same command goes on after Ctrl-C, an error or a crash, and asks nothing
    twice. It ends with 0 if every sample was made or refused, 3 if some still lack answers (budget, unanswered
    requests). With --export-batch or --import-batch nobody is asked.
    """
    from opsin.synthesize.recipe import load_synthesis

    limits = {"max_cost": max_cost, "max_requests": max_requests}
    given = [f"limits.{name}={value}" for name, value in limits.items() if value is not None]
    value = load_synthesis(recipe, [*(overrides or []), *given])
    folder = out or Path("synthesis") / value.name
    if estimate:
        if export_batch is not None or import_batch:
            raise OpsinError("--estimate only says what it would take: it goes without --export-batch, --import-batch")
        _estimate(value, folder, pictures, as_json=as_json)
        return
    with _watching(Console(stderr=True)) as watch:
        result = _run(value, folder, pictures, export_batch, import_batch or [], watch)
    _show(result, as_json=as_json)
    if not result.complete:
        raise typer.Exit(INCOMPLETE)


def _run(
    recipe: Synthesis, out: Path, pictures: int | None, exported: Path | None, imported: list[Path], watch: Watch
) -> Result:
    from opsin.synthesize.run import synthesize, synthesize_by_batch

    if exported is None and not imported:
        return synthesize(recipe, out, watch, most_pictures=pictures)
    return synthesize_by_batch(recipe, out, watch, imported=imported, exported=exported, most_pictures=pictures)


def _estimate(recipe: Synthesis, out: Path, pictures: int | None, *, as_json: bool) -> None:
    from opsin.synthesize.run import estimated

    found = estimated(recipe, out, most_pictures=pictures)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
        return
    for line in _foreseen(found, recipe):
        typer.echo(line)


def _foreseen(found: Estimate, recipe: Synthesis) -> Iterator[str]:
    from opsin.report.words import duration
    from opsin.synthesize.teacher_values import OpenAI

    refused = f"; {found.refused_entries:,} entries cannot be used, a run names them" if found.refused_entries else ""
    yield f"samples   {found.samples:,} to make of {found.pictures:,} pictures{refused}"
    if not isinstance(recipe.teacher, OpenAI):
        yield "requests  none: rules make all of them, at no cost"
        return
    yield f"requests  {found.to_buy:,} to ask, {found.in_ledger:,} have answers; repairs of refused answers come on top"
    usage, most = found.expected, found.most
    yield f"tokens    about {usage.prompt_tokens:,} + {usage.answer_tokens:,}, at most {most.tokens:,}"
    price = recipe.teacher.price
    if price is None:
        yield "cost      unknown: give the teacher a price"
    else:
        budget = recipe.limits.max_cost
        told = f"; max_cost is {budget:,.4f}" if budget is not None else ""
        yield f"cost      about {usage.cost:,.4f} {price.currency}, at most {most.cost:,.4f}{told}"
    yield f"time      {'about ' + duration(found.seconds) if found.seconds is not None else 'unknown before a trial'}"


@contextmanager
def _watching(console: Console) -> Iterator[Watch]:
    """A bar on a terminal, a line now and then elsewhere."""
    from opsin.synthesize.run import Watch

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[told]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
        speed_estimate_period=SPEED_SECONDS,
    )
    task = bar.add_task("asking", total=None, visible=False, told="")
    told = time.monotonic()

    def line(text: str) -> None:
        console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def facts(done: int, tasks: int, numbers: Facts) -> None:
        nonlocal told
        if time.monotonic() - told < (BAR_SECONDS if console.is_terminal else PLAIN_SECONDS):
            return
        told = time.monotonic()
        bar.update(task, completed=done, total=tasks, visible=True, told=printable(_told(numbers)))
        if not console.is_terminal:
            line(f"{done:,} of {tasks:,}{time_left(done, tasks, numbers)}  {_told(numbers)}")

    with bar:
        yield Watch(on_line=line, on_facts=facts)


def time_left(done: int, tasks: int, numbers: Facts) -> str:
    """How long the other tasks take if they need as many answers as those that are done; empty before an answer."""
    from opsin.report.words import duration

    if not numbers.per_second:
        return ""
    answers_a_task = (numbers.answered + numbers.from_ledger) / done  # repairs and refusals take several
    return f", about {duration((tasks - done) * answers_a_task / numbers.per_second)} left"


def _told(numbers: Facts) -> str:
    rate = numbers.per_second
    speed = f"{rate:,.1f} answers/s" if rate >= 1 else f"{60 * rate:,.1f} answers/min"
    parts = [speed, f"{numbers.used.tokens:,} tokens"]
    if numbers.spent.cost:
        parts.append(f"cost {numbers.spent.cost:,.4f}")
    if numbers.from_ledger:
        parts.append(f"{numbers.from_ledger:,} from the ledger")
    if numbers.failed:
        parts.append(f"{numbers.failed:,} failed attempts, the last one: {numbers.problem[:80]}")
    if numbers.paused_for:
        parts.append(f"asked to wait {numbers.paused_for:,.1f} s")
    return "  ".join(parts)


def _show(result: Result, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"out": str(result.out), "ended": result.ended, **result.statistics}, indent=2))
        return
    from opsin.synthesize.statistics import summary_lines

    for line in summary_lines(result.statistics):
        typer.echo(printable(line))
    file = result.out / "instruct.json"
    typer.echo(printable(f"samples  {file}\npage     {result.out / 'page.html'}"))
    if result.statistics["states"].get("made"):
        source = f"{{kind: llava, path: {file.absolute()}, image_root: {result.image_root}}}"
        typer.echo(printable(f"train    data: [{source}]"))
    if result.ended:
        typer.echo(printable(f"ended    {result.ended}"))


def copy_prompts(folder: Annotated[Path, typer.Argument(help="New folder; one below it for each prompt.")]) -> None:
    """Copy the prompts to edit them; an entry of a recipe's kinds takes its own with `prompt: FOLDER/NAME`."""
    from opsin.synthesize.prompting import copy_prompts as copied

    paths = copied(folder)
    for one in sorted({path.parent for path in paths}):
        typer.echo(printable(f"prompt  {one}"))
