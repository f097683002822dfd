"""Steps on clips, beside pictures and text: a data file cannot hold clips yet, so the examples are made by hand."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import pytest
import torch

from opsin.core.types import Clip, Conversation, Medium, Picture, Turn
from opsin.train.data import StageData, plan_steps
from opsin.train.features import FeatureCache
from opsin.train.loop import StageLoop
from opsin.train.objective import Objective
from opsin.train.optimiser import build_optimiser, prepare_parts, store_parts
from opsin.train.selecting import Found
from tests.support.corpora import corpus_of
from tests.support.models import dialogue, draw_picture, stage_of, tiny_vlm
from tests.support.videos import write_video

if TYPE_CHECKING:
    from pathlib import Path

EVERYTHING = {"vision": {"lr": 1e-3}, "connector": {"lr": 1e-2}, "language": {"lr": 1e-3}}
KINDS: dict[str, dict[str, Any]] = {
    "square": {"encoder": "clip"},
    "any_res": {"encoder": "siglip", "resolution": "any_res"},
    "native, M-RoPE": {"encoder": "native_vit", "resolution": "native", "positions": "mrope"},
    "gated": {"encoder": "native_vit", "resolution": "native", "fusion": "gated_cross_attention"},
}


def conversations(folder: Path) -> list[Conversation]:
    """A clip of frames, one of a video file, a picture beside a clip, two clips, and text."""
    frames = tuple(Picture(path=draw_picture(folder / f"{n}.png", n, (60, 40))) for n in range(3))
    video = write_video(folder / "a.avi", range(20))
    shown: list[tuple[Medium, ...]] = [
        (Clip(frames),),
        (Clip(path=video),),
        (frames[0], Clip(path=video)),
        (Clip(frames[:1]), Clip(frames[1:])),
    ]
    made = [
        Conversation(f"clip-{n}", (Turn("user", (*media, "What happens?")), Turn("assistant", (f"It moves {n}.",))))
        for n, media in enumerate(shown)
    ]
    return [*made, dialogue("text", "Hello?", "Hi.")]


def loop_of(folder: Path, kind: str, precision: str, train: dict[str, Any], *, cached: bool = False) -> StageLoop:
    model, prepare = tiny_vlm(folder, max_position_embeddings=1024, **KINDS[kind])
    model.precision = "bf16" if precision == "bf16" else "fp32"
    stage = stage_of(train, epochs=8, batch_tokens=512)
    store_parts(model, [stage], precision)
    prepare_parts(model, stage)
    examples = corpus_of(folder, conversations(folder), prepare)
    data = StageData(examples, (len(examples),), Found())
    features = FeatureCache(model, prepare, folder / "features") if cached else None
    if features is not None:
        features.add(examples, attrgetter("seen"))
    return StageLoop(
        Objective(model, stage.loss),
        stage,
        data,
        plan_steps(data, stage, 0),
        build_optimiser(model, stage),
        features=features,
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_clips_are_learned(tmp_path: Path, kind: str, precision: str) -> None:
    loop = loop_of(tmp_path, kind, precision, EVERYTHING)
    before = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    metrics = [loop.take_step() for _ in loop.steps]
    assert sum(step.pictures for step in metrics) == 8 * 6
    assert metrics[-1].loss < 0.9 * metrics[0].loss
    changed = {name.partition(".")[0] for name, p in loop.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"encoder", "connection", "decoder"}


@pytest.mark.parametrize("kind", KINDS)
def test_clips_are_learned_from_cached_features_as_from_pixels(tmp_path: Path, kind: str) -> None:
    losses = []
    for cached in (True, False):
        loop = loop_of(tmp_path, kind, "fp32", {"connector": {"lr": 1e-2}}, cached=cached)
        losses.append([loop.take_step().loss for _ in loop.steps[:4]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(set(losses[0])) > 1
