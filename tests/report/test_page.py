from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from rich.console import Console

from opsin.core.errors import OpsinError, PictureError
from opsin.report.gallery import choose
from opsin.report.page import rewrite, write_report
from opsin.report.plots import Line, line_plot, smoothed, thinned, tick_label, ticks
from opsin.report.run import DataFacts, RunFacts, read_metrics
from opsin.report.scores import Evaluation, Prediction, Reference, Score, Scores, rows
from opsin.report.table import scores_table
from opsin.report.words import duration

if TYPE_CHECKING:
    from pathlib import Path

EVIL = '<script>alert("x")</script><img src=http://evil.example/x onerror=alert(1)>&'
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects tags and addresses, and checks that every element is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def prediction(index: int, answer: str, task: str = "category") -> Prediction:
    truth = "animals"
    correct = None if task == "caption" else answer == truth
    return Prediction(f"{index}#{task}", task, f"{index}.png", "Which group?", truth, answer, correct)


def evaluation(name: str, answer: str, value: float) -> Evaluation:
    scores = (
        Score("category", "accuracy", value, 6, 0.5, "always “animals”", max(0.0, value - 0.2), min(1.0, value + 0.2)),
        Score("caption", "CIDEr-D", 1.234, 6, 0.4, "always “A cat.”"),
        Score("caption", "recall@1", 0.5, 6, 1 / 6, "chance, 1 of 6 captions", 0.2, 0.8),
    )
    predictions = [prediction(i, answer) for i in range(6)] + [prediction(i, "A dog.", "caption") for i in range(6)]
    return Evaluation(name, Scores(scores, tuple(predictions), 1.0))


def write_metrics(run: Path, tail: str = "") -> None:
    lines = []
    for stage, count in (("align", 3), ("instruct", 5)):
        for step in range(1, count + 1):
            line: dict[str, Any] = {
                "stage": stage,
                "step": step,
                "loss": 5 / step,
                "grad_norm": 1.0,
                "lr": {"connector": 1e-3},
            }
            lines.append(json.dumps(line | {"tokens": 1000, "supervised": 400, "pictures": 9, "seconds": 0.5}) + "\n")
    (run / "metrics.jsonl").write_text("".join(lines) + tail, encoding="utf-8")
    (run / "recipe.json").write_text('{"name": "tiny", "stages": []}', encoding="utf-8")
    (run / "run.json").write_text('{"torch": "2.13.0"}', encoding="utf-8")


@pytest.fixture
def facts(tmp_path: Path) -> RunFacts:
    for index in range(6):
        Image.new("RGB", (500, 300), (40 * index, 100, 200)).save(tmp_path / f"{index}.png")
    write_metrics(tmp_path)
    return RunFacts(
        name="a recipe <&>",
        date="1 May 2026",
        seconds=3725,
        machine="2 CPU cores",
        chat="opsin chat RUN",
        evaluations=[evaluation("before", EVIL, 0.1), evaluation("after instruct", "animals", 0.9)],
        image_root=tmp_path,
        references=[Reference("category", "accuracy", "nearest neighbour", 0.625)],
        data=DataFacts({"Pictures": 1444}, {"animals": (120, 25)}, {"not what its folder says": 11}),
    )


@pytest.fixture
def html(tmp_path: Path, facts: RunFacts) -> str:
    path = write_report(tmp_path, facts)
    assert path == tmp_path / "report.html"
    return path.read_text(encoding="utf-8")


def test_it_needs_nothing_else(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert page.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"url\(|@import", html)


def test_answers_stay_text(html: str) -> None:
    assert "&lt;script&gt;alert" in html
    assert "a recipe &lt;&amp;&gt;" in html
    assert "<script" not in html
    assert Page(html).handlers == []


def test_what_the_page_tells(html: str) -> None:
    told = ("1 h 2 min", "2 CPU cores", "8,000 tokens", "90.0%", "10.0%", "1.23", "62.5%", "always “animals”", "1,444")
    for part in (*told, "120 + 25", "not what its folder says", "opsin chat RUN", "Stage “align”", "Stage “instruct”"):
        assert part in html
    assert html.count("✓") == 6  # the last evaluation is right, the first is wrong: colour is not the only sign
    assert html.count("✗") == 6
    assert html.count("<article") == 12
    assert html.count('class="score above"') == 5  # 3 after training; before it, the caption's two
    assert html.count('class="score below"') == 1


def test_a_picture_that_is_gone_is_named(tmp_path: Path, facts: RunFacts) -> None:
    (tmp_path / "3.png").unlink()
    with pytest.raises(PictureError, match=r"3\.png: no such file"):
        write_report(tmp_path, facts)
    assert not (tmp_path / "report.html").exists()


def test_a_run_without_evaluations_or_data_has_a_page(tmp_path: Path) -> None:
    write_metrics(tmp_path)
    facts = RunFacts("name", "today", 1, "1 core", "opsin chat RUN", [], tmp_path)
    page = write_report(tmp_path, facts).read_text(encoding="utf-8")
    assert "What it answers" not in page
    assert "Scores" not in page
    assert "Stage “align”" in page


