"""The pages about recipes say what the schema and the recipes say."""

from __future__ import annotations

from opsin.synthesize.recipe import Synthesis
from opsin.train.recipe import Stage
from tests.support.recipe_keys import KEYS, PAGE, SYNTHESIS_HEAD, SYNTHESIS_KEYS, keys_page, page

RENEW = "renew it: python -m tests.support.recipe_keys"


def test_the_reference_has_all_keys_of_the_schema() -> None:
    assert KEYS.read_text(encoding="utf-8") == keys_page(), RENEW
    assert all(f"| `{key}` |" in keys_page() for key in Stage.model_fields)


def test_so_has_that_of_synthesis_recipes() -> None:
    assert SYNTHESIS_KEYS.read_text(encoding="utf-8") == keys_page(Synthesis, SYNTHESIS_HEAD), RENEW


def test_the_published_numbers_are_those_of_the_recipes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), RENEW
    assert "| `llava-1.5` | instruct | 128 | 1 | connector 2e-05, language 2e-05 | 336, pad |" in page()
