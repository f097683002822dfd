from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

from opsin.core.errors import ModelError
from opsin.core.types import Block, Grid, Layout, Picture
from opsin.model.encoder_values import Encoder
from opsin.model.encoders import TOWER_MODEL_TYPES, fill_exactly, load_encoder
from opsin.model.pixels import Normalise
from tests.support.models import SIZES, dialogue, draw_picture, encoder_value, packed, tiny_vlm

if TYPE_CHECKING:
    from pathlib import Path

VALUES: TypeAdapter[Any] = TypeAdapter(Encoder)


def pixels(kind: str, count: int = 2) -> torch.Tensor:
    size = SIZES[kind]
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def layouts(images: torch.Tensor) -> list[Layout]:
    """Every picture as a layout of 2 x 2 patches."""
    canvas = (images.shape[2], images.shape[3])
    return [Layout(canvas, canvas, 1, Grid(1, 2, 2), (2, 2), (Block(1, 2, 2),)) for _ in images]


def pair(kind: str, layer: int) -> tuple[torch.nn.Module, Any, Any]:
    value = VALUES.validate_python(encoder_value(kind) | {"select_layer": layer})
    torch.manual_seed(0)
    ours = load_encoder(value)
    theirs = AutoModel.from_config(
        AutoConfig.for_model(TOWER_MODEL_TYPES[kind], **encoder_value(kind)["config"])
    ).eval()
    theirs.load_state_dict(ours.tower.state_dict())
    return ours.eval(), theirs, value


@pytest.mark.parametrize("layer", [-1, -2, 1])
@pytest.mark.parametrize(("kind", "prefix"), [("clip", 1), ("siglip", 0), ("dinov2", 1)])
def test_features_are_the_patch_tokens_of_the_selected_layer(kind: str, prefix: int, layer: int) -> None:
    ours, theirs, value = pair(kind, layer)
    images = pixels(kind)
    mean, std = (torch.tensor(colour)[:, None, None] for colour in (value.mean, value.std))
    with torch.no_grad():
        outputs = theirs(pixel_values=(images / 255 - mean) / std, output_hidden_states=True)
        features = ours(images.flatten(), layouts(images)).view(2, 4, -1)
    expected = outputs.hidden_states[layer]
    if kind == "dinov2" and layer == -1:
        expected = outputs.last_hidden_state  # its final layer norm belongs to the last layer
    assert expected.shape[1] == 4 + prefix
    torch.testing.assert_close(features, expected[:, prefix:], atol=2e-5, rtol=1e-5)
    assert features.shape == (2, 4, ours.width)


def test_siglips_last_layer_is_taken_before_its_final_norm() -> None:
    ours, theirs, _ = pair("siglip", -1)
    images = pixels("siglip")
    with torch.no_grad():
        normed = theirs(pixel_values=(images / 255 - 0.5) / 0.5).last_hidden_state.flatten(0, 1)
        features = ours(images.flatten(), layouts(images))
        torch.testing.assert_close(theirs.post_layernorm(features), normed, atol=2e-5, rtol=1e-4)
        assert (features - normed).abs().max() > 1e-2


def test_normalisation_is_exact_at_black_and_white() -> None:
    normalise = Normalise((0.5, 0.25, 0.1), (0.5, 0.25, 0.2))
    black, white = torch.zeros(1, 3, 1, 1, dtype=torch.uint8), torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    torch.testing.assert_close(normalise(black).flatten(), torch.tensor([-1.0, -1.0, -0.5]))
    torch.testing.assert_close(normalise(white).flatten(), torch.tensor([1.0, 3.0, 4.5]))


