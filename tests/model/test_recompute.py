from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from opsin.core.types import Batch, Picture
from opsin.model.config import Lora
from opsin.model.lora import add_lora
from opsin.model.loss import supervised_loss
from opsin.model.recompute import KEPT, Recompute
from opsin.model.varlen import varlen_attn
from tests.support.models import ENCODERS, dialogue, draw_picture, open_gates, packed, tiny_vlm

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.model.vlm import Vlm

MODES: tuple[Recompute, ...] = ("none", "selective", "full")


def model_and_pack(folder: Path, **kinds: Any) -> tuple[Vlm, Batch]:
    """With adapters that drop at random beside all weights, and all of it trained; a pack with pictures and without."""
    model, prepare = tiny_vlm(folder, **kinds)
    open_gates(model)
    add_lora(model.decoder, Lora(rank=2, dropout=0.3))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_()
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    pictures = [Picture(path=draw_picture(folder / f"{n}.png", n, (40 + 30 * n, 30))) for n in range(2)]
    dialogues = [
        dialogue("one", "What?", "A cat on grass.", pictures[:1]),
        dialogue("none", "Hello there?", "Hello."),
        dialogue("two", "Alike?", "They are not.", pictures),
    ]
    return model.train(), packed(dialogues, prepare)


def loss_of(model: Vlm, batch: Batch, mode: Recompute) -> Tensor:
    model.recompute(mode)
    torch.manual_seed(7)
    with model.computing():
        return supervised_loss(model(batch), model.decoder.head_weight, batch.targets_T)


def gradients(model: Vlm, batch: Batch, mode: Recompute) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss_of(model, batch, mode).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("fusion", ["splice", "gated_cross_attention"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_gradients_do_not_depend_on_what_is_kept(tmp_path: Path, encoder: str, fusion: str) -> None:
    resolution = "native" if encoder == "native_vit" else "square"
    model, batch = model_and_pack(tmp_path, encoder=encoder, fusion=fusion, resolution=resolution)
    expected, *others = (gradients(model, batch, mode) for mode in MODES)
    assert any("lora_A" in name and bool(gradient.any()) for name, gradient in expected.items())
    assert any(name.startswith("encoder.") and bool(gradient.any()) for name, gradient in expected.items())
    for other in others:
        assert other.keys() == expected.keys()
        assert [name for name in expected if not torch.equal(expected[name], other[name])] == []


class Watch(TorchDispatchMode):
    """Counts operations, and the bytes of what they made that is still there."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self._made: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls[func.name()] += 1
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._made[StorageWeakRef(storage)] = storage.nbytes()
        return out

    @property
    def live(self) -> int:
        """Bytes."""
        return sum(size for ref, size in self._made.items() if not ref.expired())


def watched(model: Vlm, batch: Batch, mode: Recompute) -> tuple[int, Counter[str]]:
    """Bytes that wait for the backward pass, and how often each operation is done in both passes."""
    with Watch() as watch:
        loss = loss_of(model, batch, mode)
        waiting = watch.live
        loss.backward()
    model.zero_grad(set_to_none=True)
    return waiting, watch.calls


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("encoder", ["siglip", "native_vit"])
def test_what_is_made_again_does_not_wait_and_products_are_not_made_twice(
    tmp_path: Path, encoder: str, precision: Any
) -> None:
    resolution = "native" if encoder == "native_vit" else "square"
    model, batch = model_and_pack(tmp_path, encoder=encoder, resolution=resolution)
    model.precision = precision
    watched(model, batch, "none")  # what is made once and stays, like a cache
    (most, plain), (less, selective), (least, full) = (watched(model, batch, mode) for mode in MODES)
    assert least < 0.5 * most
    assert least < less < 0.8 * most
    for product in ("aten::mm", "aten::addmm"):
        assert selective[product] == plain[product] < full[product]


def test_the_kept_operations_exist_by_these_names() -> None:
    assert varlen_attn  # whose operation is known once it is imported
    for name in KEPT:
        space, _, operation = name.partition("::")
        assert getattr(getattr(torch.ops, space), operation).default.name() == name
