"""What a plan costs: picture headers and samples per second, the second look at unchanged data, how full packs are.

    python -m bench.plan [--pictures 4000] [--samples 20000]

Headers are of generated JPEGs of 640 x 480. Packs hold drawn lengths of three mixtures (88 of 100 samples with one
picture, a few with none, several, or a clip; log-normal texts), as the three published systems would count them. For
comparison, two ways of padding the same samples: batches at random, and Hugging Face's `group_by_length` (sorted within
50 batches), which has to be told the visual tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.loader import photographs
from opsin.checkpoint.prepare import preparation
from opsin.core.types import Picture
from opsin.data.costs import Costs
from opsin.data.index import index_of
from opsin.data.plan import Budget, plan_epoch
from opsin.data.sources import LlavaFile
from opsin.model.config import ModelConfig
from opsin.text.tokenizer import Tokenizer
from opsin.vision.picture import picture_size
from tests.support.models import model_value
from tests.support.tokenizers import chatml_tokenizer_dir

BUDGETS = {"llava": 8192, "qwen2-vl": 8192, "onevision": 16_384}
PATCHES_PER_TOKEN = 32
BATCH = 8


def drawn(system: str, count: int, rng: np.random.Generator) -> Costs:
    """Samples of a mixture, as a system counts them."""
    text = np.clip(rng.lognormal(4.6, 0.8, count), 20, 1500).astype(int)
    kinds = rng.choice(4, count, p=[0.05, 0.88, 0.04, 0.03])
    several = rng.integers(2, 5, count)
    if system == "llava":
        picture = np.full(count, 576)
        visual = np.select([kinds == 0, kinds == 2, kinds == 3], [0, 576 * several, 576 * 8], picture)
        patches = visual
    elif system == "qwen2-vl":
        picture = np.clip(rng.lognormal(5.8, 0.7, count), 64, 4096).astype(int)
        visual = np.select([kinds == 0, kinds == 2], [0, picture * several], picture)
        patches = 4 * visual
    else:
        tiles = rng.integers(1, 9, count)
        visual = np.select([kinds == 0, kinds == 2, kinds == 3], [0, 729 * several, 196 * 32 + 1], 729 + 740 * tiles)
        patches = np.select([kinds == 0, kinds == 2, kinds == 3], [0, 729 * several, 729 * 32], 729 * (1 + tiles))
    costs = Costs(text + visual, visual, text // 2, patches, kinds)
    return costs.take(np.flatnonzero(costs.tokens <= BUDGETS[system]))


def padded(lengths: np.ndarray) -> float:
    """Share of the positions of padded batches, in this order, that hold tokens."""
    batches = [lengths[i : i + BATCH] for i in range(0, len(lengths), BATCH)]
    return float(lengths.sum() / sum(batch.max() * len(batch) for batch in batches))


def grouped(lengths: np.ndarray) -> np.ndarray:
    """The order of `group_by_length`: longest first within 50 batches."""
    size = 50 * BATCH
    return np.concatenate([np.sort(lengths[i : i + size])[::-1] for i in range(0, len(lengths), size)])


def packing(samples: int) -> dict[str, dict[str, float]]:
    """Efficiency by mixture, and samples planned per second."""
    found = {}
    for system, tokens in BUDGETS.items():
        costs = drawn(system, samples, np.random.default_rng(0))
        began = time.perf_counter()
        plan = plan_epoch(costs, Budget(tokens, PATCHES_PER_TOKEN * tokens), seed=0, epoch=0)
        seconds = time.perf_counter() - began
        found[system] = {
            "tokens_per_pack": tokens,
            "packed": round(plan.efficiency, 4),
            "padded_random": round(padded(costs.tokens), 3),
            "padded_grouped": round(padded(grouped(costs.tokens)), 3),
            "samples_per_second": round(len(costs) / seconds),
        }
    return found


def headers_per_second(pictures: list[Picture]) -> int:
    """By one process."""
    began = time.perf_counter()
    for picture in pictures:
        picture_size(picture)
    return round(len(pictures) / (time.perf_counter() - began))


def indexing(folder: Path, pictures: list[Picture]) -> dict[str, float]:
    """Samples per second the first time, and seconds the second time."""
    turns = [
        {"from": "human", "value": "<image>\nWhat is shown in this picture? Describe it in detail."},
        {"from": "gpt", "value": "It shows smooth noise in many colours. " * 8},
    ]
    records = [
        {"id": str(n), "image": picture.path.name, "conversations": turns}
        for n, picture in enumerate(pictures)
        if picture.path
    ]
    (folder / "data.json").write_text(json.dumps(records), encoding="utf-8")
    tokenizer_dir = chatml_tokenizer_dir(folder)
    config = ModelConfig.model_validate(model_value(tokenizer_dir)).resolved()
    prepare = preparation(config, Tokenizer.load(tokenizer_dir))
    times = []
    for _ in range(2):
        began = time.perf_counter()
        index_of(LlavaFile(path=folder / "data.json"), prepare, folder=folder / "lengths")
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    index_of(LlavaFile(path=folder / "data.json"), prepare, workers=2, folder=folder / "other")
    two = time.perf_counter() - began
    return {
        "samples_per_second": round(len(records) / times[0]),
        "by_two_processes": round(len(records) / two),
        "again_seconds": round(times[1], 3),
    }


def main() -> None:
    """Make the pictures, measure, print the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--samples", type=int, default=20_000)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = photographs(folder, options.pictures)
        found = {
            "headers_per_second": headers_per_second(pictures),
            "index": indexing(folder, pictures),
            "packing": packing(options.samples),
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
