"""Commands about a model: what pictures cost it, and its files for others."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from difflib import get_close_matches
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from opsin.commands.options import ChatTemplate, Json, existing, template_of
from opsin.core.errors import OpsinError
from opsin.core.terminal import printable

if TYPE_CHECKING:  # numpy and pydantic are imported by the commands that need them
    from opsin.core.types import Layout
    from opsin.model.config import ModelConfig
    from opsin.vision.published import Published

MOST_FRAMES = 10_000


class Role(StrEnum):
    """What a picture or video is in its conversation."""

    SINGLE = "single"
    MULTI = "multi"
    VIDEO = "video"


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


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A run, a checkpoint, or any directory that opsin loads.")],
    directory: Annotated[Path, typer.Argument(help="New directory for the Hugging Face files.")],
    vision_tower: Annotated[Path | None, typer.Option(help="The tower, where an original checkpoint lacks it.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json's folder, where there is none.")] = None,
    template: Annotated[ChatTemplate | None, typer.Option(help="How it is spoken to, where it does not say.")] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Fold adapters into the weights; logits are compared.")
    ] = False,
    adapters: Annotated[bool, typer.Option("--adapters", help="Write the adapters alone, in peft's format.")] = False,
    as_json: Json = False,
) -> None:
    """Write a checkpoint for transformers and vLLM, read it back, and compare the logits."""
    if merge and adapters:
        raise OpsinError("--merge folds the adapters in, --adapters writes them alone; give one of them")
    existing(checkpoint)
    if directory.exists():
        raise OpsinError(f"{directory}: exists already; export to a new directory")
    console = Console(stderr=True)
    console.print("loading the model", style="dim")
    from opsin.checkpoint.export import export as write
    from opsin.checkpoint.export import export_adapters
    from opsin.checkpoint.load import load

    spoken = template_of(template)
    loaded = load(checkpoint, vision_tower=vision_tower, tokenizer=tokenizer, template=spoken, merge=False)
    if adapters:
        family = export_adapters(loaded, directory)
        typer.echo(
            json.dumps({"path": str(directory), "family": family})
            if as_json
            else f"exported  {directory}  (peft's adapter for {family})"
        )
        return
    done = write(loaded, directory, merge=merge)
    if as_json:
        typer.echo(json.dumps(done.as_dict(), indent=2))
        return
    for line in [] if done.merged is None else done.merged.lines():
        typer.echo(line)
    for prompt in done.comparisons:
        typer.echo(f"{prompt.prompt:<6} {prompt.tokens:>6} tokens   logits differ by {prompt.difference:.1e} at most")
    for note in done.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"exported  {done.path}  ({done.family})")
