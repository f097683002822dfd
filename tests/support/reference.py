"""One tiny checkpoint loaded twice, by opsin and by transformers, and the same documents in the formats of both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from opsin.checkpoint.load import load
from opsin.checkpoint.prepare import preparation
from opsin.core.types import Clip, Conversation, Example, Picture
from opsin.data.collate import medium_pixels
from opsin.data.example import Preparation, make_example
from opsin.model.vlm import Vlm
from opsin.vision.positions import MRope
from tests.support.hub import CLASSES, hub_dir
from tests.support.models import dialogue, draw_picture

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

FAMILIES = ("llava", "llava_next", "llava_onevision", "qwen2_vl")
VIDEO_FAMILIES = ("llava_onevision", "qwen2_vl")


@dataclass(frozen=True)
class Pair:
    """One checkpoint loaded twice."""

    family: str
    ours: Vlm
    prepare: Preparation
    theirs: Any

    @property
    def config(self) -> Any:
        return self.theirs.config


@lru_cache
def pair_of(folder: Path, family: str) -> Pair:
    path = folder / family
    if not path.exists():
        hub_dir(folder, family)
    loaded = load(path)
    theirs = CLASSES[family].from_pretrained(path, attn_implementation="eager").eval()
    prepare = preparation(loaded.model.config, loaded.tokenizer)
    if isinstance(prepare.positions, MRope):  # the rule of the transformers at hand; opsin's default is the paper's
        prepare = replace(prepare, positions=prepare.positions.model_copy(update={"resume": "transformers5"}))
    return Pair(family, loaded.model, prepare, theirs)


def conversations(folder: Path, family: str) -> dict[str, Conversation]:
    sizes = [(90, 50), (40, 130), (64, 64), (33, 20), (200, 61)]
    pictures = [Picture(path=draw_picture(folder / f"{n}.png", n, size)) for n, size in enumerate(sizes)]
    frames = tuple(Picture(path=draw_picture(folder / f"frame{n}.png", n, (70, 50))) for n in range(5))
    found = {
        "text": dialogue("text", "Hello there, how are you today?", "Very well, thank you."),
        "one": dialogue("one", "What is it?", "A cat on grass.", pictures[:1]),
        "other": dialogue("other", "And what is this thing here?", "A dog.", pictures[4:]),
        "several": dialogue("several", "Which are alike?", "None of them.", pictures[1:4]),
    }
    if family in VIDEO_FAMILIES:
        found["video"] = dialogue("video", "What happens?", "It moves.", [Clip(frames)])
    return found


def reference_inputs(pair: Pair, example: Example) -> dict[str, Any]:
    """What transformers takes for one document."""
    config = pair.config
    ids = torch.from_numpy(example.tokens_T).clone()
    is_video = [isinstance(medium, Clip) for medium in example.media]
    image_id = config.image_token_id if pair.family == "qwen2_vl" else config.image_token_index
    ids[torch.from_numpy(example.visual_T)] = image_id
    if any(is_video):
        assert all(is_video)
        ids[torch.from_numpy(example.visual_T)] = (
            config.video_token_id if pair.family == "qwen2_vl" else config.video_token_index
        )
    inputs: dict[str, Any] = {"input_ids": ids[None], "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if not example.media:
        return inputs
    normalise = pair.ours.encoder.normalise
    pixels = [normalise(torch.from_numpy(medium_pixels(*pair_, pair.prepare).copy())) for pair_ in example.seen]
    sizes = torch.tensor([layout.source for layout in example.layouts])
    kind = "_videos" if any(is_video) else ""
    if pair.family == "qwen2_vl":
        grids = torch.tensor([[x.grid.t, x.grid.h, x.grid.w] for x in example.layouts])
        inputs[f"pixel_values{kind}"] = torch.cat(
            [qwen_patches(p, x.grid.t) for p, x in zip(pixels, example.layouts, strict=True)]
        )
        inputs["video_grid_thw" if any(is_video) else "image_grid_thw"] = grids
        visual = torch.from_numpy(example.visual_T).long()
        inputs["mm_token_type_ids"] = (visual * (2 if any(is_video) else 1))[None]
    elif pair.family == "llava":
        inputs["pixel_values"] = torch.cat(pixels)
    elif any(is_video):
        inputs["pixel_values_videos"] = torch.stack(pixels)
    else:
        most = max(len(p) for p in pixels)
        padded = [torch.cat([p, p.new_zeros(most - len(p), *p.shape[1:])]) for p in pixels]
        inputs |= {"pixel_values": torch.stack(padded), "image_sizes": sizes}
        if pair.family == "llava_onevision":
            inputs["batch_num_images"] = torch.tensor([len(pixels)])
    return inputs


def qwen_patches(frames: Tensor, maps: int) -> Tensor:
    """Normalised frames -> the reference's patches, in blocks of 2 x 2 (its own processor's permutation)."""
    if len(frames) == maps:
        frames = frames.repeat_interleave(2, dim=0)
    t, (h, w) = len(frames) // 2, (frames.shape[2] // 14, frames.shape[3] // 14)
    cut = frames.reshape(t, 2, 3, h // 2, 2, 14, w // 2, 2, 14).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return cut.reshape(t * h * w, 3 * 2 * 14 * 14)


def examples(pair: Pair, folder: Path) -> dict[str, Example]:
    return {name: make_example(c, pair.prepare) for name, c in conversations(folder, pair.family).items()}
