"""opsin's native-resolution encoder against transformers' Qwen2-VL vision tower: same pictures, same weights, CPU.

    python -m bench.native_vit [--depth 2] [--rounds 5]

Forward and backward, interleaved, both with fused attention; prints the median of each and the ratio. Only patch
embedding and transformer blocks are timed: the reference's merger, which its tower holds, is taken out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from opsin.core.types import Grid
from opsin.model.encoder_values import NativeVitEncoder
from opsin.model.native_vit import NativeVit

MIXED = [Grid(1, 16, 16), Grid(1, 24, 18), Grid(1, 34, 46), Grid(4, 16, 16), Grid(1, 12, 40), Grid(1, 24, 18)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    facts = {"depth": options.depth, "embed_dim": 1280, "num_heads": 16, "patch_size": 14}
    config = Qwen2VLVisionConfig(**facts, hidden_size=1536)
    config._attn_implementation = "sdpa"
    theirs = Qwen2VisionTransformerPretrainedModel(config)
    theirs.merger = torch.nn.Identity()
    ours = NativeVit(NativeVitEncoder(kind="native_vit", config=facts))
    patches = torch.randn(sum(grid.patches for grid in MIXED), 1176)
    sizes = torch.tensor([[grid.t, grid.h, grid.w] for grid in MIXED])

    def reference() -> torch.Tensor:
        return theirs(patches, grid_thw=sizes).last_hidden_state

    def own() -> torch.Tensor:
        found: torch.Tensor = ours(patches, MIXED)
        return found

    times: dict[str, list[float]] = {"transformers": [], "opsin": []}
    for round_ in range(options.rounds + 1):
        for name, run in (("transformers", reference), ("opsin", own)):
            seconds = _timed(run)
            if round_:  # the first one warms up
                times[name].append(seconds)
    medians = {name: statistics.median(found) for name, found in times.items()}
    print(f"{len(patches)} patches of {len(MIXED)} media, depth {options.depth}, {torch.get_num_threads()} threads")
    for name, median in medians.items():
        print(f"{name:14} {median * 1e3:8.0f} ms  {len(patches) / median:8,.0f} patches/s")
    print(f"ratio {medians['transformers'] / medians['opsin']:.2f}")


def _timed(run: Callable[[], torch.Tensor]) -> float:
    began = time.perf_counter()
    run().sum().backward()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
