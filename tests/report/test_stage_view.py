"""Which samples of a stage are shown."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from opsin.core.types import Conversation, Turn
from opsin.data.corpus import Corpus, Part
from opsin.data.plan import Budget, Pack
from opsin.report.stage_view import StageView, varied
from tests.support.corpora import corpus_of
from tests.support.models import dialogue
from tests.support.views import clip, picture, prepared

if TYPE_CHECKING:
    from pathlib import Path


def corpus(folder: Path) -> Corpus:
    """Forty texts and a clip of one source, and a picture of another."""
    _, prepare = prepared(folder)
    film = Conversation("clip", (Turn("user", (clip(folder, 2), "What?")), Turn("assistant", ("It jumps.",))))
    shown = dialogue("picture", "What?", "A cat.", [picture(folder)])
    texts = [dialogue(f"text-{n}", "Say it", "it") for n in range(40)]
    whole = corpus_of(folder, [*texts, film, shown], prepare)
    (part,) = whole.parts
    other = Part("other", part.source, part.index, np.array([41]), part.index.costs.take(np.array([41])))
    return Corpus(prepare, [part.take(np.arange(41)), other])


def kinds(stage: StageView, most: int) -> Counter[str]:
    return Counter(stage.examples.id(sample).partition("-")[0] for sample in varied(stage, most))


def test_every_source_and_kind_is_shown(tmp_path: Path) -> None:
    view = StageView("x", corpus(tmp_path), 16)
    assert kinds(view, 6) == {"text": 4, "clip": 1, "picture": 1}
    assert kinds(view, 3) == {"text": 1, "clip": 1, "picture": 1}
    assert len(varied(view, 2)) == 2
    assert varied(view, 1000) == list(range(42))
    assert varied(view, 6) == sorted(set(varied(view, 6)))


def test_only_what_packs_hold_is_shown(tmp_path: Path) -> None:
    view = StageView(
        "x", corpus(tmp_path), 16, Budget(256, 4096), [[Pack((7, 41), 50, 4, 9)], [Pack((3, 7), 50, 0, 9)]]
    )
    assert varied(view, 6) == [3, 7, 41]
    assert varied(view, 2) == [3, 41]
