"""Conversation -> Example: the rendered ids with every medium's visual positions opened up between them.

`Preparation` is what data needs to know of a model. Training, evaluation and chat all build examples here, so a prompt
cannot differ between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from opsin.core.errors import OpsinError, VideoError
from opsin.core.types import PLACEHOLDER_ID, Clip, Conversation, Example, Layout, Medium, MediumRole, Picture
from opsin.text.render import render
from opsin.text.templates import Template, sample_name
from opsin.text.tokenizer import Tokenizer
from opsin.vision.picture import PictureSize, frames_size, picture_size
from opsin.vision.positions import Positions
from opsin.vision.resolution import Colour, Resolution, plan_layout
from opsin.vision.sampling import Sampling
from opsin.vision.shrinking import Step, ladder, thinned
from opsin.vision.tower import Tower
from opsin.vision.video import video_facts

FORMAT = 1
"""Raised with every change of opsin's own code that changes what an example costs or how a medium is laid out."""

ANIMATED = "animated pictures, of which the first frame is taken"

Seen = tuple[Medium, Layout]
"""A medium with the layout that it has in its conversation."""


@dataclass(frozen=True)
class Preparation:
    """How one model's inputs are prepared: tokenizer, template, geometry, positions and pixels.

    - `spliced` is false where the model looks at pictures by cross-attention, so that they take no place in the text
    - `digest` (sha256) names everything that an example's tokens and layouts depend on, besides the conversation
    """

    tokenizer: Tokenizer
    template: Template
    positions: Positions
    spliced: bool
    video: Sampling
    resolution: Resolution
    tower: Tower
    mean: Colour
    digest: str


@dataclass(frozen=True, slots=True)
class Fit:
    """How a sample is made shorter; with it `make_example` repeats what a length policy decided.

    - `level`: the step of the resolution's ladder (`opsin.vision.shrinking`) at which its media are shown
    - `exchanges`: only so many questions with their answers are kept, from the first on; None for all
    """

    level: int = 0
    exchanges: int | None = None

    def kept(self, conversation: Conversation) -> Conversation:
        """The conversation without the exchanges that are left out; a system turn stays."""
        if self.exchanges is None:
            return conversation
        system = sum(turn.role == "system" for turn in conversation.turns[:1])
        return replace(conversation, turns=conversation.turns[: system + 2 * self.exchanges])


WHOLE = Fit()
"""The sample as it is."""


def make_example(
    conversation: Conversation,
    preparation: Preparation,
    *,
    fit: Fit = WHOLE,
    open_for_generation: bool = False,
    on_note: Callable[[str], None] = lambda _note: None,
) -> Example:
    """Render, plan every medium's layout from its header, and open its positions.

    `on_note` is told what a person should know of a medium though it is used (`ANIMATED`).

    Raises:
        OpsinError: the conversation cannot be rendered or a medium is unusable; the message names the sample.
    """
    conversation = fit.kept(conversation)
    rendered = render(
        conversation, preparation.template, preparation.tokenizer, open_for_generation=open_for_generation
    )
    sample = sample_name(conversation)
    whole = plan_media([medium for _, medium in rendered.media], preparation, sample, on_note)
    seen = [shrunk(pair, preparation, fit.level) for pair in whole]
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


def plan_media(
    media: Sequence[Medium],
    preparation: Preparation,
    sample: str,
    on_note: Callable[[str], None] = lambda _note: None,
) -> list[Seen]:
    """Every medium of one conversation with its layout; of video files, the frames that are taken are chosen here.

    Raises:
        OpsinError: a medium cannot be read, or is of a shape that the model cannot take; `sample` is named, if given.
    """
    seen = []
    for medium in media:
        try:
            chosen, size, frames = _measured(medium, preparation.video)
            if size.animated:
                on_note(ANIMATED)
            role = _role(medium, media)
            layout = plan_layout(preparation.resolution, size.height, size.width, role, preparation.tower, frames)
        except OpsinError as error:
            raise type(error)(f"{sample} {error}" if sample else str(error)) from None
        seen.append((chosen, layout))
    return seen


def shrunk(pair: Seen, preparation: Preparation, level: int) -> Seen:
    """A medium at a step of the resolution's ladder, from how it is at step 0; its file is not looked at again.

    Raises:
        ModelError: the model cannot take it so small.
    """
    if level == 0:
        return pair
    medium, layout = pair
    step = ladder(preparation.resolution)[level]
    frames = 1
    if isinstance(medium, Clip):
        medium = _thinned(medium, step, preparation.tower)
        frames = len(medium.taken or medium.frames)
    return medium, plan_layout(step.resolution, *layout.source, layout.role, preparation.tower, frames)


def _thinned(clip: Clip, step: Step, tower: Tower) -> Clip:
    if clip.path is None:
        return replace(clip, frames=thinned(clip.frames, step, tower))
    return replace(clip, taken=thinned(clip.taken or (), step, tower))


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
    return medium, frames_size(medium.frames), len(medium.frames)
