"""What the design promises about the package's own source: directions, sizes, errors, and what a command imports."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "opsin"
LAYERS = (
    {"cli", "__main__"},
    {"commands"},
    {"quickstart"},
    {"serve", "evaluate", "synthesize", "train"},
    {"report", "checkpoint"},
    {"model", "data"},
    {"text", "vision"},
    {"core"},
)
"""From the top down; an import points to a lower layer, or stays in its own folder."""
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
WITHOUT_CODE = {"recipes"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
FILES = sorted(PACKAGE.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def folder_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of opsin in a file, also inside functions and `if TYPE_CHECKING`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names if name.name.split(".")[0] == "opsin")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}:{node.lineno}: relative import"
            module = node.module or ""
            if module == "opsin":
                yield from ((node.lineno, f"opsin.{name.name}") for name in node.names)
            elif module.startswith("opsin."):
                yield node.lineno, module


def test_every_folder_has_its_layer() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    single = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert (folders | single) - WITHOUT_CODE <= RANK.keys()


def test_imports_point_down_and_never_to_a_sibling() -> None:
    wrong = []
    for path in FILES:
        here = folder_of(path)
        if here in {"__init__", *WITHOUT_CODE}:
            continue
        for line, module in imported(path):
            target = module.split(".")[1]
            if target == "__version__" or target == here:
                continue
            if here == "__main__" and target == "cli":
                continue
            if target in WITHOUT_CODE:  # packaged recipe files
                continue
            if RANK[target] <= RANK[here]:
                wrong.append(f"{named(path)}:{line}: {here} imports {module}")
    assert wrong == []


def test_core_imports_nothing_of_opsin_but_itself() -> None:
    found = [(named(path), module) for path in (PACKAGE / "core").glob("*.py") for _, module in imported(path)]
    assert all(module.startswith("opsin.core") for _, module in found), found


def light_modules() -> list[str]:
    names = ["opsin", "opsin.train.recipe", "opsin.model.config", "opsin.core.types"]
    return [*names, "opsin.cli"] if (PACKAGE / "cli.py").is_file() else names


@pytest.mark.parametrize("module", light_modules())
def test_a_recipe_is_checked_without_torch(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert module in loaded
    assert loaded & {"torch", "transformers", "peft", "safetensors"} == set()


def test_no_file_is_long() -> None:
    lengths = {named(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_is_long() -> None:
    long = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    long.append(f"{named(path)}:{node.lineno}: {node.name} has {length} lines")
    assert long == []


def test_every_module_says_what_it_is() -> None:
    assert [named(path) for path in FILES if not ast.get_docstring(tree(path))] == []


def comments(path: Path) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


def caught_names(node: ast.expr | None) -> set[str]:
    if node is None:
        return {"everything"}
    items = node.elts if isinstance(node, ast.Tuple) else [node]
    return {item.id for item in items if isinstance(item, ast.Name)}


def test_nothing_catches_every_exception_without_saying_why() -> None:
    wrong = []
    for path in FILES:
        remarks = comments(path)
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            if not caught_names(node.type) & {"everything", "Exception", "BaseException"}:
                continue
            # Allowed with a comment on the line or on the next one that gives the reason.
            if not {node.lineno, node.lineno + 1} & remarks.keys():
                wrong.append(f"{named(path)}:{node.lineno}")
    assert wrong == []


def test_no_todos() -> None:
    marks = ("TODO", "FIXME", "XXX", "HACK")
    found = [f"{named(p)}:{n}" for p in FILES for n, text in comments(p).items() if any(m in text for m in marks)]
    assert found == []


FORBIDDEN_CALLS = {"eval", "exec", "print"}


def test_no_pickle_eval_or_lenient_weights() -> None:
    wrong = []
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import) and {name.name for name in node.names} & {"pickle", "dill", "joblib"}:
                wrong.append(f"{named(path)}:{node.lineno}: imports a pickle module")
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            given = {(keyword.arg, ast.unparse(keyword.value)) for keyword in node.keywords}
            if called in FORBIDDEN_CALLS or (called == "torch.load" and ("weights_only", "True") not in given):
                wrong.append(f"{named(path)}:{node.lineno}: calls {called}")
            loads = called.endswith(("load_state_dict", "from_pretrained", "from_config"))
            if loads and given & {("strict", "False"), ("trust_remote_code", "True")}:
                wrong.append(f"{named(path)}:{node.lineno}: {called} is lenient")
    assert wrong == []
