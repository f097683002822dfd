"""What docs/recipes.md, recipe-keys.md and synthesis-keys.md say of recipes, from schemas and recipes. To renew it:

python -m tests.support.recipe_keys
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from opsin.core.packaged import packaged
from opsin.synthesize.recipe import Synthesis
from opsin.train.recipe import Recipe

DOCS = Path(__file__).parents[2] / "docs"
PAGE, KEYS, SYNTHESIS_KEYS = DOCS / "recipes.md", DOCS / "recipe-keys.md", DOCS / "synthesis-keys.md"
BEGIN, END = "<!-- begin: made by tests/support/recipe_keys.py -->", "<!-- end -->"
HEAD = """# All keys of a recipe

Made from the schema by `tests/support/recipe_keys.py`; a test keeps it true. A key without a default is required. Where
`kind` decides what the other keys are, all kinds are linked. [recipes.md](recipes.md) shows whole recipes.
"""


SYNTHESIS_HEAD = """# All keys of a synthesis recipe

Made from the schema by `tests/support/recipe_keys.py`; a test keeps it true. A key without a default is required. Where
`kind` decides what the other keys are, all kinds are linked. [synthesize.md](synthesize.md) tells what they are for.
"""


def keys_page(model: type[BaseModel] = Recipe, head: str = HEAD) -> str:
    """docs/recipe-keys.md, or the page of another model's keys."""
    schema = model.model_json_schema()
    order, sections = [(model.__name__, schema)], []
    seen = {model.__name__}
    for name, node in order:  # grows on the way: breadth first, as a reader meets them
        sections.append(_section(name, node))
        for found in re.findall(r"#/\$defs/(\w+)", str(node.get("properties"))):
            if found not in seen:
                seen.add(found)
                order.append((found, schema["$defs"][found]))
    return "\n".join([head, *sections])


def _section(name: str, node: dict[str, Any]) -> str:
    required = node.get("required", [])
    rows = ["| key | value | default | |", "|---|---|---|---|"]
    for key, value in node.get("properties", {}).items():
        default = "" if key in (*required, "kind") else _default(value.get("default"))
        rows.append(f"| `{key}` | {_words(value)} | {default} | {_cell(value.get('description', ''))} |")
    about = inspect.cleandoc(node.get("description", ""))
    return f"## {name}\n\n{about}\n\n" + "\n".join(rows) + "\n"


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str) and "\n" in value:
        return f"`{json.dumps(value)}`"
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip().removesuffix("\n...")
    return f"`{text}`" if len(text) <= 40 else "its own"


def _words(node: dict[str, Any]) -> str:
    """What a value may be."""
    if "$ref" in node:
        return _link(node["$ref"])
    if "discriminator" in node:
        kinds = node["discriminator"]["mapping"].items()
        return "`kind`: " + ", ".join(f"[`{kind}`](#{ref.rpartition('/')[2].lower()})" for kind, ref in kinds)
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_words(one) for one in node["anyOf"] if one.get("type") != "null"))
    if "enum" in node or "const" in node:
        values = node.get("enum") or [node["const"]]
        return " or ".join("empty" if value == "" else f"`{value!r}`".replace("'", "") for value in values)
    if node.get("type") == "array":
        return _array(node)
    if node.get("type") == "string":
        return "path" if node.get("format") == "path" else "text"
    kind = {"integer": "whole number", "number": "number", "boolean": "`true` or `false`", "object": "mapping"}
    return kind[node["type"]] + _bounds(node)


def _array(node: dict[str, Any]) -> str:
    if "prefixItems" in node:
        return " and ".join(_words(one) for one in node["prefixItems"])
    one = _words(node["items"])
    if node["items"].get("$ref", "").endswith("/PartPlan"):
        return f"{one}, a list of them for different layers, or `frozen`"
    return f"list of {one}"


def _bounds(node: dict[str, Any]) -> str:
    told = {"minimum": "at least", "exclusiveMinimum": "over", "maximum": "at most", "exclusiveMaximum": "under"}
    found = [f"{words} {_number(node[key])}" for key, words in told.items() if key in node]
    return f", {', '.join(found)}" if found else ""


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _link(reference: str) -> str:
    name = reference.rpartition("/")[2]
    return f"[{name}](#{name.lower()})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def stages_table() -> str:
    """The numbers of the published recipes, a row for every stage."""
    rows = [
        "| recipe | stage | samples a step | epochs | learns, at its rate | pictures |",
        "|---|---|---|---|---|---|",
    ]
    for name, path in packaged().items():
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
        for stage in value["stages"]:
            if "samples_per_step" in stage:
                rows.append(f"| `{name}` | {_stage(stage, value['model']['resolution'])} |")
    return "\n".join(rows)


def _stage(stage: dict[str, Any], resolution: dict[str, Any]) -> str:
    parts = [
        f"{part} {plan['lr']:g}" + (f" (LoRA {plan['lora']['rank']})" if "lora" in plan else "")
        for part, plan in stage["train"].items()
    ]
    seen = stage.get("resolution", resolution)
    how = {
        "square": lambda: f"{seen['size']}, {seen['fit']}",
        "any_res": lambda: f"{seen['size']}, {len(seen['pinpoints'])} canvases, {seen['max_tiles']} tiles",
        "native": lambda: f"native, up to {seen['max_pixels']:,} pixels",
    }[seen["kind"]]()
    cells = [stage["name"], f"{stage['samples_per_step']:,}", f"{stage.get('epochs', 1):g}", ", ".join(parts), how]
    return " | ".join(cells)


def page() -> str:
    """docs/recipes.md with its table made anew."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{stages_table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    KEYS.write_text(keys_page(), encoding="utf-8")
    SYNTHESIS_KEYS.write_text(keys_page(Synthesis, SYNTHESIS_HEAD), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
