from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from opsin.checkpoint.load import load, read_model_config
from opsin.checkpoint.original import load_projector, read_projector
from opsin.core.errors import CheckpointError, ModelError
from opsin.model.connector_values import LinearConnector
from opsin.model.encoder_values import ClipEncoder, SiglipEncoder
from opsin.vision.any_res import AnyRes
from opsin.vision.square import Square
from tests.support.hub import change, original_layout, tower_dir

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def tower(checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """The tower of a family as a directory."""

    def make(family: str, more_layers: int = 0) -> Path:
        return tower_dir(checkpoint(family), tmp_path / f"{family}-tower", more_layers=more_layers)

    return make


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision"])
def test_an_original_directory_holds_the_same_model(
    checkpoint: Callable[..., Path], tower: Callable[..., Path], family: str
) -> None:
    original = load(checkpoint(family, "original"), vision_tower=tower(family))
    assert_same(original.model, load(checkpoint(family, "saved")).model)
    assert original.meta == {"source": "original"}


def test_how_each_cuts_pictures(checkpoint: Callable[..., Path], tower: Callable[..., Path]) -> None:
    llava = read_model_config(checkpoint("llava", "original"), vision_tower=tower("llava"))
    assert llava.resolution == Square(size=56, fit="pad")
    assert isinstance(llava.encoder, ClipEncoder)
    assert llava.encoder.select_layer == -2
    nexts = read_model_config(checkpoint("llava_next", "original"), vision_tower=tower("llava_next"))
    pinpoints = ((112, 56), (56, 112), (112, 112))  # as the file lists them: (width, height)
    assert nexts.resolution == AnyRes(size=56, pinpoints=pinpoints, rule="original")
    one = read_model_config(checkpoint("llava_onevision", "original"), vision_tower=tower("llava_onevision"))
    assert isinstance(one.resolution, AnyRes)
    assert (one.resolution.max_tiles, one.resolution.rule) == (2, "original")
    assert (one.resolution.video_newline, one.resolution.video_pool) == ("one_token", "bilinear")


def test_siglip_inside_of_a_checkpoint_lacks_its_last_layer_and_outside_has_it(
    checkpoint: Callable[..., Path], tower: Callable[..., Path], tmp_path: Path
) -> None:
    whole = tower("llava_onevision", more_layers=1)
    inside = read_model_config(checkpoint("llava_onevision", "original"), vision_tower=whole)
    assert isinstance(inside.encoder, SiglipEncoder)
    assert (inside.encoder.facts["num_hidden_layers"], inside.encoder.select_layer) == (3, -1)

    complete = read_model_config(
        checkpoint("llava_onevision", "original"), vision_tower=tower_dir(checkpoint("llava_onevision"), tmp_path / "3")
    )
    assert isinstance(complete.encoder, SiglipEncoder)
    assert (complete.encoder.facts["num_hidden_layers"], complete.encoder.select_layer) == (3, -2)

    bare = original_layout(checkpoint("llava_onevision", "saved"), tmp_path / "bare", tower=False)
    loaded = load(bare, vision_tower=whole).model
    encoder = loaded.config.encoder
    assert isinstance(encoder, SiglipEncoder)
    assert (encoder.facts["num_hidden_layers"], encoder.select_layer) == (4, -2)
    pixels, layout = torch.arange(56 * 56 * 3).to(torch.uint8), loaded.config.layout(56, 56, "multi")
    expected = load(checkpoint("llava_onevision", "hub")).model.encoder(pixels, [layout])
    assert torch.equal(loaded.encoder(pixels, [layout]), expected)


def test_a_tower_that_is_not_there_must_be_given(
    checkpoint: Callable[..., Path], tower: Callable[..., Path], tmp_path: Path
) -> None:
    bare = original_layout(checkpoint("llava", "saved"), tmp_path / "bare", tower=False)
    change(bare / "config.json", mm_vision_tower="openai/clip-vit-large-patch14-336")
    with pytest.raises(
        ModelError, match=r"'openai/clip-vit-large-patch14-336' and its weights are not in .*vision_tower="
    ):
        load(bare)
    assert_same(load(bare, vision_tower=tower("llava")).model, load(checkpoint("llava", "hub")).model)


def test_a_tower_inside_must_be_known_or_described(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llava", "original")
    with pytest.raises(ModelError, match=r"'someone/a-tower' and its architecture is not known; .*vision_tower="):
        load(folder)
    change(folder / "config.json", mm_vision_tower="openai/clip-vit-large-patch14-336")
    assert read_model_config(folder).encoder.width == 1024


def test_a_tower_is_of_no_use_to_hugging_faces_layout(
    checkpoint: Callable[..., Path], tower: Callable[..., Path]
) -> None:
    with pytest.raises(CheckpointError, match="so it holds its tower: drop vision_tower"):
        load(checkpoint("llava", "saved"), vision_tower=tower("llava"))


@pytest.mark.parametrize(
    ("given", "count", "first", "last"),
    [("(1x1),...,(6x6)", 36, (56, 56), (336, 336)), ("(1x2),...,(2x3)", 4, (56, 112), (112, 168))],
)
def test_a_range_of_grids(
    checkpoint: Callable[..., Path], tower: Callable[..., Path], given: str, count: int, first: Any, last: Any
) -> None:
    folder = checkpoint("llava_onevision", "original")
    change(folder / "config.json", image_grid_pinpoints=given)
    resolution = read_model_config(folder, vision_tower=tower("llava_onevision")).resolution
    assert isinstance(resolution, AnyRes)
    assert (len(resolution.pinpoints), resolution.pinpoints[0], resolution.pinpoints[-1]) == (count, first, last)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_projector_type": "cabstract"}, "mm_projector_type: String should match"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature: Input should be 'patch'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end: Input should be False"),
        ({"mm_resampler_type": "perceiver"}, "mm_resampler_type: Input should be 'spatial_pool'"),
        ({"image_aspect_ratio": "highres"}, "image_aspect_ratio: String should match"),
        ({"image_aspect_ratio": "anyres", "mm_patch_merge_type": "flat"}, "lines tiles up one by one"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "puts a newline behind a single square"),
        (
            {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial", "image_grid_pinpoints": "all"},
            "expected pairs or",
        ),
        ({"architectures": ["LlavaMptForCausalLM"]}, "neither architectures nor model_type"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map asks to run Python code"),
    ],
)
def test_what_is_refused(
    checkpoint: Callable[..., Path], tower: Callable[..., Path], changes: Any, message: str
) -> None:
    folder = checkpoint("llava", "original")
    change(folder / "config.json", **changes)
    with pytest.raises((CheckpointError, ModelError), match=message):
        read_model_config(folder, vision_tower=tower("llava"))


def test_a_linear_projector(checkpoint: Callable[..., Path], tower: Callable[..., Path]) -> None:
    folder = checkpoint("llava", "original")
    change(folder / "config.json", mm_projector_type="linear")
    tensors = load_file(folder / "model.safetensors")
    for leaf in ("weight", "bias"):
        tensors[f"model.mm_projector.{leaf}"] = tensors.pop(f"model.mm_projector.0.{leaf}")
        del tensors[f"model.mm_projector.2.{leaf}"]
    save_file(tensors, folder / "model.safetensors")
    model = load(folder, vision_tower=tower("llava")).model
    assert model.config.connector == LinearConnector()
    assert torch.equal(model.connection.connector.layers[0].weight, tensors["model.mm_projector.weight"])  # type: ignore[union-attr, index]


@pytest.mark.parametrize("prefix", ["model.", "base_model.model.model.", ""])
def test_a_bare_projector_fills_a_model(checkpoint: Callable[..., Path], tmp_path: Path, prefix: str) -> None:
    model = load(checkpoint("llava")).model
    tensors = {
        f"{prefix}mm_projector.{index}.{leaf}": torch.randn(*shape)
        for index, width in ((0, 16), (2, 32))
        for leaf, shape in (("weight", (32, width)), ("bias", (32,)))
    }
    torch.save(tensors, tmp_path / "mm_projector.bin")
    assert set(read_projector(tmp_path / "mm_projector.bin")) == {
        f"connector.layers.{index}.{leaf}" for index in (0, 2) for leaf in ("weight", "bias")
    }
    load_projector(model, tmp_path / "mm_projector.bin")
    for name, tensor in tensors.items():
        assert torch.equal(
            model.connection.connector.get_parameter(f"layers.{name.partition('mm_projector.')[2]}"), tensor
        )


def test_a_projector_of_another_shape_or_with_more_in_it(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    model, path = load(checkpoint("llava")).model, tmp_path / "mm_projector.bin"
    torch.save({"model.mm_projector.0.weight": torch.zeros(32, 8)}, path)
    with pytest.raises(
        ModelError, match=r"missing connector\.layers\.0\.bias.*connector\.layers\.0\.weight is \(32, 8\)"
    ):
        load_projector(model, path)
    torch.save({"model.embed_tokens.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(CheckpointError, match=r"holds model\.embed_tokens\.weight, which is no part of a projector"):
        load_projector(model, path)