def test_efficientnet_gives_one_feature_a_place_row_by_row() -> None:
    encoder = load_encoder(VALUES.validate_python(encoder_value("efficientnet_lite")))
    images = pixels("efficientnet_lite")
    feature_map = encoder.network(encoder.normalise(images))
    features = encoder(images.flatten(), layouts(images)).view(2, 4, -1)
    assert features.shape == (2, 4, encoder.width)
    torch.testing.assert_close(features[:, 1], feature_map[:, :, 0, 1])
    torch.testing.assert_close(features[:, 2], feature_map[:, :, 1, 0])


@pytest.mark.parametrize("kind", [*SIZES])
def test_a_frozen_encoder_builds_no_graph(kind: str, tmp_path: Path) -> None:
    model, prepare = tiny_vlm(tmp_path, encoder=kind)
    picture = Picture(path=draw_picture(tmp_path / "0.png", 0))
    batch = packed([dialogue("a", "What?", "A cat.", [picture])], prepare)
    saved: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        assert model.encode(batch).requires_grad
        assert saved
        saved.clear()
        model.encoder.requires_grad_(requires_grad=False)
        assert not model.encode(batch).requires_grad
        assert not saved
        model.encoder.requires_grad_(requires_grad=True)
        with torch.no_grad():
            assert not model.encode(batch).requires_grad


