"""Operations that any correct implementation of a step must do, and what devices can do at best.

Counted are matrix products and convolutions, two operations for a multiplication with its addition: the language model
on real tokens, with causal attention inside documents; its head on supervised tokens; the encoder on patches, unless
their features are cached; the connection. Each counts once forward, once more where gradients pass through it, and once
more where its weights are trained: 1, 2 or 3 times. What an implementation does besides (padding, logits of tokens that
are not supervised, layers computed again) is not counted, so MFU is the share of the device that did useful work.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from opsin.core.types import Batch
from opsin.model.gated import GatedBlock
from opsin.model.vlm import Vlm
from opsin.train.objective import blank_picture

PEAKS: tuple[tuple[str, float], ...] = (
    ("B200", 2250e12),  # NVIDIA Blackwell architecture brief: HGX B200, dense
    ("H200 NVL", 835.5e12),  # NVIDIA H200 datasheet: 1,671 with sparsity
    ("H200", 989.4e12),  # NVIDIA H200 datasheet: 1,979 with sparsity
    ("GH200", 989.4e12),  # NVIDIA GH200 datasheet: 1,979 with sparsity
    ("H100 NVL", 835.5e12),  # NVIDIA H100 datasheet: 1,671 with sparsity
    ("H100 PCIE", 756.5e12),  # NVIDIA H100 PCIe datasheet: 1,513 with sparsity
    ("H100", 989.4e12),  # NVIDIA H100 datasheet, SXM: 1,979 with sparsity
    ("A100", 312e12),  # NVIDIA A100 datasheet, SXM and PCIe alike
    ("A40", 149.7e12),  # NVIDIA A40 datasheet
    ("L40S", 362.05e12),  # NVIDIA L40S datasheet
    ("L40", 181.05e12),  # NVIDIA L40 datasheet
    ("L4", 121e12),  # NVIDIA L4 datasheet: 242 with sparsity
    ("RTX A6000", 154.8e12),  # NVIDIA RTX A6000 datasheet: 309.7 with sparsity
    ("RTX 4090", 165.2e12),  # NVIDIA Ada architecture whitepaper, with accumulation in float32
    ("RTX 3090", 71e12),  # NVIDIA GA102 whitepaper, with accumulation in float32
)
"""Dense bfloat16 operations a second by a part of a device's name, of which the first that fits holds."""

PRODUCTS = ("mm", "addmm", "convolution")
"""Matrix products and convolutions with weights, by their names in torch; attention uses others."""


def peak(device: str, precision: str) -> float | None:
    """The most operations a second that a device with this name can do, if it is known."""
    if precision != "bf16" or "LAPTOP" in device.upper():
        return None
    words = f" {device.upper().replace('-', ' ').replace('_', ' ')} "
    return next((value for name, value in PEAKS if f" {name} " in words), None)


@dataclass(frozen=True)
class Share:
    """How much of a part's work in a forward pass is done once more backward.

    `through`: where gradients pass; `learned`: for weights that are trained.
    """

    through: float
    learned: float

    @property
    def products(self) -> float:
        """Passes of products with weights."""
        return 1 + self.through + self.learned

    @property
    def attention(self) -> float:
        """Passes of attention, whose both factors are computed: backward it costs twice as much as forward."""
        return 1 + 2 * self.through


@dataclass(frozen=True)
class Operations:
    """What packs cost a model as it is trained now: operations, all passes together.

    - `token`: of every token; `pair`: of every token with each that it attends to; `learned`: of a supervised token
    - `patch`: of every patch in the encoder; `patch_pair`: of a patch with each of its map
    - `visual`: of every patch in the connection; `sight`: of every visual token, in gated blocks
    """

    token: float
    pair: float
    learned: float
    patch: float
    patch_pair: float
    visual: float
    sight: float

    def of(self, batch: Batch) -> float:
        """Of one pack."""
        pairs = sum(length * (length + 1) // 2 for length in batch.lengths)
        total = self.token * batch.num_tokens + self.pair * pairs + self.learned * batch.num_supervised
        patches = sum(layout.patches for layout in batch.layouts)
        total += self.visual * patches + self.sight * sum(batch.sights)
        if batch.features_PC is None:
            around = sum(layout.patches * layout.grid.h * layout.grid.w for layout in batch.layouts)
            total += self.patch * patches + self.patch_pair * around
        return total


def count_operations(model: Vlm) -> Operations:
    """Count a model's operations, with what is trained by now; before its weights are divided among ranks.

    The encoder and the connection, which are of many kinds, encode a blank picture for it.
    """
    config = model.decoder.lm.config
    patch, patch_pair, visual = _measured(model)
    layers = list(model.decoder.layers)
    gated = [module for module in model.connection.modules() if isinstance(module, GatedBlock)]
    behind = {id(p) for block in gated for p in block.parameters()}
    vision = _share(model.encoder.parameters(), passing=False)
    passing = vision.through > 0
    connection = _share((p for p in model.connection.parameters() if id(p) not in behind), passing=passing)
    passing = passing or connection.through > 0 or model.decoder.input_weight.requires_grad
    language = _share((p for layer in layers for p in layer.parameters()), passing=passing)
    gates = _share((p for block in gated for p in block.parameters()), passing=passing)
    keys = [block.key_value for block in gated]
    head = model.decoder.head_weight
    passing = passing or language.through > 0 or gates.through > 0
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    asked = sum(_weights(block) for block in gated) - sum(key.weight.numel() for key in keys)
    return Operations(
        token=2 * sum(map(_weights, layers)) * language.products + 2 * asked * gates.products,
        pair=4 * len(layers) * config.num_attention_heads * width * language.attention,
        learned=2 * head.numel() * (1 + passing + head.requires_grad),
        patch=patch * vision.products,
        patch_pair=patch_pair * vision.attention,
        visual=visual * connection.products,
        sight=2 * sum(key.weight.numel() for key in keys) * gates.products,
    )


def _share(parameters: Iterable[nn.Parameter], *, passing: bool) -> Share:
    """Of the matrices of a part, in the order of its forward pass; `passing`: gradients go on to what comes before."""
    total, through, learned = 0, 0, 0
    for parameter in parameters:
        passing = passing or parameter.requires_grad
        if parameter.ndim < 2:
            continue
        total += parameter.numel()
        through += parameter.numel() if passing else 0
        learned += parameter.numel() if parameter.requires_grad else 0
    return Share(through / total, learned / total) if total else Share(float(passing), 0.0)


def _weights(module: nn.Module) -> int:
    """Scalars of the matrices that every token is multiplied with."""
    return sum(one.weight.numel() for one in module.modules() if isinstance(one, nn.Linear))


def _measured(model: Vlm) -> tuple[float, float, float]:
    """Forward operations: of the encoder for a patch, and for a patch with another; of the connection for a patch."""
    batch = blank_picture(model)
    (layout,) = batch.layouts
    # What fused attention does is not counted on every device; this kind is. The counter needs gradients to be on.
    with torch.enable_grad(), model.computing(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as encoding:
            features_PC = model.encode(batch)
        with FlopCounterMode(display=False) as connecting:
            model.connection(features_PC, batch.layouts)
    counts = {str(kind).split(".")[-1]: count for kind, count in encoding.get_flop_counts()["Global"].items()}
    products = sum(counts.get(name, 0) for name in PRODUCTS)
    around = layout.patches * layout.grid.h * layout.grid.w
    return (
        products / layout.patches,
        (sum(counts.values()) - products) / around,
        connecting.get_total_flops() / layout.patches,
    )
