"""opsin's native-resolution vision transformer against transformers' Qwen2-VL tower, and against golden values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from opsin.core.types import Block, Grid, Layout
from opsin.model.encoder_values import NativeVitEncoder
from opsin.model.native_vit import NativeEncoder, NativeVit, patchify, rotary_2d
from tests.support.golden import golden

FACTS = {"depth": 3, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
GRIDS = [Grid(1, 4, 6), Grid(2, 2, 6), Grid(1, 2, 2), Grid(3, 4, 6)]


def block_order(grid: Grid) -> Tensor:
    """Index of the reference's patch order (2x2 merge blocks one after the other) into raster order."""
    index = torch.arange(grid.patches).view(grid.t, grid.h // 2, 2, grid.w // 2, 2)
    return index.permute(0, 1, 3, 2, 4).flatten()


def in_block_order(rows: Tensor, grids: list[Grid]) -> Tensor:
    parts = rows.split([grid.patches for grid in grids])
    return torch.cat([part[block_order(grid)] for part, grid in zip(parts, grids, strict=True)])


def reference() -> Qwen2VisionTransformerPretrainedModel:
    torch.manual_seed(0)
    config = Qwen2VLVisionConfig(**FACTS, hidden_size=24, in_channels=3)
    config._attn_implementation = "sdpa"
    return Qwen2VisionTransformerPretrainedModel(config).eval()


def ours(tower: Qwen2VisionTransformerPretrainedModel) -> NativeVit:
    state = {name: value for name, value in tower.state_dict().items() if name.startswith("blocks.")}
    state["patch_embed.weight"] = tower.patch_embed.proj.weight.detach().flatten(1)
    vit = NativeVit(NativeVitEncoder(kind="native_vit", config=FACTS))
    vit.load_state_dict(state)
    return vit.eval()


def patches(grids: list[Grid], seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(grid.patches for grid in grids), 3 * 2 * 16, generator=generator)


def test_features_equal_the_reference_towers() -> None:
    tower = reference()
    rows = patches(GRIDS)
    sizes = torch.tensor([[grid.t, grid.h, grid.w] for grid in GRIDS])
    with torch.no_grad():
        expected = tower(in_block_order(rows, GRIDS), grid_thw=sizes).last_hidden_state
        found = in_block_order(ours(tower)(rows, GRIDS), GRIDS)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_gradients_equal_the_reference_towers() -> None:
    tower = reference()
    vit = ours(tower)
    rows = patches(GRIDS)
    sizes = torch.tensor([[grid.t, grid.h, grid.w] for grid in GRIDS])
    weights = torch.randn(len(rows), 32, generator=torch.Generator().manual_seed(2))
    (tower(in_block_order(rows, GRIDS), grid_thw=sizes).last_hidden_state * weights).sum().backward()
    (in_block_order(vit(rows, GRIDS), GRIDS) * weights).sum().backward()
    for name, parameter in vit.named_parameters():
        theirs = tower.get_parameter(name.replace("patch_embed.weight", "patch_embed.proj.weight")).grad
        assert theirs is not None
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, theirs.view_as(parameter.grad), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("case", golden("qwen2vl_vit_rope")["positions"], ids=lambda case: str(case["grid_thw"]))
def test_rotary_angles_follow_rows_and_columns(case: dict[str, Any]) -> None:
    grids = [Grid(*grid) for grid in case["grid_thw"]]
    cos, sin = rotary_2d(grids, 16, torch.device("cpu"))
    frequencies = torch.tensor([1.0, 0.1, 0.01, 0.001])
    places = torch.tensor(case["pos_hw"], dtype=torch.float32)
    angles = torch.cat([places[:, :1] * frequencies, places[:, 1:] * frequencies], dim=-1).repeat(1, 2)
    torch.testing.assert_close(in_block_order(cos, grids), angles.cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(in_block_order(sin, grids), angles.sin(), atol=1e-5, rtol=0)


def test_rotary_values_are_the_golden_ones() -> None:
    rope = golden("qwen2vl_vit_rope")["rope"]
    grid = Grid(*rope["grid"])
    cos, sin = rotary_2d([grid], rope["head_dim"], torch.device("cpu"))
    torch.testing.assert_close(in_block_order(cos, [grid]), torch.tensor(rope["cos"]), atol=2e-5, rtol=0)
    torch.testing.assert_close(in_block_order(sin, [grid]), torch.tensor(rope["sin"]), atol=2e-5, rtol=0)


def test_patches_of_a_still_hold_it_twice_in_the_references_content_order() -> None:
    case = golden("qwen2vl_patchify")["image"]
    pixels = torch.arange(3 * 8 * 12).view(1, 3, 8, 12)
    found = patchify(pixels, patch=2, temporal=2, maps=1)
    assert in_block_order(found, [Grid(1, 4, 6)]).tolist() == case["patches"]


def test_patches_of_a_clip_hold_two_frames_each() -> None:
    case = golden("qwen2vl_patchify")["video_odd"]
    frames = torch.arange(3 * 3 * 8 * 8).view(3, 3, 8, 8)
    padded = torch.cat([frames, frames[-1:]])  # an odd clip is padded by its resolution, with the last frame
    found = patchify(padded, patch=2, temporal=2, maps=2)
    grid = Grid(*case["grid_thw"])
    assert in_block_order(found, [grid])[: len(case["patches"])].tolist() == case["patches"]


def test_a_picture_does_not_see_another_nor_a_frame_the_next() -> None:
    vit = ours(reference())
    rows = patches(GRIDS)
    starts = [0, 24, 36, 48, 52, 76, 100]  # maps of the four grids
    with torch.no_grad():
        before = vit(rows, GRIDS)
        for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
            changed = rows.clone()
            changed[start:end] += 1.0
            after = vit(changed, GRIDS)
            same = torch.ones(len(rows), dtype=torch.bool)
            same[start:end] = False
            assert torch.equal(after[same], before[same])
            assert not torch.allclose(after[start:end], before[start:end])


def test_features_do_not_depend_on_what_they_are_packed_with() -> None:
    vit = ours(reference())
    rows = patches(GRIDS)
    with torch.no_grad():
        together = vit(rows, GRIDS)
        alone = torch.cat(
            [vit(part, [grid]) for part, grid in zip(rows.split([g.patches for g in GRIDS]), GRIDS, strict=True)]
        )
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_the_published_tower_has_the_papers_number_of_parameters() -> None:
    with torch.device("meta"):
        vit = NativeVit(NativeVitEncoder(kind="native_vit", config={"depth": 32}))
    assert sum(parameter.numel() for parameter in vit.parameters()) == 631_183_360


def test_pixels_are_normalised_per_colour_before_they_are_embedded() -> None:
    encoder = NativeVitEncoder(kind="native_vit", config=FACTS)
    torch.manual_seed(0)
    model = NativeEncoder(encoder)
    picture = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    layout = Layout((8, 8), (8, 8), 1, Grid(1, 2, 2), (1, 1), (Block(1, 1, 1),))
    mean, std = torch.tensor(encoder.mean)[:, None, None], torch.tensor(encoder.std)[:, None, None]
    normalised = (picture / 255 - mean) / std
    with torch.no_grad():
        expected = model.vit(patchify(normalised, patch=4, temporal=2, maps=1), [layout.grid])
        found = model(picture.flatten(), [layout])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