def test_the_page_can_be_written_again_from_files_alone(tmp_path: Path, html: str, facts: RunFacts) -> None:
    scores = [{"name": one.name, **one.scores.as_dict()} for one in facts.evaluations]
    (tmp_path / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    assert rewrite(tmp_path, tmp_path / "again.html").read_text(encoding="utf-8") == html
    assert rewrite(tmp_path).read_text(encoding="utf-8") == html
    (tmp_path / "report.json").write_text("{}", encoding="utf-8")
    with pytest.raises(OpsinError, match=r"report\.json: not what a report is made of"):
        rewrite(tmp_path)


def test_the_page_is_small(html: str) -> None:
    assert len(html) < 200_000  # pictures are embedded at 320 pixels, not at their full size


def test_metrics_of_a_killed_run_can_be_read(tmp_path: Path) -> None:
    write_metrics(tmp_path, tail='{"stage": "instr')
    assert {name: len(record.steps) for name, record in read_metrics(tmp_path / "metrics.jsonl").items()} == {
        "align": 3,
        "instruct": 5,
    }
    write_metrics(tmp_path, tail='{"stage": "instruct"}\n')
    with pytest.raises(OpsinError, match=r"metrics\.jsonl:9: not a line of training metrics"):
        read_metrics(tmp_path / "metrics.jsonl")
    with pytest.raises(OpsinError, match="was the run trained"):
        read_metrics(tmp_path / "none.jsonl")


def test_the_gallery_is_chosen_without_looking_at_answers() -> None:
    right = [prediction(i, "animals", task) for task in ("category", "count") for i in range(100)]
    wrong = [prediction(i, "food", task) for task in ("category", "count") for i in range(100)]
    chosen = choose(right, 24)
    assert [p.id for p in chosen] == [p.id for p in choose(wrong, 24)]
    assert len({p.image for p in chosen}) == 24
    assert {p.task for p in chosen} == {"category", "count"}
    assert len(choose(right[:5], 24)) == 5


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 5, 10]), (0.3, 1.1, [0.4, 0.6, 0.8, 1.0]), (7, 7, [7]), (-1, 1, [-1, -0.5, 0, 0.5, 1])],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "label"), [(0, "0"), (2e-5, "2e-5"), (0.0015, "1.5e-3"), (0.1 + 0.2, "0.3"), (12_000, "12k")]
)
def test_tick_labels_are_short(value: float, label: str) -> None:
    assert tick_label(value) == label


def test_smoothing_starts_at_the_first_value_and_keeps_constants() -> None:
    assert smoothed([4.0, 4.0, 4.0]) == pytest.approx([4.0, 4.0, 4.0])
    assert smoothed([4.0, 2.0])[0] == 4.0
    assert smoothed([]) == []


def test_long_lines_are_thinned_to_means() -> None:
    points = thinned([(float(i), float(i % 2)) for i in range(1000)], limit=100)
    assert len(points) == 100
    assert {y for _, y in points} == {0.5}


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0], [0.0, 0.0], [1.0, float("inf"), 3.0]])
def test_plots_survive_awkward_values(values: list[float]) -> None:
    line = Line("loss <1>", tuple((float(i), y) for i, y in enumerate(values)), "one")
    plot = line_plot("Loss", [line])
    assert not re.search(r"\b(nan|inf)\b", plot)
    assert ("nothing was recorded" in plot) == (not any(map(math.isfinite, values)))
    assert Page(plot).open == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10 s"), (59.7, "1 min 0 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_verdicts_need_the_whole_interval() -> None:
    assert Score("t", "accuracy", 0.6, 10, 0.5, "b", 0.4, 0.8).verdict == "near"
    assert Score("t", "accuracy", 0.6, 10, 0.3, "b", 0.4, 0.8).verdict == "above"
    assert Score("t", "accuracy", 0.6, 10, 0.9, "b", 0.4, 0.8).verdict == "below"
    assert Score("t", "CIDEr-D", 0.6, 10, 0.5, "b").verdict == "above"


def test_rows_keep_a_task_together() -> None:
    found = rows([evaluation("before", "x", 0.5)])
    assert found == [("category", "accuracy"), ("caption", "CIDEr-D"), ("caption", "recall@1")]


def test_terminal_table(facts: RunFacts) -> None:
    console = Console(record=True, width=160, file=None, force_terminal=False, quiet=False)
    with console.capture() as capture:
        console.print(scores_table(facts.evaluations, facts.references))
    text = capture.get()
    for part in ("before", "after instruct", "90.0% ▲", "10.0% ▼", "62.5%", "1.23 ▲", "50.0% always “animals”"):
        assert part in text


def test_recall_is_said_to_be_calibrated(html: str, facts: RunFacts) -> None:
    says = "mean over the asked pictures is subtracted"
    assert says in " ".join(html.split())
    assert "not the plain R@1 and R@5" in html
    caption = str(scores_table(facts.evaluations).caption)
    assert "mean score over the asked pictures is subtracted, so it is not the plain R@1 or R@5" in caption
