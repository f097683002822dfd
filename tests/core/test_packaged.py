"""Recipes that come with opsin are known by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from opsin.core.errors import RecipeError
from opsin.core.packaged import find_recipe, is_packaged, packaged
from opsin.train.recipe import load_recipe

PUBLISHED = ("llava-v1", "llava-1.5", "llava-1.5-lora", "llava-onevision", "qwen2-vl")


def test_the_published_recipes_are_there_under_their_own_names() -> None:
    found = packaged()
    assert found.keys() >= {*PUBLISHED, "quickstart", "mixture"}
    for name, path in found.items():
        assert re.search(rf"^name: {re.escape(name)}$", path.read_text(encoding="utf-8"), re.MULTILINE)


def test_paths_of_a_packaged_recipe_start_where_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = Path("llava-1.5")
    assert find_recipe(name) == (packaged()["llava-1.5"], tmp_path)
    name.mkdir()  # a run directory of that name hides nothing
    assert is_packaged(name)


def test_a_file_comes_before_a_packaged_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("llava-1.5")
    own.write_text("name: mine", encoding="utf-8")
    assert find_recipe(own) == (own, tmp_path)
    assert not is_packaged(own)


def test_a_misspelt_name_is_met_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="no recipe of that name; did you mean 'llava-onevision'"):
        load_recipe(Path("lava-onevison"))
    with pytest.raises(RecipeError, match=r"known: llava-1.5, .*qwen2-vl"):
        load_recipe(Path("zzz"))
    with pytest.raises(RecipeError, match=r"zzz\.yaml: cannot be read"):
        load_recipe(Path("zzz.yaml"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_paths_that_are_missing_are_told_with_their_variables(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        load_recipe(Path(name), variables={"LANGUAGE": "gone"})
    problems = caught.value.problems
    assert all(": no such " in problem for problem in problems)  # nothing but paths is wrong
    assert all("(from the variable " in problem for problem in problems)
    (language,) = [problem for problem in problems if "model.language.path" in problem]
    assert f"no such folder: {tmp_path / 'gone'} (from the variable LANGUAGE, which is set)" in language
    encoder = next(problem for problem in problems if "model.encoder.path" in problem)
    assert encoder.endswith("which is not set, so the default holds)")
