from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter
from torch.nn import functional

from opsin.core.types import Grid
from opsin.model.config import AveragePoolConnector, Connector, LinearConnector, MlpConnector
from opsin.model.connectors import build_connector

VALUES: TypeAdapter[Connector] = TypeAdapter(Connector)


def features(rows: int, cols: int, width: int = 5) -> torch.Tensor:
    return torch.randn(2, rows * cols, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "linear"},
        {"kind": "mlp"},
        {"kind": "mlp", "depth": 1},
        {"kind": "mlp", "depth": 4},
        {"kind": "average_pool", "side": 1},
        {"kind": "average_pool", "side": 3, "depth": 1},
    ],
)
@pytest.mark.parametrize("grid", [Grid(1, 6, 6), Grid(1, 3, 7)])
def test_a_connector_gives_the_tokens_that_its_value_promises(value: dict[str, object], grid: Grid) -> None:
    connector = VALUES.validate_python(value)
    rows, cols = connector.shrink(grid.h, grid.w)
    out = build_connector(connector, 5, 7)(features(grid.h, grid.w), grid)
    assert out.shape == (2, rows * cols, 7)


def test_linear_is_one_linear_map() -> None:
    module = build_connector(LinearConnector(), 5, 7)
    ((weight_name, weight), (_, bias)) = module.named_parameters()
    assert weight_name.endswith("weight")
    x = features(2, 2)
    torch.testing.assert_close(module(x, Grid(1, 2, 2)), x @ weight.T + bias)


def test_mlp_is_llavas_two_layers_with_exact_gelu() -> None:
    module = build_connector(MlpConnector(), 5, 7)
    first, _, second = module.layers
    x = features(2, 2)
    expected = second(functional.gelu(first(x), approximate="none"))
    torch.testing.assert_close(module(x, Grid(1, 2, 2)), expected)
    assert [tuple(p.shape) for p in module.parameters()] == [(7, 5), (7,), (7, 7), (7,)]


def test_patches_do_not_mix_without_a_pool() -> None:
    module = build_connector(MlpConnector(), 5, 7)
    x = features(2, 2)
    changed = x.clone()
    changed[:, 1] += 1
    difference = (module(x, Grid(1, 2, 2)) - module(changed, Grid(1, 2, 2))).abs().amax(dim=(0, 2))
    assert (difference > 0).tolist() == [False, True, False, False]


def test_the_pool_averages_neighbours_in_rows_and_columns() -> None:
    module = build_connector(AveragePoolConnector(side=2, depth=1), 5, 7)
    x = features(4, 6)
    image = x.view(2, 4, 6, 5)
    cells = [image[:, r : r + 2, c : c + 3].mean(dim=(1, 2)) for r in (0, 2) for c in (0, 3)]
    expected = module.projector(torch.stack(cells, dim=1), Grid(1, 2, 2))
    torch.testing.assert_close(module(x, Grid(1, 4, 6)), expected)


def test_a_pool_never_enlarges() -> None:
    with pytest.raises(ValueError, match=r"average_pool to 3x3 tokens from a 2x4 grid would enlarge it"):
        AveragePoolConnector(side=3).shrink(2, 4)
