"""Names of categories in sentences."""

from __future__ import annotations

import pytest

from opsin.synthesize.english import noun_phrase, plural, sentence


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("two buses and a taxi", "Two buses and a taxi."),
        ("Two buses go down a street,.", "Two buses go down a street."),
        ("Ready to be cut .", "Ready to be cut."),
        ("fries, a glass and condiments..", "Fries, a glass and condiments."),
        ("What a dog!", "What a dog!"),
        ("and then ...", "And then..."),
    ],
)
def test_a_caption_as_a_sentence(caption: str, said: str) -> None:
    assert sentence(caption) == said


@pytest.mark.parametrize(
    ("category", "one", "many"),
    [
        ("dog", "a dog", "dogs"),
        ("orange", "an orange", "oranges"),
        ("person", "a person", "people"),
        ("bus", "a bus", "buses"),
        ("couch", "a couch", "couches"),
        ("knife", "a knife", "knives"),
        ("sheep", "a sheep", "sheep"),
        ("computer mouse", "a computer mouse", "computer mice"),
        ("toothbrush", "a toothbrush", "toothbrushes"),
        ("berry", "a berry", "berries"),
        ("toy", "a toy", "toys"),
        ("tv", "a TV", "TVs"),
        ("skis", "a pair of skis", "pairs of skis"),
        ("broccoli", "a piece of broccoli", "pieces of broccoli"),
        ("umbrella", "an umbrella", "umbrellas"),
        ("uniform", "a uniform", "uniforms"),
        ("two flowers", "two flowers", None),
        ("some grapes", "some grapes", None),
        ("the moon", "the moon", None),
        ("An owl", "An owl", "owls"),
    ],
)
def test_one_and_many(category: str, one: str, many: str | None) -> None:
    assert noun_phrase(category) == one
    assert plural(one) == many
