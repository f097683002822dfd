"""Pictures per second of the loader with 0, 1, 2 ... workers, and what a batch costs on its way between processes.

    python -m bench.loader [--pictures 400] [--workers 0 1 2] [--side 320] [--rounds 3]

Generated JPEGs of 640 x 480 are opened, fitted into a square of `--side` pixels and packed by eights. The numbers of
workers take turns, so that a busy machine slows them alike; `ratio` is against no workers in the same round.
`transport` sends one batch from thread to thread: as the loader does, and with all its bytes pickled into the pipe.
"""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from opsin.checkpoint.prepare import preparation
from opsin.core.types import Batch, Conversation, Example, Picture
from opsin.data.collate import TENSORS
from opsin.data.example import Preparation, make_example
from opsin.data.loader import Loader
from opsin.data.plan import Pack
from opsin.data.worker import receive, send
from opsin.model.config import ModelConfig
from opsin.text.tokenizer import Tokenizer
from tests.support.models import dialogue, model_value
from tests.support.tokenizers import chatml_tokenizer_dir

PER_PACK = 8


def photographs(folder: Path, count: int) -> list[Picture]:
    """Smooth noise: files of the size of photographs."""
    noise = np.random.default_rng(0)
    pictures = []
    for number in range(count):
        coarse = Image.fromarray(noise.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        path = folder / f"{number}.jpg"
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
        pictures.append(Picture(path=path))
    return pictures


class Rendered(Sequence[Example]):
    """Examples made anew at every access, as from an index."""

    def __init__(self, conversations: Sequence[Conversation], prepare: Preparation) -> None:
        self.conversations = conversations
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: Any) -> Any:
        return make_example(self.conversations[index], self.prepare)


def pictures_per_second(examples: Rendered, prepare: Preparation, packs: list[Pack], workers: int) -> float:
    """From the start of the workers to the last batch."""
    began = time.perf_counter()
    with Loader(examples, prepare, packs, workers=workers) as loader:
        count = sum(len(batch.layouts) for batch in loader)
    return count / (time.perf_counter() - began)


def milliseconds(
    batch: Batch, give: Callable[[Connection, Batch], None], take: Callable[[Connection], object]
) -> float:
    """Median of 30 deliveries of a batch."""
    ours, theirs = Pipe()
    times = []
    for _ in range(30):
        began = time.perf_counter()
        giver = threading.Thread(target=give, args=(theirs, batch))
        giver.start()
        take(ours)
        giver.join()
        times.append(time.perf_counter() - began)
    return round(statistics.median(times) * 1e3, 2)


def main() -> None:
    """Make the pictures, measure, print the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer_dir = chatml_tokenizer_dir(folder)
        value = model_value(tokenizer_dir) | {"resolution": {"kind": "square", "size": options.side}}
        prepare = preparation(ModelConfig.model_validate(value).resolved(), Tokenizer.load(tokenizer_dir))
        asked = [
            dialogue(str(n), "What is this?", "Noise.", [picture])
            for n, picture in enumerate(photographs(folder, options.pictures))
        ]
        examples = Rendered(asked, prepare)
        starts = range(0, options.pictures, PER_PACK)
        packs = [Pack(tuple(range(i, min(i + PER_PACK, options.pictures))), 0, 0, 0) for i in starts]
        rounds = [
            {workers: pictures_per_second(examples, prepare, packs, workers) for workers in {0, *options.workers}}
            for _ in range(options.rounds)
        ]
        batch = next(Loader(examples, prepare, packs))
    sent = [getattr(batch, field) for field in TENSORS if getattr(batch, field) is not None]
    facts = replace(batch, **dict.fromkeys(TENSORS))
    print(
        json.dumps(
            {
                "pictures_per_second": {w: round(statistics.median(r[w] for r in rounds)) for w in options.workers},
                "ratio": {w: round(statistics.median(r[w] / r[0] for r in rounds), 2) for w in options.workers},
                "transport": {
                    "bytes_in_shared_memory": sum(tensor.nbytes for tensor in sent),
                    "bytes_through_the_pipe_about": len(pickle.dumps(facts)),
                    "ms": milliseconds(batch, send, receive),
                    "ms_all_through_the_pipe": milliseconds(
                        batch,
                        lambda pipe, one: pipe.send_bytes(pickle.dumps(one)),
                        lambda pipe: pickle.loads(pipe.recv_bytes()),  # noqa: S301
                    ),
                },
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
