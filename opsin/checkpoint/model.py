"""A model and its tokenizer as files of a checkpoint: `model.json`, `model.safetensors`, `tokenizer/`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from opsin.checkpoint.filling import check_filled, fill, shapes_of, weightless
from opsin.checkpoint.json_files import read_json
from opsin.checkpoint.prepare import preparation
from opsin.checkpoint.refusing import check_cost, refusing
from opsin.checkpoint.shards import Weights
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

    @property
    def preparation(self) -> Preparation:
        """How its inputs are prepared."""
        return preparation(self.model.config, self.tokenizer)


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors by name, each storage once (a tied head is left out)."""
    tied = _tied(module)
    return {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items() if name not in tied}


def write_model(folder: Path, model: Vlm, tokenizer: Tokenizer, lora: dict[ModuleName, Lora]) -> None:
    """Write a model, with the adapters it carries at the moment, into a checkpoint being made."""
    # Paths of the machine that trained it mean nothing elsewhere: the configs stand for themselves.
    dumped = model.config.model_dump(mode="json", exclude={"encoder": {"path"}, "language": {"path", "tokenizer"}})
    dumped["language"]["tokenizer"] = "tokenizer"
    adapters = {part: value.model_dump(mode="json") for part, value in lora.items()}
    write_json(folder / "model.json", {"model": dumped, "lora": adapters, "precision": model.precision})
    save_file(unique_state(model), folder / "model.safetensors")
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

    Raises:
        CheckpointError: the weights are damaged.
        ModelError: they do not fit (all named).
    """
    path = folder / "model.safetensors"
    weights = Weights([path])
    refuse(path, misfits(shapes_of(model), {name: stored.shape for name, stored in weights.stored.items()}))
    own = model.state_dict()
    for name, tensor in weights.read(weights.stored):
        owner, _, leaf = name.rpartition(".")
        if own[name].dtype != tensor.dtype:
            held = getattr(model.get_submodule(owner), leaf)
            held.data = tensor.to(held.device)
        else:
            own[name].copy_(tensor)


def _tied(model: nn.Module) -> dict[str, str]:
    """Names that `unique_state` leaves out -> the name whose storage they share."""
    first: dict[int, str] = {}
    tied = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel() and tensor.data_ptr() in first:
            tied[name] = first[tensor.data_ptr()]
        else:
            first[tensor.data_ptr()] = name
    return tied


def find_checkpoint(path: Path) -> Path:
    """A checkpoint directory itself, or the newest whole one of a run directory.

    Raises:
        CheckpointError: there is none.
    """
    if (path / CHECKPOINTS).is_dir():
        return newest_whole(path / CHECKPOINTS)[0]
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory; give a run or a checkpoint of one")
    return path


def load_model(path: Path) -> Loaded:
    """Load a checkpoint (or a run's newest) for use: verified, adapters merged, nothing trainable.

    Raises:
        CheckpointError: it is missing, incomplete or altered.
    """
    folder = find_checkpoint(path)
    meta = verify(folder)
    described = read_config(folder)
    weights = Weights([folder / "model.safetensors"])
    with refusing(folder / "model.json"), weightless():
        check_cost(described.config, weights.stored, folder / "model.json")
        model = Vlm(described.config, weights=False)
        for part, lora in described.lora.items():
            add_lora(model.part(part), lora)
    model.precision = described.precision
    refuse(folder, misfits(shapes_of(model), {name: stored.shape for name, stored in weights.stored.items()}))
    fill(model, weights.read(weights.stored))
    check_filled(model)
    for part in described.lora:
        merge_lora(model.part(part))
    model.requires_grad_(requires_grad=False).eval()
    return Loaded(model, load_tokenizer(described.config.language.tokenizer_path), folder, meta)
