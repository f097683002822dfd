"""The page of a synthesis: numbers, samples with their provenance, refused answers with their reasons."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from opsin import cli
from opsin.core.errors import OpsinError
from opsin.report.synthesis import synthesis_page
from opsin.report.synthesis_view import look_at_synthesis
from tests.support.models import draw_picture
from tests.support.views import EVIL, Page

if TYPE_CHECKING:
    from pathlib import Path

NUMBER = 12


def lines(path: Path, values: list[Any]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def provenance(root: Path, number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"{number}#detail",
        "kind": "detail",
        "file": "instruct.json" if number else "held-out.json",
        "images": [f"{number}.png"],
        "image_root": str(root),
        "where": f"captions.json ({number})",
        "teacher": "openai",
        "model": "some-model",
        "prompt": "detail@0123456789ab",
        "context": "f" * 64,
        "query": f"A caption of {number}. {EVIL}",
        "requests": ["a" * 64],
        "attempts": 2,
        "prompt_tokens": 1000,
        "answer_tokens": 50,
        "cost": 0.00125,
        "repaired": [{"check": "length", "text": "answer 1 has 2 words"}],
        **changes,
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A directory as `opsin synthesize` writes it, with markup wherever text can stand."""
    directory = tmp_path / "out"
    directory.mkdir()
    origins = [provenance(tmp_path, number) for number in range(NUMBER)]
    samples = []
    for number, origin in enumerate(origins):
        draw_picture(tmp_path / f"{number}.png", number, (60, 40))
        said = [f"<image>\nWhat is {number}?", f"It is the answer {number}. {EVIL}"]
        turns = [{"from": who, "value": text} for who, text in zip(("human", "gpt"), said, strict=True)]
        samples.append({"id": origin["id"], "image": f"{number}.png", "conversations": turns})
    (directory / "held-out.json").write_text(json.dumps(samples[:1]), encoding="utf-8")
    (directory / "instruct.json").write_text(json.dumps(samples[1:]), encoding="utf-8")
    lines(directory / "provenance.jsonl", origins)
    fault = {"check": "hallucination", "text": f"answer 1 speaks of 'cat' {EVIL}"}
    refused = {
        "id": "r#detail",
        "kind": "detail",
        "images": ["1.png"],
        "image_root": str(tmp_path),
        "where": "x:1",
        "reasons": [fault],
        "context": "A dog.",
        "requests": [],
        "attempts": [{"raw": f"raw {n} {EVIL}", "finish": "stop", "findings": [fault]} for n in range(2)],
    }
    lines(directory / "quarantine.jsonl", [refused])
    statistics = {
        "tasks": NUMBER + 1,
        "states": {"made": NUMBER, "quarantined": 1},
        "kinds": {"detail": {"made": NUMBER, "quarantined": 1}},
        "attempts": 26,
        "repaired": NUMBER,
        "findings": {"first": {"length": NUMBER}, "last": {"hallucination": 1}},
        "hallucination": {
            "first": {"examined": 13, "found": 1, "rate": 1 / 13},
            "last": {"examined": 13, "found": 1, "rate": 1 / 13},
        },
        "near_duplicates": 0,
        "suspicious": {"count": 1, "ids": [f"7 {EVIL}"]},
        "exchanges": {"mean": 1.0},
        "words": {"detail": {"mean": 40.25, "5%": 7.5, "50%": 39.0, "95%": 80.0}},
        "usage": {"requests": 26, "prompt_tokens": 12_000, "answer_tokens": 600, "cost": 0.015},
        "problems": [],
    }
    (directory / "statistics.json").write_text(json.dumps(statistics), encoding="utf-8")
    (directory / "synthesis.json").write_text("{}", encoding="utf-8")
    return directory


def test_the_page(out: Path) -> None:
    html = synthesis_page(out, 4, seed=0)
    found = Page(html)
    assert found.open == []
    assert found.handlers == []
    assert not {"script", "link", "iframe"} & found.tags
    assert all(address.startswith("data:image/jpeg;base64,") for address in found.addresses)
    assert len(found.addresses) == 5  # of four samples and a refused one
    assert html.count("<article") == 5
    assert html.count("It is the answer") == 4
    assert "&lt;image" not in html.replace("&lt;image: 4 tiles", "")  # the mark stands for the picture that is shown
    for text in ("some-model", "detail@0123456789ab", "1,000 + 50 tokens", "A caption of", "answer 1 has 2 words"):
        assert text in html
    for text in ("raw 0", "raw 1", "<b>hallucination</b>", "A dog.", "7.7% of 13", "39 (7.5 to 80)"):
        assert text in html


