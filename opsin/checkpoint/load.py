"""Load any checkpoint that opsin reads: its own, Hugging Face's LLaVA and Qwen2-VL families, LLaVA's original layout.

Only a config's known keys are read, no code of a directory is ever run, and nothing is read before every name and shape
is known to fit. Weights are read one at a time into a model that was built without memory for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from opsin.checkpoint.filling import check_filled, dtype_of, fill, shapes_of, tied_names, weightless
from opsin.checkpoint.hub_config import family_of, hub_model_config
from opsin.checkpoint.hub_names import ORIGINAL, PATCHES, SOLE_TOWER, Rules, renamed, rules_for, wanted
from opsin.checkpoint.hub_values import read_config_json
from opsin.checkpoint.model import CHECKPOINTS, Loaded, find_checkpoint, load_model, load_tokenizer, read_config
from opsin.checkpoint.original import is_original, original_model_config, tower_names
from opsin.checkpoint.refusing import check_cost, refusing
from opsin.checkpoint.shards import Weights
from opsin.core.errors import CheckpointError, ModelError
from opsin.model.config import ModelConfig
from opsin.model.encoder_values import NativeVitEncoder
from opsin.model.fitting import misfits, refuse
from opsin.model.vlm import Vlm
from opsin.text.own_template import spoken
from opsin.text.templates import Template


@dataclass(frozen=True)
class Foreign:
    """A directory that opsin did not write: what it describes, and where its weights are, under which names."""

    config: ModelConfig
    sources: tuple[tuple[Weights, Rules], ...]
    family: str


def load(
    path: Path | str,
    *,
    vision_tower: Path | str | None = None,
    tokenizer: Path | str | None = None,
    template: Template | None = None,
    merge: bool = True,
) -> Loaded:
    """Load a checkpoint for use; nothing in it is trainable until a stage says so, and weights keep the file's types.

    - `vision_tower`: directory of the tower, for original checkpoints that lack its weights
    - `tokenizer`: directory with tokenizer.json, where the checkpoint has none
    - `template`: how the model is spoken to, where the checkpoint does not say, or says something else
    - `merge`: fold the adapters that it carries into its weights; otherwise they stay beside them

    Raises:
        CheckpointError: files are missing, damaged, or ask for code to be run.
        ModelError: weights do not fit the config (all named), or something has no counterpart in opsin.
        RenderError: the tokenizer lacks a token that the template needs.
    """
    folder = Path(path)
    if is_own(folder):
        if vision_tower or tokenizer or template:
            raise CheckpointError(f"{folder}: opsin's own checkpoint, which holds its tower, tokenizer and template")
        return load_model(folder, merge=merge)
    tower = None if vision_tower is None else Path(vision_tower)
    foreign = read_foreign(folder, tower, None if tokenizer is None else Path(tokenizer), template)
    where = folder / "config.json"
    names = (renamed(name, rules) for weights, rules in foreign.sources for name in weights.stored)
    with refusing(where), weightless():
        check_cost(foreign.config, names, where)
        model = Vlm(foreign.config, weights=False)
    _fill(model, foreign, folder)
    model.precision = "bf16" if dtype_of(model) == torch.bfloat16 else "fp32"
    model.requires_grad_(requires_grad=False).eval()
    words = load_tokenizer(foreign.config.language.tokenizer_path)
    for token in spoken(foreign.config.template, words).stop_tokens:
        words.control(token)  # which raises where the template is another model's
    return Loaded(model, words, folder, {"source": foreign.family})


def read_model_config(path: Path, *, vision_tower: Path | None = None, template: Template | None = None) -> ModelConfig:
    """What a checkpoint of any kind describes, without reading its weights (of some, their names are looked at).

    Raises:
        CheckpointError: files are missing, malformed, or ask for code to be run.
        ModelError: something has no counterpart in opsin.
    """
    if is_own(path):
        return read_config(find_checkpoint(path)).config
    return read_foreign(path, vision_tower, None, template, weights=False).config


def is_own(folder: Path) -> bool:
    """A run of opsin, or one of its checkpoints."""
    return (folder / CHECKPOINTS).is_dir() or (folder / "model.json").is_file() or (folder / "manifest.json").is_file()


def read_foreign(
    folder: Path,
    vision_tower: Path | None = None,
    tokenizer: Path | None = None,
    template: Template | None = None,
    *,
    weights: bool = True,
) -> Foreign:
    """Recognise a directory that opsin did not write.

    Raises:
        CheckpointError: files are missing, malformed, or ask for code to be run.
        ModelError: something has no counterpart in opsin.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such directory; give a run, a checkpoint, or a model's directory")
    with refusing(folder / "config.json"):
        return _described(folder, vision_tower, tokenizer or folder, template, weights=weights)


