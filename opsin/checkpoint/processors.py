"""What transformers' processors make of a written directory's files: the prompt, its ids, the pixels, the placeholders.

Clips are not decoded here: transformers' video processors need torchvision.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

from opsin.checkpoint.chat_templates import media_tokens
from opsin.checkpoint.compare import inputs, prompts, question
from opsin.checkpoint.hub_names import Family
from opsin.checkpoint.hub_values import MAX_CONFIG_BYTES
from opsin.checkpoint.json_files import read_json
from opsin.core.errors import ModelError
from opsin.core.types import Clip, Conversation, Medium, Picture, Turn
from opsin.data.collate import collate
from opsin.data.example import Preparation, make_example
from opsin.model.config import ModelConfig
from opsin.text.own_template import spoken
from opsin.text.render import render
from opsin.text.templates import Control, Media, Template, Text
from opsin.text.tokenizer import Tokenizer

PIXEL = 1.01 / 255
"""Largest difference of a colour (0..1) that is taken for rounding."""


def check_inputs(
    config: ModelConfig, prepare: Preparation, folder: Path, family: Family, ids: Mapping[str, int]
) -> list[str]:
    """Where transformers prepares inputs otherwise than opsin without being wrong; `ids` are of the media's tokens.

    Raises:
        ModelError: a prompt, pixels or a number of placeholders is not the model's.
    """
    media = prompts(config, family)
    notes = []
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for system in (None, "Be brief."):
        for name, medium in media.items():
            conversation = _talk(name, medium, system, config.template)
            ours, theirs = (
                _written(config.template, prepare.tokenizer, conversation, family),
                _rendered(tokenizer, conversation),
            )
            if ours != theirs:
                raise ModelError(f"the written chat template makes {theirs!r} of a prompt, the model {ours!r}")
            if tokenizer(theirs)["input_ids"] != _ids(conversation, config.template, prepare, family, ids):
                notes.append(f"the {name} prompt: transformers cuts its text into other tokens than opsin does")
    picture = media["image"]
    assert isinstance(picture, Picture)  # as `prompts` made it
    _check_pixels(config, prepare, folder, family, ids, picture)
    return list(dict.fromkeys(notes))


def _talk(name: str, medium: Medium | None, system: str | None, template: Template) -> Conversation:
    turns = (question(medium, template), Turn("assistant", ("Nothing.",)), Turn("user", ("Why?",)))
    return Conversation(f"the {name} prompt", turns if system is None else (Turn("system", (system,)), *turns))


def _written(template: Template, tokenizer: Tokenizer, conversation: Conversation, family: Family) -> str:
    """The prompt in opsin's template."""
    image, video = media_tokens(family)
    pieces = []
    for segment in spoken(template, tokenizer).segments(conversation, open_for_generation=True):
        if isinstance(segment, Media):
            pieces.append(video if isinstance(segment.medium, Clip) else image)
        elif isinstance(segment, Text | Control):  # the tokenizer puts its opening token by itself
            pieces.append(segment.text if isinstance(segment, Text) else segment.token)
    return "".join(pieces)


def _rendered(tokenizer: Any, conversation: Conversation) -> str:
    """The prompt in the directory's template, which itself puts what stands behind a picture."""
    messages = [
        {
            "role": turn.role,
            "content": [
                {"type": "text", "text": part}
                if isinstance(part, str)
                else {"type": "video" if isinstance(part, Clip) else "image"}
                for part in turn.parts
                if part != "\n"
            ],
        }
        for turn in conversation.turns
    ]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _ids(
    conversation: Conversation, template: Template, prepare: Preparation, family: Family, ids: Mapping[str, int]
) -> list[int]:
    """The prompt as opsin's ids, one for each medium."""
    rendered = render(conversation, template, prepare.tokenizer, open_for_generation=True)
    found = list(rendered.ids)
    for index, medium in reversed(rendered.media):
        found.insert(index, ids[media_tokens(family)[isinstance(medium, Clip)]])
    return found


def _check_pixels(
    config: ModelConfig, prepare: Preparation, folder: Path, family: Family, ids: Mapping[str, int], picture: Picture
) -> None:
    talk = Conversation("the image prompt", (question(picture, prepare.template),))
    batch = collate([make_example(talk, prepare, open_for_generation=True)], prepare)
    ours = inputs(config, batch, family, ids, is_clip=False)
    with Image.open(io.BytesIO(picture.data or b"")) as image:
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
        theirs = processor(images=image, return_tensors="pt")
        count = _placeholders(folder, family, image, ids)
    for name in ("image_sizes", "image_grid_thw"):
        if name in ours and not torch.equal(ours[name], theirs[name]):
            raise ModelError(f"the image processor's {name} {theirs[name].tolist()}, not {ours[name].tolist()}")
    one, other = ours["pixel_values"], theirs["pixel_values"]
    if one.shape != other.shape:
        raise ModelError(f"the image processor makes pixels {tuple(other.shape)}, the model {tuple(one.shape)}")
    difference = float((one - other).abs().max()) * max(config.encoder.std)
    if not difference <= PIXEL:
        raise ModelError(f"the image processor's colours differ by {difference:.2g} (limit {PIXEL:.2g})")
    layout = batch.layouts[0]
    expected = layout.blocks[0].tokens if family == "llava_onevision" else layout.tokens
    if count not in (None, expected):
        raise ModelError(f"processor_config.json leaves {count} places for a picture of {expected} tokens")


def _placeholders(folder: Path, family: Family, image: Image.Image, ids: Mapping[str, int]) -> int | None:
    """Places that the processor's file leaves for a picture; OneVision's for its base, Qwen2-VL's file has no part."""
    if family == "qwen2_vl":
        return None
    if family == "llava_onevision":  # its processor cannot be made without one for clips
        return int(read_json(folder / "processor_config.json", MAX_CONFIG_BYTES)["num_image_tokens"])
    token = media_tokens(family)[0]
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    return int((processor(text=token, images=image, return_tensors="pt")["input_ids"] == ids[token]).sum())
