"""Write a checkpoint as a Hugging Face directory in the hub's layout, and prove that it is the same model.

The directory is made beside its place, read back by opsin and by transformers (`proof`), and only then
renamed. Nothing is ever overwritten.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from torch import Tensor

from opsin.checkpoint.adapters import write_hub_adapters
from opsin.checkpoint.chat_templates import TEMPLATE_FILE, jinja, media_tokens
from opsin.checkpoint.compare import TOLERANCE, Comparison
from opsin.checkpoint.filling import dtype_of
from opsin.checkpoint.hub_config import VISION_END, VISION_START
from opsin.checkpoint.hub_files import config_json, family_for, notes_on, processor_files
from opsin.checkpoint.hub_names import HEAD, LANGUAGE, PATCHES, POOLING_HEAD, Family, to_hub
from opsin.checkpoint.merging import Merged, refuse_adapters
from opsin.checkpoint.merging import merge as merge_adapters
from opsin.checkpoint.model import Loaded, unique_state
from opsin.checkpoint.prepare import stop_ids
from opsin.checkpoint.proof import prove
from opsin.core.errors import CheckpointError, ModelError
from opsin.core.files import fsync_directory, fsync_file, write_json, write_text
from opsin.model.encoder_values import NativeVitEncoder
from opsin.model.vlm import Vlm
from opsin.text.tokenizer import CONFIG_FILE, TOKENIZER_FILE, Tokenizer

SHARD_BYTES = 5_000_000_000
ROWS_MULTIPLE = 64
"""A vocabulary that grows is rounded up to a multiple of this, as the published checkpoints' are."""

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Exported:
    """A written directory, and how far transformers' logits are from the model's."""

    path: Path
    family: Family
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    merged: Merged | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        differences = {c.prompt: {"tokens": c.tokens, "difference": c.difference} for c in self.comparisons}
        return {
            "path": str(self.path),
            "family": self.family,
            "logits": differences,
            "limit": TOLERANCE,
            "notes": list(self.notes),
            "merged": None if self.merged is None else self.merged.as_dict(),
        }


def export(loaded: Loaded, target: Path, *, merge: bool = False, shard_bytes: int = SHARD_BYTES) -> Exported:
    """Write `target`, a Hugging Face directory that transformers and vLLM load; `merge` folds adapters in before.

    Raises:
        ModelError: no Hugging Face class holds such a model (with the reason), it carries adapters and is not to be
            merged, or what was written, or merged, is not the model.
        CheckpointError: `target` exists, or the disk is full or fails.
    """
    family = family_for(loaded.model.config)
    merged = None
    if merge:
        loaded, merged = merge_adapters(loaded, family)
    refuse_adapters(loaded)
    with _fresh(target) as partial:
        ids = _write(loaded, partial, family, shard_bytes)
        comparisons, notes = prove(loaded, partial, family, ids)
    return Exported(target, family, tuple(comparisons), (*notes_on(loaded.model.config, family), *notes), merged)


def export_adapters(loaded: Loaded, target: Path) -> Family:
    """Write `target`, peft's adapter for the Hugging Face class that holds such a model; returns its family.

    It goes on the model that the adapters' stage began with, as that is exported.

    Raises:
        ModelError: no Hugging Face class holds such a model, or it has no adapters.
        CheckpointError: `target` exists, or the disk is full or fails.
    """
    family = family_for(loaded.model.config)
    if not loaded.lora:
        raise ModelError(f"{loaded.path}: carries no adapters; export it without --adapters")
    with _fresh(target) as partial:
        write_hub_adapters(partial, loaded.model, loaded.lora, family)
    return family


