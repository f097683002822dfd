"""A training step at real size, opsin against plain transformers: the same weights, the same samples, turn by turn.

    python -m bench.gpu_step [--device cuda] [--tiny] [--rounds 9] [--recompute none] [--compile] [--json FILE]

SigLIP so400m at 384 pixels, frozen, a two-layer connector and Qwen2-0.5B, both trained, bfloat16 under autocast, AdamW
with a rate of zero; all weights random. A pass is the same samples for both: opsin takes one pack of 16,384 tokens, the
peer padded batches of 8 in the order that they come in. Before anything is timed, both must find the same loss.

Tokens count where they are real, once for both. MFU divides the operations that any implementation must do (see
`opsin.train.flops`) by the device's peak; nothing that is done besides counts. Reported: medians, and the median of the
ratios of neighbouring passes with their range; passes alternate as A B B A.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import CONFIG_MAPPING, LlavaConfig, LlavaForConditionalGeneration

from opsin.core.types import IGNORE_INDEX, Batch
from opsin.data.collate import to_device
from opsin.model.config import ModelConfig
from opsin.model.vlm import Vlm
from opsin.train.flops import count_operations, peak
from opsin.train.objective import Objective
from opsin.train.recipe import Loss
from tests.support.tokenizers import chatml_tokenizer_dir

PADDED_TOGETHER = 8
SUPERVISED = 0.4
"""Share of the text that is learned."""

PRECISE = 1e-4
ROUNDED = 1e-2
"""Largest relative difference of both losses, in float32 and in bfloat16."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the models and of the pack."""

    tower: dict[str, Any]
    language: dict[str, Any]
    tokens: int
    shortest: int
    longest: int


