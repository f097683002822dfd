from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel

from opsin.core.types import Grid
from opsin.model.connector_values import PerceiverConnector, QFormerConnector
from opsin.model.connectors import build_connector
from opsin.model.resamplers import Perceiver, QFormer
from tests.support.golden import filled, golden, sine
from tests.support.layouts import layouts_for

BLIP2_NAMES = {
    "^layernorm": "query_norm",
    "encoder.layer.": "layers.",
    "crossattention.attention.": "map.",
    "crossattention.output.dense": "map.out",
    "crossattention.output.LayerNorm": "map.norm",
    "attention.attention.": "each_other.",
    "attention.output.dense": "each_other.out",
    "attention.output.LayerNorm": "each_other.norm",
    "intermediate_query.dense": "up",
    "output_query.dense": "down",
    "output_query.LayerNorm": "norm",
}

FLAMINGO_NAMES = {
    r"^latents$": "latents_NC",
    r"^(layers\.\d+)\.0\.norm_media": r"\1.attention.media_norm",
    r"^(layers\.\d+)\.0\.norm_latents": r"\1.attention.latent_norm",
    r"^(layers\.\d+)\.0\.to_q": r"\1.attention.query",
    r"^(layers\.\d+)\.0\.to_kv": r"\1.attention.key_value",
    r"^(layers\.\d+)\.0\.to_out": r"\1.attention.out",
    r"^(layers\.\d+)\.1\.(\d)": r"\1.feed_forward.\2",
}


