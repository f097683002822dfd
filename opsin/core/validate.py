"""Configuration files -> validated values, with every problem at once, by line.

    recipe.yaml:12: stages.0.train.conector: unknown key; did you mean 'connector'?

Generic: the schema is a pydantic model that refuses unknown keys; its unions are told apart by `kind`.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from opsin.core.errors import RecipeError
from opsin.core.yaml_lines import Key, KeyPath, YamlDocument, dotted, read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic_core import ErrorDetails

MAX_BYTES = 1_000_000
Model = TypeVar("Model", bound=BaseModel)

_EXPECTED = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "path": "a path",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "dataclass": "a mapping",
    "none": "nothing",
}
"""First word of a pydantic error type -> what was expected."""
_WRONG_TYPE = ("type", "parsing", "from_float", "attributes_type")


def load_config(
    source: Path | str,
    model: type[Model],
    overrides: Sequence[str] = (),
    *,
    variables: Mapping[str, str] | None = None,
    name: str = "<text>",
    folder: Path | None = None,
) -> Model:
    """Read a YAML file (a `Path`) or YAML text (a `str`, called `name`), apply overrides, and validate.

    An override is `stages.0.train.connector.lr=5e-4`, its value read as YAML. `variables` (by default the environment)
    fills `${NAME}` and `${NAME:-default}`. Relative paths (`opsin.core.paths`) start at `folder`, by default
    the file's.

    Raises:
        RecipeError: with every problem, each with its line or its override.
    """
    name = str(source) if isinstance(source, Path) else name
    text = _read(source, name)
    variables = os.environ if variables is None else variables
    document = read_yaml(text, variables)
    if document.problems:
        raise RecipeError(name, [f"{name}:{line}: {problem}" for line, problem in sorted(document.problems)])
    if not isinstance(document.value, dict):
        raise RecipeError(name, [f"{name}:1: expected a mapping of keys, got {_shown(document.value)}"])
    draft = _Draft(name, document, variables)
    for override in overrides:
        draft.apply(override)
    if folder is None and isinstance(source, Path):
        folder = source.absolute().parent
    value = _validated(model, draft, folder)
    if value is None or draft.problems:
        raise RecipeError(name, [text for _, text in sorted(draft.problems, key=lambda problem: problem[0])])
    return value


@dataclass
class _Draft:
    """A document on its way to a value: where each key comes from, and what is wrong so far, as (line, text)."""

    name: str
    document: YamlDocument
    variables: Mapping[str, str]
    origins: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)

    def refuse(self, path: KeyPath, problem: str) -> None:
        """Note a problem at a key path, with the nearest line or override above it."""
        line, origin = self._place(path)
        problem += self._named(path)
        text = f"{origin}: {dotted(path)}: {problem}" if path else f"{origin}: {problem}"
        if (line, text) not in self.problems:
            self.problems.append((line, text))

    def _named(self, path: KeyPath) -> str:
        """The variables that the value at a key path is made of, and whether they are set: what a reader may change."""
        told = [
            f"{name}, which is {'set' if name in self.variables else 'not set, so the default holds'}"
            for name in self.document.variables.get(path, ())
        ]
        return f" (from the variable {'; '.join(told)})" if told else ""

    def _place(self, path: KeyPath) -> tuple[int, str]:
        for length in range(len(path), -1, -1):
            if path[:length] in self.origins:
                return 1 << 30, self.origins[path[:length]]  # overrides come after the file
            if path[:length] in self.document.lines:
                line = self.document.lines[path[:length]]
                return line, f"{self.name}:{line}"
        return 1, f"{self.name}:1"

    def apply(self, override: str) -> None:
        """Set one value by its dotted path; whether the schema has that key is decided by the validation."""
        dotted_path, equals, text = override.partition("=")
        words = dotted_path.strip().split(".")
        path: KeyPath = ()
        self.origins[path] = origin = f"override {override}"
        if not equals or not all(words):
            self.refuse((), "expected path.to.key=value")
        else:
            document = read_yaml(text, self.variables)
            problems = [problem for _, problem in document.problems]
            problem = problems[0] if problems else self._set(words, document.value, origin)
            if problem:
                self.refuse((), problem)
        del self.origins[()]

    def _set(self, words: Sequence[str], value: Any, origin: str) -> str | None:
        container: Any = self.document.value
        path: list[Key] = []
        for word in words[:-1]:
            key = _key(container, word)
            if isinstance(key, _NoSuchKey):
                return f"{dotted((*path, word))}: {key.problem}"
            path.append(key)
            if isinstance(container, dict) and container.get(str(key)) is None:
                container[str(key)] = {}
                self.origins[tuple(path)] = origin
            container = container[key]
        key = _key(container, words[-1])
        if isinstance(key, _NoSuchKey):
            return f"{dotted((*path, words[-1]))}: {key.problem}"
        container[key] = value
        self.origins[(*path, key)] = origin
        self.document.variables.pop((*path, key), None)
        return None


@dataclass(frozen=True)
class _NoSuchKey:
    problem: str


def _key(container: Any, word: str) -> Key | _NoSuchKey:
    """The key or index that a word of an override names."""
    if isinstance(container, dict):
        return word
    if not isinstance(container, list):
        return _NoSuchKey(f"nothing can be set in {_shown(container)}")
    if not word.isdecimal() or int(word) >= len(container):
        return _NoSuchKey(f"expected an index of the {len(container)} entries, from 0 to {len(container) - 1}")
    return int(word)


def _read(source: Path | str, name: str) -> str:
    try:
        content = source.read_bytes() if isinstance(source, Path) else source.encode("utf-8", "replace")
        if len(content) > MAX_BYTES:
            raise RecipeError(
                name, [f"{name}: {len(content):,} bytes; the limit is {MAX_BYTES:,}, is it the right file?"]
            )
        return content.decode("utf-8-sig")
    except OSError as error:
        raise RecipeError(name, [f"{name}: cannot be read: {error.strerror}; correct the path"]) from error
    except UnicodeDecodeError as error:
        raise RecipeError(name, [f"{name}: not UTF-8 text ({error.reason}); save it as UTF-8"]) from error


def _validated(model: type[Model], draft: _Draft, folder: Path | None) -> Model | None:
    data = draft.document.value
    try:
        return model.model_validate(data, context={"folder": folder})
    except ValidationError as error:
        for path, problem in explained(error, data, model):
            draft.refuse(path, problem)
        return None


def explained(error: ValidationError, data: Any, model: type[BaseModel]) -> Iterator[tuple[KeyPath, str]]:
    """Why a model refuses data: key paths, and what is wrong there; a misspelt key before the one that is missing."""
    for details in sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden"):
        yield _explained(_data_path(data, details), details, data, _schema(model))


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _data_path(data: Any, details: ErrorDetails) -> KeyPath:
    """Pydantic's location without the words that are not in the data (the `kind` of a union, names of types)."""
    path: list[Key] = []
    location = details["loc"]
    for index, key in enumerate(location):
        is_last = index == len(location) - 1
        in_mapping = isinstance(data, dict) and key in data and (is_last or data.get("kind") != key)
        in_list = isinstance(data, list) and isinstance(key, int) and key < len(data)
        if in_mapping or in_list:
            data = data[key]
            path.append(key)
        elif is_last and details["type"] == "missing":
            path.append(key)
    return tuple(path)


