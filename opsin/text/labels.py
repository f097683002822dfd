"""Label policies: which tokens of a rendered conversation are learned.

`answer_only` is the policy of LLaVA's own code for every template that opsin has. The others exist for ChatML, where
published models differ: `qwen_finetune` is Qwen's own fine-tuning code, `llava_next` LLaVA-NeXT's `preprocess_qwen`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from opsin.core.errors import RenderError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from opsin.text.segments import SegmentPart
    from opsin.text.tokenizer import Tokenizer

Labels = Literal["answer_only", "qwen_finetune", "llava_next"]


@dataclass(frozen=True, slots=True)
class Policy:
    """The parts that are learned, and tokens that are learned wherever they stand: control tokens and newlines."""

    parts: frozenset[SegmentPart]
    marks: tuple[str, ...] = ()
    newlines: bool = False

    def everywhere(self, tokenizer: Tokenizer) -> frozenset[int]:
        """Ids that are learned wherever they stand.

        A newline that the tokenizer makes one token with its neighbours has another id and is not among them.

        Raises:
            RenderError: the tokenizer has no token for a newline, or lacks a mark.
        """
        ids = {tokenizer.control(mark) for mark in self.marks}
        if self.newlines:
            newline = tokenizer.encode("\n")
            if len(newline) != 1:
                raise RenderError(
                    f"labels 'llava_next' learn the newline's token, and this tokenizer writes a newline as "
                    f"{len(newline)} tokens; use labels 'answer_only'"
                )
            ids.update(newline)
        return frozenset(ids)


POLICIES: Mapping[Labels, Policy] = {
    "answer_only": Policy(frozenset({"answer", "end"})),
    "qwen_finetune": Policy(frozenset({"answer", "end", "after"})),
    "llava_next": Policy(
        frozenset({"header", "answer", "end", "after"}), marks=("<|im_start|>", "<|im_end|>"), newlines=True
    ),
}
