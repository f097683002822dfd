"""Ask a model the held-out questions and score its answers.

Category, yes-or-no and counting questions: exact match, next to the best answer that is always the same. Captions:
CIDEr-D, and retrieval, where the model must tell which caption belongs to a picture by the probability it gives it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from opsin.checkpoint.prepare import preparation, stop_ids
from opsin.core.types import Batch
from opsin.data.collate import Features, collate, to_device
from opsin.data.example import Preparation, make_example
from opsin.evaluate.cider import CiderD, mean
from opsin.evaluate.metrics import Accuracy, accuracy, always, matches, most_frequent, normalised, recall_at
from opsin.evaluate.questions import Question, Task, read_questions
from opsin.model.generate import Sampling, generate, score
from opsin.model.vlm import Vlm
from opsin.report.scores import Metric, Prediction, Score, Scores
from opsin.text.tokenizer import Tokenizer

ANSWER_TOKENS = 6
CAPTION_TOKENS = 16
CAPTION: Task = "caption"

Progress = Callable[[int, int], None]
"""Told (questions and pictures done, questions and pictures to do)."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done, and how much at a time.

    `retrieval_size` pictures are compared with as many captions, so its cost grows with the square; 0 leaves it out.
    Large batches are cheaper on a CPU: every step of an answer reads all weights once, whatever the batch.
    """

    batch: int = 96
    retrieval_size: int = 32

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; it must be at least 1")
        if self.retrieval_size < 0 or self.retrieval_size == 1:
            raise ValueError(f"retrieval_size is {self.retrieval_size}; give at least 2 pictures to choose from, or 0")


@dataclass(frozen=True)
class Asker:
    """A model and all that is needed to put questions to it."""

    model: Vlm
    prepare: Preparation
    features: Features | None

    def prompts(self, questions: Sequence[Question]) -> Batch:
        """The questions, each open for its answer."""
        examples = [
            make_example(q.asked(self.prepare.template), self.prepare, open_for_generation=True) for q in questions
        ]
        return to_device(collate(examples, self.prepare, self.features), self.model.device)

    def answers(self, questions: Sequence[Question], max_new_tokens: int) -> list[str]:
        """Greedy answers."""
        sampling = Sampling(max_new_tokens=max_new_tokens)
        with self.model.computing():
            answers = generate(self.model, self.prompts(questions), sampling, stop_ids(self.prepare))
        return [self.prepare.tokenizer.decode(ids).strip() for ids in answers]

    def caption_ids(self, question: Question) -> list[int]:
        """What training would teach as the answer: the true caption's tokens and the mark that ends it."""
        example = make_example(question.answered(self.prepare.template), self.prepare)
        ids: list[int] = example.tokens_T[example.supervised_T].tolist()
        return ids


def evaluate(
    model: Vlm,
    tokenizer: Tokenizer,
    questions: Path,
    image_root: Path,
    *,
    features: Features | None = None,
    effort: Effort | None = None,
    on_progress: Progress = lambda _done, _all: None,
) -> Scores:
    """Answer the held-out questions and score the answers. `features` must hold every picture, if it is given.

    Raises:
        DataError: a record of the questions cannot be used (all are named).
        OpsinError: a picture cannot be read; the message names the question.
    """
    started = time.perf_counter()
    effort = effort or Effort()
    asked = read_questions(questions, image_root)
    candidates = _distinct([q for q in asked if q.task == CAPTION], effort.retrieval_size)
    total = len(asked) + len(candidates)
    asker = Asker(model, preparation(model.config, tokenizer), features)
    with _unchanging(model):
        answers = _answer(asker, asked, effort.batch, lambda done: on_progress(done, total))
        predictions = _predictions(asked, answers)
        scores = [score for task in _tasks(asked) for score in _task_scores(task, predictions)]
        if len(candidates) > 1:
            matrix = caption_scores(asker, candidates, effort.batch, lambda done: on_progress(len(asked) + done, total))
            scores += retrieval(matrix)
    return Scores(tuple(scores), tuple(predictions), round(time.perf_counter() - started, 3))


