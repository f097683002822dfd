"""How often the checks refuse what GPT-4 wrote for LLaVA, and how often they notice that an answer has another picture.

    git clone https://github.com/haotian-liu/LLaVA
    python -m bench.published_answers LLaVA

LLaVA's repository holds captions and boxes of 80 COCO pictures, and what GPT-4 answered about 30 of them from these
alone: the data that `opsin synthesize` makes, by the teacher that the paper had. Refused answers are printed, to be
judged by a reader; then every answer is examined once more with the annotations of another picture.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from opsin.synthesize.check_values import Checks
from opsin.synthesize.checks import examine
from opsin.synthesize.context import Context, Vocabulary
from opsin.synthesize.kinds.conversation import Conversation
from opsin.synthesize.kinds.detail import Detail
from opsin.synthesize.kinds.reasoning import Reasoning
from opsin.synthesize.sources.base import vocabulary_of
from opsin.synthesize.sources.jsonl import AnnotatedLine, context_of
from opsin.synthesize.subject import Exchange

CONTEXTS = "llava/eval/table/caps_boxes_coco2014_val_80.jsonl"
QUESTIONS = "playground/data/coco2014_val_qa_eval/qa90_questions.jsonl"
ANSWERS = "playground/data/coco2014_val_qa_eval/qa90_gpt4_answer.jsonl"
PAIRS = "playground/data/coco2014_val_gpt4_qa_30x3.jsonl"
EXPECTED = {"conv": Conversation().expected, "detail": Detail().expected, "complex": Reasoning().expected}


class Published(NamedTuple):
    """One question about a picture, and GPT-4's answer."""

    picture: str
    kind: str
    exchange: Exchange


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def contexts(path: Path) -> dict[str, Context]:
    """What is known of each picture, by its id."""
    found = {}
    for row in lines(path):
        things = [{"name": one["category"], "box": one["bbox"]} for one in row["instances"]]
        known = context_of(AnnotatedLine(captions=row["captions"], objects=things), "categories")
        if isinstance(known, str):
            raise SystemExit(f"{path}: {row['id']}: {known}")
        found[row["id"]] = known
    return found


def published(folder: Path) -> list[Published]:
    """All answers, those that stand in both files once."""
    asked = {row["question_id"]: row for row in lines(folder / QUESTIONS)}
    pairs = [(asked[row["question_id"]], row["text"]) for row in lines(folder / ANSWERS)]
    found = [Published(one["image"][:-4], one["category"], Exchange(one["text"], answer)) for one, answer in pairs]
    found += [
        Published(row["id"], row["type"], Exchange(row["instruction"], row["output"])) for row in lines(folder / PAIRS)
    ]
    return list(dict.fromkeys(found))


def reasons(one: Published, known: Context, vocabulary: Vocabulary) -> list[str]:
    """Why an answer would be refused with these annotations; nothing if it would not."""
    findings = examine(
        [one.exchange],
        expected=EXPECTED[one.kind],
        contexts=[known],
        vocabulary=vocabulary,
        options=Checks(),
        finish="stop",
    )
    return [f"{finding.check}: {finding.text}" for finding in findings if finding.refuses]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llava", type=Path, help="a clone of LLaVA's repository")
    folder: Path = parser.parse_args().llava
    known = contexts(folder / CONTEXTS)
    vocabulary = vocabulary_of((thing for one in known.values() for thing in one.things), {})
    answers = published(folder)
    all_of, refused, noticed = Counter(one.kind for one in answers), Counter[str](), Counter[str]()
    rng = random.Random(0)
    for one in answers:
        if why := reasons(one, known[one.picture], vocabulary):
            refused[one.kind] += 1
            print(f"{one.picture} {one.kind}: {'; '.join(why)}\n    {one.exchange.question}\n    {one.exchange.answer}")
        other = rng.choice([name for name in known if name != one.picture])
        noticed[one.kind] += bool(reasons(one, known[other], vocabulary))
    for kind, number in all_of.items():
        print(f"{kind:8} refused {refused[kind]} of {number}; with another picture {noticed[kind]} of {number}")


if __name__ == "__main__":
    main()
