"""ScienceQA as it is published: `problems.json` and `pid_splits.json`, asked and answered the way LLaVA does."""

from __future__ import annotations

import codecs
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Literal

from opsin.core.errors import DataError
from opsin.core.paths import ExistingFile
from opsin.core.types import Part, Picture, Turn
from opsin.data.fields import RecordError, shown, string
from opsin.data.file_state import FileState, check_unchanged, readable
from opsin.data.record_file import Address, BadRecord, Counts, Reader, Record, RecordFile
from opsin.data.records import JsonError, json_value

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_BYTES = 512_000_000
"""The published file has about 30 MB."""

LETTER_PROMPT = "Answer with the option's letter from the given choices directly."


class ScienceQA(RecordFile):
    r"""Problems of one split. `path` is `problems.json`, `splits` by default the `pid_splits.json` beside it.

    `prompt` is how LLaVA writes a problem (`convert_sqa_to_llava.py` and `model_vqa_science.py` of its repository):

    - `QCM-LEA`: question, context and choices, then `\n` and the picture; the answer is lecture, explanation and
      "The answer is X."
    - `letter`: the picture and `\n`, then context, question and choices, and the request for a letter, which is the
      whole answer.

    Pictures are `{problem}/{image}` below `image_root`.
    """

    kind: Literal["science_qa"] = "science_qa"
    splits: ExistingFile | None = None
    split: str = "train"
    prompt: Literal["QCM-LEA", "letter"] = "QCM-LEA"

    @property
    def files(self) -> tuple[Path, ...]:
        """The problems, and which of them are in which split."""
        return self.path, self.splits or self.path.with_name("pid_splits.json")

    def _records(self, counts: Counts) -> Iterator[Record | BadRecord]:
        del counts
        problems, names = self.problems()
        path, splits_path = self.files
        for ordinal, name in enumerate(names):
            if not isinstance(name, str) or name not in problems:
                yield BadRecord(str(splits_path), f"the split {self.split!r} has {shown(name)}, which is not a problem")
                continue
            yield Record(str(path), name, problems[name], Address(0, 0, ordinal, 1))

    def problems(self) -> tuple[dict[str, Any], list[Any]]:
        """All problems by their names, and the names that the split has.

        Raises:
            DataError: they cannot be read, or there is no such split.
        """
        path, splits_path = self.files
        problems, splits = _object(path), _object(splits_path)
        names = splits.get(self.split)
        if not isinstance(names, list):
            known = ", ".join(map(ascii, sorted(splits)[:20]))
            raise DataError([f"{splits_path}: no split {self.split!r}; there are {known or 'none'}"])
        return problems, names

    def reader(self) -> Reader:
        """Keeps the problems, which are few; an address has the ordinal of a problem in its split."""
        return _ScienceQAReader(self)

    def _turns(self, record: Record, counts: Counts) -> tuple[Turn, ...]:
        del counts
        fields: dict[str, Any] = record.value
        pictures: list[Picture] = []
        if fields.get("image"):
            pictures = self.media.pictures([f"{record.name}/{string(fields, 'image', 'the problem')}"])
        if self.prompt == "letter":
            question, answer = _letter_form(fields)
            parts: tuple[Part, ...] = (*pictures, "\n" * bool(pictures) + question)
        else:
            question, answer = _reasoned_form(fields)
            parts = (question + "\n" * bool(pictures), *pictures)
        return Turn("user", parts), Turn("assistant", (answer,))


class _ScienceQAReader(Reader):
    def __init__(self, source: ScienceQA) -> None:
        super().__init__(source)
        self._problems, self._names = source.problems()

    def _record(self, path: Path, state: FileState, address: Address) -> Record:
        check_unchanged(path, state)
        name = self._names[address.start]
        return Record(str(path), name, self._problems[name], address)


def _reasoned_form(fields: dict[str, Any]) -> tuple[str, str]:
    """QCM-LEA; the answer begins with spaces where there is no lecture, as in LLaVA's own files."""
    choices, letter = _choices(fields)
    question = f"Question: {_text(fields, 'question')}\nContext: {_context(fields)}\nOptions: {choices}\n"
    lecture, solution = (_text(fields, key).replace("\n", "\\n") for key in ("lecture", "solution"))
    answer = f"Answer: {lecture} {solution} The answer is {letter}."
    return _tidy(question).removeprefix("Question: "), _tidy(answer).removeprefix("Answer: ")


def _letter_form(fields: dict[str, Any]) -> tuple[str, str]:
    choices, letter = _choices(fields)
    question = f"Context: {_context(fields)}\nQuestion: {_text(fields, 'question')}\nOptions: {choices}\n"
    return f"{_tidy(question)}\n{LETTER_PROMPT}", letter


def _tidy(text: str) -> str:
    """One pass only: of three spaces two are left."""
    return text.replace("  ", " ").strip()


def _text(fields: dict[str, Any], key: str) -> str:
    return string(fields, key, "the problem")


def _context(fields: dict[str, Any]) -> str:
    return _text(fields, "hint").strip() or "N/A"


def _choices(fields: dict[str, Any]) -> tuple[str, str]:
    """The choices in one line, and the letter of the right one."""
    choices, answer = fields.get("choices"), fields.get("answer")
    if not isinstance(choices, list) or not 1 <= len(choices) <= len(ascii_uppercase):
        raise RecordError(f"'choices' must be a list of 1 to {len(ascii_uppercase)} texts, got {shown(choices)}")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise RecordError(f"'answer' must be a number from 0 to {len(choices) - 1}, got {shown(answer)}")
    named = dict(zip(ascii_uppercase, choices, strict=False))
    return " ".join(f"({letter}) {string(named, letter, 'choice')}" for letter in named), ascii_uppercase[answer]


def _object(path: Path) -> dict[str, Any]:
    if (size := path.stat().st_size) > MAX_BYTES:
        raise DataError([f"{path}: {size:,} bytes; the limit is {MAX_BYTES:,}. Is it ScienceQA's own file?"])
    with readable(path):
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        value = json_value(content, "fetch the file again")
    except JsonError as error:
        line, column, problem = error.args
        raise DataError([f"{path}:{line}:{column}: {problem}"]) from None
    if not isinstance(value, dict):
        raise DataError([f"{path}: must be a JSON object, as ScienceQA has it, got {shown(value)}"])
    return value
