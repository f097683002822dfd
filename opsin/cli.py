"""The command line. Torch is imported by the commands that need it, so `--help` and recipe errors come at once."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from difflib import get_close_matches
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from opsin import __version__
from opsin.core.errors import OpsinError
from opsin.core.terminal import printable

if TYPE_CHECKING:  # numpy and pydantic are imported by the commands that need them
    from opsin.core.types import Layout
    from opsin.data.check import Checked
    from opsin.model.config import ModelConfig
    from opsin.text.templates import Template
    from opsin.vision.published import Published

FAILED = 2
INTERRUPTED = 130
LEAST_TOP_P = 1e-6
MOST_FRAMES = 10_000


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
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


class ChatTemplate(StrEnum):
    """How a model is spoken to, with the template's own system text."""

    VICUNA_V1 = "vicuna_v1"
    MISTRAL = "mistral"
    CHATML = "chatml"


class PictureSet(StrEnum):
    """Where the quick start's pictures come from."""

    STAMPS = "stamps"
    EASY_VQA = "easy-vqa"


class Role(StrEnum):
    """What a picture or video is in its conversation."""

    SINGLE = "single"
    MULTI = "multi"
    VIDEO = "video"


def main() -> None:
    """Entry point."""
    app()


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except OpsinError as error:
        _leave(f"error: {error}", FAILED)
    except BrokenPipeError:  # whoever read the output has left; typer goes quietly
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        _leave(f"error: {where}{error.strerror or error}; check the path, its permissions and the space left", FAILED)
    except KeyboardInterrupt:
        _leave("interrupted", INTERRUPTED)


