"""The plots of a stage's mixture say what the packs hold of each source."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from opsin.data.plan import Budget, plan_epoch
from opsin.report.document import MOST_LISTED, folded_list
from opsin.report.inspect import page
from opsin.report.stage_view import StageView
from tests.support.corpora import corpus_of
from tests.support.models import dialogue
from tests.support.views import asked, prepared

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def stage(tmp_path: Path) -> StageView:
    """Two sources: four samples of every kind, and one text that the packs hold three times."""
    _, prepare = prepared(tmp_path, encoder="siglip")
    (tmp_path / "b").mkdir()
    corpus = corpus_of(tmp_path, asked(tmp_path), prepare)
    other = corpus_of(tmp_path / "b", [dialogue("t", "Say <b>it</b>", "it")], prepare).parts[0]
    corpus.add(replace(other, name="more<b>"))
    budget = Budget(256, 4096)
    packs = [plan_epoch(corpus.costs, budget, seed=0, epoch=0).packs]
    packs += [plan_epoch(corpus.costs, budget, seed=0, epoch=0, samples=np.array([4, 4])).packs]
    return StageView(
        "mixed", corpus, 16, budget, packs, all_steps=2, epoch=7, notes=["3 samples left out: <kind>"], chosen=[0]
    )


def test_shares_are_those_of_the_packs(stage: StageView) -> None:
    first, second = stage.sources.values()
    assert (first.available, first.drawn) == (4, 4)
    assert (second.available, second.drawn) == (1, 3)
    assert first.costs.by_kind() == {"text": 1, "image": 1, "images": 1, "video": 1}
    assert first.tokens + second.tokens == sum(pack.tokens for pack in stage.packs)
    assert second.tokens == 3 * stage.examples.costs.tokens[4]


def test_without_packs_every_sample_counts_once(stage: StageView) -> None:
    sources = replace(stage, budget=None, steps=()).sources
    assert [source.drawn for source in sources.values()] == [4, 1]


def test_the_page_shows_shares_kinds_and_how_full_packs_are(stage: StageView) -> None:
    html = page("x", [stage])
    assert "more&lt;b&gt;" in html
    assert "more<b>" not in html
    assert re.findall(r'class="count">(\d+\.\d%) <small>(\d+)', html)[0] == ("57.1%", "4")
    assert '<i class="video" style="width:25.00%">' in html
    assert "How full of tokens the packs are" in html
    assert "How full of patches the packs are" in html
    assert "Tokens of a sample, by source" in html
    assert "3 samples left out: &lt;kind&gt;" in html


def test_what_is_not_used_is_listed_by_what_happened_to_it(stage: StageView) -> None:
    html = page("x", [replace(stage, refused=["a"], dropped=["b", "<c>"], shortened=["d"] * 30)])
    assert "Refused: 1" in html
    assert "Dropped: 2" in html
    assert "<li>&lt;c&gt;</li>" in html
    assert re.search(r"<details class=\"card listed\"><summary>Shortened: 30", html)  # folded


def test_a_very_long_list_ends_with_how_many_are_left() -> None:
    assert f"<li>and {2:,} more</li>" in folded_list("Refused", ["x"] * (MOST_LISTED + 2))


def test_a_page_reads_only_the_samples_that_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, prepare = prepared(tmp_path)
    corpus = corpus_of(tmp_path, [dialogue(f"s{i}", "a", "b") for i in range(200)], prepare)
    budget = Budget(256, 4096)
    steps = [plan_epoch(corpus.costs, budget, seed=0, epoch=0).packs]
    read: list[int] = []
    pick = type(corpus).pick
    monkeypatch.setattr(type(corpus), "pick", lambda self, sample: read.append(sample) or pick(self, sample))
    page("x", [StageView("x", corpus, 16, budget, steps, chosen=[3, 150])])
    assert read == [3, 150]
