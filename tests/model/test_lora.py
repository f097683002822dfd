from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from opsin.core.errors import MissingExtraError
from opsin.core.types import Picture
from opsin.model import lora as module
from opsin.model.config import Lora, ModuleName
from opsin.model.lora import MARK, add_lora, merge_lora
from opsin.model.loss import supervised_loss
from tests.support.models import dialogue, draw_picture, packed, tiny_vlm

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.core.types import Batch
    from opsin.model.vlm import Vlm

pytest.importorskip("peft")


@pytest.fixture
def made(tmp_path: Path) -> tuple[Vlm, Batch]:
    model, prepare = tiny_vlm(tmp_path, encoder="clip")
    picture = Picture(path=draw_picture(tmp_path / "a.png", 1))
    batch = packed([dialogue("a", "What?", "A cat.", [picture]), dialogue("b", "Hi?", "Hello.")], prepare)
    model.requires_grad_(requires_grad=False).eval()
    return model, batch


def disturb(part: torch.nn.Module) -> None:
    """Adapters as after some training."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in part.named_parameters():
        if MARK in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3


@pytest.mark.parametrize("part", ["vision", "connector", "language"])
def test_new_adapters_change_nothing_and_merged_ones_equal_adapted(made: tuple[Vlm, Batch], part: ModuleName) -> None:
    model, batch = made
    names = list(model.state_dict())
    before = model(batch)
    add_lora(model.part(part), Lora(rank=2, alpha=6))
    assert torch.equal(model(batch), before)
    disturb(model.part(part))
    adapted = model(batch)
    assert (adapted - before).abs().max() > 1e-2
    merge_lora(model.part(part))
    torch.testing.assert_close(model(batch), adapted, atol=2e-5, rtol=1e-4)
    assert list(model.state_dict()) == names


def test_the_merged_weight_is_base_plus_scaled_product(made: tuple[Vlm, Batch]) -> None:
    model, _ = made
    layer = model.decoder.layers[0].self_attn
    base = layer.q_proj.weight.clone()
    add_lora(model.decoder, Lora(rank=2, alpha=6))
    disturb(model.decoder)
    a, b = layer.q_proj.lora_A["default"].weight, layer.q_proj.lora_B["default"].weight
    merge_lora(model.decoder)
    torch.testing.assert_close(layer.q_proj.weight, base + (6 / 2) * b @ a)


def test_every_linear_layer_but_the_head_is_adapted(made: tuple[Vlm, Batch]) -> None:
    model, _ = made
    linear = [name for name, m in model.decoder.named_modules() if isinstance(m, torch.nn.Linear)]
    add_lora(model.decoder, Lora(rank=3))
    adapted = {name.partition(f".{MARK}")[0] for name, _ in model.decoder.named_parameters() if MARK in name}
    assert adapted == {name for name in linear if "lm_head" not in name}
    shapes = {tuple(p.shape) for name, p in model.decoder.named_parameters() if "lora_A" in name}
    assert {rank for rank, _ in shapes} == {3}


def test_only_adapters_train(made: tuple[Vlm, Batch]) -> None:
    model, batch = made
    add_lora(model.decoder, Lora(rank=2))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(MARK in name)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if MARK not in name}
    supervised_loss(model(batch), model.decoder.head_weight, batch.targets_T).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if MARK in name}
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)


def test_bfloat16_weights_get_float32_adapters_and_stay_bfloat16(made: tuple[Vlm, Batch]) -> None:
    model, _ = made
    model.decoder.to(torch.bfloat16)
    add_lora(model.decoder, Lora(rank=2))
    assert {p.dtype for name, p in model.decoder.named_parameters() if MARK in name} == {torch.float32}
    disturb(model.decoder)
    merge_lora(model.decoder)
    assert {p.dtype for p in model.decoder.parameters()} == {torch.bfloat16}


def test_a_missing_peft_names_the_extra(made: tuple[Vlm, Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"this needs the package 'peft': pip install 'opsin\[lora\]'"):
        add_lora(made[0].decoder, Lora())
