"""Tiny backbones and data for the published recipes, which are then run as they are shipped, at their own resolutions.

The parts are directories as on the hub, of random weights, a few channels wide; what a recipe's variables name. Only
how much is done in a step, and how many steps, has to be changed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.utils import logging

from tests.support.hub import hub_dir
from tests.support.models import draw_picture
from tests.support.tokenizers import chatml_tokenizer_dir, llama_tokenizer_dir
from tests.support.videos import write_video

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 14}
TEXT = {
    "vocab_size": 576,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}
SIZES = ((48, 32), (60, 90), (40, 40))
"""Width and height of the pictures."""

COLOURS = ("grey", "red", "green", "blue")


@dataclass(frozen=True)
class Tiny:
    """How a packaged recipe is made small: steps, samples of a step and tokens of a pack, alike in all its stages."""

    recipe: str
    steps: tuple[int, ...]
    samples: int
    tokens: int
    changes: tuple[str, ...] = ()

    @property
    def overrides(self) -> list[str]:
        """In float32, so that processors differ as little as they can."""
        wanted = {"samples_per_step": self.samples, "batch_tokens": self.tokens, "workers": 0, "epochs": 20}
        each = [f"stages.{i}.{key}={value}" for i in range(len(self.steps)) for key, value in wanted.items()]
        return ["precision=fp32", *(f"stages.{i}.steps={n}" for i, n in enumerate(self.steps)), *each, *self.changes]


TINY = (
    Tiny("llava-v1", (8, 12), samples=4, tokens=800),
    Tiny("llava-1.5", (8, 12), samples=4, tokens=1600),
    Tiny("llava-1.5-lora", (8, 12), samples=4, tokens=1600),
    Tiny("llava-onevision", (4, 4, 5, 7), samples=3, tokens=4096),
    # Its 3,000 steps of warmup would end long behind these.
    Tiny("qwen2-vl", (6, 7, 7), samples=4, tokens=512, changes=tuple(f"stages.{i}.warmup_steps=1" for i in range(3))),
)
"""20 steps of every published recipe, all stages."""


def variables(folder: Path, recipe: str) -> dict[str, str]:
    """Tiny parts and data of a published recipe, by its variables."""
    torch.manual_seed(0)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    media = write_media(folder / "media")
    if recipe == "qwen2-vl":
        return _qwen2_vl(folder, media)
    if recipe == "llava-onevision":
        return _onevision(folder, media)
    side = 224 if recipe == "llava-v1" else 336
    tower = CLIPVisionModel(CLIPVisionConfig(**TOWER, image_size=side))
    words = llama_tokenizer_dir(folder / "tokenizers")
    language = LlamaForCausalLM(LlamaConfig(**TEXT, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2))
    captions, mixed = write_captions(media, 6), write_mixed(media, images=5, texts=2)
    found = {"ENCODER": saved(tower, folder / "tower"), "LANGUAGE": saved(language, folder / "language", words)}
    if recipe == "llava-v1":
        data = {"LLAVA_CC3M": captions, "LLAVA_CC3M_IMAGES": media, "LLAVA_INSTRUCT": mixed, "COCO_IMAGES": media}
    else:
        data = {"LLAVA_PRETRAIN": captions, "LLAVA_PRETRAIN_IMAGES": media, "LLAVA_MIX": mixed}
        data["LLAVA_MIX_IMAGES"] = media
    return {name: str(path) for name, path in (found | data).items()}


def _onevision(folder: Path, media: Path) -> dict[str, str]:
    tower = SiglipVisionModel(SiglipVisionConfig(**TOWER, image_size=384, vision_use_head=False))
    words = chatml_tokenizer_dir(folder / "tokenizers")
    language = Qwen2ForCausalLM(Qwen2Config(**TEXT, max_position_embeddings=32768))
    mixed = write_mixed(media, images=4, texts=2)
    found = {
        "ENCODER": saved(tower, folder / "tower"),
        "LANGUAGE": saved(language, folder / "language", words),
        "LLAVA_PRETRAIN": write_captions(media, 4),
        "LLAVA_PRETRAIN_IMAGES": media,
        "ONEVISION_IMAGES": media,
        "ONEVISION_MID": mixed,
        "ONEVISION_SINGLE": mixed,
        "ONEVISION_REPLAY": mixed,
        "ONEVISION_MULTI": write_several(media, 3),
        "ONEVISION_VIDEO": write_videos(media, 2),
    }
    return {name: str(path) for name, path in found.items()}


def _qwen2_vl(folder: Path, media: Path) -> dict[str, str]:
    whole = hub_dir(folder, "qwen2_vl")
    text = TEXT | {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}  # the published head width,
    language = Qwen2ForCausalLM(Qwen2Config(**text, head_dim=128, max_position_embeddings=32768))  # for its sections
    mixed = write_mixed(media, images=3, texts=2)
    several, videos = (json.loads(path.read_text()) for path in (write_several(media, 2), write_videos(media, 2)))
    records = json.loads(mixed.read_text()) + several + videos
    found = {
        "QWEN2_VL": whole,
        "LANGUAGE": saved(language, folder / "language"),
        "QWEN_PAIRS": write_captions(media, 6),
        "QWEN_MEDIA": media,
        "QWEN_MIXED": written(media / "all.json", records),
        "QWEN_INSTRUCT": mixed,
    }
    return {name: str(path) for name, path in found.items()}


def saved(model: PreTrainedModel, target: Path, words: Path | None = None) -> Path:
    """A model's directory, with the files of a tokenizer."""
    model.save_pretrained(target)
    for path in words.iterdir() if words is not None else ():
        shutil.copy(path, target / path.name)
    return target


