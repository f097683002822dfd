"""How one weight is called by Hugging Face, by LLaVA's original code, and by opsin. Nothing but names here.

Hub names are those of the published files. Directories that transformers 5 writes, or holds in memory, use others for
the same tensors: with or without a leading `model.`, `vision_model.`, and with the head in one of several places.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

Family = Literal["llava", "llava_next", "llava_onevision", "qwen2_vl"]
"""`model_type` of the Hugging Face families."""

TOWER, VIT = "encoder.tower.", "encoder.vit."
CONNECTOR, NEWLINE = "connection.connector.", "connection.newline"
LANGUAGE, HEAD = "decoder.lm.model.", "decoder.lm.lm_head."
PATCHES = f"{VIT}patch_embed.weight"
"""A convolution in Qwen2-VL's files, of shape (C, 3, frames, patch, patch); flattened to (C, K) here."""

Rules = tuple[tuple[str, str], ...]
"""(pattern of the beginning of a foreign name, the beginning of opsin's), the first match counts."""

LLAVA: Rules = (
    (r"(?:model\.)?(?:language_model\.)?lm_head\.", HEAD),
    (r"(?:model\.)?language_model\.(?:model\.)?", LANGUAGE),
    (r"(?:model\.)?vision_tower\.(?:vision_model\.)?", TOWER),
    (r"(?:model\.)?multi_modal_projector\.linear_1\.", f"{CONNECTOR}layers.0."),
    (r"(?:model\.)?multi_modal_projector\.linear_2\.", f"{CONNECTOR}layers.2."),
    (r"(?:model\.)?image_newline$", NEWLINE),
)
QWEN2_VL: Rules = (
    (r"(?:model\.)?(?:language_model\.)?lm_head\.", HEAD),
    (r"(?:model\.)?visual\.patch_embed\.proj\.", f"{VIT}patch_embed."),
    (r"(?:model\.)?visual\.blocks\.", f"{VIT}blocks."),
    (r"(?:model\.)?visual\.merger\.ln_q\.", f"{CONNECTOR}norm."),
    (r"(?:model\.)?visual\.merger\.mlp\.", f"{CONNECTOR}layers."),
    (r"(?:model\.)?language_model\.(?:model\.)?", LANGUAGE),
    (r"model\.(?!visual\.)", LANGUAGE),
)
ORIGINAL: Rules = (
    (r"lm_head\.", HEAD),
    (r"model\.vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?", TOWER),
    (r"model\.mm_projector\.(?=\d+\.)", f"{CONNECTOR}layers."),
    (r"model\.mm_projector\.(?=weight$|bias$)", f"{CONNECTOR}layers.0."),
    (r"model\.image_newline$", NEWLINE),
    (r"model\.(?!vision_resampler\.|mm_|image_)", LANGUAGE),
)
SOLE_TOWER: Rules = ((r"(?:vision_model\.)?(?=embeddings\.|pre_layrnorm\.|encoder\.|post_layernorm\.|head\.)", TOWER),)
"""A directory of CLIP or SigLIP alone."""

POOLING_HEAD = f"{TOWER}head."
"""SigLIP's, which a tower of its own directory has: opsin, like LLaVA, reads patch features before it."""

TO_HUB: dict[Family, dict[str, str]] = {
    family: {
        HEAD: "language_model.lm_head.",
        LANGUAGE: "language_model.model.",
        TOWER: "vision_tower.vision_model.",
        f"{CONNECTOR}layers.0.": "multi_modal_projector.linear_1.",
        f"{CONNECTOR}layers.2.": "multi_modal_projector.linear_2.",
        NEWLINE: "image_newline",
    }
    for family in ("llava", "llava_next", "llava_onevision")
}
TO_HUB["qwen2_vl"] = {
    HEAD: "lm_head.",
    LANGUAGE: "model.",
    f"{VIT}patch_embed.": "visual.patch_embed.proj.",
    f"{VIT}blocks.": "visual.blocks.",
    f"{CONNECTOR}norm.": "visual.merger.ln_q.",
    f"{CONNECTOR}layers.": "visual.merger.mlp.",
}

TO_MODULE: dict[Family, dict[str, str]] = {
    family: {LANGUAGE: "model.language_model.", TOWER: "model.vision_tower."}
    | {own: f"model.{hub}" for own, hub in TO_HUB[family].items() if own.startswith(CONNECTOR)}
    for family in ("llava", "llava_next", "llava_onevision")
}
TO_MODULE["qwen2_vl"] = {LANGUAGE: "model.language_model."} | {
    own: f"model.{hub}" for own, hub in TO_HUB["qwen2_vl"].items() if own.startswith((VIT, CONNECTOR))
}
"""Names that transformers 5 gives, in memory, to layers that adapters can stand beside."""

UNUSED: tuple[tuple[str, str], ...] = (
    (r"decoder\.lm\.model\..*rotary_emb\.inv_freq$", "computed from the config"),
    (r"encoder\.tower\.embeddings\.position_ids$", "0, 1, 2, ...: computed"),
    (re.escape(POOLING_HEAD), "patch features are read before it"),
    (r"encoder\.tower\.post_layernorm\.", "behind the layers that features are read from"),
    (r"text_model\.|text_projection\.|visual_projection\.|logit_(?:scale|bias)$", "the text half of CLIP and SigLIP"),
)
"""Tensors that files hold and opsin does not use (pattern of opsin's name, or of a name it has none for; why)."""


def renamed(name: str, rules: Rules) -> str:
    """opsin's name of a foreign tensor, or the name itself where no rule knows it."""
    for pattern, own in rules:
        found = re.match(pattern, name)
        if found:
            return own + name[found.end() :]
    return name


def rules_for(family: Family) -> Rules:
    """The rules of a Hugging Face family."""
    return QWEN2_VL if family == "qwen2_vl" else LLAVA


def to_hub(name: str, family: Family) -> str:
    """The hub's name of one of opsin's tensors.

    Raises:
        KeyError: the family has no such tensor.
    """
    return _begun(name, TO_HUB[family])


def to_module(name: str, family: Family) -> str:
    """The name, in transformers' model in memory, of one of opsin's layers or of what is below it.

    Raises:
        KeyError: the family has no such layer.
    """
    return _begun(name, TO_MODULE[family])


def _begun(name: str, beginnings: Mapping[str, str]) -> str:
    """The name with another beginning."""
    for own, foreign in beginnings.items():
        if name.startswith(own):
            return foreign + name[len(own) :]
    raise KeyError(name)


def wanted(names: Iterable[str], rules: Rules, own: Mapping[str, object]) -> dict[str, str]:
    """Foreign name -> opsin's, without the tensors that are known to be of no use to the model of names `own`."""
    found = {}
    for name in names:
        mine = renamed(name, rules)
        if mine in own or not any(re.match(pattern, mine) for pattern, _ in UNUSED):
            found[name] = mine
    return found