def _described(
    folder: Path, vision_tower: Path | None, tokenizer: Path, template: Template | None, *, weights: bool
) -> Foreign:
    config = read_config_json(folder)
    if not is_original(config):
        if vision_tower is not None:
            raise CheckpointError(f"{folder}: not in LLaVA's original layout, so it holds its tower: drop vision_tower")
        value = hub_model_config(folder, config, template, tokenizer)
        family = family_of(config)
        assert family is not None  # checked by hub_model_config
        return Foreign(value, ((Weights.of(folder), rules_for(family)),) if weights else (), family)
    stored = Weights.of(folder)
    names = stored.stored.keys()
    value = original_model_config(folder, config, names, vision_tower, template, tokenizer)
    sources = [(stored, ORIGINAL)]
    if vision_tower is not None and not tower_names(names):
        sources.append((Weights.of(vision_tower), SOLE_TOWER))
    return Foreign(value, tuple(sources), "original")


def _fill(model: Vlm, foreign: Foreign, folder: Path) -> None:
    own, tied = shapes_of(model), tied_names(model)
    plans = [(weights, wanted(weights.stored, rules, {**own, **tied})) for weights, rules in foreign.sources]
    given: dict[str, tuple[int, ...]] = {}
    problems = []
    for weights, plan in plans:
        for theirs, mine in plan.items():
            if mine in given:
                problems.append(f"{theirs} is there twice, under two names of {mine}")
            given[mine] = _shape(mine, weights.stored[theirs].shape, foreign.config)
    refuse(folder, problems + misfits(own, {name: shape for name, shape in given.items() if name not in tied}))
    fill(model, _tensors(plans, own))
    check_filled(model)
    _check_tied(model, plans, tied, folder)


def _shape(name: str, shape: tuple[int, ...], config: ModelConfig) -> tuple[int, ...]:
    """The convolution that cuts patches is a matrix here."""
    encoder = config.encoder
    if name != PATCHES or not isinstance(encoder, NativeVitEncoder):
        return shape
    kernel = (3, encoder.temporal, encoder.patch_size, encoder.patch_size)
    return (shape[0], math.prod(kernel)) if shape[1:] == kernel else shape


def _tensors(
    plans: list[tuple[Weights, dict[str, str]]], own: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, Tensor]]:
    for weights, plan in plans:
        for theirs, tensor in weights.read([theirs for theirs, mine in plan.items() if mine in own]):
            yield plan[theirs], tensor.view(own[plan[theirs]])


def _check_tied(model: Vlm, plans: list[tuple[Weights, dict[str, str]]], tied: dict[str, str], folder: Path) -> None:
    """A file may hold a tied head once more, if it is the same."""
    for weights, plan in plans:
        for theirs, tensor in weights.read([theirs for theirs, mine in plan.items() if mine in tied]):
            if not torch.equal(tensor, model.get_parameter(tied[plan[theirs]])):
                raise ModelError(
                    f"{folder}: config.json ties {theirs} to the embedding, but the file holds another one; "
                    "set tie_word_embeddings to false in config.json"
                )
