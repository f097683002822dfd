"""How a model is spoken to: what prepares its inputs, and the tokens that end its answers.

Training, evaluation and chat take both from here, so they cannot differ.
"""

from __future__ import annotations

import json

from opsin.core.files import sha256_bytes
from opsin.data.example import FORMAT, Preparation
from opsin.model.config import ModelConfig
from opsin.text.own_template import spoken
from opsin.text.templates import Template
from opsin.text.tokenizer import Tokenizer
from opsin.vision.resolution import Resolution

EXAMPLE_VALUES = ("resolution", "connector", "positions", "fusion", "video")
"""Settings of a model, besides template and tokenizer, that decide an example's tokens and layouts."""


def preparation(
    config: ModelConfig, tokenizer: Tokenizer, template: Template | None = None, resolution: Resolution | None = None
) -> Preparation:
    """How a model's inputs are prepared; a stage of training may use a template and a resolution of its own.

    Raises:
        RenderError: the template is the tokenizer's own, and it has none that can be used.
        ModelError: the model cannot take the stage's resolution.
    """
    chosen = template or config.template
    spoken(chosen, tokenizer)  # refuses before any sample is read
    if resolution is not None:
        config = config.with_resolution(resolution)
    return Preparation(
        tokenizer=tokenizer,
        template=chosen,
        positions=config.positions,
        spliced=config.spliced,
        video=config.video,
        resolution=config.resolution,
        tower=config.tower,
        mean=config.encoder.mean,
        digest=_digest(config, tokenizer, chosen),
    )


def _digest(config: ModelConfig, tokenizer: Tokenizer, template: Template) -> str:
    """Names what examples depend on. A connector says what its tower's `shrink` does; weights do not matter."""
    values = {"template": template, **{name: getattr(config, name) for name in EXAMPLE_VALUES}}
    tower = config.tower
    facts = {
        "format": FORMAT,
        "tokenizer": tokenizer.digest,
        "tower": [tower.patch, tower.temporal, tower.fold, tower.spatial, tower.trims],
        **{name: value.model_dump(mode="json") for name, value in values.items()},
    }
    return sha256_bytes(json.dumps(facts, sort_keys=True).encode())


def stop_ids(prepare: Preparation) -> frozenset[int]:
    """The tokens that end an answer: the template's marks and the tokenizer's own end of text."""
    tokenizer = prepare.tokenizer
    own = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    return frozenset([*map(tokenizer.control, spoken(prepare.template, tokenizer).stop_tokens), *own])
