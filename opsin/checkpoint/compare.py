"""Is an exported directory the model? Logits of both, on a text, a picture and a clip that are made here.

transformers gets opsin's own token ids and pixels, so that what is compared is weights, configuration and architecture;
its tokenizer is asked for the text's ids besides.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.utils import logging

from opsin.checkpoint.chat_templates import media_tokens
from opsin.checkpoint.filling import dtype_of
from opsin.checkpoint.hub_names import Family
from opsin.core.types import Batch, Clip, Conversation, Layout, Medium, Picture, Turn
from opsin.data.example import Preparation, make_example
from opsin.data.loader import collate
from opsin.model.config import ModelConfig
from opsin.model.native_vit import patchify
from opsin.model.pixels import frames_of
from opsin.model.vlm import Vlm
from opsin.vision.native import Native

TOLERANCE = 1e-3
"""Largest difference of a logit in float32."""

HALF_TOLERANCE = 0.05
"""In bfloat16 and float16: the same, as a part of the largest logit. Kernels round at other places there."""

QUESTION = "What is in the picture?"
FRAMES = 4


@dataclass(frozen=True)
class Comparison:
    """One prompt: its length, the largest difference of any logit, and what would be too much."""

    prompt: str
    tokens: int
    difference: float
    limit: float

    @property
    def agrees(self) -> bool:
        """Whether the difference is small; not a number is not."""
        return self.difference <= self.limit


def compare(model: Vlm, prepare: Preparation, folder: Path, family: Family, ids: Mapping[str, int]) -> list[Comparison]:
    """Logits of `model` and of transformers' model of `folder`.

    `prepare` is what the directory says of inputs, `ids` are those of its tokens for media.

    Raises:
        ModelError: a prompt cannot be made for this model.
    """
    logging.disable_progress_bar()
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", local_files_only=True).eval()
    found = []
    for name, medium in prompts(model.config, family).items():
        batch = _batch(prepare, name, medium)
        with torch.no_grad():
            with model.computing():
                ours = model.decoder.logits(model(batch))
            other = theirs(**inputs(model, batch, family, ids), use_cache=False).logits[0].float()
        largest = float(ours.abs().max())
        limit = (
            TOLERANCE if dtype_of(model) == torch.float32 and model.precision == "fp32" else HALF_TOLERANCE * largest
        )
        # Rows that the export added to the vocabulary are not in the model.
        difference = float((ours - other[:, : ours.shape[1]]).abs().max())
        found.append(Comparison(name, batch.num_tokens, difference, limit))
    return found


def prompts(config: ModelConfig, family: Family) -> dict[str, Medium | None]:
    """A text, a picture and, where the family has them, a clip."""
    height, width = config.usual_size
    found: dict[str, Medium | None] = {"text": None, "image": _picture(height * 3 // 2, width * 2, 0)}
    if family in {"llava_onevision", "qwen2_vl"}:
        found["video"] = Clip(tuple(_picture(height, width * 3 // 2, number) for number in range(FRAMES)))
    return found


def _picture(height: int, width: int, number: int) -> Picture:
    """Coarse noise, the same every time."""
    coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR).save(buffer, "PNG")
    return Picture(data=buffer.getvalue())


def _batch(prepare: Preparation, name: str, medium: Medium | None) -> Batch:
    parts = (QUESTION,) if medium is None else (medium, f"\n{QUESTION}")
    conversation = Conversation(f"the {name} prompt", (Turn("user", parts),))
    return collate([make_example(conversation, prepare, open_for_generation=True)], prepare)


def inputs(model: Vlm, batch: Batch, family: Family, ids: Mapping[str, int]) -> dict[str, Tensor]:
    """What transformers' model of a family takes for a batch of one conversation with at most one medium."""
    tokens_T = batch.tokens_T.clone()
    if not batch.layouts:
        return _text_inputs(tokens_T, torch.zeros_like(tokens_T), family)
    layout, pixels_X = batch.layouts[0], batch.pixels_X
    assert pixels_X is not None  # collated without cached features
    frames = frames_of(pixels_X, batch.layouts)[0]
    is_clip = layout.grid.t > 1 if family == "qwen2_vl" else batch.ids[0] == "the video prompt"
    tokens_T[batch.visual_N] = ids[media_tokens(family)[is_clip]]
    kinds_T = torch.zeros_like(tokens_T)
    kinds_T[batch.visual_N] = 1 + is_clip
    found = _text_inputs(tokens_T, kinds_T, family)
    if family == "qwen2_vl":
        return found | _native_inputs(model, frames, layout, is_clip=is_clip)
    pixels = _normalised(model, frames)
    if family == "llava":
        return found | {"pixel_values": pixels}
    if is_clip:
        return found | {"pixel_values_videos": pixels[None]}
    return found | {"pixel_values": pixels[None], "image_sizes": torch.tensor([layout.source])}


def _text_inputs(tokens_T: Tensor, kinds_T: Tensor, family: Family) -> dict[str, Tensor]:
    found = {"input_ids": tokens_T[None], "attention_mask": torch.ones_like(tokens_T)[None]}
    return found | ({"mm_token_type_ids": kinds_T[None]} if family == "qwen2_vl" else {})


def _normalised(model: Vlm, pixels: Tensor) -> Tensor:
    normalise: Any = model.encoder.normalise
    normalised: Tensor = normalise(pixels).to(dtype_of(model))
    return normalised


def _native_inputs(model: Vlm, frames: Tensor, layout: Layout, *, is_clip: bool) -> dict[str, Tensor]:
    """Patches in the order of Qwen2-VL's merge: block by block, row by row inside."""
    config = model.config
    assert isinstance(config.resolution, Native)  # the family is Qwen2-VL
    grid, fold = layout.grid, config.connector.fold
    patches = patchify(frames, config.encoder.patch_size, config.encoder.temporal, grid.t)
    patches = _normalised(model, patches.view(len(patches), 3, -1, 1)).flatten(1)
    order = torch.arange(grid.patches).view(grid.t, grid.h // fold, fold, grid.w // fold, fold)
    order = order.permute(0, 1, 3, 2, 4).flatten()
    name = "video" if is_clip else "image"
    values = "pixel_values_videos" if is_clip else "pixel_values"
    return {values: patches[order], f"{name}_grid_thw": torch.tensor([[grid.t, grid.h, grid.w]])}
