"""How long answers are, whether they end, and whether they say the same over and over."""

from __future__ import annotations

import pytest

from tests.support.examining import answered

COLOURS = ("blue", "pink", "green", "purple", "red")
PLACES = ("top right", "bottom left", "bottom", "right", "top")


def test_length_in_words() -> None:
    assert "length" in answered("A dog.", words=(3, 10))
    assert "length" in answered("a " * 11 + "dog.", words=(3, 10))
    assert "length" not in answered("这是一只棕色的狗。", words=(3, 5), language="zh")  # eight letters
    assert "length" in answered("这是一只棕色的狗，躺在沙发上。", words=(3, 5), language="zh")


@pytest.mark.parametrize(
    ("answer", "broken"),
    [
        ("The dog lies on the couch and looks at the window, and behind it a", True),
        ("The dog lies on the couch and looks at the window, and behind it,", True),
        ("The dog lies on the couch and looks at the window, and behind it is a wall", True),
        ("The dog lies on the couch and looks at the window, and behind it a wall.", False),
        ('The dog lies on the couch and looks at the window, and it seems to say "come!"', False),
        ("A brown dog on a couch", False),
        ("On the couch lie these things:", True),
        ("A brown dog lies on a couch and the", True),
        ("It lies on top of a", True),
        ("Yes, it is", False),
        ("Not very", False),
        ("Quite a while", False),
        ("Plan A", False),
        ("A dog, two couches, a small window, three lamps, some books and a big red rug", False),
        ("The dog lies on the couch and looks at the window, and it is having fun 😊", False),
    ],
)
def test_answers_that_break_off(answer: str, broken: bool) -> None:
    """Some servers say `stop` of what they have cut."""
    assert ("cut" in answered(answer, grounded=False)) == broken
    assert "cut" not in answered(answer, grounded=False, language="th")  # which has no full stop


def test_in_other_languages_other_words_go_on() -> None:
    for language, answer in (("de", "Das Licht ist an"), ("nl", "Ik weet niet wat het is"), ("es", "Vitamina a")):
        assert "cut" not in answered(answer, grounded=False, language=language)


def test_repetition() -> None:
    assert "repetition" in answered("The dog is on the couch. " * 4)
    assert "repetition" in answered("It is a dog. It is a dog.")
    assert "repetition" not in answered("It is a dog. Yes, it is a dog.")
    assert "repetition" not in answered("Keep calm now. Keep calm now.")
    assert "repetition" not in answered("没有人。没有人。", language="zh")
    twice = "A meter stands in front of a car. A black car is at the curb. A meter stands in front of a car."
    assert "repetition" in answered(twice)
    assert "repetition" in answered("A dog and " + "a couch and a dog and " * 8)
    assert "repetition" in answered("狗在沙发上，" * 8, language="zh")
    assert "repetition" in answered("A dog" + "!" * 30)
    assert "repetition" not in answered(
        "There is a dog on the left. There is a dog on the right. There is a sofa in the middle. "
        "There is a dog at the top, and a very long couch below it, which is brown and soft."
    )
    things = [f"a {colour} triangle is at the {place}" for colour, place in zip(COLOURS, PLACES, strict=True)]
    assert "repetition" not in answered(f"There are five things here. {', '.join(things)}.")
