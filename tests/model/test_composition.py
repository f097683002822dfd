"""Any encoder x resolution x connector x language model x positions x fusion: built, run, trained, saved, reloaded."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import TypeAdapter

from opsin.checkpoint.model import fill_model, read_config, write_model
from opsin.checkpoint.prepare import preparation
from opsin.core.errors import ModelError
from opsin.core.types import Clip, Picture
from opsin.model.attention import PackedAttention
from opsin.model.config import LANGUAGE_MODELS, ModelConfig
from opsin.model.connector_values import Connector, Fusion
from opsin.model.encoder_values import Encoder
from opsin.model.generate import extend, prefill
from opsin.model.loss import supervised_loss
from opsin.model.vlm import Vlm
from opsin.text.tokenizer import Tokenizer
from opsin.train.optimiser import prepare_parts, store_parts
from opsin.vision.positions import Positions
from opsin.vision.resolution import Resolution
from tests.support.models import (
    CONNECTORS,
    ENCODERS,
    FUSIONS,
    LANGUAGES,
    POSITIONS,
    RESOLUTIONS,
    VOCABULARY,
    appended,
    dialogue,
    draw_picture,
    examples_of,
    model_value,
    open_gates,
    packed,
    stage_of,
    tiny_vlm,
)
from tests.support.tokenizers import chatml_tokenizer_dir

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.core.types import Batch, Conversation

AXES: dict[str, tuple[str, ...]] = {
    "encoder": ENCODERS,
    "resolution": RESOLUTIONS,
    "connector": tuple(CONNECTORS),
    "language": LANGUAGES,
    "positions": tuple(POSITIONS),
    "fusion": tuple(FUSIONS),
}
Case = dict[str, str]


def all_pairs() -> list[Case]:
    """Few cases in which every member of every axis meets every member of every other."""
    left = {
        ((one, a), (two, b))
        for (one, first), (two, second) in itertools.combinations(AXES.items(), 2)
        for a in first
        for b in second
    }
    candidates = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]
    random.Random(0).shuffle(candidates)
    cases = []
    while left:
        best = max(candidates, key=lambda case: len(left & pairs_of(case)))
        left -= pairs_of(best)
        cases.append(best)
    return cases


def pairs_of(case: Case) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    return set(itertools.combinations(case.items(), 2))


def every_case() -> list[Case]:
    return [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]


def name_of(case: Case) -> str:
    return "-".join(case.values())


@pytest.fixture
def conversations(tmp_path: Path) -> list[Conversation]:
    """One picture, text alone, two pictures of other shapes, and a clip of an odd number of frames."""
    sizes = [(70, 40), (33, 90), (50, 50)]
    pictures = [Picture(path=draw_picture(tmp_path / f"{n}.png", n, size)) for n, size in enumerate(sizes)]
    frames = tuple(Picture(path=draw_picture(tmp_path / f"frame{n}.png", n, (60, 40))) for n in range(3))
    return [
        dialogue("one", "What?", "A cat on grass.", pictures[:1]),
        dialogue("none", "Hello?", "Hi, how are you today? Well, I hope."),
        dialogue("two", "Both?", "Yes.", pictures[1:]),
        dialogue("clip", "What happens?", "It moves.", [Clip(frames)]),
    ]


def loss_of(model: Vlm, batch: Batch) -> torch.Tensor:
    return supervised_loss(model(batch), model.decoder.head_weight, batch.targets_T)


def check(case: Case, folder: Path, conversations: list[Conversation]) -> None:
    model, prepare = tiny_vlm(folder, **case)
    open_gates(model)
    batch = packed(conversations, prepare)
    assert batch.positions_AT.shape == (model.config.positions.axes, batch.num_tokens)
    layouts = [layout for example in examples_of(conversations, prepare) for layout in example.layouts]
    assert len(batch.visual_N) == (sum(layout.tokens for layout in layouts) if case["fusion"] == "splice" else 0)

    loss = loss_of(model, batch)
    loss.backward()
    for part in ("vision", "connector", "language"):
        gradients = [p.grad for p in model.part(part).parameters() if p.grad is not None]
        assert any(bool(gradient.any()) for gradient in gradients), part
        assert all(bool(gradient.isfinite().all()) for gradient in gradients), part

    model.eval()
    with torch.no_grad():
        together = model(batch)
        alone = torch.cat([model(packed([conversation], prepare)) for conversation in conversations])
        torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)
        saved = folder / "saved"
        saved.mkdir()
        write_model(saved, model, prepare.tokenizer, {})
        reloaded = Vlm(read_config(saved).config, weights=False)
        fill_model(reloaded, saved)
        assert torch.equal(reloaded.eval()(batch), together)


@pytest.mark.parametrize("case", all_pairs(), ids=name_of)
def test_every_pair_of_parts_composes(case: Case, tmp_path: Path, conversations: list[Conversation]) -> None:
    check(case, tmp_path, conversations)


@pytest.mark.slow
@pytest.mark.parametrize("case", every_case(), ids=name_of)
def test_every_combination_composes(case: Case, tmp_path: Path, conversations: list[Conversation]) -> None:
    check(case, tmp_path, conversations)


def test_the_walk_covers_every_member_of_every_union() -> None:
    unions: dict[str, Any] = {
        "encoder": Encoder,
        "resolution": Resolution,
        "connector": Connector,
        "positions": Positions,
        "fusion": Fusion,
    }
    for axis, union in unions.items():
        kinds = set(TypeAdapter(union).json_schema()["discriminator"]["mapping"])
        assert kinds == set(AXES[axis]), axis
    assert set(LANGUAGE_MODELS) == set(LANGUAGES)


@pytest.mark.parametrize("case", all_pairs(), ids=name_of)
def test_a_cache_gives_the_logits_of_a_whole_pass(
    case: Case, tmp_path: Path, conversations: list[Conversation]
) -> None:
    model, prepare = tiny_vlm(tmp_path, **case)
    open_gates(model)
    model.eval()
    tokens_BS = torch.randint(9, VOCABULARY, (len(conversations), 4), generator=torch.Generator().manual_seed(1))
    rows, hidden_BD = prefill(model, packed(conversations, prepare), extra=4)
    cached = [hidden_BD]
    for new in (tokens_BS[:, :1], tokens_BS[:, 1:3], tokens_BS[:, 3:]):  # one at a time, or two
        cached += extend(model, rows, new).unbind(dim=1)
        rows.advance(new.shape[1])
    logits_BSV = model.decoder.logits(torch.stack(cached, dim=1))
    for conversation, tokens, logits in zip(conversations, tokens_BS, logits_BSV, strict=True):
        longer = appended(packed([conversation], prepare), tokens.tolist())
        with torch.no_grad():
            whole = model.decoder.logits(model(longer)[-5:])
        torch.testing.assert_close(logits, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", all_pairs(), ids=name_of)
def test_every_pair_of_parts_runs_in_bfloat16(case: Case, tmp_path: Path, conversations: list[Conversation]) -> None:
    model, prepare = tiny_vlm(tmp_path, **case)
    open_gates(model)
    model.precision = "bf16"
    batch = packed(conversations, prepare)
    for trained in (("connector",), ("vision", "language"), ("vision", "connector", "language")):
        stage = stage_of({part: {"lr": 1e-3} for part in trained})
        store_parts(model, [stage], "bf16")
        prepare_parts(model, stage)
        model.zero_grad()
        with model.computing():
            loss_of(model, batch).backward()
        for part in ("vision", "connector", "language"):
            stored = {p.dtype for p in model.part(part).parameters()}
            assert stored == {torch.float32 if part in trained else torch.bfloat16}
            gradients = [p.grad for p in model.part(part).parameters() if p.grad is not None]
            assert all(bool(gradient.isfinite().all()) for gradient in gradients)
            assert any(bool(gradient.any()) for gradient in gradients) is (part in trained), part
    model.eval()
    with model.computing():
        rows, hidden_BD = prefill(model, batch, extra=1)
        following = extend(model, rows, torch.ones(len(conversations), 1, dtype=torch.long))
    assert bool(hidden_BD.isfinite().all())
    assert bool(following.isfinite().all())


def test_an_untrained_gated_model_answers_exactly_as_its_language_model(
    tmp_path: Path, conversations: list[Conversation]
) -> None:
    model, prepare = tiny_vlm(tmp_path, fusion="gated_cross_attention")
    batch = packed(conversations, prepare)
    attend = PackedAttention.plan(batch.lengths, torch.device("cpu"))
    with torch.no_grad():
        plain = model.decoder(model.decoder.embed(batch.tokens_T)[None], batch.positions_AT[:, None], attend)[0]
        assert torch.equal(model(batch), plain)
        open_gates(model)
        assert not torch.equal(model(batch), plain)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"resolution": {"kind": "native"}},
        "native resolution, but the clip encoder has position embeddings for 32x32 pixels only; set "
        "encoder.interpolate_positions: true, or take the encoder native_vit",
    ),
    (
        {"resolution": {"kind": "square", "size": 48}},
        "resolution size 48 but the clip encoder has position embeddings for 32; set resolution.size to 32, or "
        "encoder.interpolate_positions: true",
    ),
    (
        {"connector": {"kind": "patch_merger", "factor": 3}},
        "a connector that folds 3x3 patches cannot take a 2x2 grid: 3 does not divide 2",
    ),
    (
        {"connector": {"kind": "average_pool", "side": 3}},
        "average_pool to 3x3 tokens from a 2x2 grid would enlarge it",
    ),
    (
        {"positions": {"kind": "mrope", "sections": [16, 24, 24]}},
        "positions.sections [16, 24, 24] sum to 64, but the language model has 3 rotary frequencies (half its head "
        "width of 6)",
    ),
    (
        {"connector": {"kind": "perceiver", "project": False}},
        "connector.project: false leaves latents at the vision width, which only fusion gated_cross_attention can "
        "take; with splice, remove it",
    ),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED, ids=[reason[:40] for _, reason in REFUSED])
def test_parts_that_do_not_fit_are_refused_with_the_reason(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    value = model_value(chatml_tokenizer_dir(tmp_path), encoder="clip") | change
    with pytest.raises(ModelError) as caught:
        ModelConfig.model_validate(value).resolved()
    assert str(caught.value) == reason


def test_flamingos_resampler_feeds_gated_blocks_at_the_vision_width(
    tmp_path: Path, conversations: list[Conversation]
) -> None:
    value = model_value(chatml_tokenizer_dir(tmp_path), connector="perceiver", fusion="gated_cross_attention")
    value["connector"]["project"] = False
    model = Vlm(ModelConfig.model_validate(value).resolved())
    assert model.connection.connector.width == model.encoder.width != model.decoder.width
    prepare = preparation(model.config, Tokenizer.load(tmp_path / "chatml"))
    loss_of(model, packed(conversations, prepare)).backward()
