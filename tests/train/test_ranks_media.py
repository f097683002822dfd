"""Ranks whose packs hold different media, or none: nobody waits for anybody, and all learn what one process does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from opsin.core.types import Clip, Conversation, Picture, Turn
from opsin.data.plan import Pack
from opsin.train.data import StageData
from opsin.train.loop import StageLoop
from opsin.train.objective import Objective
from opsin.train.optimiser import build_optimiser, prepare_parts, store_parts
from opsin.train.recipe import Parallel
from opsin.train.selecting import Found
from opsin.train.sharding import divide
from opsin.train.world import World, joined
from tests.support.corpora import corpus_of
from tests.support.launch import meet, together
from tests.support.models import dialogue, draw_picture, stage_of, tiny_vlm
from tests.support.videos import write_video

if TYPE_CHECKING:
    from pathlib import Path

ALL = {"vision": {"lr": 1e-3}, "connector": {"lr": 1e-2}, "language": {"lr": 1e-3}}
KINDS: dict[str, dict[str, Any]] = {
    "square": {"encoder": "clip", "tie_word_embeddings": True},
    "any_res": {"encoder": "siglip", "resolution": "any_res"},
    "native": {"encoder": "native_vit", "resolution": "native", "positions": "mrope"},
    "gated": {"encoder": "native_vit", "resolution": "native", "fusion": "gated_cross_attention"},
    "convolutional": {"encoder": "efficientnet_lite"},
}
TEXT, PICTURE, VIDEO, SEVERAL = range(4)
STEPS = [
    [(TEXT,), (PICTURE,)],
    [(VIDEO,), (TEXT,)],
    [(TEXT,), (TEXT,)],
    [(SEVERAL, TEXT)],
    [(PICTURE,), (VIDEO,), (TEXT,)],
]


def conversations(folder: Path) -> list[Conversation]:
    pictures = tuple(Picture(path=draw_picture(folder / f"{n}.png", n, (60, 40))) for n in range(3))
    clip = Clip(path=write_video(folder / "a.avi", range(20)))

    def shown(name: str, *media: Any) -> Conversation:
        return Conversation(name, (Turn("user", (*media, "What is it?")), Turn("assistant", (f"It is {name}.",))))

    text = dialogue("text", "Hello?", "Hi.")
    return [text, shown("picture", pictures[0]), shown("video", clip), shown("several", *pictures)]


def losses(folder: Path, kind: str, world: World, parallel: Parallel, train: dict[str, Any]) -> list[dict[str, Any]]:
    """What every step told."""
    model, prepare = tiny_vlm(folder, max_position_embeddings=1024, **KINDS[kind])
    stage = stage_of(train, batch_tokens=512, activation_checkpointing="full")
    store_parts(model, [stage], "fp32")
    prepare_parts(model, stage)
    examples = corpus_of(folder, conversations(folder), prepare)
    costs = examples.costs

    def pack(samples: tuple[int, ...]) -> Pack:
        taken = list(samples)
        sums = (int(column[taken].sum()) for column in (costs.tokens, costs.patches, costs.supervised))
        return Pack(samples, *sums)

    steps = [tuple(map(pack, step)) for step in STEPS]
    objective = Objective(model, stage.loss)
    divide(objective, parallel, world, encodes=True)
    data = StageData(examples, (len(examples),), Found())
    loop = StageLoop(objective, stage, data, steps, build_optimiser(model, stage), world)
    return [loop.take_step().as_dict("x") for _ in steps]


def shared(folder: Path, cases: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    found = []
    for kind, sharding, train in cases:
        meet()
        with joined("cpu", 20) as world:
            found.append(losses(folder / f"{kind}-{world.rank}", kind, world, Parallel.model_validate(sharding), train))
    return found


def test_media_on_one_rank_and_text_on_the_other(tmp_path: Path) -> None:
    connector = {"connector": {"lr": 1e-2}}
    cases = [(kind, {}, ALL) for kind in KINDS]
    cases += [("square", {}, connector), ("any_res", {"sharding": "none"}, ALL)]
    cases += [("native", {"cpu_offload": True}, ALL), ("native", {}, {"vision": {"lr": 1e-3}})]
    many, other = together(2, shared, tmp_path, cases, meetings=len(cases))
    for (kind, _, train), ours, theirs in zip(cases, many, other, strict=True):
        alone = losses(tmp_path / kind, kind, World(0, 1, torch.device("cpu")), Parallel(), train)
        assert [step["loss"] for step in ours] == [step["loss"] for step in theirs]
        for one, step in zip(alone, ours, strict=True):
            assert step["loss"] == pytest.approx(one["loss"], rel=2e-5), kind
            assert step["norms"] == pytest.approx(one["norms"], rel=2e-3, abs=1e-6), kind
