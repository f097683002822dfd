"""Values that claim to be what they are not."""

from __future__ import annotations

import pytest

from opsin.core.yaml_lines import MAX_INTEGER_CHARACTERS, read_yaml


@pytest.mark.parametrize("value", ["!!int abc", "!!float abc", "!!bool abc", "!!null abc", '!!int "1.5"'])
def test_a_tag_that_does_not_fit_is_a_problem_of_its_line(value: str) -> None:
    tag = value.split()[0]
    document = read_yaml(f"a: 1\nb: {value}\n", {})
    assert [line for line, _ in document.problems] == [2]
    assert f"is not what the tag {tag} says; write a plain value" in document.problems[0][1]
    assert document.problems[0][1].startswith("b: ")


@pytest.mark.parametrize("value", ["9" * 5000, "-" + "9" * 5000, "0x" + "f" * 5000])
def test_an_endless_integer_is_a_problem_of_its_line(value: str) -> None:
    document = read_yaml(f"a: 1\nb: {value}\n", {})
    says = f"b: an integer of {len(value):,} characters; at most {MAX_INTEGER_CHARACTERS} are read"
    assert document.problems == [(2, says)]


def test_an_endless_integer_of_a_variable() -> None:
    assert len(read_yaml("a: ${N}\n", {"N": "9" * 5000}).problems) == 1


def test_a_tag_that_fits_and_long_texts_are_read() -> None:
    document = read_yaml(f'a: !!int 5\nb: !!float 1\nc: !!bool True\nd: "{"9" * 5000}"\n', {})
    assert document.problems == []
    assert document.value == {"a": 5, "b": 1.0, "c": True, "d": "9" * 5000}