def _explained(path: KeyPath, details: ErrorDetails, data: Any, schema: dict[str, Any]) -> tuple[KeyPath, str]:
    kind, given, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return path, f"unknown key; {_suggestion(str(path[-1]), _known_keys(schema, data, path[:-1]))}"
    if kind == "missing":
        return path, "missing; this key is required"
    if kind == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in str(context["expected_tags"]).split(",")]
        return (*path, "kind"), f"unknown kind {context['tag']!r}; {_suggestion(str(context['tag']), tags)}"
    if kind == "union_tag_not_found":
        return path, f"expected a mapping with the key 'kind', got {_shown(given)}"
    if kind in ("literal_error", "enum"):
        hint = difflib.get_close_matches(str(given), str(context["expected"]).replace("'", "").split(), n=1)
        return path, f"expected {context['expected']}, got {given!r}" + (f"; did you mean {hint[0]!r}?" if hint else "")
    if kind == "value_error":
        return path, str(context["error"])
    if kind == "too_short" and context["actual_length"] == 0:
        return path, "an empty list; it needs at least one item"
    if kind == "too_long":
        return path, f"expected at most {context['max_length']:,} items, got {_shown(given)}"
    family, _, rest = kind.partition("_")
    if family in _EXPECTED and rest in _WRONG_TYPE:
        return path, f"expected {_EXPECTED[family]}, got {_shown(given)}"
    message = details["msg"]
    return path, f"{message[:1].lower()}{message[1:]}, got {_shown(given)}"


def _suggestion(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if known else "nothing can be set here"


def _known_keys(schema: dict[str, Any], data: Any, path: KeyPath) -> list[str]:
    """The keys that the schema has at a place of the data."""
    nodes = _alternatives(schema, schema, data)
    for key in path:
        data = data[key]
        below = [_below(node, key) for node in nodes]
        nodes = [found for node in below if node for found in _alternatives(schema, node, data)]
    return sorted({key for node in nodes for key in node.get("properties", {})})


def _below(node: dict[str, Any], key: Key) -> dict[str, Any] | None:
    properties: dict[str, Any] = node.get("properties", {})
    below = node.get("items") if isinstance(key, int) else properties.get(key, node.get("additionalProperties"))
    return below if isinstance(below, dict) else None


def _alternatives(schema: dict[str, Any], node: dict[str, Any], data: Any) -> list[dict[str, Any]]:
    """A schema node with references followed and unions opened; of a union by `kind`, only the one the data names."""
    if "$ref" in node:
        return _alternatives(schema, schema["$defs"][node["$ref"].rpartition("/")[2]], data)
    if node.get("type") == "array" and isinstance(data, dict) and "items" in node:  # one that stands for a list of one
        return _alternatives(schema, node["items"], data)
    mapping = node.get("discriminator", {}).get("mapping", {})
    if isinstance(data, dict) and isinstance(data.get("kind"), str) and data["kind"] in mapping:
        return _alternatives(schema, {"$ref": mapping[data["kind"]]}, data)
    options = [*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())]
    return [found for option in options for found in _alternatives(schema, option, data)] or [node]


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
