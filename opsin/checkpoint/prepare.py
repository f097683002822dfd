"""How a model is spoken to: what prepares its inputs, and the tokens that end its answers.

Training, evaluation and chat take both from here, so they cannot differ.
"""

from __future__ import annotations

from opsin.data.example import Preparation
from opsin.model.config import ModelConfig
from opsin.text.own_template import spoken
from opsin.text.templates import Template
from opsin.text.tokenizer import Tokenizer


def preparation(config: ModelConfig, tokenizer: Tokenizer, template: Template | None = None) -> Preparation:
    """How a model's inputs are prepared; a stage of training may use a template of its own.

    Raises:
        RenderError: the template is the tokenizer's own, and it has none that can be used.
    """
    chosen = template or config.template
    spoken(chosen, tokenizer)  # refuses before any sample is read
    return Preparation(
        tokenizer=tokenizer,
        template=chosen,
        plan_layout=config.layout,
        positions=config.positions,
        spliced=config.spliced,
        video=config.video,
        resolution=config.resolution,
        mean=config.encoder.mean,
    )


def stop_ids(prepare: Preparation) -> frozenset[int]:
    """The tokens that end an answer: the template's marks and the tokenizer's own end of text."""
    tokenizer = prepare.tokenizer
    own = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    return frozenset([*map(tokenizer.control, spoken(prepare.template, tokenizer).stop_tokens), *own])
