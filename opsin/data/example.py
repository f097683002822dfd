"""Conversation -> Example: the rendered ids with every picture's visual positions opened up between them.

`Preparation` is what data needs to know of a model. Training, evaluation and chat all build examples here, so a prompt
cannot differ between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from opsin.core.errors import OpsinError
from opsin.core.types import PLACEHOLDER_ID, Conversation, Example, Layout, PictureRole
from opsin.text.render import render
from opsin.text.templates import Template
from opsin.text.tokenizer import Tokenizer
from opsin.vision.picture import picture_size
from opsin.vision.resolution import Colour, Resolution

PlanLayout = Callable[[int, int, PictureRole], Layout]
"""(height, width, role) -> Layout, for one model."""


@dataclass(frozen=True)
class Preparation:
    """How one model's inputs are prepared: tokenizer, template, geometry and pixels."""

    tokenizer: Tokenizer
    template: Template
    plan_layout: PlanLayout
    resolution: Resolution
    mean: Colour


def make_example(conversation: Conversation, preparation: Preparation, *, open_for_generation: bool = False) -> Example:
    """Render, plan every picture's layout from its header, and open its positions.

    Raises:
        OpsinError: the conversation cannot be rendered or a picture is unusable; the message names the sample.
    """
    rendered = render(
        conversation, preparation.template, preparation.tokenizer, open_for_generation=open_for_generation
    )
    pictures = tuple(picture for _, picture in rendered.pictures)
    role: PictureRole = "single" if len(pictures) <= 1 else "multi"
    layouts = []
    for picture in pictures:
        try:
            size = picture_size(picture)
        except OpsinError as error:
            raise type(error)(f"{conversation.where or 'sample'}: ({conversation.id}) {error}") from None
        layouts.append(preparation.plan_layout(size.height, size.width, role))
    # np.insert puts values before the given index of the original array, in order: what "before ids[index]" means.
    at = np.repeat([index for index, _ in rendered.pictures], [layout.tokens for layout in layouts]).astype(np.int64)
    ids = np.asarray(rendered.ids, dtype=np.int64)
    supervised = np.asarray(rendered.supervised, dtype=bool)
    return Example(
        id=conversation.id,
        where=conversation.where,
        tokens_T=np.insert(ids, at, PLACEHOLDER_ID),
        supervised_T=np.insert(supervised, at, values=False),
        visual_T=np.insert(np.zeros(len(ids), dtype=bool), at, values=True),
        pictures=pictures,
        layouts=tuple(layouts),
    )
