"""The command that shows data: a recipe's as a model sees it, a file's as it is."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from opsin.commands.options import Json
from opsin.core.errors import OpsinError
from opsin.core.files import write_text
from opsin.core.terminal import printable

if TYPE_CHECKING:
    from opsin.data.sources import Source
    from opsin.model.config import ModelConfig
    from opsin.report.stage_view import StageView
    from opsin.text.tokenizer import Tokenizer
    from opsin.train.recipe import Recipe, Stage

Progress = Callable[[str, int], None]
"""Told the name of a source, and how many more of its samples are read."""

RECIPES = frozenset({".yaml", ".yml"})
SHOWN = 6
SEED = 0
"""Of the samples of a synthesis that are shown."""
STREAMED = 20
"""Steps that are looked at of a stage that streams."""


def inspect(
    file: Annotated[
        Path,
        typer.Argument(
            help="Recipe (YAML, or a packaged one's name), a data file (.json, .tar ...), or a synthesis's directory"
        ),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes: model.template.kind=plain")] = None,
    out: Annotated[Path | None, typer.Option(help="Write an HTML page; by default it is shown here.")] = None,
    stage: Annotated[str | None, typer.Option(help="Of a recipe: only this stage.")] = None,
    samples: Annotated[
        int, typer.Option(min=1, max=1000, help="How many (of each stage), of every source and kind.")
    ] = SHOWN,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Show this sample; may be repeated.")] = None,
    image_root: Annotated[Path | None, typer.Option(help="Of a data file: where media lie.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Of a data file: a recipe or a checkpoint, to show it as that model sees it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a model sees: tokens, what is learned, pictures with tiles and patches, packs; or what a file holds.

    Of a synthesis: its numbers, some samples with their pictures and provenance, some refused answers with reasons.
    """
    from opsin.core.packaged import is_packaged

    if file.suffix in RECIPES or is_packaged(file):
        if image_root is not None or model is not None:
            name = "--model" if model is not None else "--image-root"
            raise OpsinError(f"{name} is for data files; a recipe says it itself, and overrides change it")
        _recipe(file, overrides or (), stage, ids or (), samples, out, as_json)
        return
    from opsin.report.synthesis_view import RECIPE

    if (file / RECIPE).is_file():
        if overrides or stage is not None or image_root is not None or model is not None:
            raise OpsinError(f"{file} is a synthesis; of the options, --out, --samples, --id and --json are for it")
        _synthesis(file, ids or (), samples, out, as_json)
        return
    if overrides or stage is not None:
        given = "--stage" if stage is not None else str((overrides or [""])[0])
        raise OpsinError(f"{given} is for recipes (.yaml), but {file} is taken for a data file")
    _data(file, image_root, model, ids or (), samples, out, as_json)


def _recipe(
    path: Path,
    overrides: Sequence[str],
    stage: str | None,
    ids: Sequence[str],
    samples: int,
    out: Path | None,
    as_json: bool,
) -> None:
    from opsin.train.recipe import load_recipe

    recipe = load_recipe(path, overrides)
    names = [one.name for one in recipe.stages]
    if stage is not None and stage not in names:
        raise OpsinError(f"--stage {stage}: the recipe has no such stage; it has {', '.join(names)}")
    from opsin.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(recipe.composition.language.tokenizer_path)
    wanted = [one for one in recipe.stages if stage in (None, one.name)]
    with _reading() as on_progress:
        views = [_view(recipe, one, tokenizer, ids, samples, on_progress) for one in wanted]
    _show_stages(recipe.name, views, ids, out, as_json)


def _synthesis(directory: Path, ids: Sequence[str], samples: int, out: Path | None, as_json: bool) -> None:
    from opsin.report.synthesis import page, sample_lines, synthesis_value
    from opsin.report.synthesis_view import look_at_synthesis
    from opsin.synthesize.statistics import summary_lines

    view = look_at_synthesis(directory, samples, SEED, ids)

    def lines(_colours: bool) -> Iterator[Text]:
        if not ids:
            yield from (Text(printable(line)) for line in summary_lines(view.statistics))
        yield from sample_lines(view)

    _give(out, as_json, lambda: page(view), lambda: synthesis_value(view), lines)


@contextmanager
def _reading() -> Iterator[Progress]:
    """Tell on a terminal's stderr how many samples of a source are read."""
    read: Counter[str] = Counter()
    with Console(stderr=True).status("") as status:

        def tell(name: str, more: int) -> None:
            read[name] += more
            status.update(Text(f"{printable(name)}: {read[name]:,} samples"))

        yield tell


