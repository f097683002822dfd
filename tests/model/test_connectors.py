from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional

from opsin.core.errors import ModelError
from opsin.core.types import Grid
from opsin.model.connector_values import (
    AveragePoolConnector,
    Connector,
    LinearConnector,
    MlpConnector,
    PatchMergerConnector,
    PixelShuffleConnector,
)
from opsin.model.connectors import ConnectorModule, build_connector
from tests.support.golden import filled, golden, sine
from tests.support.layouts import layouts_for

VALUES: TypeAdapter[Connector] = TypeAdapter(Connector)
GRIDS = (Grid(1, 4, 6), Grid(3, 4, 4), Grid(2, 4, 6), Grid(1, 6, 4))
WIDTH, LANGUAGE = 5, 7

CONNECTORS = [
    {"kind": "linear"},
    {"kind": "mlp"},
    {"kind": "mlp", "depth": 4},
    {"kind": "average_pool", "side": 1},
    {"kind": "average_pool", "side": 3, "depth": 1},
    {"kind": "average_pool", "stride": 3},
    {"kind": "pixel_shuffle"},
    {"kind": "pixel_shuffle", "depth": 2},
    {"kind": "patch_merger"},
    {"kind": "c_abstractor", "side": 2, "blocks": 2, "width": 8},
    {"kind": "q_former", "queries": 3, "width": 8, "layers": 3, "heads": 2, "feed_forward": 8},
    {"kind": "perceiver", "latents": 3, "layers": 2, "heads": 2, "head_width": 4},
    {"kind": "perceiver", "latents": 3, "layers": 1, "heads": 2, "head_width": 4, "project": False},
]


def features(*grids: Grid, width: int = WIDTH) -> Tensor:
    return torch.randn(sum(grid.patches for grid in grids), width, generator=torch.Generator().manual_seed(0))


def built(value: Connector) -> ConnectorModule:
    torch.manual_seed(1)
    return build_connector(value, WIDTH, LANGUAGE, (4, 6)).eval()


def every_connector() -> list[Connector]:
    return [VALUES.validate_python(value) for value in CONNECTORS]


def test_every_kind_of_connector_is_tested_here() -> None:
    kinds = {schema["properties"]["kind"]["const"] for schema in VALUES.json_schema()["$defs"].values()}
    assert {value["kind"] for value in CONNECTORS} == kinds


@pytest.mark.parametrize("value", every_connector(), ids=str)
def test_a_connector_gives_the_tokens_that_its_value_promises(value: Connector) -> None:
    layouts, module = layouts_for(value, *GRIDS), built(value)
    out = module(features(*GRIDS), layouts)
    assert out.shape == (sum(layout.tokens for layout in layouts), module.width)


@pytest.mark.parametrize("value", every_connector(), ids=str)
def test_maps_of_many_shapes_together_are_what_they_are_alone(value: Connector) -> None:
    layouts, module, x = layouts_for(value, *GRIDS), built(value), features(*GRIDS)
    single = [Grid(1, grid.h, grid.w) for grid in GRIDS for _ in range(grid.t)]
    patches = x.split([grid.patches for grid in single])
    alone = [module(x, layouts_for(value, grid)) for x, grid in zip(patches, single, strict=True)]
    torch.testing.assert_close(module(x, layouts), torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", every_connector(), ids=str)
def test_gradients_reach_every_weight_and_every_patch(value: Connector) -> None:
    module = built(value)
    x = features(Grid(2, 6, 6)).requires_grad_()
    out = module(x, layouts_for(value, Grid(2, 6, 6)))
    (out * torch.randn_like(out)).sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum(dim=1) > 0).all()
    untouched = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A key's bias adds the same to all scores of a query, which the softmax takes away again.
    assert [name for name in untouched if not name.endswith("key.bias")] == []


@pytest.mark.parametrize("value", every_connector(), ids=str)
def test_no_pictures_are_no_tokens(value: Connector) -> None:
    module = built(value)
    assert module(torch.zeros(0, WIDTH), []).shape == (0, module.width)


@pytest.mark.parametrize("value", every_connector(), ids=str)
def test_other_patches_than_the_layouts_say_are_refused_with_both_counts(value: Connector) -> None:
    with pytest.raises(ModelError, match=r"^47 patches of features for 2 layouts of 48 patches in all"):
        built(value)(torch.zeros(47, WIDTH), layouts_for(value, Grid(1, 4, 6), Grid(1, 4, 6)))


def test_linear_is_one_linear_map() -> None:
    module = built(LinearConnector())
    x, weights = features(Grid(1, 2, 2)), module.state_dict()
    assert list(weights) == ["layers.0.weight", "layers.0.bias"]
    expected = x @ weights["layers.0.weight"].T + weights["layers.0.bias"]
    torch.testing.assert_close(module(x, layouts_for(LinearConnector(), Grid(1, 2, 2))), expected)


def test_mlp_is_llavas_two_layers_with_exact_gelu() -> None:
    module = built(MlpConnector())
    x, weights = features(Grid(1, 2, 2)), module.state_dict()
    hidden = functional.gelu(x @ weights["layers.0.weight"].T + weights["layers.0.bias"], approximate="none")
    expected = hidden @ weights["layers.2.weight"].T + weights["layers.2.bias"]
    torch.testing.assert_close(module(x, layouts_for(MlpConnector(), Grid(1, 2, 2))), expected)
    assert [tuple(p.shape) for p in module.parameters()] == [(7, 5), (7,), (7, 7), (7,)]


