from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml
from pydantic import ValidationError

from opsin.core.errors import RecipeError
from opsin.train.recipe import Recipe, Trained, load_recipe
from tests.support.models import recipe_value

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def written(folder: Path, value: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    return path


def line_of(path: Path, text: str, occurrence: int = 1) -> int:
    found = [n for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if text in line]
    return found[occurrence - 1]


def refusal(path: Path, overrides: Sequence[str] = ()) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return caught.value


def test_a_recipe_is_read_and_resolved(tmp_path: Path) -> None:
    value = recipe_value(tmp_path)
    recipe = load_recipe(written(tmp_path, value))
    assert [stage.name for stage in recipe.stages] == ["align", "instruct"]
    assert [group.name for group in recipe.stages[1].train.groups] == ["connector", "language"]
    assert recipe.stages[0].train.groups[0].plan.lr == 1e-2
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_paths_are_relative_to_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = recipe_value(tmp_path)
    for stage in value["stages"]:
        stage["data"] = [{"kind": "llava", "path": "data.json"}]
    value["model"]["language"]["tokenizer"] = "chatml"
    path = written(tmp_path, value)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_recipe(path).stages[0].data[0].path == tmp_path / "data.json"


def test_every_problem_at_once_each_with_its_line(tmp_path: Path) -> None:
    value = recipe_value(tmp_path)
    value["precisoin"] = "fp32"
    first, second = value["stages"]
    first["train"] = {"conector": {"lr": 1e-2}}
    first["batch_tokens"] = "many"
    second["data"] = [{"kind": "llava", "path": "gone.json"}]
    second["epochs"] = 0
    path = written(tmp_path, value)
    error = refusal(path)
    lines = {name: line_of(path, name) for name in ("precisoin", "conector", "many", "gone.json", "epochs")}
    assert set(error.problems) == {
        f"{path}:{lines['precisoin']}: precisoin: unknown key; did you mean 'precision'?",
        f"{path}:{lines['conector']}: stages.0.train.conector: unknown key; did you mean 'connector'?",
        f"{path}:{lines['many']}: stages.0.batch_tokens: expected an integer, got 'many'",
        f"{path}:{lines['gone.json']}: stages.1.data.0.path: no such file: {tmp_path / 'gone.json'}",
        f"{path}:{lines['epochs']}: stages.1.epochs: input should be greater than 0, got 0",
    }
    assert [int(problem.split(":")[1]) for problem in error.problems] == sorted(lines.values())
    assert str(error).splitlines()[0] == f"{path}: 5 problems in the recipe"


PUBLISHED = """\
name: example
model:
  encoder: {{kind: clip, path: {folder}}}
  connector: {{kind: mlp, dept: 2}}
  language: {{path: {folder}/no-such-model}}
  template: {{kind: vicuna_v2}}
stages:
  - name: align
    data: [{{kind: llava, path: {folder}/data.json}}]
    train: {{connector: {{lr: fast}}}}
"""


def test_the_whole_message(tmp_path: Path) -> None:
    recipe_value(tmp_path)
    path = written(tmp_path, PUBLISHED.format(folder=tmp_path))
    assert str(refusal(path)) == "\n".join(
        [
            f"{path}: 4 problems in the recipe",
            f"  {path}:4: model.connector.dept: unknown key; did you mean 'depth'?",
            f"  {path}:5: model.language.path: no such folder: {tmp_path}/no-such-model",
            f"  {path}:6: model.template.kind: unknown kind 'vicuna_v2'; did you mean 'vicuna_v1'?",
            f"  {path}:10: stages.0.train.connector.lr: expected a number, got 'fast'",
        ]
    )


def test_stage_names_must_differ(tmp_path: Path) -> None:
    value = recipe_value(tmp_path)
    value["stages"][1]["name"] = "align"
    (problem,) = refusal(written(tmp_path, value)).problems
    assert problem.endswith("stage names must differ; used more than once: align")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"train": {}}, "a stage must train at least one of: vision, connector, newline, gates, language, embeddings"),
        (
            {"train": {"vision": {"lr": 1e-3}}, "cache_features": True},
            "cache_features needs a frozen encoder, but this stage trains 'vision'",
        ),
        ({"name": "../x"}, "string should match pattern"),
        ({"data": []}, "an empty list; it needs at least one item"),
        ({"only": []}, "an empty list; it needs at least one item"),
        ({"clip": 0}, "input should be greater than 0, got 0"),
        ({"train": {"connector": {"lr": 0}}}, "input should be greater than 0, got 0"),
        ({"train": {"connector": {"lr": 1e-3, "lora": {"rank": 0}}}}, "greater than or equal to 1, got 0"),
    ],
)
def test_a_stage_that_cannot_work(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    value = recipe_value(tmp_path)
    value["stages"][1] |= changes
    (found,) = refusal(written(tmp_path, value)).problems
    assert problem in found
    assert ": stages.1" in found


def test_parts_that_do_not_fit_are_a_problem_of_the_recipe(tmp_path: Path) -> None:
    value = recipe_value(tmp_path)
    value["model"]["resolution"]["size"] = 65
    path = written(tmp_path, value)
    (problem,) = refusal(path).problems
    misfit = "is not a multiple of the encoder's patch size 32; near it: 64 and 96"
    assert problem == f"{path}: model: resolution size 65 {misfit}"
    own = ["model.resolution.size=64", "stages.1.resolution={kind: square, size: 65}"]
    assert refusal(path, own).problems == (f"{path}: stages.1.resolution: resolution size 65 {misfit}",)
    value = recipe_value(tmp_path)
    value["model"]["language"]["config"]["model_type"] = "gpt2"
    (problem,) = refusal(written(tmp_path, value)).problems
    assert problem.endswith("model_type 'gpt2'; the decoder loop supports llama, mistral, qwen2, qwen3")


def test_a_tower_with_another_resolution_is_refused(tmp_path: Path) -> None:
    value = recipe_value(tmp_path)
    value["model"]["encoder"] = {"kind": "clip", "config": {"image_size": 32, "patch_size": 16, "hidden_size": 16}}
    (problem,) = refusal(written(tmp_path, value)).problems
    assert problem.endswith(
        "resolution size 64 but the clip encoder has position embeddings for 32; set resolution.size to 32, or "
        "encoder.interpolate_positions: true"
    )


def test_overrides_change_one_value_and_are_checked(tmp_path: Path) -> None:
    path = written(tmp_path, recipe_value(tmp_path))
    recipe = load_recipe(path, ["stages.1.train.language.lr=5e-4", "seed=9"])
    assert recipe.stages[1].train.groups[1].plan.lr == 5e-4
    assert recipe.stages[1].train.groups[0].plan.lr == 1e-2
    assert recipe.seed == 9
    (problem,) = refusal(path, ["stages.1.epoch=3"]).problems
    assert problem == "override stages.1.epoch=3: stages.1.epoch: unknown key; did you mean 'epochs'?"


def test_a_value_never_changes_after_validation() -> None:
    trained = Trained.model_validate({"connector": {"lr": 1e-3}})
    with pytest.raises(ValidationError, match="frozen"):
        trained.connector = None