def _view(
    recipe: Recipe, stage: Stage, tokenizer: Tokenizer, ids: Sequence[str], samples: int, on_progress: Progress
) -> StageView:
    """A stage's data as training will take it; what it would refuse is listed instead of raised."""
    from opsin.report.stage_view import StageView
    from opsin.train.data import plan_steps, read_stage

    data = read_stage(stage, recipe.composition, tokenizer, skip_bad=True, on_progress=on_progress)
    steps = plan_steps(data, stage, recipe.seed)
    streamed = stage.order == "stream"
    view = StageView(
        name=stage.name,
        examples=data.examples,
        patch=recipe.composition.encoder.patch_size,
        budget=stage.budget,
        steps=steps[:STREAMED] if streamed else steps,
        all_steps=len(steps),
        epoch=None if streamed else sum(data.amounts),
        refused=data.found.refused,
        dropped=data.found.dropped,
        shortened=data.found.shortened,
        notes=data.found.notes,
    )
    return _choosing(view, ids, samples)


def _choosing(view: StageView, ids: Sequence[str], most: int) -> StageView:
    """A view that shows the samples with these ids, or, without ids, at most so many that are chosen."""
    from opsin.report.stage_view import named, varied

    return replace(view, chosen=named(view.examples, ids) if ids else varied(view, most))


def _data(
    path: Path,
    image_root: Path | None,
    model: Path | None,
    ids: Sequence[str],
    samples: int,
    out: Path | None,
    as_json: bool,
) -> None:
    from opsin.data.check import source_of

    source = source_of(path, image_root)
    if model is not None:
        with _reading() as on_progress:
            seen = _as_seen(path, source, _config(model), ids, samples, on_progress)
        _show_stages(path.name, [seen], ids, out, as_json)
        return
    from opsin.report.file_view import look_at

    with _reading() as on_progress:
        view = look_at(source, samples, ids, lambda _done: on_progress(path.name, 1))

    from opsin.report.file_page import page
    from opsin.report.inspect_json import file_value
    from opsin.report.inspect_terminal import file_lines

    _give(out, as_json, lambda: page(view), lambda: file_value(view), lambda _colours: file_lines(view))


def _config(model: Path) -> ModelConfig:
    """The parts of a checkpoint, or of the model that a recipe trains."""
    if model.is_dir():
        from opsin.checkpoint.load import read_model_config

        return read_model_config(model)
    from opsin.train.recipe import load_recipe

    return load_recipe(model).composition


def _as_seen(
    path: Path, source: Source, config: ModelConfig, ids: Sequence[str], samples: int, on_progress: Progress
) -> StageView:
    """A file's samples as a model sees them, in no stage."""
    import numpy as np

    from opsin.checkpoint.prepare import preparation
    from opsin.data.corpus import Corpus, Part
    from opsin.data.index import index_of
    from opsin.report.stage_view import StageView
    from opsin.text.tokenizer import Tokenizer

    prepare = preparation(config, Tokenizer.load(config.language.tokenizer_path))
    index = index_of(source, prepare, lambda more: on_progress(path.name, more))
    examples = Corpus(prepare, [Part(path.name, source, index, np.arange(len(index)), index.costs)])
    view = StageView(path.name, examples, config.encoder.patch_size, refused=index.problems)
    return _choosing(view, ids, samples)


def _show_stages(name: str, views: Sequence[StageView], ids: Sequence[str], out: Path | None, as_json: bool) -> None:
    from opsin.report.inspect import page
    from opsin.report.inspect_json import stage_value
    from opsin.report.inspect_terminal import lines
    from opsin.report.stage_view import check_found

    if ids:
        check_found({known for view in views for known in view.examples.ids()}, ids)
    _give(
        out,
        as_json,
        lambda: page(name, views),
        lambda: {"name": name, "stages": [stage_value(view) for view in views]},
        lambda colours: (line for view in views for line in lines(view, colours=colours)),
    )


def _give(
    out: Path | None,
    as_json: bool,
    page: Callable[[], str],
    value: Callable[[], Any],
    lines: Callable[[bool], Iterable[Text]],
) -> None:
    """The page if a file is named for it; here JSON if it is asked for, or else, without a page, the lines.

    `lines` is told whether there are colours.
    """
    if out is not None:
        write_text(out, page())
    if as_json:
        typer.echo(json.dumps(value()))
    elif out is not None:
        typer.echo(f"page  {printable(str(out))}")
    else:
        console = Console(highlight=False)
        for line in lines(console.color_system is not None and not console.no_color):
            console.print(line, soft_wrap=True)
