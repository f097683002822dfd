"""The command that trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from opsin.commands.options import Json
from opsin.commands.rehearse import dry_run as rehearse
from opsin.core.errors import OpsinError
from opsin.core.ranks import is_first

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opsin.model.vlm import Vlm
    from opsin.text.tokenizer import Tokenizer
    from opsin.train.checks import Benchmarks
    from opsin.train.recipe import Benchmark, Recipe, Stage


def train(
    recipe: Annotated[Path | None, typer.Argument(help="Recipe file (YAML), or a packaged recipe's name.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes: stages.0.train.connector.lr=5e-4")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory, by default runs/NAME of the recipe.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run directory instead.")] = None,
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="With --resume: with a fresh optimiser, if its state is lost.")
    ] = False,
    override: Annotated[
        bool, typer.Option("--override", help="With --resume: although recipe, data or tokenizer have changed.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out samples that cannot be used; they are counted and named.")
    ] = False,
    stages: Annotated[
        str | None, typer.Option(help="Only these stages of the recipe: instruct, or align,instruct")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Plan, audit one pack of every stage, and stop; nothing is written.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe's stages, or go on with a run; under torchrun by all its processes together.

    Ctrl-C (or SIGTERM) ends the step, saves and leaves; a second Ctrl-C leaves at once. --resume goes on.
    """
    if (recipe is None) == (resume is None):
        both = ", not both" if recipe is not None else ""
        raise OpsinError(f"give a recipe to train, or --resume RUN to go on with a run{both}")
    if resume is not None:
        if overrides or out is not None or skip_bad or stages is not None or dry_run:
            raise OpsinError("--resume goes on with the run as it is: only --weights-only and --override go with it")
        _told(_resume(resume, weights_only=weights_only, override=override), as_json=as_json)
        return
    if weights_only or override:
        raise OpsinError("--weights-only and --override go with --resume RUN")
    from opsin.train.recipe import load_recipe, only_stages

    value = load_recipe(recipe or Path(), [*(overrides or []), *(["skip_bad=true"] if skip_bad else [])])
    if stages is not None:
        value = only_stages(value, [name.strip() for name in stages.split(",")])
    if dry_run:
        rehearse(value, as_json=as_json)
    else:
        _told(_start(value, out or Path("runs") / value.name), as_json=as_json)


def _console() -> Console:
    """For what is told while libraries are loaded, and after."""
    console = Console(stderr=True)
    if is_first():
        console.print("loading libraries", style="dim")
    return console


def _start(recipe: Recipe, out: Path) -> Path:
    console = _console()
    from opsin.train.progress import ProgressHooks
    from opsin.train.run import start

    with ProgressHooks(console) as progress:
        return start(recipe, out, progress.hooks(), benchmarks=benchmarks)


def _resume(run: Path, *, weights_only: bool, override: bool) -> Path:
    console = _console()
    from opsin.train.progress import ProgressHooks
    from opsin.train.run import resume

    with ProgressHooks(console) as progress:
        return resume(run, progress.hooks(), weights_only=weights_only, override=override, benchmarks=benchmarks)


def _told(checkpoint: Path, *, as_json: bool) -> None:
    if is_first():
        typer.echo(json.dumps({"checkpoint": str(checkpoint)}) if as_json else f"checkpoint  {checkpoint}")


def benchmarks(stage: Stage, tokenizer: Tokenizer) -> Benchmarks:
    """How a stage's benchmarks are asked."""
    asked = stage.checks.benchmarks if stage.checks is not None else []
    return {benchmark.name: _asker(benchmark, tokenizer) for benchmark in asked}


def _asker(benchmark: Benchmark, tokenizer: Tokenizer) -> Callable[[Vlm], Mapping[str, float]]:
    from opsin.evaluate.heldout import evaluate
    from opsin.evaluate.questions import read_questions

    root = benchmark.image_root or benchmark.questions.parent
    read_questions(benchmark.questions, root)  # what is wrong with them is told before anything is trained

    def ask(model: Vlm) -> Mapping[str, float]:
        scores = evaluate(model, tokenizer, benchmark.questions, root).scores
        return {f"{score.task} {score.metric}": score.value for score in scores}

    return ask
