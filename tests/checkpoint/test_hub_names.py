from __future__ import annotations

import pytest

from opsin.checkpoint.hub_names import LLAVA, ORIGINAL, QWEN2_VL, SOLE_TOWER, renamed, rules_for, to_hub, wanted

EMBEDDING = "decoder.lm.model.embed_tokens.weight"
LAYER = "decoder.lm.model.layers.11.self_attn.q_proj.bias"
HEAD = "decoder.lm.lm_head.weight"
TOWER = "encoder.tower.encoder.layers.3.mlp.fc1.weight"

PUBLISHED = {
    "llava": {
        "language_model.model.embed_tokens.weight": EMBEDDING,
        "language_model.model.layers.11.self_attn.q_proj.bias": LAYER,
        "language_model.model.norm.weight": "decoder.lm.model.norm.weight",
        "language_model.lm_head.weight": HEAD,
        "multi_modal_projector.linear_1.weight": "connection.connector.layers.0.weight",
        "multi_modal_projector.linear_2.bias": "connection.connector.layers.2.bias",
        "vision_tower.vision_model.embeddings.class_embedding": "encoder.tower.embeddings.class_embedding",
        "vision_tower.vision_model.pre_layrnorm.weight": "encoder.tower.pre_layrnorm.weight",
        "vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight": TOWER,
        "vision_tower.vision_model.post_layernorm.bias": "encoder.tower.post_layernorm.bias",
    },
    "llava_onevision": {
        "image_newline": "connection.newline",
        "vision_tower.vision_model.embeddings.patch_embedding.bias": "encoder.tower.embeddings.patch_embedding.bias",
        "language_model.lm_head.weight": HEAD,
    },
    "qwen2_vl": {
        "model.embed_tokens.weight": EMBEDDING,
        "model.layers.11.self_attn.q_proj.bias": LAYER,
        "lm_head.weight": HEAD,
        "visual.patch_embed.proj.weight": "encoder.vit.patch_embed.weight",
        "visual.blocks.7.attn.qkv.bias": "encoder.vit.blocks.7.attn.qkv.bias",
        "visual.merger.ln_q.weight": "connection.connector.norm.weight",
        "visual.merger.mlp.0.weight": "connection.connector.layers.0.weight",
        "visual.merger.mlp.2.bias": "connection.connector.layers.2.bias",
    },
}
PAIRS = [(family, theirs, ours) for family, names in PUBLISHED.items() for theirs, ours in names.items()]


@pytest.mark.parametrize(("family", "theirs", "ours"), PAIRS)
def test_published_names_go_both_ways(family: str, theirs: str, ours: str) -> None:
    assert renamed(theirs, rules_for(family)) == ours  # type: ignore[arg-type]
    assert to_hub(ours, family) == theirs  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model.language_model.embed_tokens.weight", EMBEDDING),
        ("language_model.embed_tokens.weight", EMBEDDING),
        ("model.language_model.layers.11.self_attn.q_proj.bias", LAYER),
        ("lm_head.weight", HEAD),
        ("model.lm_head.weight", HEAD),
        ("model.language_model.lm_head.weight", HEAD),
        ("model.vision_tower.encoder.layers.3.mlp.fc1.weight", TOWER),
        ("vision_tower.encoder.layers.3.mlp.fc1.weight", TOWER),
        ("model.vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight", TOWER),
        ("model.multi_modal_projector.linear_2.weight", "connection.connector.layers.2.weight"),
        ("model.image_newline", "connection.newline"),
    ],
)
def test_llava_under_newer_names(theirs: str, ours: str) -> None:
    assert renamed(theirs, LLAVA) == ours


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model.language_model.embed_tokens.weight", EMBEDDING),
        ("model.language_model.layers.11.self_attn.q_proj.bias", LAYER),
        ("model.visual.merger.ln_q.bias", "connection.connector.norm.bias"),
        ("model.visual.patch_embed.proj.weight", "encoder.vit.patch_embed.weight"),
    ],
)
def test_qwen2_vl_under_newer_names(theirs: str, ours: str) -> None:
    assert renamed(theirs, QWEN2_VL) == ours


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("model.embed_tokens.weight", EMBEDDING),
        ("lm_head.weight", HEAD),
        ("model.mm_projector.0.weight", "connection.connector.layers.0.weight"),
        ("model.mm_projector.2.bias", "connection.connector.layers.2.bias"),
        ("model.mm_projector.weight", "connection.connector.layers.0.weight"),
        ("model.image_newline", "connection.newline"),
        ("model.vision_tower.vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight", TOWER),
    ],
)
def test_original_names(theirs: str, ours: str) -> None:
    assert renamed(theirs, ORIGINAL) == ours


@pytest.mark.parametrize("name", ["model.mm_projector.readout.0.weight", "model.vision_resampler.query", "head.bias"])
def test_names_that_no_rule_knows_stay_as_they_are(name: str) -> None:
    assert renamed(name, ORIGINAL) == name


@pytest.mark.parametrize("prefix", ["", "vision_model."])
def test_a_tower_of_its_own(prefix: str) -> None:
    assert renamed(f"{prefix}encoder.layers.3.mlp.fc1.weight", SOLE_TOWER) == TOWER


def test_only_listed_tensors_are_passed_over() -> None:
    names = [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids",
        "model.vision_tower.vision_tower.vision_model.head.probe",
        "model.vision_tower.vision_tower.vision_model.post_layernorm.weight",
        "model.norm.weight",
        "model.something_else",
    ]
    assert list(wanted(names, ORIGINAL, {})) == names[4:]
    kept = wanted(names, ORIGINAL, {"encoder.tower.post_layernorm.weight": 0})
    assert list(kept) == names[3:]  # a model that has it takes it


def test_a_part_that_a_family_lacks_has_no_name_there() -> None:
    with pytest.raises(KeyError):
        to_hub("connection.newline", "qwen2_vl")