def write_media(folder: Path) -> Path:
    """Pictures of several sizes, and two short videos."""
    for number in range(9):
        draw_picture(folder / f"{number}.png", number, SIZES[number % len(SIZES)])
    for number in range(2):
        write_video(folder / f"{number}.avi", range(number, 40, 2), rate=10)
    return folder


def write_captions(media: Path, count: int) -> Path:
    """Pictures with a caption each."""
    return written(media / "captions.json", [one_picture(n, f"picture {n} in {COLOURS[n % 4]}") for n in range(count)])


def write_mixed(media: Path, *, images: int, texts: int) -> Path:
    """Questions about one picture, some of two exchanges, and about none."""
    records = [one_picture(n, f"It is {COLOURS[n % 4]}.") for n in range(images)]
    for number in range(texts):
        records.append({"id": f"text-{number}", **said(f"Say {number}", f"{number}, as you wish.")})
    records[0]["conversations"] += said("Sure?", "Yes.")["conversations"]
    return written(media / "mixed.json", records)


def write_several(media: Path, count: int) -> Path:
    """Questions about two and three pictures."""
    records = []
    for number in range(count):
        names = [f"{number + k}.png" for k in range(2 + number % 2)]
        turns = said("<image> and " * len(names) + "which is lighter?", f"Number {number % 2}.")
        records.append({"id": f"several-{number}", "image": names, **turns})
    return written(media / "several.json", records)


def write_videos(media: Path, count: int) -> Path:
    """Questions about a video."""
    records = [
        {"id": f"video-{n}", "video": f"{n}.avi", **said("<video>\nWhat happens?", f"It gets lighter, {n}.")}
        for n in range(count)
    ]
    return written(media / "videos.json", records)


def one_picture(number: int, answer: str) -> dict[str, Any]:
    """A record about one picture."""
    return {"id": f"picture-{number}", "image": f"{number}.png", **said("<image>\nWhat is it?", answer)}


def said(question: str, answer: str) -> dict[str, Any]:
    """One exchange."""
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    """A JSON file of records."""
    path.write_text(json.dumps(records), encoding="utf-8")
    return path