def _leave(message: str, code: int) -> NoReturn:
    console = Console(stderr=True)
    console.print(printable(message), style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


def _existing(checkpoint: Path) -> None:
    """Say at once that a model's directory is not there, before the libraries are loaded that would look for it."""
    if not checkpoint.is_dir():
        what = "a file; give the directory that it is in" if checkpoint.exists() else "no such directory"
        raise OpsinError(f"{checkpoint}: {what}; expected a run, a checkpoint, or a model's directory")


def _template(kind: ChatTemplate | None) -> Template | None:
    if kind is None:
        return None
    from pydantic import TypeAdapter

    from opsin.text.templates import Template

    value: Template = TypeAdapter(Template).validate_python({"kind": kind.value})
    return value


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


@app.command()
def train(
    recipe: Annotated[Path | None, typer.Argument(help="Recipe file (YAML).")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes: stages.0.train.connector.lr=5e-4")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory, by default runs/NAME of the recipe.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run directory instead.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out records that cannot be used; they are counted and named.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe's stages, or go on with a run."""
    if (recipe is None) == (resume is None):
        raise OpsinError("give a recipe to train, or --resume RUN to go on with one, not both")
    if resume is not None:
        if overrides or out is not None or skip_bad:
            raise OpsinError("--resume goes on with the run as it is: no overrides, no --out and no --skip-bad")
        console = Console(stderr=True)
        from opsin.train.progress import ProgressHooks
        from opsin.train.run import resume as go_on

        with ProgressHooks(console) as progress:
            checkpoint = go_on(resume, progress.hooks())
    else:
        from opsin.train.recipe import load_recipe

        value = load_recipe(recipe or Path(), [*(overrides or []), *(["skip_bad=true"] if skip_bad else [])])
        console = Console(stderr=True)
        console.print("loading libraries", style="dim")
        from opsin.train.progress import ProgressHooks
        from opsin.train.run import start

        with ProgressHooks(console) as progress:
            checkpoint = start(value, out or Path("runs") / value.name, progress.hooks())
    typer.echo(json.dumps({"checkpoint": str(checkpoint)}) if as_json else f"checkpoint  {checkpoint}")


@app.command()
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
    Console(stderr=True).print("loading libraries", style="dim")
    from opsin.train.outlook import look_ahead
    from opsin.train.outlook_table import lines

    stages = look_ahead(value, ranks)
    if as_json:
        typer.echo(json.dumps([stage.as_dict() for stage in stages]))
    else:
        for line in lines(stages, rate):
            typer.echo(printable(line))
    if any(stage.refused for stage in stages):
        raise typer.Exit(FAILED)


data = typer.Typer(name="data", help="Look into data files.", no_args_is_help=True)
app.add_typer(data)


@data.command("check")
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
            counted = ", ".join(f"{number:,} {name}" for name, number in one.counts.items()) or "no usable record"
            wrong = ", ".join(f"{number:,} {kind}" for kind, number in one.kinds.items())
            typer.echo(printable(f"{one.path}: {counted}; " + (f"problems: {wrong}" if wrong else "no problems")))
    if any(one.problems for one in found):
        raise typer.Exit(FAILED)


def _checked(one: Checked) -> dict[str, Any]:
    problems = [{"kind": problem.kind, "text": problem.text} for problem in one.problems]
    return {"path": str(one.path), "counts": dict(one.counts), "kinds": one.kinds, "problems": problems}


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
    _existing(checkpoint)
    console = Console()
    console.print("loading the model", style="dim")
    from opsin.model.generate import Sampling
    from opsin.serve.chat import run_chat

    try:
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    except ValueError as error:  # not a number lies in no range, but passes typer's check
        raise typer.BadParameter(str(error)) from None
    run_chat(checkpoint, console, input, sampling, _template(template))


@app.command()
def tokens(
    model: Annotated[
        str, typer.Option(help="llava-1.5, llava-next, llava-onevision or qwen2-vl, or a checkpoint's directory.")
    ],
    size: Annotated[str, typer.Option(help="Height and width in pixels: 480x640.")],
    role: Annotated[
        Role, typer.Option(help="The only picture of a conversation, one of several, or a video.")
    ] = Role.SINGLE,
    frames: Annotated[
        int | None, typer.Option(min=1, max=MOST_FRAMES, help="Of a video: how many frames the model is given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say how many positions of the sequence a picture or video takes; nothing is opened but a checkpoint's config."""
    if role == Role.VIDEO and frames is None:
        raise OpsinError("--role video needs --frames N, how many frames of it the model is given")
    if role != Role.VIDEO and frames is not None:
        raise OpsinError(f"--frames {frames} is for videos: add --role video, or leave it out for a picture")
    height, width = _size(size)
    planner, spliced = _planner(model)
    layout = planner.layout(height, width, role.value, frames or 1)
    taken = layout.tokens if spliced else 0  # by cross-attention pictures are looked at from outside the sequence
    if as_json:
        typer.echo(json.dumps({"model": model, "tokens": taken, "frames": frames, **_described(layout)}))
        return
    medium = f"{frames} frames" if frames else f"{role.value} picture"
    typer.echo(f"{printable(model)}, {medium} of {height}x{width} (HxW)")
    if not spliced:
        typer.echo("the model looks at it by cross-attention: it takes no place in the text")
    rows = [("tokens", f"{taken:,}"), ("canvas", f"{layout.frames} x {layout.canvas[0]}x{layout.canvas[1]} pixels")]
    rows += [("patches", f"{layout.patches:,} = {layout.grid.t} x {layout.grid.h}x{layout.grid.w}")]
    for block, same in groupby(layout.blocks):
        number = len(list(same))
        extra = " + a newline each row" * block.newline + f" + {block.tail} at the end" * (block.tail > 0)
        name = "block" if number == 1 else f"{number} blocks"
        rows.append((name, f"{block.t} x {block.rows}x{block.cols}{extra}"))
    for name, value in rows:
        typer.echo(f"{name:<11}{value}")


def _size(text: str) -> tuple[int, int]:
    """Height and width of `480x640`; whether a model takes that shape is for its resolution to say."""
    from opsin.vision.picture import MAX_SIDE

    found = re.fullmatch(r"([0-9]{1,9})[xX]([0-9]{1,9})", text)
    if found is None:
        raise OpsinError(f"--size {text!r}: expected height and width in pixels, such as 480x640")
    height, width = int(found[1]), int(found[2])
    if not (min(height, width) >= 1 and max(height, width) <= MAX_SIDE):
        raise OpsinError(f"--size {text}: each side must be from 1 to {MAX_SIDE:,} pixels")
    return height, width


def _planner(model: str) -> tuple[Published | ModelConfig, bool]:
    """What plans layouts for a published model or a checkpoint, and whether pictures take places in its sequence."""
    from opsin.vision.published import PUBLISHED

    if model in PUBLISHED:
        return PUBLISHED[model], True
    if model and Path(model).is_dir():
        from opsin.checkpoint.load import read_model_config
        from opsin.text.templates import Plain

        config = read_model_config(Path(model), template=Plain())  # geometry does not depend on it
        return config, config.spliced
    near = get_close_matches(model, PUBLISHED, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise OpsinError(f"unknown model {model!r}: {hint}known are {', '.join(PUBLISHED)}, and directories of checkpoints")


def _described(layout: Layout) -> dict[str, Any]:
    """A layout as JSON."""
    return {
        "size": layout.source,
        "role": layout.role,
        "canvas": layout.canvas,
        "images": layout.frames,
        "maps": layout.grid.t,
        "map": (layout.grid.h, layout.grid.w),
        "patches": layout.patches,
        "blocks": [asdict(block) | {"tokens": block.tokens} for block in layout.blocks],
    }


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run, a checkpoint, or any directory that opsin loads.")],
    directory: Annotated[Path, typer.Argument(help="New directory for the Hugging Face files.")],
    vision_tower: Annotated[Path | None, typer.Option(help="The tower, where an original checkpoint lacks it.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json's folder, where there is none.")] = None,
    template: Annotated[ChatTemplate | None, typer.Option(help="How it is spoken to, where it does not say.")] = None,
    as_json: Json = False,
) -> None:
    """Write a checkpoint for transformers and vLLM, read it back, and compare the logits."""
    _existing(checkpoint)
    if directory.exists():
        raise OpsinError(f"{directory}: exists already; export to a new directory")
    console = Console(stderr=True)
    console.print("loading the model", style="dim")
    from opsin.checkpoint.export import export as write
    from opsin.checkpoint.load import load

    loaded = load(checkpoint, vision_tower=vision_tower, tokenizer=tokenizer, template=_template(template))
    done = write(loaded, directory)
    if as_json:
        typer.echo(json.dumps(done.as_dict(), indent=2))
        return
    for prompt in done.comparisons:
        typer.echo(f"{prompt.prompt:<6} {prompt.tokens:>6} tokens   logits differ by {prompt.difference:.1e} at most")
    for note in done.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"exported  {done.path}  ({done.family})")


if __name__ == "__main__":
    main()