def test_samples_are_chosen_by_the_seed(out: Path) -> None:
    def ids(seed: int) -> list[str]:
        return [made.origin.id for made in look_at_synthesis(out, 4, seed).made]

    assert ids(0) == ids(0)
    assert len({tuple(ids(seed)) for seed in range(5)}) > 1
    assert ids(0) == sorted(ids(0), key=lambda identity: int(identity.partition("#")[0]))  # in the file's order
    assert {identity for seed in range(30) for identity in ids(seed)} == {f"{n}#detail" for n in range(NUMBER)}


def test_samples_by_id_refused_ones_too(out: Path) -> None:
    view = look_at_synthesis(out, 1, 0, ["r#detail", "0#detail", "5#detail"])
    assert [made.origin.id for made in view.made] == ["0#detail", "5#detail"]
    assert [refused.id for refused in view.refused] == ["r#detail"]
    assert view.made[0].turns[0] == ("user", "What is 0?")  # of the file that is held out
    with pytest.raises(OpsinError, match=r"no sample has the id '5#detal'; did you mean '5#detail'\?"):
        look_at_synthesis(out, 1, 0, ["5#detal"])


def test_damaged_lines_are_named_and_the_rest_is_shown(out: Path) -> None:
    path = out / "provenance.jsonl"
    good = path.read_text(encoding="utf-8").splitlines()
    good[3] = good[3][:-5]
    good[4] = json.dumps([1])
    good[5] = json.dumps({**json.loads(good[5]), "images": "5.png"})
    path.write_text("\n".join(good), encoding="utf-8")
    view = look_at_synthesis(out, NUMBER, 0)
    assert len(view.made) == NUMBER - 3
    named = [problem.partition(": ")[0].rpartition("/")[2] for problem in view.problems]
    assert [name.split(":")[:2] for name in named] == [["provenance.jsonl", line] for line in ("4", "5", "6")]
    assert "Lines that cannot be read: 3" in synthesis_page(out, NUMBER, seed=0)


def test_pictures_outside_of_the_folder_are_not_shown(out: Path) -> None:
    lines(out / "provenance.jsonl", [provenance(out.parent, 1, images=["../secret.png"], image_root=str(out))])
    html = synthesis_page(out, 1, seed=0)
    assert "in the path; make it relative to image_root" in html
    assert Page(html).addresses[1:] == []  # but the refused one's


@pytest.mark.parametrize("name", ["statistics.json", "provenance.jsonl", "quarantine.jsonl"])
def test_a_missing_file_is_named(out: Path, name: str) -> None:
    (out / name).unlink()
    with pytest.raises(OpsinError, match=name):
        synthesis_page(out, 1, seed=0)


def test_statistics_of_another_version(out: Path) -> None:
    (out / "statistics.json").write_text('{"tasks": 1}', encoding="utf-8")
    with pytest.raises(OpsinError, match="lacks states, kinds"):
        synthesis_page(out, 1, seed=0)
    (out / "statistics.json").write_text("[1", encoding="utf-8")
    with pytest.raises(OpsinError, match="no JSON object"):
        synthesis_page(out, 1, seed=0)


def test_nothing_was_made(out: Path) -> None:
    for name in ("provenance.jsonl", "quarantine.jsonl"):
        (out / name).write_text("", encoding="utf-8")
    (out / "instruct.json").write_text("[]", encoding="utf-8")
    assert "<article" not in synthesis_page(out, 4, seed=0)


@pytest.fixture
def inspect(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*arguments: str | Path) -> Any:
        monkeypatch.setattr(sys, "argv", ["opsin", "inspect", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.app()
        return caught.value.code

    return run


def test_the_command(out: Path, inspect: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(out, "--samples", "2") == 0
    told = capsys.readouterr().out
    assert "13: 12 made, 1 quarantined" in told
    assert told.count("It is the answer") == 2
    assert "refused: hallucination: answer 1 speaks of 'cat'" in told
    assert "\x1b" not in told
    assert inspect(out, "--id", "r#detail", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["samples"] == []
    assert value["refused"][0]["attempts"][1]["raw"].startswith("raw 1")
    page = out.parent / "page.html"
    assert inspect(out, "--out", page) == 0
    assert page.read_text(encoding="utf-8").count("<article") == 7


def test_options_of_recipes_are_refused(out: Path, inspect: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(out, "--stage", "align") != 0
    assert "is a synthesis" in capsys.readouterr().err
