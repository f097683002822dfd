from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from opsin.core.errors import ModelError
from opsin.core.types import Picture
from opsin.model.loss import supervised_loss
from opsin.model.vlm import Vlm
from tests.support.models import ENCODERS, dialogue, draw_picture, packed, tiny_vlm

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.core.types import Batch, Conversation


@pytest.fixture
def conversations(tmp_path: Path) -> list[Conversation]:
    pictures = [Picture(path=draw_picture(tmp_path / f"{n}.png", n, (30 + 9 * n, 40))) for n in range(3)]
    return [
        dialogue("a", "What?", "A cat on grass.", pictures[:1]),
        dialogue("b", "Hello?", "Hi, how are you today? Well, I hope."),
        dialogue("c", "Both?", "Yes.", pictures[1:]),
    ]


def loss_of(model: Vlm, batch: Batch) -> torch.Tensor:
    return supervised_loss(model(batch), model.decoder.head_weight, batch.targets_T)


def gradients(model: Vlm) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("encoder", "connector", "language", "tied"),
    [
        ("efficientnet_lite", "mlp", "llama", True),
        ("clip", "linear", "qwen3", False),
        ("siglip", "average_pool", "qwen2", True),
        ("dinov2", "mlp", "mistral", False),
    ],
)
def test_packed_equals_one_by_one_in_loss_and_every_gradient(
    tmp_path: Path, conversations: list[Conversation], encoder: str, connector: str, language: str, tied: bool
) -> None:
    model, prepare = tiny_vlm(
        tmp_path, encoder=encoder, connector=connector, language=language, tie_word_embeddings=tied
    )
    together = packed(conversations, prepare)
    supervised = sum(int((packed([one], prepare).targets_T != -100).sum()) for one in conversations)
    loss = loss_of(model, together) / supervised
    loss.backward()
    of_pack = gradients(model)
    model.zero_grad()
    total = torch.zeros(())
    for conversation in conversations:
        one = loss_of(model, packed([conversation], prepare)) / supervised
        one.backward()
        total += one.detach()
    torch.testing.assert_close(loss.detach(), total, atol=1e-5, rtol=1e-5)
    one_by_one = gradients(model)
    assert of_pack.keys() == one_by_one.keys()
    for name, gradient in of_pack.items():
        torch.testing.assert_close(gradient, one_by_one[name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_features_given_equal_pixels_given(tmp_path: Path, conversations: list[Conversation], encoder: str) -> None:
    model, prepare = tiny_vlm(tmp_path, encoder=encoder)
    model.encoder.requires_grad_(requires_grad=False)
    batch = packed(conversations, prepare)
    cached = replace(batch, pixels_X=None, features_PC=model.encode(batch))
    assert torch.equal(model(batch), model(cached))


def test_the_picture_matters_only_from_its_place_on(tmp_path: Path, conversations: list[Conversation]) -> None:
    model, prepare = tiny_vlm(tmp_path)
    batch = packed(conversations[:2], prepare)
    assert batch.pixels_X is not None
    other = replace(batch, pixels_X=255 - batch.pixels_X)
    difference = (model(batch) - model(other)).abs().amax(dim=1)
    first = int(batch.visual_N[0])
    assert (difference[:first] <= 1e-6).all()
    assert (difference[first : batch.lengths[0]] > 0).all()
    assert (difference[batch.lengths[0] :] <= 1e-6).all()


def test_the_placeholders_own_embedding_is_never_read(tmp_path: Path, conversations: list[Conversation]) -> None:
    model, prepare = tiny_vlm(tmp_path)
    batch = packed(conversations[:1], prepare)
    other = batch.tokens_T.clone()
    other[batch.visual_N] = 99
    assert torch.equal(model(batch), model(replace(batch, tokens_T=other)))


def test_a_batch_that_contradicts_its_layouts_is_refused(tmp_path: Path, conversations: list[Conversation]) -> None:
    model, prepare = tiny_vlm(tmp_path)
    batch = packed(conversations, prepare)
    with pytest.raises(ModelError, match="3 pictures in the batch but neither pixels nor features"):
        model(replace(batch, pixels_X=None))
    assert batch.pixels_X is not None
    with pytest.raises(ModelError, match="36,861 bytes of pixels for layouts of 36,864 bytes"):
        model(replace(batch, pixels_X=batch.pixels_X[:-3]))
    features_PC = model.encode(batch)
    with pytest.raises(ModelError, match=r"11 features for 3 pictures of 12 patches \(samples a, b, c\)"):
        model(replace(batch, features_PC=features_PC[1:]))
    with pytest.raises(ModelError, match="12 visual tokens for 11 places in the text"):
        model(replace(batch, visual_N=batch.visual_N[1:]))


def test_bfloat16_precision_is_close_to_float32(tmp_path: Path, conversations: list[Conversation]) -> None:
    model, prepare = tiny_vlm(tmp_path)
    batch = packed(conversations, prepare)
    exact = loss_of(model, batch).item()
    model.precision = "bf16"
    with model.computing():
        rounded = loss_of(model, batch).item()
    assert rounded == pytest.approx(exact, rel=0.03)
    assert rounded != exact
