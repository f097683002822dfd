"""Held-out pictures with their questions, and the answers before and after training."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image

from opsin.core.types import Picture
from opsin.report.scores import Evaluation, Prediction, title
from opsin.vision.picture import open_picture

SHOWN = 24
SIDE = 320
"""Longest side of an embedded picture, in pixels."""

JPEG_QUALITY = 78


def gallery(evaluations: Sequence[Evaluation], image_root: Path) -> str:
    """Cards of some questions: the first evaluation's answer and the last one's.

    Raises:
        PictureError: a picture cannot be read.
    """
    if not evaluations or not evaluations[-1].scores.predictions:
        return ""
    ends = [evaluations[0], evaluations[-1]] if len(evaluations) > 1 else [evaluations[-1]]
    answers = [(end.name, {p.id: p for p in end.scores.predictions}) for end in ends]
    chosen = choose(evaluations[-1].scores.predictions, SHOWN)
    cards = []
    for prediction in chosen:
        said = [(name, by_id[prediction.id]) for name, by_id in answers if prediction.id in by_id]
        cards.append(_card(prediction, said, image_root))
    note = f"{len(chosen)} questions, spread evenly over the file and chosen without regard to the answers."
    return f'<p class="soft">{note}</p><div class="pictures">{"".join(cards)}</div>'


def choose(predictions: Sequence[Prediction], count: int) -> list[Prediction]:
    """As many of every task, spread over the file, in turns; a picture twice only where nothing else is left."""
    tasks = list(dict.fromkeys(prediction.task for prediction in predictions))
    lists = [[p for p in predictions if p.task == task] for task in tasks]
    quota = -(-count // len(tasks))
    chosen: list[Prediction] = []
    used: set[str] = set()
    for turn in range(quota):
        for own in lists:
            # Questions can alternate (yes, no, yes, no): an even stride alone would show one kind only.
            start = turn * len(own) // quota + turn % 2
            candidates = [p for p in (*own[start:], *own[:start]) if p not in chosen]
            fresh = [p for p in candidates if p.image not in used] or candidates
            if fresh and len(chosen) < count:
                chosen.append(fresh[0])
                used.add(fresh[0].image)
    return chosen


def embedded(image: Image.Image, side: int = SIDE) -> str:
    """A copy of a picture, at most `side` pixels long, as an address that holds it whole."""
    small = image.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _card(prediction: Prediction, said: Sequence[tuple[str, Prediction]], image_root: Path) -> str:
    answers = "".join(f"<dt>{escape(name)}</dt>{_answer(answer)}" for name, answer in said)
    url = embedded(open_picture(Picture(path=image_root / prediction.image)))
    return (
        f'<article class="card picture"><img alt="{escape(prediction.image)}" src="{url}"><div>'
        f'<div class="task">{escape(title(prediction.task))}</div>'
        f'<p class="question">{escape(prediction.question)}</p>'
        f"<dl><dt>truth</dt><dd>{escape(prediction.truth)}</dd>{answers}</dl></div></article>\n"
    )


def _answer(prediction: Prediction) -> str:
    answer = escape(prediction.answer) or "<em>(nothing)</em>"
    if prediction.correct is None:
        score = "" if prediction.cider is None else f" <small>CIDEr-D {prediction.cider:.1f}</small>"
        return f'<dd class="partial">{answer}{score}</dd>'
    kind, sign, meaning = ("right", "✓", "right") if prediction.correct else ("wrong", "✗", "wrong")
    return f'<dd class="{kind}"><span title="{meaning}">{sign}</span> {answer}</dd>'