@pytest.mark.parametrize("value", [LinearConnector(), MlpConnector()], ids=str)
def test_patches_do_not_mix_without_a_pool(value: Connector) -> None:
    module, layouts = built(value), layouts_for(value, Grid(1, 2, 2))
    x = features(Grid(1, 2, 2))
    changed = x.clone()
    changed[1] += 1
    difference = (module(x, layouts) - module(changed, layouts)).abs().amax(dim=1)
    assert (difference > 0).tolist() == [False, True, False, False]


def without_layers(value: Connector, width: int = WIDTH) -> ConnectorModule:
    """The connector as far as its linear maps."""
    module = build_connector(value, width, LANGUAGE, (4, 4))
    module.layers = nn.Identity()
    return module


def test_the_adaptive_pool_averages_neighbours_in_rows_and_columns() -> None:
    value = AveragePoolConnector(side=2)
    x = features(Grid(1, 4, 6))
    image = x.view(4, 6, WIDTH)
    cells = [image[r : r + 2, c : c + 3].mean(dim=(0, 1)) for r in (0, 2) for c in (0, 3)]
    torch.testing.assert_close(without_layers(value)(x, layouts_for(value, Grid(1, 4, 6))), torch.stack(cells))


def test_the_pool_with_a_stride_leaves_a_remainder_out() -> None:
    value = AveragePoolConnector(stride=2)
    x = features(Grid(1, 3, 5))
    image = x.view(3, 5, WIDTH)
    cells = [image[:2, c : c + 2].mean(dim=(0, 1)) for c in (0, 2)]
    torch.testing.assert_close(without_layers(value)(x, layouts_for(value, Grid(1, 3, 5))), torch.stack(cells))


def test_a_pool_never_enlarges() -> None:
    with pytest.raises(ValueError, match=r"average_pool to 3x3 tokens from a 2x4 grid would enlarge it"):
        AveragePoolConnector(side=3).shrink(2, 4)


def test_pixel_shuffle_orders_channels_as_idefics3_does() -> None:
    case = golden("checks")["pixel_shuffle_idefics3"]
    value = PixelShuffleConnector(factor=case["scale"])
    out = without_layers(value, width=3)(sine(16, 3), layouts_for(value, Grid(1, 4, 4)))
    torch.testing.assert_close(out, torch.tensor(case["out"]), atol=2e-5, rtol=0)


def test_the_patch_merger_is_qwen2_vls() -> None:
    case = golden("connectors_hf")["patch_merger"]
    module = build_connector(PatchMergerConnector(factor=case["merge"]), case["context_dim"], case["dim"], (4, 4))
    module.load_state_dict(
        {k.replace("ln_q", "norm").replace("mlp", "layers"): v for k, v in filled(case["keys"]).items()}
    )
    # The reference is given patches square by square; opsin's features are in raster order.
    in_squares = sine(*case["input_shape"])
    raster = in_squares.view(2, 2, 2, 2, -1).transpose(1, 2).reshape(16, -1)
    out = module(raster, layouts_for(PatchMergerConnector(), Grid(1, 4, 4)))
    torch.testing.assert_close(out.flatten(), torch.tensor(case["out"]), atol=2e-5, rtol=0)


@pytest.mark.parametrize("value", [PixelShuffleConnector(), PatchMergerConnector()], ids=str)
def test_folded_squares_come_in_raster_order_map_by_map(value: Connector) -> None:
    grid = Grid(2, 4, 6)
    x = features(grid)
    module, layouts = built(value), layouts_for(value, grid)
    changed = x.clone()
    changed[24 + 2 * 6 + 3] += 1  # second map, third row, fourth column: token row 1, column 1
    difference = (module(x, layouts) - module(changed, layouts)).abs().amax(dim=1)
    assert difference.nonzero().flatten().tolist() == [6 + 1 * 3 + 1]
    assert len(difference) == 12


def test_a_remainder_is_never_dropped_by_folding() -> None:
    with pytest.raises(ModelError, match=r"a grid of 5x4 patches cannot be folded 2x2 without a remainder"):
        built(PixelShuffleConnector())(features(Grid(1, 5, 4)), layouts_for(LinearConnector(), Grid(1, 5, 4)))


COUNTS = golden("connectors_hf")["counts"]


@pytest.mark.parametrize(
    ("value", "vision", "language", "expected"),
    [
        ({"kind": "linear"}, 1024, 4096, COUNTS["llava_v1_7b_linear"]),
        ({"kind": "mlp"}, 1024, 4096, COUNTS["llava15_7b_mlp2x"]),
        ({"kind": "mlp"}, 1024, 5120, COUNTS["llava15_13b_mlp2x"]),
        ({"kind": "mlp"}, 1152, 3584, COUNTS["onevision_7b_mlp2x"]),
        ({"kind": "mlp"}, 1152, 896, COUNTS["onevision_0.5b_mlp2x"]),
        ({"kind": "pixel_shuffle"}, 768, 576, 4 * 768 * 576 + 576),
        ({"kind": "patch_merger"}, 1280, 1536, COUNTS["qwen2vl_patch_merger_2B"]),
        ({"kind": "patch_merger"}, 1280, 3584, COUNTS["qwen2vl_patch_merger_7B"]),
        ({"kind": "patch_merger"}, 1280, 8192, COUNTS["qwen2vl_patch_merger_72B"]),
    ],
)
def test_published_connectors_have_their_published_number_of_weights(
    value: dict[str, object], vision: int, language: int, expected: int
) -> None:
    with torch.device("meta"):
        module = build_connector(VALUES.validate_python(value), vision, language, (24, 24))
    assert sum(p.numel() for p in module.parameters()) == expected
