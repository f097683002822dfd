"""`opsin inspect --json` holds the numbers that training takes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from opsin.core.types import Clip, Conversation, Turn
from opsin.report.inspect_json import stage_value
from tests.support.corpora import corpus_of
from tests.support.videos import write_video
from tests.support.views import KINDS, asked, prepared, stage_view

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_go_together(tmp_path: Path, kind: str) -> None:
    config, prepare = prepared(tmp_path, **KINDS[kind])
    examples = corpus_of(tmp_path, asked(tmp_path), prepare)
    value = json.loads(json.dumps(stage_value(stage_view(config, examples))))
    assert value["tokens"] == sum(one["tokens"] for one in value["chosen"]) == examples.costs.tokens.sum()
    assert value["sources"][0]["kinds"] == {"text": 1, "image": 1, "images": 1, "video": 1}
    for one, example in zip(value["chosen"], examples, strict=True):
        assert one["learned"] == example.num_supervised
        assert sum(medium["tokens"] for medium in one["media"]) == one["visual"]
        assert sum(medium["patches"] for medium in one["media"]) == one["patches"]
        assert [run["end"] for run in one["positions"]][-1] == one["tokens"]
        assert one["id"] in one["pack"]["samples"]
        learned = "".join(piece["text"] for piece in one["pieces"] if piece["learned"] and piece["kind"] == "text")
        assert learned in {"A cat.", "Both.", "It jumps.", "it"}
        axes = {"time", "height", "width"} if kind == "native" else {"position"}
        assert set(one["positions"][0]["axes"]) == axes


def test_frames_of_a_video_have_their_moments(tmp_path: Path) -> None:
    config, prepare = prepared(tmp_path, **KINDS["any_res"])
    video = Clip(path=write_video(tmp_path / "v.mkv", range(30)))
    turns = (Turn("user", (video, "\nWhat?")), Turn("assistant", ("It jumps.",)))
    view = stage_view(config, corpus_of(tmp_path, [Conversation("v", turns)], prepare), steps=[], refused=["a"])
    value = stage_value(view)
    (medium,) = value["chosen"][0]["media"]
    assert medium["frames"] == [{"frame": 10 * i, "seconds": float(i)} for i in range(3)]
    assert value["chosen"][0]["pack"] is None
    assert value["left_out"] == {"refused": ["a"]}
