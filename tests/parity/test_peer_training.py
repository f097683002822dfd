"""Training by opsin, in packs, against a plain loop around transformers' own models: equal losses, step by step.

Both start from the same checkpoint, see the same samples in every step and use AdamW with the same rates. transformers
is given one padded batch a step (LLaVA), or one sample at a time (Qwen2-VL), never a pack: its packing by positions
lets documents see each other as long as `use_cache` is not False.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from opsin.text.tokenizer import Tokenizer
from opsin.train.data import plan_steps, read_stage
from opsin.train.hooks import Hooks
from opsin.train.recipe import load_recipe
from opsin.train.run import start
from tests.support.backbones import said, write_media
from tests.support.hub import hub_dir
from tests.support.reference import Pair, pair_of, reference_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from opsin.core.types import Example

STEPS = 20
WARMUP = 3
DECAY = 0.05


@dataclass(frozen=True)
class Peer:
    """A family, the rates of its parts, and how transformers names these parts; the first that fits holds."""

    family: str
    rates: dict[str, float]
    places: dict[str, str]
    padded: bool


LLAVA = Peer(
    "llava",
    {"connector": 2e-3, "language": 1e-3},
    {"model.vision_tower.": "vision", "model.multi_modal_projector.": "connector", "": "language"},
    padded=True,
)
QWEN2_VL = Peer(
    "qwen2_vl",
    {"vision": 5e-4, "connector": 2e-3, "language": 1e-3},
    {"model.visual.merger.": "connector", "model.visual.": "vision", "": "language"},
    padded=False,
)


def write_records(media: Path) -> Path:
    """Questions about one picture, about none, and about two."""
    records: list[dict[str, Any]] = []
    for n in range(9):
        records.append(
            {"id": f"one-{n}", "image": f"{n}.png", **said("<image>\nWhat is it?", f"Number {n}. " * (n % 3 + 1))}
        )
    records += [{"id": f"text-{n}", **said(f"Say {n}, please", f"{n}, gladly")} for n in range(3)]
    pair = ["3.png", "5.png"]
    records.append({"id": "two", "image": pair, **said("<image> or <image>?", "The one with more red.")})
    path = media / "records.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def write_recipe(folder: Path, peer: Peer) -> Path:
    media = write_media(folder / "media")
    value = {
        "name": "peer",
        "precision": "fp32",
        "start_from": str(hub_dir(folder, peer.family)),
        "stages": [
            {
                "name": "all",
                "data": [{"kind": "llava", "path": str(write_records(media))}],
                "train": {part: {"lr": rate, "weight_decay": DECAY} for part, rate in peer.rates.items()},
                "samples_per_step": 8,
                "batch_tokens": 300,
                "epochs": 100,
                "steps": STEPS,
                "warmup_steps": WARMUP,
                "clip": 1.0,
            }
        ],
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def factor(step: int) -> float:
    """A linear rise, then a cosine."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def part_of(peer: Peer, name: str) -> str:
    return next(part for start, part in peer.places.items() if name.startswith(start))


def optimiser_of(peer: Peer, model: nn.Module) -> torch.optim.AdamW:
    groups = []
    for name, parameter in model.named_parameters():
        rate = peer.rates.get(part_of(peer, name))
        parameter.requires_grad_(rate is not None)
        if rate is not None:
            groups.append({"params": [parameter], "lr": rate, "weight_decay": DECAY * (parameter.dim() > 1)})
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)


def inputs_of(pair: Pair, example: Example) -> dict[str, Any]:
    """What transformers takes of a sample, with its labels."""
    learned = torch.from_numpy(example.supervised_T)
    labels = torch.where(learned, torch.from_numpy(example.tokens_T), -100)[None]
    return reference_inputs(pair, example) | {"labels": labels}


def padded(inputs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples side by side, filled up on the right; pictures one after the other."""
    longest = max(one["input_ids"].shape[1] for one in inputs)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    batch = {
        key: torch.cat([nn.functional.pad(one[key], (0, longest - one[key].shape[1]), value=value) for one in inputs])
        for key, value in fill.items()
    }
    pixels = [one["pixel_values"] for one in inputs if "pixel_values" in one]
    return batch | ({"pixel_values": torch.cat(pixels)} if pixels else {})


def plain_loop(peer: Peer, pair: Pair, steps: Sequence[Sequence[Example]]) -> Iterator[float]:
    """Train with transformers alone; yields the loss of every step, a mean over all its learned tokens."""
    model = pair.theirs.train()
    optimiser = optimiser_of(peer, model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    for examples in steps:
        inputs = [inputs_of(pair, example) for example in examples]
        learned = sum(example.num_supervised for example in examples)
        total = 0.0
        for batch in [padded(inputs)] if peer.padded else inputs:
            loss: Tensor = model(**batch, use_cache=False, num_items_in_batch=learned).loss
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        yield total


@pytest.mark.parametrize("peer", [LLAVA, QWEN2_VL], ids=lambda peer: peer.family)
def test_losses_of_packed_training_are_those_of_a_plain_loop(peer: Peer, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, peer))
    (stage,) = recipe.stages
    ours: list[float] = []
    start(recipe, tmp_path / "run", Hooks(on_step=lambda _stage, step, _total: ours.append(step.loss or 0.0)))

    data = read_stage(stage, recipe.composition, Tokenizer.load(recipe.composition.language.tokenizer_path))
    planned = plan_steps(data, stage, recipe.seed)
    assert max(len(pack.samples) for step in planned for pack in step) > 2  # these are packs,
    assert max(map(len, planned)) > 1  # and gradients of several are summed
    steps = [[data.examples[i] for pack in step for i in pack.samples] for step in planned]
    theirs = list(plain_loop(peer, pair_of(tmp_path, peer.family), steps))

    assert len(ours) == len(theirs) == STEPS
    assert ours == pytest.approx(theirs, abs=1e-4)  # seen: 2e-6
    assert ours[-1] < ours[0] - 1  # they learn, so 20 steps are compared and not one
