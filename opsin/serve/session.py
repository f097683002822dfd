"""One conversation with a model: what was said, and how the next answer is made.

Every turn renders the whole history again, by the same function that training uses, so a prompt cannot drift from what
the model was tuned on.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

from opsin.checkpoint.prepare import stop_ids
from opsin.core.errors import OpsinError
from opsin.core.types import Conversation, Example, Picture, Turn
from opsin.data.collate import collate, to_device
from opsin.data.example import Preparation, make_example
from opsin.data.user_turn import user_turn
from opsin.model.generate import Sampling, stream
from opsin.model.vlm import Vlm
from opsin.text.tokenizer import StreamDecoder


class ContextError(OpsinError):
    """A conversation that is too long for the model."""


@dataclass
class Session:
    """A conversation under way; `turns` are whole exchanges, a question and what was answered."""

    model: Vlm
    prepare: Preparation
    sampling: Sampling
    turns: list[Turn] = field(default_factory=list)

    @property
    def context(self) -> int:
        """Tokens that the language model was made for, question and answer together."""
        return int(self.model.decoder.lm.config.max_position_embeddings)

    def ask(self, text: str, pictures: Sequence[Picture] = ()) -> Generator[str, None, None]:
        """Yield the answer, piece by piece.

        An answer that is cut short (the iterator is closed, or interrupted) is remembered as far as it was given, since
        that is what the user saw; a question that got no answer at all is not remembered.

        Raises:
            ContextError: the conversation does not fit the model's context.
            OpsinError: a picture cannot be read, or the text cannot be encoded. Nothing is remembered then.
        """
        asked = user_turn(text, pictures, self.prepare.template.after_picture)
        example = self._prompt(asked)
        given: list[str] = []
        whole = False
        try:
            for piece in self._pieces(example):
                given.append(piece)
                yield piece
            whole = True
        finally:
            answer = "".join(given)
            if whole or answer:
                self.turns += [asked, Turn("assistant", (answer,))]

    def _prompt(self, asked: Turn) -> Example:
        conversation = Conversation("chat", (*self.turns, asked))
        example = make_example(conversation, self.prepare, open_for_generation=True)
        room = self.sampling.max_new_tokens
        if example.num_tokens + room > self.context:
            visual = int(example.visual_T.sum())
            raise ContextError(
                f"the conversation has {example.num_tokens:,} tokens ({visual:,} of them for "
                f"{len(example.media)} pictures), and {room:,} are kept for the answer; the model can take "
                f"{self.context:,} in all: begin a new conversation, or allow fewer tokens for an answer"
            )
        return example

    def _pieces(self, example: Example) -> Iterator[str]:
        # With one seed for all turns a sampled answer would repeat its own choices from turn to turn.
        sampling = replace(self.sampling, seed=self.sampling.seed + len(self.turns))
        decoder = StreamDecoder(self.prepare.tokenizer)
        prompt = to_device(collate([example], self.prepare), self.model.device)
        with self.model.computing():
            for step in stream(self.model, prompt, sampling, stop_ids(self.prepare)):
                if step[0] is not None and (piece := decoder.feed(step[0])):
                    yield piece
        if rest := decoder.flush():
            yield rest
