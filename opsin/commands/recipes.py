"""The recipes that come with opsin: list them, show one, copy one to change it; torch is not needed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from opsin.commands.options import Json
from opsin.core.errors import OpsinError

Name = Annotated[str, typer.Argument(help="A recipe's name, as `opsin recipes list` shows it.")]


@dataclass(frozen=True)
class Listed:
    """A recipe: what its first line says, and what its stages train, or which kinds of samples it makes."""

    name: str
    about: str
    stages: dict[str, list[str]]


def list_recipes(as_json: Json = False) -> None:
    """List the recipes: what each is, and what its stages train or make."""
    found = [_listed(name, path) for name, path in _known().items()]
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
        return
    width = max(len(one.name) for one in found)
    for one in found:
        typer.echo(f"{one.name:<{width}}  {one.about}")
        for stage, parts in one.stages.items():
            typer.echo(f"{'':<{width}}    {stage}: {', '.join(parts)}")


def _listed(name: str, path: Path) -> Listed:
    from opsin.core.yaml_lines import read_yaml

    text = path.read_text(encoding="utf-8")
    value = read_yaml(text, {}).value  # variables that are not set do not matter here
    if "kinds" in value:
        stages = {"synthesize": [kind["kind"] for kind in value["kinds"]]}
    else:
        stages = {stage["name"]: [_trained(*part) for part in stage["train"].items()] for stage in value["stages"]}
    return Listed(name, text.partition("\n")[0].removeprefix("# "), stages)


def _trained(part: str, plan: object) -> str:
    return f"{part} (LoRA)" if isinstance(plan, dict) and "lora" in plan else part


def show_recipe(name: Name) -> None:
    """Print a recipe's file."""
    typer.echo(_file(name).read_text(encoding="utf-8"), nl=False)


def copy_recipe(
    name: Name,
    path: Annotated[Path | None, typer.Argument(help="New file or a folder, by default NAME.yaml here.")] = None,
) -> None:
    """Copy a recipe's file, to change it; its relative paths then start at the copy's folder."""
    text = _file(name).read_text(encoding="utf-8")
    target = path or Path()
    target = target / f"{name}.yaml" if target.is_dir() else target
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise OpsinError(f"{target}: exists already; remove it, or name another file") from None
    typer.echo(f"recipe  {target}")


def _file(name: str) -> Path:
    from opsin.core.packaged import no_such

    known = _known()
    if name not in known:
        raise OpsinError(no_such(name, known))
    return known[name]


def _known() -> dict[str, Path]:
    """Recipes to train with, then those to synthesize with."""
    from opsin.core.packaged import SYNTHESIS, packaged

    return packaged() | packaged(SYNTHESIS)
