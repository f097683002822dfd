"""The language of samples: another one is found, and names, signs and quotations are let pass."""

from __future__ import annotations

import pytest

from opsin.synthesize.context import Context, Thing
from tests.support.examining import answered, checks


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("en", "这张图片里有一只狗。"),
        ("en", "Der Hund liegt auf der Couch und ist nicht wach."),
        ("de", "The dog is on the couch and it is asleep."),
        ("fr", "El perro está en el sofá y no hay más animales."),
        ("zh", "The dog is lying on the couch."),
        ("zh", "これは犬です。ソファで寝ています。"),
        ("ja", "这张图片里有一只棕色的狗躺在灰色的沙发上睡觉休息呢"),
        ("ru", "The dog is lying on the couch."),
        ("ko", "这张图片里有一只狗。"),
    ],
)
def test_another_language(expected: str, text: str) -> None:
    assert "language" in answered(text, language=expected, grounded=False)


def test_a_sentence_in_another_language() -> None:
    spanish = "Los pasajeros deben esperar con paciencia en el andén y no en la calle."
    assert "language" in answered(f"The passengers wait on the platform. {spanish} The train is late.", grounded=False)
    inserted = "The shelf beside the bed suggests, wie man leicht sehen kann, dass Lesen hier wichtig ist; so it is."
    assert "language" in answered(inserted, grounded=False)
    named = "It may be near Avenue des Champs-Élysées, Place de la Concorde, Rue du Faubourg or Quai des Orfèvres."
    assert "language" not in answered(named, grounded=False)
    named = (
        "It may be spaghetti alla carbonara, penne con pesto, risotto ai funghi, gnocchi alla sorrentina, or similar."
    )
    assert "language" not in answered(named, grounded=False)
    chinese = "乘客们在站台上耐心等待火车。"
    assert "language" in answered(f"The passengers wait on the platform of the station. {chinese}", grounded=False)
    assert "language" in answered("A 棕色的 dog lies on a sofa.")  # who knows captions alone can have read it nowhere
    sign = Context(("A dog lies below a sign that says 出口.",), (Thing("a dog", ("animal",)),))
    assert not answered("The sign says 出口.", context=sign)
    assert not answered("The café has a dog that weighs 5 μg.", context=sign)
    for english in (
        "No, as far as I can tell.",
        "They do not wait as long as no cars come.",
        "Do you see benches?",
    ):
        assert "language" not in answered(english, grounded=False)
    airport = Context(("A dog below a sign that says San Francisco International Airport.",), ())
    assert "language" not in answered(
        "牌子上写着“San Francisco International Airport”。", context=airport, language="zh"
    )
    named = "They are on the way to the restaurant La Casa de los Abuelos, which is near the station."
    assert "language" not in answered(named, grounded=False)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "Pizza"),
        ("en", "2"),
        ("en", "The sign says 出口, which is the word for exit."),
        ("zh", "图片里有一只狗。"),
        ("zh-CN", "Coca-Cola"),
        ("de", "Der Hund liegt auf dem Sofa."),
        ("fr", "Le chien est sur le canapé."),
        ("es", "El perro está en el sofá."),
        ("it", "Il cane è sul divano e non si muove."),
        ("pt", "O cachorro está no sofá e não há mais ninguém."),
        ("nl", "De hond ligt op de bank en het is niet wakker."),
        ("ja", "犬がソファで寝ています。"),
        ("ko", "개가 소파 위에서 자고 있습니다."),
        ("ru", "Собака лежит на диване."),
        ("ar", "الكلب نائم على الأريكة."),
        ("hi", "कुत्ता सोफे पर सो रहा है।"),
        ("th", "สุนัขนอนอยู่บนโซฟา"),
        ("el", "Ο σκύλος κοιμάται στον καναπέ."),
        ("he", "הכלב ישן על הספה."),
        ("sw", "Mbwa analala juu ya kochi kubwa la rangi ya kijivu."),
    ],
)
def test_the_right_language(language: str, text: str) -> None:
    assert "language" not in checks(("?", text), exchanges=(1, 1), language=language, grounded=False)
