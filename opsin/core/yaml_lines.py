"""YAML as plain values plus the line of every key.

The YAML 1.2 core rules are used: `1e-3` is a float, `on` and `1:30` are texts, `010` is ten. Only plain values can be
written: no tags, no duplicate keys, no unbounded nesting or aliases.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Key = str | int
KeyPath = tuple[Key, ...]

MAX_NODES = 100_000
MAX_INTEGER_CHARACTERS = 100
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_CORE = "tag:yaml.org,2002:"
_MERGE = f"{_CORE}merge"
_TEXT = f"{_CORE}str"


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """A value and what to say of it.

    - `lines`: of every key path in it (from 1)
    - `problems`: (line, text)
    - `variables`: those of which a text is made, by its key path
    """

    value: Any
    lines: dict[KeyPath, int]
    problems: list[tuple[int, str]]
    variables: dict[KeyPath, tuple[str, ...]] = field(default_factory=dict)


def read_yaml(text: str, variables: Mapping[str, str]) -> YamlDocument:
    """Parse one document; `${NAME}` and `${NAME:-default}` in texts are replaced from `variables`."""
    try:
        node = yaml.compose(text, Loader=_CoreLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return YamlDocument(None, {}, [(mark.line + 1 if mark else 1, f"not valid YAML: {error.problem}")])
    except yaml.YAMLError as error:
        return YamlDocument(None, {}, [(1, f"not valid YAML: {error}")])
    except RecursionError:
        return YamlDocument(None, {}, [(1, "nested too deeply to read; flatten it")])
    walk = _Walk(variables)
    value = None if node is None else walk.value(node, (), ())
    return YamlDocument(value, walk.lines, walk.problems, walk.used)


class _CoreLoader(yaml.SafeLoader):
    """A loader that knows the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own attribute)


def _integer(text: str) -> int:
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


def _decimal(text: str) -> float:
    return float(text.replace(".inf", "inf").replace(".nan", "nan").replace(".Inf", "inf").replace(".NaN", "nan"))


_SCALARS: dict[str, tuple[str, str, Callable[[str], Any]]] = {
    # name -> characters it may start with, pattern, reading
    "null": ("~nN\0", r"~|null|Null|NULL|", lambda text: None),
    "bool": ("tTfF", r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": ("-+0123456789", r"[-+]?[0-9]+(?:_[0-9]+)*|0x[0-9a-fA-F]+|0o[0-7]+", _integer),
    "float": (
        "-+.0123456789",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)",
        _decimal,
    ),
    "merge": ("<", r"<<", str),
}
for _name, (_first, _pattern, _) in _SCALARS.items():
    _CoreLoader.add_implicit_resolver(
        f"{_CORE}{_name}", re.compile(f"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first]
    )
_READERS = {f"{_CORE}{name}": reader for name, (_, _, reader) in _SCALARS.items()} | {_TEXT: str}


@dataclass(slots=True)
class _Walk:
    """One pass over the nodes of a document."""

    variables: Mapping[str, str]
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)
    used: dict[KeyPath, tuple[str, ...]] = field(default_factory=dict)
    num_nodes: int = 0

    def value(self, node: yaml.Node, path: KeyPath, above: tuple[int, ...]) -> Any:
        """The plain value of a node; `above` are the nodes around it."""
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self.num_nodes += 1
        if id(node) in above:
            return self._refuse(line, path, "an alias inside the value it names; write the value out")
        if self.num_nodes > MAX_NODES:
            if self.num_nodes == MAX_NODES + 1:
                self._refuse(line, path, f"more than {MAX_NODES:,} values (aliases expanded); split the file")
            return None
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, path, (*above, id(node)))
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.value(item, (*path, i), (*above, id(node))) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _READERS:
            return self._scalar(node, path)
        return self._refuse(line, path, f"the tag {node.tag!r} is not allowed; write a plain value")

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, above: tuple[int, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _MERGE:
                self._refuse(line, path, "merge keys ('<<') are not read; write the keys out")
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._refuse(line, path, "a key must be a single word")
                continue
            key = str(key_node.value)
            if key in first_lines:
                self._refuse(line, (*path, key), f"duplicate key, first on line {first_lines[key]}; remove one")
                continue
            first_lines[key] = line
            self.lines[(*path, key)] = line
            result[key] = self.value(value_node, (*path, key), above)
        return result

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text, tag = str(node.value), node.tag
        if _VARIABLE.search(text):
            line = node.start_mark.line + 1
            self.used[path] = tuple(match[1] for match in _VARIABLE.finditer(text))
            text = _VARIABLE.sub(lambda match: self._variable(match, line, path), text)
            if node.style is None:  # not in quotes: a number from a variable is a number
                tag = _plain_tag(text)
        if problem := _misfit(tag.removeprefix(_CORE), text):
            return self._refuse(node.start_mark.line + 1, path, problem)
        return _READERS[tag](text)

    def _variable(self, match: re.Match[str], line: int, path: KeyPath) -> str:
        name, default = match.groups()
        if name in self.variables:
            return self.variables[name]
        if default is None:
            self._refuse(line, path, f"the variable {name} is not set; set it, or write ${{{name}:-default}}")
        return default or ""

    def _refuse(self, line: int, path: KeyPath, problem: str) -> None:
        self.problems.append((line, f"{dotted(path)}: {problem}" if path else problem))


def dotted(path: KeyPath) -> str:
    """A key path as it is written in overrides: `stages.0.lr`."""
    return ".".join(map(str, path))


def _plain_tag(text: str) -> str:
    for name in ("null", "bool", "int", "float"):
        if re.fullmatch(_SCALARS[name][1], text):
            return f"{_CORE}{name}"
    return _TEXT


def _misfit(name: str, text: str) -> str | None:
    """What keeps a text from being a value of this kind: a tag can claim any, and integers have no end."""
    if name in _SCALARS and not re.fullmatch(_SCALARS[name][1], text):
        return f"{text[:40]!r} is not what the tag !!{name} says; write a plain value"
    if name == "int" and len(text) > MAX_INTEGER_CHARACTERS:
        return f"an integer of {len(text):,} characters; at most {MAX_INTEGER_CHARACTERS} are read"
    return None
