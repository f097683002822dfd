from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional

from opsin.core.types import Grid
from opsin.model.c_abstractor import CAbstractor
from opsin.model.connector_values import CAbstractorConnector
from opsin.model.connectors import build_connector
from tests.support.golden import filled, golden, sine
from tests.support.layouts import layouts_for

REFERENCE_NAMES = [
    (r"^net\.0\.b(\d+)\.", lambda found: f"before.{int(found[1]) - 1}."),
    (r"^net\.2\.b(\d+)\.", lambda found: f"behind.{int(found[1]) - 1}."),
    (r"conv1\.conv", "enter.0"),
    (r"conv1\.bn", "enter.1"),
    (r"conv2\.conv", "depthwise"),
    (r"conv2\.bn", "norm.0"),
    (r"se\.fc1", "excite.gate.0"),
    (r"se\.fc2", "excite.gate.2"),
    (r"conv3\.conv", "leave.0"),
    (r"conv3\.bn", "leave.1"),
    (r"^readout", "layers"),
    (r"^pos_emb", "positions_hwC"),
]


def from_honeybee(weights: dict[str, Tensor], side: int) -> dict[str, Tensor]:
    """Honeybee's names and shapes -> opsin's: 1x1 convolutions are linear maps, positions have rows and columns."""
    ours: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name == "pos_emb":
            value = value.view(side, side, -1)
        elif value.dim() == 4 and value.shape[2:] == (1, 1):
            value = value.flatten(1)
        for pattern, replacement in REFERENCE_NAMES:
            name = re.sub(pattern, replacement, name)
        ours[name] = value
    return ours


def test_it_is_honeybees_c_abstractor() -> None:
    case = golden("connectors_cabstractor")
    value = CAbstractorConnector(side=2, blocks=1, width=16, depth=2)
    module = build_connector(value, 16, 8, (4, 4))
    module.load_state_dict(from_honeybee(filled(case["keys"]), side=4))
    out = module(sine(16, 16), layouts_for(value, Grid(1, 4, 4)))
    torch.testing.assert_close(out.flatten(), torch.tensor(case["out"]), atol=2e-5, rtol=0)


def test_the_published_size_has_its_number_of_weights() -> None:
    with torch.device("meta"):
        module = build_connector(CAbstractorConnector(), 1024, 4096, (24, 24))
    count = golden("connectors_cabstractor")["count_1024_1024_4096_d3_q144_576in"]
    assert sum(p.numel() for p in module.parameters()) == count


def test_another_vision_width_gets_a_projected_shortcut_in_the_first_block_alone() -> None:
    module = CAbstractor(CAbstractorConnector(side=2, blocks=2, width=8), 6, 4, (4, 4))
    assert [name for name in module.state_dict() if "shortcut" in name and name.endswith("0.weight")] == [
        "before.0.shortcut.0.weight"
    ]


def test_position_embeddings_are_resized_for_another_grid() -> None:
    value = CAbstractorConnector(side=2, blocks=1, width=8)
    torch.manual_seed(0)
    small = CAbstractor(value, 6, 4, (4, 6))
    large = CAbstractor(value, 6, 4, (8, 3))
    resized = functional.interpolate(small.positions_hwC.permute(2, 0, 1)[None], size=(8, 3), mode="bicubic")
    large.load_state_dict({**small.state_dict(), "positions_hwC": resized[0].permute(1, 2, 0)})
    x, layouts = torch.randn(24, 6), layouts_for(value, Grid(1, 8, 3))
    torch.testing.assert_close(small(x, layouts), large(x, layouts))


def test_it_knows_where_a_patch_is() -> None:
    value = CAbstractorConnector(side=1, blocks=1, width=8)
    torch.manual_seed(0)
    module = CAbstractor(value, 6, 4, (4, 4))
    x, layouts = torch.randn(1, 4, 4, 6), layouts_for(value, Grid(1, 4, 4))
    module.positions_hwC.data.normal_()
    one, other = (module(picture.reshape(16, 6), layouts) for picture in (x, x.flip(2)))
    assert (one - other).abs().max() > 1e-3