REAL = Shape(
    # google/siglip-so400m-patch14-384
    tower={
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
    # Qwen/Qwen2-0.5B
    language={
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "max_position_embeddings": 32_768,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
    },
    tokens=16_384,
    shortest=30,
    longest=900,
)
SMALL = Shape(
    tower={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    },
    language={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 2048,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    },
    tokens=1024,
    shortest=5,
    longest=120,
)


@dataclass(frozen=True)
class Sample:
    """One picture at the beginning, and text behind it."""

    tokens_T: Tensor
    targets_T: Tensor
    pixels: Tensor


def build(shape: Shape) -> Vlm:
    """opsin's model, with a frozen encoder."""
    with tempfile.TemporaryDirectory() as folder:
        value = {
            "encoder": {"kind": "siglip", "config": shape.tower, "select_layer": -2},
            "connector": {"kind": "mlp"},
            "language": {
                "config": {"model_type": "qwen2", **shape.language},
                "tokenizer": str(chatml_tokenizer_dir(Path(folder))),
            },
            "resolution": {"kind": "square", "size": shape.tower["image_size"]},
            "template": {"kind": "chatml"},
        }
        torch.manual_seed(0)
        model = Vlm(ModelConfig.model_validate(value).resolved())
    model.encoder.requires_grad_(requires_grad=False)
    return model.train()


def peer_of(model: Vlm, shape: Shape) -> Any:
    """transformers' LLaVA with the same weights."""
    config = LlavaConfig(
        vision_config=CONFIG_MAPPING["siglip_vision_model"](**shape.tower),
        text_config=CONFIG_MAPPING["qwen2"](**shape.language),
        image_token_id=shape.language["vocab_size"] - 1,
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    config._attn_implementation = "sdpa"
    peer = LlavaForConditionalGeneration(config)
    peer.model.vision_tower.load_state_dict(model.encoder.tower.state_dict())
    peer.model.language_model.load_state_dict(model.decoder.lm.model.state_dict())
    own = [parameter.data for parameter in model.connection.parameters()]
    for parameter, weight in zip(peer.model.multi_modal_projector.parameters(), own, strict=True):
        parameter.data.copy_(weight)
    peer.tie_weights()
    peer.model.vision_tower.requires_grad_(requires_grad=False)
    return peer.train()


def draw(model: Vlm, shape: Shape) -> list[Sample]:
    """Samples of many lengths (log-uniform text) that fill a pack, in no order."""
    generator = np.random.default_rng(0)
    side = shape.tower["image_size"]
    seen = model.config.layout(side, side, "single").tokens
    samples: list[Sample] = []
    left = shape.tokens
    while left >= seen + shape.shortest:
        text = int(np.exp(generator.uniform(np.log(shape.shortest), np.log(shape.longest))))
        text = min(text, left - seen)
        words = generator.integers(1, shape.language["vocab_size"] - 1, text)
        tokens = torch.from_numpy(np.concatenate([np.full(seen, shape.language["vocab_size"] - 1), words]))
        targets = tokens.roll(-1)
        targets[: seen + int((1 - SUPERVISED) * text)] = IGNORE_INDEX
        targets[-1] = IGNORE_INDEX
        pixels = torch.from_numpy(generator.integers(0, 256, (1, 3, side, side), dtype=np.uint8))
        samples.append(Sample(tokens, targets, pixels))
        left -= seen + text
    return samples


def pack(model: Vlm, samples: Sequence[Sample]) -> Batch:
    """All samples as one batch of opsin's."""
    side = samples[0].pixels.shape[-1]
    layout = model.config.layout(side, side, "single")
    lengths = [len(sample.tokens_T) for sample in samples]
    starts = np.cumsum([0, *lengths[:-1]])
    return Batch(
        tokens_T=torch.cat([sample.tokens_T for sample in samples]),
        targets_T=torch.cat([sample.targets_T for sample in samples]),
        positions_AT=torch.cat([torch.arange(length) for length in lengths])[None],
        lengths=tuple(lengths),
        visual_N=torch.cat([start + torch.arange(layout.tokens) for start in starts.tolist()]),
        seen_T=torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(lengths)),
        sights=(layout.tokens,) * len(samples),
        layouts=(layout,) * len(samples),
        ids=tuple(map(str, range(len(samples)))),
        pixels_X=torch.cat([sample.pixels.flatten() for sample in samples]),
    )


def own_pass(objective: Objective, batch: Batch) -> float:
    """Forward and backward of the pack; the sum of its losses."""
    device = objective.model.device
    total, _ = objective(to_device(batch, device), torch.ones(batch.num_tokens, device=device))
    (total / batch.num_supervised).backward()
    return float(total.detach())


def peer_pass(peer: Any, model: Vlm, samples: Sequence[Sample], supervised: int) -> float:
    """Forward and backward of the same samples in padded batches; the sum of their losses."""
    summed = 0.0
    for start in range(0, len(samples), PADDED_TOGETHER):
        some = samples[start : start + PADDED_TOGETHER]
        ids = pad_sequence([sample.tokens_T for sample in some], batch_first=True)
        real = pad_sequence([torch.ones_like(sample.tokens_T) for sample in some], batch_first=True)
        # transformers shifts labels itself.
        labels = pad_sequence([s.targets_T for s in some], batch_first=True, padding_value=IGNORE_INDEX).roll(1, 1)
        count = int((labels != IGNORE_INDEX).sum())
        device = model.device
        pixels = model.encoder.normalise(torch.cat([sample.pixels for sample in some]).to(device))
        with model.computing():
            out = peer(
                input_ids=ids.to(device),
                attention_mask=real.to(device),
                pixel_values=pixels,
                labels=labels.to(device),
                use_cache=False,
            )
        (out.loss * (count / supervised)).backward()
        summed += float(out.loss.detach()) * count
    return summed


@dataclass
class Side:
    """One of both, and what was measured of it."""

    run: Callable[[], float]
    optimiser: torch.optim.Optimizer
    seconds: list[float]
    memory: int = 0

    def step(self, device: torch.device) -> float:
        """One pass and an update; returns the summed loss."""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        began = _now(device)
        loss = self.run()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
            self.memory = max(self.memory, torch.cuda.max_memory_allocated())
        self.seconds.append(_now(device) - began)
        return loss


def _now(device: torch.device) -> float:
    """Wall time; on a CPU, which others may use too, that of this process."""
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def side_of(module: torch.nn.Module, run: Callable[[], float]) -> Side:
    """With an optimiser that does all its work and changes nothing."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return Side(run, torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0, fused=True), [])


def _agreed(model: Vlm, sides: dict[str, Side], device: torch.device) -> dict[str, float]:
    """The summed losses in bfloat16, which stays the precision."""
    for precision, tolerance in (("fp32", PRECISE), ("bf16", ROUNDED)):
        model.precision = precision
        losses = {name: side.step(device) for name, side in sides.items()}
        if abs(losses["opsin"] / losses["transformers"] - 1) > tolerance:
            raise SystemExit(f"{precision}: the losses differ, so there is nothing to compare: {losses}")
    return losses


def _numbers(side: Side, tokens: int, operations: float, most: float | None) -> dict[str, Any]:
    seconds = statistics.median(side.seconds)
    return {
        "seconds": round(seconds, 4),
        "tokens_per_second": round(tokens / seconds),
        "tflops": round(operations / seconds / 1e12, 2),
        "mfu": None if most is None else round(operations / seconds / most, 3),
        "peak_gib": round(side.memory / 2**30, 2),
    }


def measured(options: argparse.Namespace, shape: Shape, device: torch.device) -> dict[str, Any]:
    """What is printed."""
    model = build(shape)
    peer = peer_of(model, shape).to(device)
    model = model.to(device)
    samples = draw(model, shape)
    batch = pack(model, samples)
    operations = count_operations(model).of(batch)
    model.recompute(options.recompute)
    if options.compile:
        for layer in model.decoder.layers:
            layer.compile(dynamic=True)
    objective = Objective(model, Loss())
    sides = {
        "opsin": side_of(objective, lambda: own_pass(objective, batch)),
        "transformers": side_of(peer, lambda: peer_pass(peer, model, samples, batch.num_supervised)),
    }
    losses = _agreed(model, sides, device)
    for side in sides.values():
        for _ in range(3):  # warms up what is timed
            side.step(device)
        side.seconds, side.memory = [], 0
    for turn in range(options.rounds):
        order = list(sides.values())
        for side in order if turn % 2 == 0 else reversed(order):
            side.step(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    most = peak(name, "bf16")
    result: dict[str, Any] = {
        "device": name,
        "torch": torch.__version__,
        "samples": len(samples),
        "tokens": batch.num_tokens,
        "supervised": batch.num_supervised,
        "losses": losses,
    }
    for title, side in sides.items():
        result[title] = _numbers(side, batch.num_tokens, operations, most)
    ratios = [b / a for a, b in zip(sides["opsin"].seconds, sides["transformers"].seconds, strict=True)]
    result["ratio"] = {
        "median": round(statistics.median(ratios), 2),
        "least": round(min(ratios), 2),
        "most": round(max(ratios), 2),
    }
    return result


def main(arguments: list[str] | None = None) -> int:
    """Print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--recompute", choices=("none", "selective", "full"), default="none")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device; try --device cpu --tiny", file=sys.stderr)
        return 2
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    text = json.dumps(measured(options, SMALL if options.tiny else REAL, device), indent=1)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
