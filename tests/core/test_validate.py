from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from opsin.core.errors import RecipeError
from opsin.core.validate import load_config
from opsin.core.yaml_lines import read_yaml


class Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Linear(Value):
    kind: Literal["linear"] = "linear"
    bias: bool = True


class Mlp(Value):
    kind: Literal["mlp"] = "mlp"
    depth: int = Field(2, ge=1, le=8)


class Part(Value):
    lr: float


class Train(Value):
    connector: Part | None = None
    language: Part | None = None


class Stage(Value):
    name: str
    batch_tokens: int = 4096
    warmup: float = 0.03
    fit: Literal["pad", "crop"] = "pad"
    train: Train = Train()
    data: tuple[Path, ...] = ()

    @field_validator("name")
    @classmethod
    def _named(cls, name: str) -> str:
        if "/" in name:
            raise ValueError(f"the name {name!r} has a '/'; use a word")
        return name


class Recipe(Value):
    connector: Annotated[Linear | Mlp, Field(discriminator="kind")] = Mlp()
    stages: tuple[Stage, ...]
    learning_rates: dict[str, Part] = {}


GOOD = """\
connector:
  kind: mlp
  depth: 3
stages:
  - name: align
    batch_tokens: 1_024
    train:
      connector: {lr: 1e-3}
  - name: instruct
"""


def load(text: str, *overrides: str, **variables: str) -> Recipe:
    return load_config(text, Recipe, overrides, variables=variables, name="recipe.yaml")


def problems_of(text: str, *overrides: str, **variables: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides, **variables)
    return list(caught.value.problems)


def test_a_good_file() -> None:
    recipe = load(GOOD)
    assert recipe.connector == Mlp(depth=3)
    assert recipe.stages[0].batch_tokens == 1024
    assert recipe.stages[0].train.connector == Part(lr=1e-3)


def test_every_problem_with_its_line() -> None:
    text = """\
connector:
  kind: mlp
  depht: 3
stages:
  - name: align
    train:
      conector: {lr: 1e-3}
      language: {lr: fast}
    batch_tokens: many
    warmup: [1]
    fit: padd
  - batch_tokens: 1.5
    name: a/b
    data: [1]
  - train: {}
learning_rates: 3
extra: 1
"""
    assert problems_of(text) == [
        "recipe.yaml:3: connector.depht: unknown key; did you mean 'depth'?",
        "recipe.yaml:7: stages.0.train.conector: unknown key; did you mean 'connector'?",
        "recipe.yaml:8: stages.0.train.language.lr: expected a number, got 'fast'",
        "recipe.yaml:9: stages.0.batch_tokens: expected an integer, got 'many'",
        "recipe.yaml:10: stages.0.warmup: expected a number, got a list of 1",
        "recipe.yaml:11: stages.0.fit: expected 'pad' or 'crop', got 'padd'; did you mean 'pad'?",
        "recipe.yaml:12: stages.1.batch_tokens: expected an integer, got 1.5",
        "recipe.yaml:13: stages.1.name: the name 'a/b' has a '/'; use a word",
        "recipe.yaml:14: stages.1.data.0: expected a path, got 1",
        "recipe.yaml:15: stages.2.name: missing; this key is required",
        "recipe.yaml:16: learning_rates: expected a mapping, got 3",
        "recipe.yaml:17: extra: unknown key; known: connector, learning_rates, stages",
    ]


@pytest.mark.parametrize(
    ("connector", "problem"),
    [
        ("{kind: mpl}", "connector.kind: unknown kind 'mpl'; did you mean 'mlp'?"),
        ("{kind: qformer}", "connector.kind: unknown kind 'qformer'; known: linear, mlp"),
        ("{depth: 2}", "connector: expected a mapping with the key 'kind', got a mapping of 1"),
        ("mlp", "connector: expected a mapping, got 'mlp'"),
        ("{kind: mlp, depth: 9}", "connector.depth: input should be less than or equal to 8, got 9"),
        ("{kind: mlp, bias: true}", "connector.bias: unknown key; known: depth, kind"),
        ("{kind: linear, bias: maybe}", "connector.bias: expected true or false, got 'maybe'"),
    ],
)
def test_unions_by_kind(connector: str, problem: str) -> None:
    assert problems_of(f"connector: {connector}\nstages: []\n") == [f"recipe.yaml:1: {problem}"]


def test_a_kind_that_is_no_text_where_none_belongs() -> None:
    assert problems_of("stages: []\nkind: {}\n") == [
        "recipe.yaml:2: kind: unknown key; known: connector, learning_rates, stages"
    ]


def test_keys_below_free_names() -> None:
    text = "stages: []\nlearning_rates:\n  vit: {lr: 1}\n  llm: {rl: 1}\n"
    assert problems_of(text) == [
        "recipe.yaml:4: learning_rates.llm.rl: unknown key; known: lr",
        "recipe.yaml:4: learning_rates.llm.lr: missing; this key is required",
    ]


