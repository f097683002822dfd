"""Is a written directory the model? It is read back by opsin and by transformers, and nothing may differ.

opsin's side is always the model in memory, its configuration and its template, never what was read back: a wrong
config.json would be misread by both sides alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from opsin.checkpoint.chat_templates import read_template, told
from opsin.checkpoint.compare import TOLERANCE, Comparison, ask, compare
from opsin.checkpoint.filling import fill, shapes_of, weightless
from opsin.checkpoint.hub_files import pinpoints_of
from opsin.checkpoint.hub_names import POOLING_HEAD, Family
from opsin.checkpoint.hub_values import TEXTS, ClipVision, SiglipVision, parse, read_preprocessor
from opsin.checkpoint.load import load
from opsin.checkpoint.model import Loaded, unique_state
from opsin.checkpoint.prepare import preparation
from opsin.checkpoint.processors import check_inputs
from opsin.core.errors import ModelError
from opsin.model.config import ModelConfig
from opsin.model.encoder_values import ClipEncoder, NativeVitEncoder, SiglipEncoder
from opsin.model.vlm import Vlm
from opsin.vision.any_res import AnyRes
from opsin.vision.native import Native
from opsin.vision.positions import MRope


def prove(loaded: Loaded, folder: Path, family: Family, ids: Mapping[str, int]) -> tuple[list[Comparison], list[str]]:
    """How far transformers' logits are from the model's, and where transformers prepares its inputs otherwise.

    Raises:
        ModelError: the directory does not hold the model; it says what differs.
    """
    again = load(folder)
    _check_tensors(loaded.model, again.model)
    _check_config(loaded.model, again.model, folder)
    config = as_transformers(loaded.model.config)
    prepare = preparation(config, loaded.tokenizer)
    notes = check_inputs(config, prepare, folder, family, ids)
    # The same weights, so that those in memory need not be turned to float32 and back.
    single = all(parameter.dtype == torch.float32 for parameter in loaded.model.parameters())
    asked = ask(loaded.model if single else _in_float32(loaded.model.config, again.model), prepare, family)
    del again  # a model's worth of memory
    comparisons = compare(asked, config, folder, family, ids)
    wrong = ", ".join(f"{c.prompt} by {c.difference:.2g}" for c in comparisons if not c.agrees)
    if wrong:
        raise ModelError(
            f"transformers' logits are not the model's: {wrong} (limit {TOLERANCE:g}); nothing was written"
        )
    return comparisons, notes


def as_transformers(config: ModelConfig) -> ModelConfig:
    """The model with the rules of transformers 5 in place of the original code's (`hub_files.notes_on` names them)."""
    resolution, positions = config.resolution, config.positions
    if isinstance(resolution, AnyRes):
        pinpoints = tuple((height, width) for height, width in pinpoints_of(resolution))
        multi = "tiles" if resolution.max_tiles is None else "base"
        resolution = resolution.model_copy(update={"rule": "transformers", "pinpoints": pinpoints, "multi": multi})
    if isinstance(resolution, Native):
        resolution = resolution.model_copy(update={"rule": "transformers", "video_total_pixels": None})
    if isinstance(positions, MRope):
        positions = positions.model_copy(update={"resume": "transformers5"})
    return config.model_copy(update={"resolution": resolution, "positions": positions})


def _check_tensors(model: Vlm, again: Vlm) -> None:
    """Bit by bit, apart from rows that were added to a vocabulary."""
    theirs = again.state_dict()
    changed = [
        name
        for name, ours in model.state_dict().items()
        if not name.startswith(POOLING_HEAD)
        and not torch.equal(ours.to(theirs[name].dtype), theirs[name][: len(ours)] if ours.dim() else theirs[name])
    ]
    if changed:
        raise ModelError(f"read back, {len(changed)} tensors differ: {', '.join(changed[:20])}")


def _check_config(model: Vlm, again: Vlm, folder: Path) -> None:
    """Every value that decides a logit, a pixel or a token id."""
    ours, theirs = _facts(model), _facts(again)
    ours["template"], theirs["template"] = told(model.config.template), read_template(folder)
    ours["clips"] = {"mean": ours["encoder"]["mean"], "std": ours["encoder"]["std"]}
    clips = read_preprocessor(folder, "video")
    theirs["clips"] = {"mean": clips.image_mean, "std": clips.image_std}
    problems = [f"{name} is {_differing(theirs[name], ours[name])}" for name in ours if ours[name] != theirs[name]]
    if problems:
        raise ModelError(f"read back, it is another model: {'; '.join(problems)}; nothing was written")


def _facts(model: Vlm) -> dict[str, Any]:
    """What a model computes, with all defaults filled in."""
    config = as_transformers(model.config)
    encoder, lm = config.encoder, model.decoder.lm.config.to_dict()
    text = parse(TEXTS[lm["model_type"]], lm, "language model").facts
    own: dict[str, Any] = {"kind": encoder.kind, "mean": encoder.mean, "std": encoder.std}
    if isinstance(encoder, NativeVitEncoder):
        own |= {"sizes": (encoder.depth, encoder.width, encoder.heads, encoder.feed_forward)}
        own |= {"patch": (encoder.patch_size, encoder.temporal)}
    elif isinstance(encoder, ClipEncoder | SiglipEncoder):
        kind = ClipVision if isinstance(encoder, ClipEncoder) else SiglipVision
        tower: Any = model.encoder.tower
        own |= parse(kind, tower.config.to_dict(), "vision tower").model_dump()
        own |= {"select_layer": encoder.select_layer}
    return {
        "encoder": own,
        "connector": config.connector.model_dump(),
        # The rows are compared with the tensors; a vocabulary may have grown.
        "language": {key: value for key, value in text.items() if key != "vocab_size"},
        "resolution": config.resolution.model_dump(),
        "positions": config.positions.model_dump(),
    }


def _differing(theirs: Any, ours: Any) -> str:
    """The values that differ, of two tables only those."""
    if not (isinstance(theirs, dict) and isinstance(ours, dict)):
        return f"{theirs!r} instead of {ours!r}"
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    return ", ".join(f"{key} {theirs.get(key)!r} instead of {ours.get(key)!r}" for key in keys)


def _in_float32(config: ModelConfig, again: Vlm) -> Vlm:
    """The model that `config` says, in float32, with the tensors that were read back."""
    with weightless():
        model = Vlm(config, weights=False)
    own = shapes_of(model)
    tensors = {name: tensor for name, tensor in unique_state(again).items() if name in own}
    rows = {name: shape[0] for name, shape in own.items() if shape}
    fill(
        model,
        (
            (name, (tensor[: rows[name]] if name in rows else tensor).float() if tensor.is_floating_point() else tensor)
            for name, tensor in tensors.items()
        ),
    )
    return model.requires_grad_(requires_grad=False).eval()
