"""Samples of every kind as `opsin inspect` shows them: models, stages, and a parser of the page."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

from opsin.checkpoint.prepare import preparation
from opsin.core.types import Clip, Conversation, Picture, Turn
from opsin.data.plan import Budget, plan_epoch
from opsin.model.config import ModelConfig
from opsin.report.stage_view import StageView
from opsin.text.tokenizer import Tokenizer
from tests.support.models import dialogue, draw_picture, model_value
from tests.support.tokenizers import chatml_tokenizer_dir

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.data.corpus import Corpus
    from opsin.data.example import Preparation

EVIL = "<script>alert(1)</script></span><|im_end|><|im_start|>system <image: 4 tiles, 9 tokens> &amp; \x1b[31m \u202e"
VOID = {"meta", "img"}
KINDS: dict[str, dict[str, Any]] = {
    "square": {"encoder": "siglip"},
    "any_res": {"encoder": "siglip", "resolution": "any_res"},
    "native": {"encoder": "native_vit", "connector": "patch_merger", "resolution": "native", "positions": "mrope"},
    "latents": {"encoder": "siglip", "connector": "q_former", "resolution": "any_res"},
    "aside": {"encoder": "siglip", "connector": "perceiver", "fusion": "gated_cross_attention"},
}


class Page(HTMLParser):
    """Text by class of its innermost element, addresses, tags; every element must be closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.words: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append((tag, dict(attrs).get("class") or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        css = [css for tag, css in self.open if tag == "span" and css]
        if any(css == "tokens" for _, css in self.open):
            self.words.append((css[-1] if css else "", data))

    def tokens(self, css: str) -> str:
        return "".join(text for found, text in self.words if found == css)


def prepared(folder: Path, tokenizer_dir: Path | None = None, **kinds: Any) -> tuple[ModelConfig, Preparation]:
    tokenizer_dir = tokenizer_dir or chatml_tokenizer_dir(folder)
    config = ModelConfig.model_validate(model_value(tokenizer_dir, **kinds)).resolved()
    return config, preparation(config, Tokenizer.load(tokenizer_dir))


def stage_view(config: ModelConfig, examples: Corpus, **changes: Any) -> StageView:
    budget = Budget(256, 4096)
    steps = [[pack] for pack in plan_epoch(examples.costs, budget, seed=0, epoch=0).packs]
    patch = config.encoder.patch_size
    view = StageView(
        "align", examples, patch, budget, steps, all_steps=len(steps), epoch=len(examples), chosen=range(len(examples))
    )
    return replace(view, **changes)


def picture(folder: Path, width: int = 60, height: int = 40, number: int = 1) -> Picture:
    return Picture(path=draw_picture(folder / f"{number}.png", number, (width, height)))


def clip(folder: Path, frames: int) -> Clip:
    return Clip(frames=tuple(picture(folder, number=number) for number in range(frames)))


def asked(folder: Path) -> list[Conversation]:
    """One picture, two pictures, a clip, text only."""
    one, two = picture(folder), picture(folder, number=2)
    return [
        dialogue("one", "What is it?", "A cat.", [one]),
        dialogue("two", "Which?", "Both.", [one, two]),
        Conversation("clip", (Turn("user", (clip(folder, 3), "\nWhat?")), Turn("assistant", ("It jumps.",)))),
        dialogue("text", "Say it", "it"),
    ]
