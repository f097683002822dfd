"""A model and its tokenizer as files of a checkpoint: `model.json`, `model*.safetensors`, `tokenizer/`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from opsin.checkpoint.filling import check_filled, fill, shapes_of, tied_names, weightless
from opsin.checkpoint.json_files import read_json
from opsin.checkpoint.places import MODEL, OPTIMISER, shard_files, shard_name
from opsin.checkpoint.prepare import preparation
from opsin.checkpoint.refusing import check_cost, refusing
from opsin.checkpoint.shards import Weights, write_tensors
from opsin.checkpoint.snapshot import placed_like
from opsin.checkpoint.store import newest_whole, verify
from opsin.core.errors import CheckpointError
from opsin.core.files import write_json
from opsin.data.example import Preparation
from opsin.model.config import Lora, ModelConfig, ModuleName
from opsin.model.fitting import misfits, refuse
from opsin.model.lora import add_lora, merge_lora
from opsin.model.pretrained import Value
from opsin.model.vlm import Vlm
from opsin.text.tokenizer import TOKENIZER_FILE, Tokenizer

MAX_CONFIG_BYTES = 2_000_000
CHECKPOINTS = "checkpoints"
"""Folder of a run that holds its checkpoints."""


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds, ready to use."""

    model: Vlm
    tokenizer: Tokenizer
    path: Path
    meta: dict[str, Any]
    lora: Mapping[ModuleName, Lora] = field(default_factory=dict)
    """Adapters that stand beside the weights of parts; none where they were folded in."""

    @property
    def preparation(self) -> Preparation:
        """How its inputs are prepared."""
        return preparation(self.model.config, self.tokenizer)


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors by name, a tied weight once, under its first name."""
    tied = tied_names(module)
    return {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items() if name not in tied}


def write_model(folder: Path, model: Vlm, tokenizer: Tokenizer, lora: dict[ModuleName, Lora]) -> None:
    """Write a model of one process, with the adapters it carries at the moment, into a checkpoint being made."""
    write_description(folder, model, tokenizer, lora)
    write_tensors(folder / shard_name(MODEL, 0, 1), unique_state(model))


def write_description(folder: Path, model: Vlm, tokenizer: Tokenizer, lora: dict[ModuleName, Lora]) -> None:
    """Write all of a model but its tensors, none of which is looked at: they may be changing."""
    # Paths of the machine that trained it mean nothing elsewhere: the configs stand for themselves.
    dumped = model.config.model_dump(mode="json", exclude={"encoder": {"path"}, "language": {"path", "tokenizer"}})
    dumped["language"]["tokenizer"] = "tokenizer"
    adapters = {part: value.model_dump(mode="json") for part, value in lora.items()}
    write_json(folder / "model.json", {"model": dumped, "lora": adapters, "precision": model.precision})
    tokenizer.save(folder / "tokenizer")


class Described(Value):
    """What `model.json` says: the model, the adapters its weights carry, and the precision it computes in."""

    config: ModelConfig = Field(alias="model")
    lora: dict[ModuleName, Lora]
    precision: Literal["bf16", "fp32"]


def read_config(folder: Path) -> Described:
    """Read `model.json`.

    Raises:
        CheckpointError: it is missing or not valid.
    """
    path = folder / "model.json"
    value = read_json(path, MAX_CONFIG_BYTES)
    with refusing(path):
        described = Described.model_validate(value)
    name = str(described.config.language.tokenizer)
    if PurePosixPath(name).name != name or "\\" in name or name in {".", ".."}:
        raise CheckpointError(f"{path}: the tokenizer {name!r} is not a folder of the checkpoint; not followed")
    language = described.config.language.model_copy(update={"tokenizer": folder / name})
    return described.model_copy(update={"config": described.config.model_copy(update={"language": language})})


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a directory.

    Raises:
        CheckpointError: it is missing or not valid.
    """
    with refusing(folder / TOKENIZER_FILE):
        return Tokenizer.load(folder)


def fill_model(model: nn.Module, folder: Path) -> None:
    """Copy a checkpoint's weights into a model of the same architecture, keeping the file's dtypes.

    A model that is split over ranks takes its parts, on every rank for itself; it must have the file's dtypes before.

    Raises:
        CheckpointError: the weights are damaged.
        ModelError: they do not fit (all named).
    """
    weights = Weights(shard_files(folder, MODEL))
    refuse(folder, misfits(shapes_of(model), {name: stored.shape for name, stored in weights.stored.items()}))
    own = model.state_dict()
    for name, tensor in weights.read(weights.stored):
        if own[name].dtype == tensor.dtype:
            own[name].copy_(placed_like(tensor, own[name]))
            continue
        assert not isinstance(own[name], DTensor), f"{name} was split as {own[name].dtype}, the file has {tensor.dtype}"
        owner, _, leaf = name.rpartition(".")
        held = getattr(model.get_submodule(owner), leaf)
        held.data = tensor.to(held.device)


def read_optimiser(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The optimiser's tensors of a checkpoint, whole and one at a time, whatever number of ranks wrote them.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    weights = Weights(shard_files(folder, OPTIMISER))
    yield from weights.read(weights.stored)


def find_checkpoint(path: Path) -> Path:
    """A checkpoint directory itself, or the newest whole one of a run directory.

    Raises:
        CheckpointError: there is none.
    """
    if (path / CHECKPOINTS).is_dir():
        return newest_whole(path / CHECKPOINTS, weights_only=True)[0]
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory; give a run or a checkpoint of one")
    return path


def load_model(path: Path, *, merge: bool = True) -> Loaded:
    """Load a checkpoint (or a run's newest) for use: verified, nothing trainable, its adapters folded in if `merge`.

    Raises:
        CheckpointError: it is missing, incomplete or altered.
    """
    folder = find_checkpoint(path)
    meta = verify(folder, weights_only=True)
    described = read_config(folder)
    weights = Weights(shard_files(folder, MODEL))
    with refusing(folder / "model.json"), weightless():
        check_cost(described.config, weights.stored, folder / "model.json")
        model = Vlm(described.config, weights=False)
        for part, lora in described.lora.items():
            add_lora(model.part(part), lora)
    model.precision = described.precision
    refuse(folder, misfits(shapes_of(model), {name: stored.shape for name, stored in weights.stored.items()}))
    fill(model, weights.read(weights.stored))
    check_filled(model)
    if merge:
        for part in described.lora:
            merge_lora(model.part(part))
    model.requires_grad_(requires_grad=False).eval()
    tokenizer = load_tokenizer(described.config.language.tokenizer_path)
    return Loaded(model, tokenizer, folder, meta, {} if merge else described.lora)