@contextmanager
def _unchanging(model: Vlm) -> Iterator[None]:
    """Evaluation mode without gradients; the mode is put back, since training may go on after."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _answer(asker: Asker, questions: Sequence[Question], batch: int, on_done: Callable[[int], None]) -> list[str]:
    """Answers in the order of the questions; what is alike is asked together, so that answers end together."""
    order = sorted(range(len(questions)), key=lambda i: (questions[i].task, questions[i].text))
    answers: dict[int, str] = {}
    for members in _batches(order, batch, lambda i: questions[i].task):
        group = [questions[i] for i in members]
        limit = CAPTION_TOKENS if group[0].task == CAPTION else ANSWER_TOKENS
        answers |= zip(members, asker.answers(group, limit), strict=True)
        on_done(len(answers))
    return [answers[i] for i in range(len(questions))]


def _batches(order: Sequence[int], size: int, key: Callable[[int], str]) -> Iterator[list[int]]:
    """Consecutive members of one key, at most `size` of them."""
    batch: list[int] = []
    for member in order:
        if batch and (len(batch) == size or key(batch[0]) != key(member)):
            yield batch
            batch = []
        batch.append(member)
    if batch:
        yield batch


def _predictions(questions: Sequence[Question], answers: Sequence[str]) -> list[Prediction]:
    captions = [(q.truth, a) for q, a in zip(questions, answers, strict=True) if q.task == CAPTION]
    ciders = iter(CiderD([[truth] for truth, _ in captions]).scores([answer for _, answer in captions]))
    return [
        Prediction(
            id=q.id,
            task=q.task,
            image=q.image,
            question=q.text,
            truth=q.truth,
            answer=answer,
            correct=None if q.task == CAPTION else matches(answer, q.truth),
            cider=next(ciders) if q.task == CAPTION else None,
        )
        for q, answer in zip(questions, answers, strict=True)
    ]


def _tasks(questions: Sequence[Question]) -> list[Task]:
    return list(dict.fromkeys(q.task for q in questions))


def _task_scores(task: Task, predictions: Sequence[Prediction]) -> list[Score]:
    own = [p for p in predictions if p.task == task]
    truths = [p.truth for p in own]
    if task == CAPTION:
        cider = CiderD([[truth] for truth in truths])
        constant = max(dict.fromkeys(truths), key=cider.constant)
        value = mean([p.cider or 0.0 for p in own])
        return [Score(task, "CIDEr-D", value, len(own), cider.constant(constant), f"always “{constant}”")]
    constant = most_frequent(truths)
    found = accuracy([p.answer for p in own], truths)
    return [_share(task, "accuracy", found, always(constant, truths).share, f"always “{constant}”")]


def _share(task: Task, metric: Metric, found: Accuracy, baseline: float, baseline_name: str) -> Score:
    low, high = found.interval
    return Score(task, metric, found.share, found.total, baseline, baseline_name, low, high)


def _distinct(questions: Sequence[Question], size: int) -> list[Question]:
    """The first `size` with different captions: two pictures of one caption cannot be told apart by it."""
    first = {normalised(q.truth): q for q in reversed(questions)}
    return [q for q in questions if first[normalised(q.truth)] is q][:size]


def caption_scores(
    asker: Asker, questions: Sequence[Question], batch: int, on_done: Callable[[int], None]
) -> np.ndarray:
    """How well each caption (column) fits each picture (row): mean log-probability of a token, above the caption's own.

    The mean over a caption's tokens does away with its length, and the caption's mean over all pictures is subtracted,
    since a caption that is likely whatever is seen ("A bird.") would win every row otherwise. Truths play no part.
    """
    captions = [asker.caption_ids(question) for question in questions]
    lengths_G = np.array([len(ids) for ids in captions])
    rows = []
    for start in range(0, len(questions), batch):
        group = questions[start : start + batch]
        with asker.model.computing():
            rows.append(score(asker.model, asker.prompts(group), captions).float().cpu().numpy())
        on_done(start + len(group))
    per_token_GG: np.ndarray = np.concatenate(rows).astype(np.float64) / lengths_G
    fit_GG: np.ndarray = per_token_GG - per_token_GG.mean(axis=0)
    return fit_GG


def retrieval(matrix_GG: np.ndarray) -> list[Score]:
    """Recall at 1 and at 5 of the right caption for a picture, next to chance."""
    count = len(matrix_GG)
    ranks: list[tuple[int, Metric]] = [(1, "recall@1"), (5, "recall@5")]
    scores = []
    for k, metric in ranks:
        guesses = min(k, count)
        chance = f"chance, {guesses} of {count} captions"
        scores.append(_share(CAPTION, metric, recall_at(matrix_GG, k), guesses / count, chance))
    return scores