@pytest.mark.parametrize(("kind", "prefix"), [("clip", 1), ("siglip", 0), ("dinov2", 1)])
def test_several_layers_stand_side_by_side(kind: str, prefix: int) -> None:
    _, theirs, one = pair(kind, -2)
    value = VALUES.validate_python(encoder_value(kind) | {"select_layer": [-2, 0, 3, 1]})
    ours = load_encoder(value).eval()
    ours.tower.load_state_dict(theirs.state_dict())
    images = pixels(kind)
    mean, std = (torch.tensor(colour)[:, None, None] for colour in (one.mean, one.std))
    with torch.no_grad():
        features = ours(images.flatten(), layouts(images))
        outputs = theirs(pixel_values=(images / 255 - mean) / std, output_hidden_states=True)
    assert value.width == ours.width == features.shape[1] == 4 * 16
    states = list(outputs.hidden_states)
    if kind == "dinov2":
        states[3] = outputs.last_hidden_state
    expected = torch.cat([states[layer][:, prefix:] for layer in (-2, 0, 3, 1)], dim=-1)
    torch.testing.assert_close(features, expected.flatten(0, 1), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_layers_behind_the_selected_one_are_not_run_and_those_before_it_not_held(kind: str) -> None:
    value = VALUES.validate_python(encoder_value(kind, num_hidden_layers=6) | {"select_layer": -2})
    encoder = load_encoder(value).eval()
    outputs: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def note(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        outputs.append(weakref.ref(output))
        alive.append(sum(one() is not None for one in outputs))

    for layer in encoder._layers:
        layer.register_forward_hook(note)
    images = pixels(kind)
    with torch.no_grad():
        encoder(images.flatten(), layouts(images))
    assert len(outputs) == 5
    assert max(alive) == 2  # what comes in and what goes out


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
@pytest.mark.parametrize("layer", [4, -5, [1, 9]])
def test_a_layer_that_is_not_there_is_refused(kind: str, layer: int | list[int]) -> None:
    with pytest.raises(ModelError, match=r"encoder\.select_layer .*: the tower has 3 layers"):
        load_encoder(VALUES.validate_python(encoder_value(kind) | {"select_layer": layer}))


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_without_resized_position_embeddings_other_canvases_are_refused(kind: str) -> None:
    encoder = load_encoder(VALUES.validate_python(encoder_value(kind)))
    canvas = (32, 48)
    layout = Layout(canvas, canvas, 1, Grid(1, 2, 3), (2, 3), (Block(1, 2, 3),))
    with pytest.raises(ModelError) as caught:
        encoder(torch.zeros(3 * 32 * 48, dtype=torch.uint8), [layout])
    assert str(caught.value) == (
        f"a canvas of 32x48 pixels (HxW), but the {kind} encoder has position embeddings for 32x32 only; set "
        "encoder.interpolate_positions: true"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 9, "depth": 2}, "config has unknown keys hidden_size; known: depth, embed_dim, num_heads"),
        ({"num_heads": 3}, "config.embed_dim 16 in 3 heads: each head needs a width that is a multiple of 4"),
        ({"num_heads": 8}, "config.embed_dim 16 in 8 heads: each head needs a width that is a multiple of 4"),
        ({"in_channels": 4}, "config.in_channels 4: pictures have 3 colours"),
        ({"embed_dim": 0}, "encoder.config.embed_dim must be a positive integer, got 0"),
        ({"num_heads": 2.5}, "encoder.config.num_heads must be a positive integer, got 2.5"),
        ({"embed_dim": True}, "encoder.config.embed_dim must be a positive integer, got True"),
    ],
)
def test_a_native_vit_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        VALUES.validate_python(encoder_value("native_vit", **change))
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
def test_resized_position_embeddings_take_canvases_of_several_sizes(kind: str) -> None:
    value = VALUES.validate_python(encoder_value(kind) | {"interpolate_positions": True})
    torch.manual_seed(0)
    encoder = load_encoder(value)
    canvases = [(32, 32), (48, 64), (32, 32), (16, 80)]
    frames = [torch.randint(0, 256, (1, 3, *canvas)).to(torch.uint8) for canvas in canvases]
    grids = [Grid(1, h // 16, w // 16) for h, w in canvases]
    of = [Layout(c, c, 1, g, (g.h, g.w), (Block(1, g.h, g.w),)) for c, g in zip(canvases, grids, strict=True)]
    with torch.no_grad():
        together = encoder(torch.cat([frame.flatten() for frame in frames]), of)
        alone = torch.cat([encoder(frame.flatten(), [layout]) for frame, layout in zip(frames, of, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_tower_is_loaded_from_a_directory(tmp_path: Path) -> None:
    _, theirs, _ = pair("clip", -2)
    theirs.save_pretrained(tmp_path)
    value = VALUES.validate_python({"kind": "clip", "path": tmp_path}).resolved()
    assert (value.patch_size, value.image_size) == (16, 32)
    loaded = load_encoder(value).tower.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in theirs.state_dict().items())
    wider = value.model_copy(update={"config": value.facts | {"num_hidden_layers": 4}})
    with pytest.raises(ModelError, match=r"weights missing or of the wrong shape: .*layers\.3"):
        load_encoder(wider)


def test_every_weight_that_does_not_fit_is_named(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 3)
    with pytest.raises(ModelError) as caught:
        fill_exactly(module, {"weight": torch.zeros(3, 4), "scale": torch.zeros(1)}, "here")
    assert str(caught.value) == (
        "here: 3 tensors do not fit: missing bias; unexpected scale; weight is (3, 4), expected (3, 2)"
    )
    value = VALUES.validate_python(encoder_value("efficientnet_lite") | {"path": tmp_path})
    with pytest.raises(ModelError, match=r"model.safetensors: no such weights file"):
        load_encoder(value)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="damaged or not a safetensors file"):
        load_encoder(value)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="missing stem"):
        load_encoder(value)


def test_a_long_clip_is_encoded_some_frames_at_a_time_where_no_gradient_is_kept() -> None:
    encoder = load_encoder(VALUES.validate_python(encoder_value("clip"))).eval()
    images = pixels("clip", 40)
    clip = Layout((32, 32), (32, 32), 40, Grid(40, 2, 2), (2, 2), (Block(40, 2, 2),), "video")
    together: list[int] = []
    encoder.normalise.register_forward_hook(lambda _module, _inputs, frames: together.append(len(frames)))
    whole = encoder(images.flatten(), [clip])
    with torch.no_grad():
        torch.testing.assert_close(encoder(images.flatten(), [clip]), whole, atol=1e-5, rtol=1e-5)
    assert together == [40, 16, 16, 8]
