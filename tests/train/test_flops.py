"""Useful operations: against a count by hand, and against what torch counts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from opsin.core.types import Picture
from opsin.data.collate import collate
from opsin.model.loss import supervised_loss
from opsin.train.flops import Operations, count_operations, peak
from opsin.train.optimiser import prepare_parts
from tests.support.models import dialogue, draw_picture, examples_of, stage_of, tiny_vlm

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.core.types import Batch, Example
    from opsin.data.example import Preparation
    from opsin.model.vlm import Vlm

EVERYTHING = {"vision": {"lr": 1e-3}, "connector": {"lr": 1e-3}, "language": {"lr": 1e-3}}


def samples(folder: Path, train: dict[str, Any], **kinds: Any) -> tuple[Vlm, list[Example], Preparation]:
    model, prepare = tiny_vlm(folder, **kinds)
    prepare_parts(model, stage_of(train))
    pictures = [Picture(path=draw_picture(folder / f"{n}.png", n)) for n in range(2)]
    talks = [
        dialogue("a", "What is it?", "It is red.", pictures[:1]),
        dialogue("b", "And this one here?", "Blue.", pictures[1:]),
        dialogue("c", "Hello?", "Hi there."),
    ]
    return model, examples_of(talks, prepare), prepare


def made(folder: Path, train: dict[str, Any], **kinds: Any) -> tuple[Vlm, Batch]:
    model, examples, prepare = samples(folder, train, **kinds)
    return model, collate(examples, prepare)


def torch_counts(model: Vlm, batch: Batch) -> float:
    """A forward pass as torch counts it."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        supervised_loss(model(batch), model.decoder.head_weight, batch.targets_T)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "kinds",
    [
        {},
        {"encoder": "clip"},
        {"encoder": "native_vit", "resolution": "native", "positions": "mrope"},
        {"encoder": "siglip", "connector": "q_former"},
        {"fusion": "gated_cross_attention", "connector": "perceiver"},
    ],
    ids=str,
)
def test_a_forward_pass_is_what_torch_counts(tmp_path: Path, kinds: dict[str, Any]) -> None:
    model, examples, prepare = samples(tmp_path, EVERYTHING, **kinds)
    model.requires_grad_(requires_grad=False)
    config = model.decoder.lm.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    operations = count_operations(model)
    for example in examples:  # one by one, since those of a pack are padded to be attended to together
        batch = collate([example], prepare)
        # Torch counts scores of tokens to come as well, which causal attention has no use for.
        pairs = example.num_tokens * (example.num_tokens - 1) // 2
        unseen = 4 * len(model.decoder.layers) * config.num_attention_heads * width * pairs
        assert operations.of(batch) == pytest.approx(torch_counts(model, batch) - unseen, rel=0.01)


def passes(operations: Operations, forward: Operations) -> list[float]:
    """How often a part's forward work is done: encoder, connection, language, its attention, head."""
    names = ("patch", "visual", "token", "pair", "learned")
    return [round(getattr(operations, name) / getattr(forward, name), 3) for name in names]


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (EVERYTHING, [3, 3, 3, 3, 3]),
        ({"connector": {"lr": 1e-3}}, [1, 3, 2, 3, 2]),
        ({"language": {"lr": 1e-3}}, [1, 1, 3, 3, 3]),
        ({"vision": {"lr": 1e-3}}, [3, 2, 2, 3, 2]),
        ({"language": {"lr": 1e-3, "layers": "1-1"}, "embeddings": "frozen"}, [1, 1, 2, 2, 2]),
    ],
    ids=str,
)
def test_what_is_trained_counts_three_times_and_what_gradients_pass_twice(
    tmp_path: Path, train: dict[str, Any], expected: list[float]
) -> None:
    model, _ = made(tmp_path, train, encoder="clip")
    found = count_operations(model)
    model.requires_grad_(requires_grad=False)
    assert passes(found, count_operations(model)) == expected


def test_a_model_counted_by_hand(tmp_path: Path) -> None:
    model, batch = made(tmp_path, {"connector": {"lr": 1e-3}}, encoder="clip", connector="linear")
    config, vision = model.decoder.lm.config, model.encoder.tower.config
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    kept = hidden // heads * config.num_key_value_heads
    language = config.num_hidden_layers * (2 * hidden * hidden + 2 * hidden * kept + 3 * hidden * inner)
    patches = sum(layout.patches for layout in batch.layouts)
    maps = sum(layout.grid.t for layout in batch.layouts)
    encoded = patches + maps  # each map has a class token
    layers = vision.num_hidden_layers - 1  # the last but one is selected
    width = vision.hidden_size
    side = patches // maps + 1
    tower = layers * encoded * (4 * width * width + 2 * width * vision.intermediate_size)
    tower += patches * 3 * vision.patch_size**2 * width
    attention = layers * maps * 2 * side * side * width
    pairs = sum(length * (length + 1) / 2 for length in batch.lengths)
    by_hand = (
        2 * (tower + attention)
        + 3 * 2 * patches * width * hidden
        + 2 * 2 * batch.num_tokens * language
        + 3 * 2 * 2 * config.num_hidden_layers * hidden * pairs
        + 2 * 2 * batch.num_supervised * hidden * config.vocab_size
    )
    assert count_operations(model).of(batch) == pytest.approx(by_hand, rel=1e-6)


def test_the_encoder_does_nothing_where_features_are_cached(tmp_path: Path) -> None:
    model, batch = made(tmp_path, {"connector": {"lr": 1e-3}}, encoder="clip")
    operations = count_operations(model)
    cached = replace(batch, pixels_X=None, features_PC=model.encode(batch))
    without_encoder = replace(operations, patch=0.0, patch_pair=0.0)
    assert operations.of(cached) == without_encoder.of(batch) < operations.of(batch)


@pytest.mark.parametrize(
    ("device", "operations"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362.05e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla T4", None),
    ],
)
def test_peaks(device: str, operations: float | None) -> None:
    assert peak(device, "bf16") == operations
    assert peak(device, "fp32") is None
