"""What activation checkpointing saves and costs: peak memory and CPU time of forward and backward, by mode.

    python -m bench.recompute [--tokens 2048] [--rounds 3]

A Llama of 8 layers of width 512, packs of documents of 200 tokens, float32 and bfloat16; every mode in a process of its
own, whose memory before the first pass is taken off its peak.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time

import torch

from opsin.model.attention import PackedAttention
from opsin.model.config import LanguageModel
from opsin.model.decoder import load_decoder
from opsin.model.recompute import Recompute
from tests.support.models import language_facts

MODES: tuple[Recompute, ...] = ("none", "selective", "full")
SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "head_dim": 64,
}
DOCUMENT = 200


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(mode: Recompute, tokens: int, rounds: int, *, rounded: bool) -> tuple[float, float]:
    """MiB above what there was before, and CPU seconds of a pass."""
    torch.manual_seed(0)
    facts = language_facts("llama", **SIZES, head_dim=64, initializer_range=0.02)
    decoder = load_decoder(LanguageModel.model_validate({"config": facts, "tokenizer": "."}))
    decoder.recompute = mode
    for parameter in decoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    lengths = [DOCUMENT] * (tokens // DOCUMENT)
    ids = torch.randint(1, 500, (1, sum(lengths)))
    positions = torch.arange(DOCUMENT).repeat(len(lengths))[None, None]
    before, times = _peak(), []
    for _ in range(rounds):
        began = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            attend = PackedAttention.plan(lengths, torch.device("cpu"))
            loss = decoder(decoder.embed(ids), positions, attend).square().mean()
        loss.backward()
        times.append(time.process_time() - began)
    return _peak() - before, statistics.median(times)


def _answer(queue: multiprocessing.Queue[tuple[float, float]], *arguments: object, rounded: bool) -> None:
    torch.set_num_threads(1)
    queue.put(measure(*arguments, rounded=rounded))  # type: ignore[arg-type]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for rounded in (False, True):
        for mode in MODES:
            queue = context.Queue()
            arguments = (queue, mode, chosen.tokens, chosen.rounds)
            process = context.Process(target=_answer, args=arguments, kwargs={"rounded": rounded})
            process.start()
            memory, seconds = queue.get(timeout=600)
            process.join()
            print(f"{'bf16' if rounded else 'fp32'} {mode:10} {memory:7.0f} MiB {seconds:7.2f} s")


if __name__ == "__main__":
    main()