def renamed(weights: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    ours: dict[str, Tensor] = {}
    for name, value in weights.items():
        for theirs, mine in names.items():
            name = re.sub(theirs, mine, name)
        ours[name] = value
    return ours


def from_blip2(weights: dict[str, Tensor], queries_NW: Tensor) -> dict[str, Tensor]:
    return {**renamed(weights, BLIP2_NAMES), "queries_NW": queries_NW}


def bare_q_former(queries: int) -> tuple[QFormerConnector, QFormer]:
    """The golden size, without the norm of the features and the projection, which transformers has elsewhere."""
    value = QFormerConnector(queries=queries, width=16, layers=4, heads=2, feed_forward=32)
    module = QFormer(value, 12, 16).eval()
    module.vision_norm, module.project = nn.Identity(), nn.Identity()
    return value, module


def test_the_q_former_gives_the_golden_values() -> None:
    case = golden("connectors_hf")["qformer_blip2"]
    value, module = bare_q_former(5)
    module.load_state_dict(from_blip2(filled(case["keys"]), sine(5, 16, phase=0.5)))
    out = module(sine(14, 12), layouts_for(value, Grid(2, 1, 7)))
    torch.testing.assert_close(out.flatten(), torch.tensor(case["out"]), atol=2e-5, rtol=0)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_q_former_is_transformers_blip2_q_former(every: int) -> None:
    torch.manual_seed(0)
    config = Blip2QFormerConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        cross_attention_frequency=every,
        encoder_hidden_size=12,
    )
    reference = Blip2QFormerModel(config).eval()
    for parameter in reference.parameters():
        parameter.data.normal_(std=0.3)
    value = QFormerConnector(queries=5, width=16, layers=4, heads=2, feed_forward=32, cross_every=every)
    module = QFormer(value, 12, 8).eval()
    queries, features = torch.randn(5, 16), torch.randn(2, 6, 12)
    missing, unexpected = module.load_state_dict(from_blip2(reference.state_dict(), queries), strict=False)
    assert unexpected == []
    assert {name.split(".")[0] for name in missing} == {"vision_norm", "project"}
    expected = module.project(
        reference(
            query_embeds=queries.expand(2, -1, -1), encoder_hidden_states=module.vision_norm(features)
        ).last_hidden_state
    )
    out = module(features.flatten(0, 1), layouts_for(value, Grid(2, 2, 3)))
    torch.testing.assert_close(out, expected.flatten(0, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("vision", "name"), [(1408, "blip2_qformer_default_1408"), (1024, "qformer_1024")])
def test_the_q_former_has_blip2s_number_of_weights(vision: int, name: str) -> None:
    with torch.device("meta"):
        module = build_connector(QFormerConnector(), vision, 4096, (16, 16))
    beside = 32 * 768 + 2 * vision + 768 * 4096 + 4096  # queries, norm of the features, projection
    assert sum(p.numel() for p in module.parameters()) == golden("connectors_hf")["counts"][name] + beside


def test_the_q_former_drops_out_in_training_only() -> None:
    value = QFormerConnector(queries=3, width=8, layers=2, heads=2, feed_forward=8, dropout=0.5)
    module, layouts, x = QFormer(value, 6, 4), layouts_for(value, Grid(1, 2, 2)), torch.randn(4, 6)
    assert not torch.equal(module.train()(x, layouts), module(x, layouts))
    assert torch.equal(module.eval()(x, layouts), module(x, layouts))


def test_the_q_former_drops_out_attention_too() -> None:
    value = QFormerConnector(queries=3, width=8, layers=1, heads=2, feed_forward=8, dropout=0.5)
    module, layouts, x = QFormer(value, 6, 4).train(), layouts_for(value, Grid(1, 2, 2)), torch.randn(4, 6)
    for one in module.modules():
        if isinstance(one, nn.Dropout):  # all that is dropped outside of attention
            one.forward = lambda tensor: tensor
    assert not torch.equal(module(x, layouts), module(x, layouts))
    assert torch.equal(module.eval()(x, layouts), module(x, layouts))


def test_queries_begin_small() -> None:
    module = QFormer(QFormerConnector(queries=64, width=96, layers=1), 8, 8)
    assert module.queries_NW.std().item() == pytest.approx(0.02, rel=0.1)


def flamingo_perceiver(case: dict[str, dict[str, int]]) -> tuple[PerceiverConnector, Perceiver, dict[str, Tensor]]:
    """A perceiver with the golden weights, and what is left of them."""
    sizes = case["cfg"]
    value = PerceiverConnector(
        latents=sizes["num_latents"],
        layers=sizes["depth"],
        heads=sizes["heads"],
        head_width=sizes["dim_head"],
        feed_forward=sizes["ff_mult"],
        project=False,
    )
    module = Perceiver(value, sizes["dim"], 99)
    weights = filled(case["keys"])
    rest = {name: weights.pop(name) for name in ("frame_embs", "media_time_embs") if name in weights}
    module.load_state_dict(renamed(weights, FLAMINGO_NAMES))
    return value, module, rest


def test_the_perceiver_is_openflamingos() -> None:
    case = golden("connectors_orig")["perceiver_noembs"]
    value, module, _ = flamingo_perceiver(case)
    out = module(sine(2 * 5, 12), layouts_for(value, Grid(2, 1, 5)))
    torch.testing.assert_close(out.flatten(), torch.tensor(case["out"]), atol=2e-5, rtol=0)


def test_with_its_frame_and_time_embeddings_added_to_the_features_it_is_openflamingos_video_resampler() -> None:
    case = golden("connectors_orig")["perceiver"]
    value, module, embeddings = flamingo_perceiver(case)
    x = sine(*case["input_shape_bTFvD"]) + embeddings["frame_embs"][:, None]
    x = x.flatten(2, 3) + embeddings["media_time_embs"]
    out = module(x.flatten(0, 2), layouts_for(value, Grid(4, 2, 5)))
    torch.testing.assert_close(out.flatten(), torch.tensor(case["out"]), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    ("value", "width", "name"),
    [
        (PerceiverConnector(project=False), 1024, "perceiver_openflamingo_default_dim1024"),
        (
            PerceiverConnector(layers=3, latents=32, project=False),
            1152,
            "llava_next_perceiver_depth3_latents32_dim1152",
        ),
    ],
)
def test_the_perceiver_has_its_published_number_of_weights(value: PerceiverConnector, width: int, name: str) -> None:
    with torch.device("meta"):
        module = build_connector(value, width, 4096, (16, 16))
        projected = build_connector(value.model_copy(update={"project": True}), width, 4096, (16, 16))
    count = golden("connectors_orig")["counts"][name]
    assert sum(p.numel() for p in module.parameters()) == count
    assert sum(p.numel() for p in projected.parameters()) == count + width * 4096 + 4096
    assert (module.width, projected.width) == (width, 4096)
