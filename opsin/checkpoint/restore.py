"""The model of a checkpoint, to be trained on."""

from __future__ import annotations

from pathlib import Path

from opsin.checkpoint.model import fill_model, read_config
from opsin.model.lora import add_lora, merge_lora
from opsin.model.vlm import Vlm


def restore_model(folder: Path) -> Vlm:
    """The model as a run leaves it at the end of a stage: the adapters that the checkpoint carries are folded in.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ModelError: its weights do not fit its description.
    """
    described = read_config(folder)
    model = Vlm(described.config, weights=False)
    for part, lora in described.lora.items():
        add_lora(model.part(part), lora)
    fill_model(model, folder)
    for part in described.lora:
        merge_lora(model.part(part))
    model.precision = described.precision
    return model
