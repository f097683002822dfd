"""The command line. Torch is imported by the commands that need it, so `--help` and recipe errors come at once."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from opsin import __version__
from opsin.commands.data import check_data, plan
from opsin.commands.inspect import inspect
from opsin.commands.model import export, tokens
from opsin.commands.options import FAILED, ChatTemplate, Json, existing, template_of
from opsin.commands.recipes import copy_recipe, list_recipes, show_recipe
from opsin.commands.report import compare, report
from opsin.commands.synthesize import copy_prompts, synthesize
from opsin.commands.train import train
from opsin.core.errors import OpsinError, StoppedError
from opsin.core.ranks import is_first
from opsin.core.terminal import printable

INTERRUPTED = 130
SIGNALLED = 128
"""What shells add to a signal's number."""
LEAST_TOP_P = 1e-6


class Commands(TyperGroup):
    """The commands; errors that a user can act on are printed without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. Here, since typer would turn Ctrl-C into a silent exit."""
        with _errors():
            return super().invoke(ctx)


app = typer.Typer(
    name="opsin",
    cls=Commands,
    help="Multimodal instruction tuning: data from pictures, a vision-language model in stages, scores, a chat.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data = typer.Typer(name="data", help="Look into data files.", no_args_is_help=True)
recipes = typer.Typer(name="recipes", help="Recipes that come with opsin, known by name.", no_args_is_help=True)
prompts = typer.Typer(name="prompts", help="What teachers are told when data is synthesized.", no_args_is_help=True)


class PictureSet(StrEnum):
    """Where the quick start's pictures come from."""

    STAMPS = "stamps"
    EASY_VQA = "easy-vqa"


def main() -> None:
    """Entry point. Ctrl-C while the command ends leaves at once, without a traceback."""
    try:
        app()
    finally:
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as under nohup
            signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(INTERRUPTED))


@contextmanager
def _errors() -> Iterator[None]:
    try:
        with _told():
            yield
    except KeyboardInterrupt:  # also one that comes while an error is told
        _leave("interrupted", INTERRUPTED)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except StoppedError as error:
        _leave(str(error) if is_first() else "", SIGNALLED + error.signal)
    except OpsinError as error:
        _leave(f"error: {error}", FAILED)
    except BrokenPipeError:  # whoever read the output has left; typer goes quietly
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        _leave(f"error: {where}{error.strerror or error}; check the path, its permissions and the space left", FAILED)


def _leave(message: str, code: int) -> NoReturn:
    if message:
        console = Console(stderr=True)
        console.print(printable(message), style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"opsin {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    _show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options before any command."""


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Run directory; must not hold anything yet.")] = Path("runs/quickstart"),
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Smoke run: drawn pictures, a model from scratch, no download.")
    ] = False,
    pictures: Annotated[PictureSet, typer.Option(help="Where the pictures come from.")] = PictureSet.STAMPS,
    as_json: Json = False,
) -> None:
    """Real pictures, real small backbones, on a CPU: data, two stages, scores, a report, a chat."""
    console = Console(stderr=True)
    console.print("loading libraries", style="dim")
    from opsin.quickstart.run import Options, show
    from opsin.quickstart.run import quickstart as run

    outcome = run(Options(out=out, tiny=tiny, pictures=pictures.value), console)
    if as_json:
        typer.echo(json.dumps(outcome.as_dict(), indent=2))
    else:
        show(outcome, Console())


app.command()(synthesize)
app.add_typer(prompts)
prompts.command("copy")(copy_prompts)
app.command()(train)
app.command()(plan)
app.command()(inspect)
app.command()(report)
app.command()(compare)
app.add_typer(data)
data.command("check")(check_data)
app.add_typer(recipes)
recipes.command("list")(list_recipes)
recipes.command("show")(show_recipe)
recipes.command("copy")(copy_recipe)


@app.command()
def chat(
    checkpoint: Annotated[Path, typer.Argument(help="A run, a checkpoint, or any directory that opsin loads.")],
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=LEAST_TOP_P, max=1, help="Keep the smallest set of tokens with this probability.")
    ] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=4096)] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    template: Annotated[ChatTemplate | None, typer.Option(help="How it is spoken to, where it does not say.")] = None,
) -> None:
    """Talk with a model in the terminal; /image PATH shows it a picture."""
    existing(checkpoint)
    console = Console()
    console.print("loading the model", style="dim")
    from opsin.model.generate import Sampling
    from opsin.serve.chat import run_chat

    try:
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    except ValueError as error:  # not a number lies in no range, but passes typer's check
        raise typer.BadParameter(str(error)) from None
    run_chat(checkpoint, console, input, sampling, template_of(template))


app.command()(tokens)
app.command()(export)

if __name__ == "__main__":
    main()