def test_overrides() -> None:
    recipe = load(
        GOOD,
        "stages.0.train.connector.lr=5e-4",
        "stages.1.train.language.lr=2e-5",
        "connector={kind: linear, bias: false}",
        "stages.1.name=a=b",
    )
    assert recipe.stages[0].train.connector == Part(lr=5e-4)
    assert recipe.stages[1].train.language == Part(lr=2e-5)
    assert recipe.connector == Linear(bias=False)
    assert recipe.stages[1].name == "a=b"


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("stages.0.train.conector.lr=1", "stages.0.train.conector: unknown key; did you mean 'connector'?"),
        ("stages.0.batch_tokens=many", "stages.0.batch_tokens: expected an integer, got 'many'"),
        ("stages.2.name=x", "stages.2: expected an index of the 2 entries, from 0 to 1"),
        ("stages.first.name=x", "stages.first: expected an index of the 2 entries, from 0 to 1"),
        ("stages.0.name.x=1", "stages.0.name.x: nothing can be set in 'align'"),
        ("stages.0.name", "expected path.to.key=value"),
        ("stages..name=x", "expected path.to.key=value"),
        ("stages.0.name=[", "not valid YAML: expected the node content, but found '<stream end>'"),
    ],
)
def test_wrong_overrides(override: str, problem: str) -> None:
    assert problems_of(GOOD, override) == [f"override {override}: {problem}"]


def test_problems_of_the_file_come_before_those_of_overrides() -> None:
    found = problems_of(GOOD.replace("depth", "dept"), "stages.0.warmup=no")
    assert found == [
        "recipe.yaml:3: connector.dept: unknown key; did you mean 'depth'?",
        "override stages.0.warmup=no: stages.0.warmup: expected a number, got 'no'",
    ]


def test_variables() -> None:
    text = "stages:\n  - name: '${NAME}'\n    warmup: ${WARMUP:-1e-2}\n    data: ['${ROOT}/a.json', \"${ROOT}/b\"]\n"
    stage = load(text, NAME="1", ROOT="/data").stages[0]
    assert stage == Stage(name="1", warmup=0.01, data=(Path("/data/a.json"), Path("/data/b")))
    assert problems_of(text, NAME="a") == [
        f"recipe.yaml:4: stages.0.data.{i}: the variable ROOT is not set; set it, or write ${{ROOT:-default}}"
        for i in range(2)
    ]


def test_the_environment_is_the_default_for_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPSIN_TEST_NAME", "seen")
    assert load_config("stages: [{name: '${OPSIN_TEST_NAME}'}]", Recipe).stages[0].name == "seen"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("-2.5E+4", -25000.0), (".5", 0.5), ("1.", 1.0), ("1_000", 1000), ("0x1F", 31), ("0o17", 15),
        ("010", 10), ("+3", 3), (".inf", math.inf), ("-.Inf", -math.inf), ("1_0.5", 10.5), ("1:30", "1:30"),
        ("on", "on"), ("yes", "yes"), ("NO", "NO"), ("True", True), ("false", False), ("", None), ("~", None),
        ("null", None), ("2024-01-01", "2024-01-01"), ("'1'", "1"), ('"1e-3"', "1e-3"), ("1e", "1e"), ("v1", "v1"),
        ("=", "="), ("[1, a]", [1, "a"]), ("- a\n", ["a"]), ("|\n  a\n  b\n", "a\nb\n"), ("&x a", "a"),
    ],
)  # fmt: skip
def test_scalars(text: str, value: Any) -> None:
    document = read_yaml(text, {})
    assert document.problems == []
    assert document.value == value
    assert type(document.value) is type(value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "3: a: duplicate key, first on line 1; remove one"),
        ("a: {b: 1, b: 2}", "1: a.b: duplicate key, first on line 1; remove one"),
        ("a: 1\nb: !!python/name:os.system x\n", "2: b: the tag 'tag:yaml.org,2002:python/name:os.system' "
         "is not allowed; write a plain value"),
        ("a: &x [*x]", "1: a.0: an alias inside the value it names; write the value out"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "3: c: merge keys ('<<') are not read; write the keys out"),
        ("? [a]\n: 1", "1: a key must be a single word"),
        ("a: [", "1: not valid YAML: expected the node content, but found '<stream end>'"),
        ("a: 1\n  b: 2\n", "2: not valid YAML: mapping values are not allowed here"),
        ("a: 1\n--- \nb: 2\n", "2: not valid YAML: but found another document"),
        ("a: *x", "1: not valid YAML: found undefined alias 'x'"),
        ("a: " + "[" * 5000, "1: nested too deeply to read; flatten it"),
        ("[]", "1: expected a mapping of keys, got a list of 0"),
        ("", "1: expected a mapping of keys, got nothing"),
    ],
)  # fmt: skip
def test_yaml_that_is_refused(text: str, problem: str) -> None:
    assert problems_of(text) == [f"recipe.yaml:{problem}"]


def test_aliases_cannot_explode() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    (problem,) = problems_of("\n".join(lines))
    assert problem.endswith("more than 100,000 values (aliases expanded); split the file")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_config(path, Recipe) == load(GOOD)
    path.write_text(GOOD.replace("depth", "dept"), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_config(path, Recipe)
    assert str(caught.value) == (
        f"{path}: 1 problem in the recipe\n  {path}:3: connector.dept: unknown key; did you mean 'depth'?"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"#" * 1_000_001, "1,000,001 bytes; the limit is 1,000,000, is it the right file?"),
        (b"a: \xff", "not UTF-8 text (invalid start byte); save it as UTF-8"),
        (None, "cannot be read: No such file or directory; correct the path"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_config(path, Recipe)
    assert caught.value.problems == (f"{path}: {problem}",)
