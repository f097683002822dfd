"""A training step of the quick start's language model against the machine's own GEMM ceiling.

    python -m bench.step [--tokens 2048] [--rounds 3]

Three kinds of step on the same packed tokens: language model frozen (stage align), LoRA (stage instruct), all weights.
Useful FLOPs: 2 per weight and token forward, 2 more for the gradient of the activations, 2 more for that of trained
weights; the vocabulary for supervised tokens only. The ceiling is a bfloat16 GEMM measured before and after.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from torch.profiler import profile

from opsin.core.types import IGNORE_INDEX
from opsin.model.attention import PackedAttention
from opsin.model.config import LanguageModel, Lora
from opsin.model.decoder import Decoder, load_decoder
from opsin.model.lora import MARK, add_lora
from opsin.model.loss import supervised_loss
from opsin.quickstart.assets import fetch_all

SUPERVISED = 0.3
SHORTEST, LONGEST = 20, 120
GROUPS = {
    "matrix products": ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"),
    "softmax": ("aten::_softmax", "aten::_softmax_backward_data", "aten::logsumexp"),
    "copies and casts": ("aten::copy_", "aten::index_select", "aten::cat", "aten::index_add_", "aten::clone"),
}


def gemm_ceiling(dtype: torch.dtype, size: int = 1536, seconds: float = 1.5) -> float:
    """GFLOP/s of a square matrix product."""
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    a @ b
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        a @ b
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - began) / 1e9


def make_step(decoder: Decoder, tokens: int, kind: str) -> tuple[Callable[[], None], float]:
    """One forward and backward pass on packed documents, and its useful GFLOPs."""
    generator = torch.Generator().manual_seed(0)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(int(torch.randint(SHORTEST, LONGEST, (1,), generator=generator)))
    lengths[-1] -= sum(lengths) - tokens
    ids_T = torch.randint(100, decoder.vocab_size, (tokens,), generator=generator)
    targets_T = ids_T.roll(-1)
    targets_T[torch.rand(tokens, generator=generator) > SUPERVISED] = IGNORE_INDEX
    positions_T = torch.cat([torch.arange(length) for length in lengths])
    visual_TD = torch.zeros(tokens, decoder.width, requires_grad=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            embeddings_TD = decoder.embed(ids_T) + visual_TD.to(torch.bfloat16)
            attend = PackedAttention.plan(lengths, ids_T.device)
            hidden_TD = decoder(embeddings_TD[None], positions_T[None, None], attend)[0]
            loss = supervised_loss(hidden_TD, decoder.head_weight, targets_T)
        (loss / tokens).backward()
        for parameter in decoder.parameters():
            parameter.grad = None

    body = sum(p.numel() for n, p in decoder.named_parameters() if p.dim() > 1 and "embed" not in n and MARK not in n)
    supervised = int((targets_T != IGNORE_INDEX).sum())
    passes = 3 if kind == "full" else 2
    head = decoder.head_weight.numel() * supervised
    return step, 2 * passes * (body * tokens + head) / 1e9


def shares(step: Callable[[], None]) -> dict[str, float]:
    """Share of a step's CPU time by kind of operation."""
    with profile() as record:
        step()
    averages = record.key_averages()
    total = sum(event.self_cpu_time_total for event in averages)
    found = {
        name: sum(event.self_cpu_time_total for event in averages if event.key in keys) / total
        for name, keys in GROUPS.items()
    }
    return found | {"all else (norms, rotary, gates)": 1 - sum(found.values())}


def main() -> None:
    """Print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    language = LanguageModel(path=fetch_all(Console(stderr=True)).language_model).resolved()
    assert isinstance(language, LanguageModel)
    result: dict[str, object] = {"threads": torch.get_num_threads(), "tokens": chosen.tokens}
    result["gemm_gflops_before"] = {str(d): round(gemm_ceiling(d)) for d in (torch.bfloat16, torch.float32)}
    ceiling = gemm_ceiling(torch.bfloat16)
    for kind in ("frozen", "lora", "full"):
        decoder = load_decoder(language)
        decoder.requires_grad_(kind == "full")
        if kind == "full":
            decoder.float()
        if kind == "lora":
            add_lora(decoder, Lora())
        step, useful = make_step(decoder, chosen.tokens, kind)
        step()
        times = []
        for _ in range(chosen.rounds):
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
        seconds = statistics.median(times)
        result[kind] = {
            "tokens_per_second": round(chosen.tokens / seconds),
            "useful_gflops": round(useful / seconds),
            "share_of_gemm_ceiling": round(useful / seconds / ceiling, 2),
            "shares": {name: round(share, 2) for name, share in shares(step).items()},
        }
    result["gemm_gflops_after"] = round(gemm_ceiling(torch.bfloat16))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
