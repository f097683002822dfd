"""The file of held-out questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from opsin.core.errors import DataError
from opsin.core.types import Conversation, Picture, Turn
from opsin.data.media_paths import MediaRoot
from opsin.data.record_file import BadRecord, Record
from opsin.data.records import read_records
from opsin.data.user_turn import user_turn
from opsin.text.templates import Template

Task = Literal["category", "yes_no", "count", "caption"]


class _Fields(BaseModel):
    """One record of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    task: Task
    image: str
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    choices: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one picture and its true answer."""

    id: str
    task: Task
    image: str
    picture: Picture
    text: str
    truth: str
    where: str

    def asked(self, template: Template) -> Conversation:
        """The conversation up to the answer, as a model of this template is asked."""
        return Conversation(self.id, (user_turn(self.text, [self.picture], template.after_picture),), self.where)

    def answered(self, template: Template) -> Conversation:
        """The conversation with the true answer, as training would show it."""
        return Conversation(self.id, (*self.asked(template).turns, Turn("assistant", (self.truth,))), self.where)


def read_questions(path: Path, image_root: Path) -> list[Question]:
    """All questions of a file (a JSON array or JSON Lines).

    Raises:
        DataError: with every problem of every record.
    """
    if not path.is_file():
        raise DataError([f"{path}: no such file; give the file of held-out questions"])
    images = MediaRoot(image_root)
    questions: list[Question] = []
    problems: list[str] = []
    for record in read_records(path):
        where = record.where
        found = _question(record, where, images)
        if isinstance(found, Question):
            questions.append(found)
        else:
            problems += [f"{where}: {problem}" for problem in found]
    if not questions and not problems:
        problems.append(f"{path}: holds 0 questions; there is nothing to evaluate")
    if problems:
        raise DataError(problems)
    return questions


def _question(record: Record | BadRecord, where: str, images: MediaRoot) -> Question | list[str]:
    """The question, or what is wrong with its record."""
    if isinstance(record, BadRecord):
        return [record.problem]
    try:
        fields = _Fields.model_validate(record.value)
    except ValidationError as error:
        return [f"{'.'.join(map(str, e['loc'])) or 'the record'}: {e['msg']}" for e in error.errors()]
    picture = images.picture(fields.image)
    if isinstance(picture, str):
        return [f"({fields.id}) {picture}"]
    return Question(fields.id, fields.task, fields.image, picture, fields.question, fields.answer, where)
