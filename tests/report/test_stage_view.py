"""Which samples of a stage are shown."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from opsin.core.types import Conversation, Turn
from opsin.data.corpus import Corpus, Part
from opsin.report.stage_view import varied
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


def kinds(examples: Corpus, most: int) -> Counter[str]:
    return Counter(examples.id(sample).partition("-")[0] for sample in varied(examples, most))


def test_every_source_and_kind_is_shown(tmp_path: Path) -> None:
    examples = corpus(tmp_path)
    assert kinds(examples, 6) == {"text": 4, "clip": 1, "picture": 1}
    assert kinds(examples, 3) == {"text": 1, "clip": 1, "picture": 1}
    assert len(varied(examples, 2)) == 2
    assert varied(examples, 1000) == list(range(42))
    assert varied(examples, 6) == sorted(set(varied(examples, 6)))
