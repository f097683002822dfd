"""Conversations as what a stage reads: written to a file of messages, indexed, and read again."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opsin.core.types import Clip, Conversation, Part, Picture
from opsin.data.corpus import Corpus
from opsin.data.corpus import Part as CorpusPart
from opsin.data.example import Preparation
from opsin.data.index import index_of
from opsin.data.sources import MessagesFile


def corpus_of(folder: Path, conversations: Sequence[Conversation], prepare: Preparation) -> Corpus:
    """The conversations as a corpus of one part, `data`."""
    path = folder / "data.json"
    path.write_text("\n".join(json.dumps(_record(one)) for one in conversations), encoding="utf-8")
    source = MessagesFile(path=path, allow_outside=True)
    index = index_of(source, prepare, folder=folder / "lengths")
    assert not index.problems
    return Corpus(prepare, [CorpusPart("data", source, index, np.arange(len(index)), index.costs)])


def _record(conversation: Conversation) -> dict[str, Any]:
    messages = [{"role": turn.role, "content": [_item(part) for part in turn.parts]} for turn in conversation.turns]
    return {"id": conversation.id, "messages": messages}


def _item(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Clip):
        video = str(part.path) if part.path is not None else [str(frame.path) for frame in part.frames]
        return {"type": "video", "video": video}
    return {"type": "image", "image": _address(part)}


def _address(picture: Picture) -> str:
    if picture.data is None:
        return str(picture.path)
    return f"data:image/png;base64,{base64.b64encode(picture.data).decode()}"
