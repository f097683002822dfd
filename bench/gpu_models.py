"""The seeded models and the pack that `gpu_check` compares devices on."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from opsin.checkpoint.prepare import preparation
from opsin.core.types import Batch, Conversation, Picture
from opsin.data.collate import collate, to_device
from opsin.data.example import make_example
from opsin.data.user_turn import user_turn
from opsin.model.recompute import Recompute
from opsin.model.vlm import Vlm
from opsin.text.tokenizer import Tokenizer
from opsin.train.objective import Objective, Weighing
from opsin.train.parts import part_of
from opsin.train.recipe import Stage
from tests.support.models import build, dialogue, draw_picture, encoder_value, model_value, open_gates, packed, stage_of
from tests.support.tokenizers import chatml_tokenizer_dir

Precision = Literal["fp32", "bf16"]

KINDS: dict[str, dict[str, Any]] = {
    "llava": {"encoder": "clip", "language": "llama"},
    "onevision": {"encoder": "siglip", "language": "qwen2", "resolution": "any_res"},
    "qwen2-vl": {
        "encoder": "native_vit",
        "connector": "patch_merger",
        "language": "qwen2",
        "resolution": "native",
        "positions": "mrope",
    },
    "gated": {"encoder": "clip", "connector": "perceiver", "fusion": "gated_cross_attention"},
}
EVERYTHING = {part: {"lr": 1e-3} for part in ("vision", "connector", "language")}


@dataclass(frozen=True)
class Size:
    """How large the models are; heads are as wide as the flash attention kernel takes them."""

    name: str
    language: dict[str, Any]
    tower: dict[str, Any]
    vit: dict[str, Any]
    sections: tuple[int, int, int]
    documents: int


TINY = Size("tiny", {"hidden_size": 32, "head_dim": 8}, {}, {}, (2, 1, 1), documents=3)
SMALL = Size(
    "small",
    {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "head_dim": 64,
        "initializer_range": 0.06,
        "max_position_embeddings": 4096,
    },
    {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4},
    {"embed_dim": 128, "depth": 4},
    (8, 12, 12),
    documents=24,
)


@dataclass(frozen=True)
class Case:
    """A model on the CPU, with all its weights trained, two packs for it, and questions without answers."""

    kind: str
    model: Vlm
    batch: Batch
    other: Batch
    prompts: tuple[Batch, ...]
    stage: Stage

    def on(self, device: torch.device) -> Vlm:
        """A copy of the model."""
        return copy.deepcopy(self.model).to(device)


def value_of(folder: Path, kind: str, size: Size) -> dict[str, Any]:
    """The `model` of a recipe."""
    kinds = KINDS[kind]
    value = model_value(chatml_tokenizer_dir(folder), **kinds, **size.language)
    encoder = kinds["encoder"]
    value["encoder"] |= encoder_value(encoder, **(size.vit if encoder == "native_vit" else size.tower))
    if value["positions"]["kind"] == "mrope":
        value["positions"]["sections"] = list(size.sections)
    return value


def case_of(folder: Path, kind: str, size: Size) -> Case:
    """Always the same one."""
    value = value_of(folder, kind, size)
    model = build(value)
    open_gates(model)
    model.requires_grad_()
    prepare = preparation(model.config, Tokenizer.load(chatml_tokenizer_dir(folder)))
    pictures = [Picture(path=draw_picture(folder / f"{n}.png", n, (40 + 30 * (n % 3), 30))) for n in range(5)]
    dialogues = []
    for number in range(size.documents):
        shown = pictures[number % 3 : number % 3 + number % 4]
        dialogues.append(dialogue(f"{number}", "What is it?", "A cat on green grass. " * (1 + number % 5), shown))
    asked = [user_turn("Hi?"), user_turn("What is it?", pictures[:1]), user_turn("Both?", pictures[1:3])]
    prompts = tuple(
        collate([make_example(Conversation(f"{n}", (turn,)), prepare, open_for_generation=True)], prepare)
        for n, turn in enumerate(asked)
    )
    packs = packed(dialogues, prepare), packed(dialogues[1:], prepare)
    return Case(kind, model.train(), *packs, prompts, stage_of(EVERYTHING))


@dataclass(frozen=True)
class Passed:
    """The mean loss of a pack, and its gradients by what trains together, in float32 on the CPU."""

    loss: float
    gradients: dict[str, Tensor]


def passed(
    case: Case, model: Vlm | Objective, *, precision: Precision = "fp32", recompute: Recompute = "none"
) -> Passed:
    """Forward and backward, of a model or of the objective that was made of one."""
    objective = Objective(model, case.stage.loss) if isinstance(model, Vlm) else model
    vlm = objective.model
    vlm.precision = precision
    vlm.recompute(recompute)
    vlm.zero_grad(set_to_none=True)
    weighing = Weighing.of(case.batch, "token")
    total, _ = objective(to_device(case.batch, vlm.device), weighing.weights_T.to(vlm.device))
    loss = total / weighing.mass
    loss.backward()
    found: dict[str, list[Tensor]] = {}
    for name, parameter in vlm.named_parameters():
        gradient = parameter.grad
        if gradient is not None:
            whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            found.setdefault(part_of(name), []).append(whole.detach().float().cpu().flatten())
    return Passed(float(loss.detach()), {name: torch.cat(parts) for name, parts in found.items()})


def apart(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to the norm of what is expected."""
    one, other = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((one - other).norm() / other.norm().clamp(min=1e-30))
