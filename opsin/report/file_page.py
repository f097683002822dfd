"""The page of `opsin inspect FILE`: conversations as they are in a file, before any model.

Everything that comes from data passes through `html.escape`.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from PIL import Image

from opsin.core.errors import OpsinError
from opsin.core.terminal import printable
from opsin.core.types import Clip, Conversation, Medium, Part, Turn
from opsin.report.document import counts, document, folded_list, section
from opsin.report.file_view import FileView, MediumFacts, medium_facts, shown_frames
from opsin.report.gallery import SIDE, embedded
from opsin.report.mixture import figure, kind_bar
from opsin.report.sight import FRAME_SIDE
from opsin.report.words import counted, medium_names
from opsin.text.segments import text_of
from opsin.vision.picture import open_picture
from opsin.vision.video import read_frames


def page(view: FileView) -> str:
    """The HTML."""
    name = view.path.name
    header = f'<header>\n<h1>{_shown(name)}</h1>\n<p class="soft">{_shown(str(view.path))}</p></header>\n'
    samples = "".join(_sample(view, conversation) for conversation in view.chosen)
    body = section("What is in it", _statistics(view)) + section("Samples", f'<div class="samples">{samples}</div>')
    return document(f"{name}: what is in it", header + body, "inspect.css")


def _shown(text: str) -> str:
    return escape(printable(text))


def _statistics(view: FileView) -> str:
    checked = view.checked
    kinds = f'<div class="card"><h3>Samples by kind</h3><div class="groups kinds">{kind_bar(view.kinds)}</div></div>'
    plots = figure("Turns of a sample", view.turns, "turns") + figure("Answers of a sample", view.answers, "characters")
    if view.sizes:
        longest = [max(size) for size in view.sizes]
        plots += figure(f"Longer side of {len(longest):,} pictures", longest, "pixels")
    wrong = counts("Problems by kind", checked.kinds.items()) if checked.problems else ""
    listed = folded_list("Problems", [problem.text for problem in checked.problems]) if checked.problems else ""
    notes = "".join(f'<p class="soft">{_shown(note)}</p>' for note in checked.notes)
    none = "" if checked.problems else '<p class="soft">No problem was found.</p>'
    return (
        f'<div class="columns">{counts("What there is", checked.counts.items())}{kinds}{wrong}</div>'
        f'<div class="plots">{plots}</div>{notes}{listed}{none}'
    )


def _sample(view: FileView, conversation: Conversation) -> str:
    answers = sum(len(text_of(turn)) for turn in conversation.turns if turn.role == "assistant")
    clips = sum(isinstance(medium, Clip) for medium in conversation.media)
    numbers = {"turn": len(conversation.turns), "picture": len(conversation.media) - clips, "video": clips}
    told = ", ".join(counted(number, name) for name, number in numbers.items() if number)
    told += f"; answers of {counted(answers, 'character')}"
    head = f'<h3>{_shown(conversation.id)} <span class="soft">{_shown(conversation.where)}</span></h3>'
    wrong = "".join(f'<p class="problem">{_shown(problem.text)}</p>' for problem in view.problems(conversation))
    names = medium_names(conversation)
    turns = "".join(_turn(turn, names) for turn in conversation.turns)
    return f'<article class="card sample">{head}<p class="soft">{told}</p>{wrong}{turns}</article>\n'


def _turn(turn: Turn, names: Iterator[str]) -> str:
    parts = "".join(_part(part, names) for part in turn.parts)
    return f'<div class="turn {turn.role}"><b>{turn.role}</b>{parts}</div>'


def _part(part: Part, names: Iterator[str]) -> str:
    return f'<div class="said">{_shown(part)}</div>' if isinstance(part, str) else medium_html(part, next(names))


def medium_html(medium: Medium, name: str) -> str:
    """A medium in its place in the turn."""
    head = f"<h4>{_shown(name)}</h4>"
    try:
        facts = medium_facts(medium)
        views = "".join(_views(medium, name, facts))
    except OpsinError as error:
        return f'<div class="seen">{head}<p class="problem">{_shown(str(error))}</p></div>'
    kind = "views frames" if isinstance(medium, Clip) else "views"
    return f'<div class="seen">{head}<p class="soft">{escape(facts.text)}</p><div class="{kind}">{views}</div></div>'


def _views(medium: Medium, name: str, facts: MediumFacts) -> Iterator[str]:
    if not isinstance(medium, Clip):
        yield _view(open_picture(medium), SIDE, name, "")
        return
    numbers = shown_frames(medium, facts)
    if medium.path is None:
        for number in numbers:
            yield _view(open_picture(medium.frames[number]), FRAME_SIDE, f"frame {number}", f"frame {number}")
        return
    for number, (seconds, image) in zip(numbers, read_frames(medium.path, numbers), strict=True):
        yield _view(image, FRAME_SIDE, f"frame {number}", f"frame {number}, {seconds:.2f} s")


def _view(image: Image.Image, side: int, name: str, caption: str) -> str:
    told = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure style="--wide:{image.width / image.height:.3f}">'
        f'<img alt="{_shown(name)}" src="{embedded(image, side)}">{told}</figure>'
    )
