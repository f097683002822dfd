"""Conversation -> Example: the rendered ids with every medium's visual positions opened up between them.

`Preparation` is what data needs to know of a model. Training, evaluation and chat all build examples here, so a prompt
cannot differ between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from opsin.core.errors import OpsinError, PictureError, VideoError
from opsin.core.types import PLACEHOLDER_ID, Clip, Conversation, Example, Layout, Medium, MediumRole, Picture
from opsin.text.render import render
from opsin.text.templates import Template, sample_name
from opsin.text.tokenizer import Tokenizer
from opsin.vision.picture import PictureSize, picture_size
from opsin.vision.positions import Positions
from opsin.vision.resolution import Colour, Resolution
from opsin.vision.sampling import Sampling
from opsin.vision.video import video_facts

PlanLayout = Callable[[int, int, MediumRole, int], Layout]
"""(height, width, role, frames) -> Layout, for one model."""

Seen = tuple[Medium, Layout]
"""A medium with the layout that it has in its conversation."""


@dataclass(frozen=True)
class Preparation:
    """How one model's inputs are prepared: tokenizer, template, geometry, positions and pixels.

    `spliced` is false where the model looks at pictures by cross-attention, so that they take no place in the text.
    """

    tokenizer: Tokenizer
    template: Template
    plan_layout: PlanLayout
    positions: Positions
    spliced: bool
    video: Sampling
    resolution: Resolution
    mean: Colour


def make_example(conversation: Conversation, preparation: Preparation, *, open_for_generation: bool = False) -> Example:
    """Render, plan every medium's layout from its header, and open its positions.

    Raises:
        OpsinError: the conversation cannot be rendered or a medium is unusable; the message names the sample.
    """
    rendered = render(
        conversation, preparation.template, preparation.tokenizer, open_for_generation=open_for_generation
    )
    sample = sample_name(conversation)
    seen = plan_media([medium for _, medium in rendered.media], preparation, sample)
    layouts = tuple(layout for _, layout in seen)
    taken = [layout.tokens if preparation.spliced else 0 for layout in layouts]
    before = np.cumsum([0, *taken])
    places = tuple(index + int(earlier) for (index, _), earlier in zip(rendered.media, before, strict=False))
    # np.insert puts values before the given index of the original array, in order: what "before ids[index]" means.
    at = np.repeat([index for index, _ in rendered.media], taken).astype(np.int64)
    tokens_T = np.insert(np.asarray(rendered.ids, dtype=np.int64), at, PLACEHOLDER_ID)
    runs = list(zip(places, layouts, strict=True)) if preparation.spliced else []
    return Example(
        id=conversation.id,
        where=conversation.where,
        tokens_T=tokens_T,
        supervised_T=np.insert(np.asarray(rendered.supervised, dtype=bool), at, values=False),
        visual_T=np.insert(np.zeros(len(rendered.ids), dtype=bool), at, values=True),
        positions_AT=preparation.positions.ids(len(tokens_T), runs),
        media=tuple(medium for medium, _ in seen),
        layouts=layouts,
        places=places,
    )


def plan_media(media: Sequence[Medium], preparation: Preparation, sample: str) -> list[Seen]:
    """Every medium of one conversation with its layout; of video files, the frames that are taken are chosen here.

    Raises:
        OpsinError: a medium cannot be read, or is of a shape that the model cannot take; `sample` is named, if given.
    """
    seen = []
    for medium in media:
        try:
            chosen, size, frames = _measured(medium, preparation.video)
            layout = preparation.plan_layout(size.height, size.width, _role(medium, media), frames)
        except OpsinError as error:
            raise type(error)(f"{sample} {error}" if sample else str(error)) from None
        seen.append((chosen, layout))
    return seen


def seen_alone(media: Sequence[Medium], preparation: Preparation) -> list[Seen]:
    """Every medium with the layout that it has as the only one of a conversation."""
    return [plan_media((medium,), preparation, sample="")[0] for medium in media]


def _role(medium: Medium, media: Sequence[Medium]) -> MediumRole:
    if isinstance(medium, Clip):
        return "video"
    pictures = sum(isinstance(one, Picture) for one in media)  # a clip beside it does not make a picture one of several
    return "single" if pictures == 1 else "multi"


def _measured(medium: Medium, sampling: Sampling) -> tuple[Medium, PictureSize, int]:
    """The medium, its size, and how many frames the model is given."""
    if not isinstance(medium, Clip):
        return medium, picture_size(medium), 1
    if medium.path is not None:
        facts = video_facts(medium.path)
        try:
            taken = medium.taken or sampling.take(facts.frames, facts.rate)
        except ValueError as error:
            raise VideoError(f"{medium.path}: {error}") from None
        return replace(medium, taken=taken), PictureSize(facts.height, facts.width), len(taken)
    sizes = [picture_size(frame) for frame in medium.frames]
    for frame, size in zip(medium.frames, sizes, strict=True):
        if size != sizes[0]:
            raise PictureError(
                f"{frame.name}: {size.height}x{size.width} pixels (HxW), but the clip's first frame has "
                f"{sizes[0].height}x{sizes[0].width}; all frames of a clip must have one size"
            )
    return medium, sizes[0], len(sizes)
