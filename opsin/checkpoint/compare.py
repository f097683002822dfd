"""Is an exported directory the model? Logits of both, on a text, a picture and a clip that are made here.

transformers gets opsin's own token ids and pixels, so that what is compared is weights, configuration and architecture.
Both compute in float32, whatever the type of the weights: that kernels round at other places is not looked for.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.utils import logging

from opsin.checkpoint.chat_templates import media_tokens
from opsin.checkpoint.hub_names import Family
from opsin.core.types import Batch, Clip, Conversation, Layout, Medium, Picture, Turn
from opsin.data.collate import collate
from opsin.data.example import Preparation, make_example
from opsin.data.user_turn import user_turn
from opsin.model.config import ModelConfig
from opsin.model.native_vit import patchify
from opsin.model.pixels import Normalise, frames_of
from opsin.model.vlm import Vlm
from opsin.text.templates import Template

TOLERANCE = 1e-3
"""Largest difference of a logit that is taken for rounding."""

QUESTION = "What is in the picture?"
FRAMES = 4


@dataclass(frozen=True)
class Asked:
    """A prompt and opsin's logits (text tokens, V); those of visual tokens predict nothing."""

    prompt: str
    batch: Batch
    logits: Tensor


@dataclass(frozen=True)
class Comparison:
    """One prompt: its length, and the largest difference of any logit."""

    prompt: str
    tokens: int
    difference: float

    @property
    def agrees(self) -> bool:
        """Whether the difference is small; not a number is not."""
        return self.difference <= TOLERANCE


def ask(model: Vlm, prepare: Preparation, family: Family) -> list[Asked]:
    """opsin's logits, of a model in float32.

    Raises:
        ModelError: a prompt cannot be made for this model.
    """
    asked = []
    for name, medium in prompts(model.config, family).items():
        batch = _batch(prepare, name, medium)
        with torch.no_grad():
            hidden_TD = model(batch)
            asked.append(Asked(name, batch, model.decoder.logits(hidden_TD[text_places(batch)])))
    return asked


def compare(
    asked: Sequence[Asked], config: ModelConfig, folder: Path, family: Family, ids: Mapping[str, int]
) -> list[Comparison]:
    """How far transformers' model of `folder` is from opsin's logits; `ids` are those of its tokens for media."""
    logging.disable_progress_bar()
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    found = []
    for one in asked:
        given = inputs(config, one.batch, family, ids, is_clip=one.prompt == "video")
        with torch.no_grad():
            other = theirs(**given, use_cache=False, logits_to_keep=text_places(one.batch)).logits[0]
        # Rows that the export added to the vocabulary are not in the model.
        difference = float((one.logits - other[:, : one.logits.shape[1]]).abs().max())
        found.append(Comparison(one.prompt, one.batch.num_tokens, difference))
    return found


def text_places(batch: Batch) -> Tensor:
    """Positions of tokens that are not visual."""
    is_text_T = torch.ones(batch.num_tokens, dtype=torch.bool)
    is_text_T[batch.visual_N] = False
    return is_text_T.nonzero()[:, 0]


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


def question(medium: Medium | None, template: Template) -> Turn:
    """The question, put as chat puts it."""
    return user_turn(QUESTION, [] if medium is None else [medium], template.after_picture)


def _batch(prepare: Preparation, name: str, medium: Medium | None) -> Batch:
    conversation = Conversation(f"the {name} prompt", (question(medium, prepare.template),))
    return collate([make_example(conversation, prepare, open_for_generation=True)], prepare)


def inputs(
    config: ModelConfig, batch: Batch, family: Family, ids: Mapping[str, int], *, is_clip: bool
) -> dict[str, Tensor]:
    """What transformers' model of a family takes for a batch of one conversation with at most one medium."""
    tokens_T = batch.tokens_T.clone()
    if not batch.layouts:
        return _text_inputs(tokens_T, torch.zeros_like(tokens_T), family)
    layout, pixels_X = batch.layouts[0], batch.pixels_X
    assert pixels_X is not None  # collated without cached features
    frames = frames_of(pixels_X, batch.layouts)[0]
    tokens_T[batch.visual_N] = ids[media_tokens(family)[is_clip]]
    kinds_T = torch.zeros_like(tokens_T)
    kinds_T[batch.visual_N] = 1 + is_clip
    found = _text_inputs(tokens_T, kinds_T, family)
    if family == "qwen2_vl":
        return found | _native_inputs(config, frames, layout, is_clip=is_clip)
    pixels = Normalise(config.encoder.mean, config.encoder.std)(frames)
    if family == "llava":
        return found | {"pixel_values": pixels}
    if is_clip:
        return found | {"pixel_values_videos": pixels[None]}
    return found | {"pixel_values": pixels[None], "image_sizes": torch.tensor([layout.source])}


def _text_inputs(tokens_T: Tensor, kinds_T: Tensor, family: Family) -> dict[str, Tensor]:
    found = {"input_ids": tokens_T[None], "attention_mask": torch.ones_like(tokens_T)[None]}
    return found | ({"mm_token_type_ids": kinds_T[None]} if family == "qwen2_vl" else {})


def _native_inputs(config: ModelConfig, frames: Tensor, layout: Layout, *, is_clip: bool) -> dict[str, Tensor]:
    """Patches in the order of Qwen2-VL's merge: block by block, row by row inside."""
    grid, fold, encoder = layout.grid, config.connector.fold, config.encoder
    patches = patchify(frames, encoder.patch_size, encoder.temporal, grid.t)
    patches = Normalise(encoder.mean, encoder.std)(patches.view(len(patches), 3, -1, 1)).flatten(1)
    order = torch.arange(grid.patches).view(grid.t, grid.h // fold, fold, grid.w // fold, fold)
    order = order.permute(0, 1, 3, 2, 4).flatten()
    name = "video" if is_clip else "image"
    values = "pixel_values_videos" if is_clip else "pixel_values"
    return {values: patches[order], f"{name}_grid_thw": torch.tensor([[grid.t, grid.h, grid.w]])}