@contextmanager
def _fresh(target: Path) -> Iterator[Path]:
    """A directory to write, which becomes `target` when all is there, and is gone where something fails.

    Raises:
        CheckpointError: `target` exists, or the disk is full or fails.
    """
    if target.exists():
        raise CheckpointError(f"{target}: exists already; export to a new directory")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in partial.iterdir():
            fsync_file(file)
        partial.rename(target)
        fsync_directory(target.parent)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{target}: could not be written ({reason}); nothing was left behind") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(loaded: Loaded, folder: Path, family: Family, shard_bytes: int) -> dict[str, int]:
    """All files; the ids of the media's tokens."""
    model, config = loaded.model, loaded.model.config
    template = jinja(config.template, family)
    ids = _write_tokenizer(loaded.tokenizer, folder, family)
    rows = model.decoder.input_weight.shape[0]
    if max(ids.values()) >= rows:
        rows = -(-(max(ids.values()) + 1) // ROWS_MULTIPLE) * ROWS_MULTIPLE
    dtype = torch.bfloat16 if model.precision == "bf16" else dtype_of(model)
    lm = {**model.decoder.lm.config.to_dict(), "vocab_size": rows}
    write_json(folder / "config.json", config_json(config, family, lm, ids, str(dtype).removeprefix("torch.")))
    for name, value in processor_files(config, family).items():
        write_json(folder / name, value)
    write_text(folder / TEMPLATE_FILE, template)
    write_json(folder / "generation_config.json", _generation(loaded))
    _write_shards(folder, list(_hub_tensors(model, family, rows, dtype)), shard_bytes)
    return ids


def _generation(loaded: Loaded) -> dict[str, Any]:
    tokenizer = loaded.tokenizer
    stops = sorted(stop_ids(loaded.preparation))
    padding = tokenizer.pad_id if tokenizer.pad_id is not None else stops[0]
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": stops, "pad_token_id": padding, "do_sample": False}


def _write_tokenizer(tokenizer: Tokenizer, folder: Path, family: Family) -> dict[str, int]:
    """The tokenizer's files, with the tokens of media where it lacks them; their ids."""
    tokenizer.save(folder)
    needed = media_tokens(family)[: 1 if family in {"llava", "llava_next"} else 2]
    needed += (VISION_START, VISION_END) if family == "qwen2_vl" else ()
    path = folder / TOKENIZER_FILE
    backend = Backend.from_file(str(path))
    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    missing = [token for token in needed if token not in known]
    if missing:
        backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in missing])
        backend.save(str(path))
    config: dict[str, Any] = {}
    if (folder / CONFIG_FILE).is_file():
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    for key in ("auto_map", "chat_template", "processor_class"):  # the template has a file of its own
        config.pop(key, None)
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        if isinstance(config.get(key), dict):  # opsin reads any table with the content, transformers only its own
            config[key] = config[key].get("content")
    write_json(folder / CONFIG_FILE, config)
    ids = {token: backend.token_to_id(token) for token in needed}
    return {token: index for token, index in ids.items() if index is not None}  # all of them, by now


def _hub_tensors(model: Vlm, family: Family, rows: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors by their hub names; views where nothing changes."""
    for name, tensor in unique_state(model).items():
        if name.startswith(POOLING_HEAD):
            continue
        out = tensor.to(dtype) if tensor.is_floating_point() else tensor
        if name in {f"{LANGUAGE}embed_tokens.weight", f"{HEAD}weight"}:
            out = _with_rows(out, rows)
        encoder = model.config.encoder
        if name == PATCHES and isinstance(encoder, NativeVitEncoder):
            out = out.view(len(out), 3, encoder.temporal, encoder.patch_size, encoder.patch_size)
        yield to_hub(name, family), out


def _with_rows(weight: Tensor, rows: int) -> Tensor:
    """More rows, each the mean of all: such a token's logit, a mean too, is never the largest."""
    if rows == len(weight):
        return weight
    mean = weight.float().mean(dim=0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(rows - len(weight), -1)])


def _write_shards(folder: Path, tensors: list[tuple[str, Tensor]], shard_bytes: int) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors:
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for _, tensor in tensors)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})
