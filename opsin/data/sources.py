"""Data formats: files of records -> conversations.

A reader goes through the whole file and raises every problem in one `DataError`. `Source` at the foot is the only list
of formats in the project.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from opsin.core.types import Turn
from opsin.data.parquet_file import ParquetFile
from opsin.data.record_file import Counts, Record
from opsin.data.records import JsonFile
from opsin.data.science_qa import ScienceQA
from opsin.data.tar_shards import TarShards
from opsin.data.turns import llava_turns, message_turns


class LlavaFile(JsonFile):
    r"""LLaVA's and ShareGPT's format: `conversations` from human and gpt; JSON array or JSON Lines.

    `image` (or `images`) and `video` (or `videos`) are a path or a list of paths. Every `<image>` in a human turn
    becomes the next picture, every `<video>` the next video; the text around it stays as it is written. (LLaVA itself
    moves the mark to the front of its turn and adds a newline, which matters for ScienceQA's trailing `\n<image>`.)
    A conversation that begins with a gpt turn loses that turn, as in LLaVA; this is counted.
    """

    kind: Literal["llava"] = "llava"

    def _turns(self, record: Record, counts: Counts) -> tuple[Turn, ...]:
        return llava_turns(record.value, self.media, counts)


class MessagesFile(JsonFile):
    """Chat messages, a JSON array or JSON Lines: `messages` of role and content, content a text or a list of items.

    An item is `{"type": "text", "text": ...}`, `{"type": "image", "image": path}`, `{"type": "video", "video": path}`
    (or a list of paths: its frames), or OpenAI's `{"type": "image_url", "image_url": {"url": ...}}` with a path or a
    data URL. Text is literal: `<image>` in it stays text, unless the record has `images` or `videos` beside its
    messages, which then take the places of the marks as in LLaVA's format, and of items `{"type": "image"}`.
    """

    kind: Literal["messages"] = "messages"

    def _turns(self, record: Record, counts: Counts) -> tuple[Turn, ...]:
        del counts
        return message_turns(record.value, self.media)


Source = Annotated[LlavaFile | MessagesFile | ParquetFile | TarShards | ScienceQA, Field(discriminator="kind")]
