"""opsin's model of every published family against transformers' own, on tiny random checkpoints.

The documents are made by opsin; transformers is given the same ids (its image token at every visual position) and the
same pixels in its own format, one document at a time, or padded on the left. Processors are compared in test_pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from opsin.checkpoint.prepare import preparation
from opsin.core.types import Clip, Conversation, Example, Picture, Turn
from opsin.data.collate import collate
from opsin.data.example import make_example
from opsin.model.generate import Sampling, generate
from opsin.model.loss import supervised_loss
from tests.support.models import draw_picture
from tests.support.reference import FAMILIES, Pair, conversations, examples, pair_of, reference_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

ATOL = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture
def make(folder: Path) -> Any:
    return lambda family: pair_of(folder, family)


def reference_labels(example: Example) -> Tensor:
    """Labels as transformers takes them: the ids themselves where they are learned."""
    return torch.where(torch.from_numpy(example.supervised_T), torch.from_numpy(example.tokens_T), -100)[None]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_packed_equal_the_references_one_by_one(family: str, folder: Path, make: Any) -> None:
    pair = make(family)
    made = examples(pair, folder)
    with torch.no_grad():
        batch = collate(list(made.values()), pair.prepare)
        packed = pair.ours.decoder.logits(pair.ours(batch)).split(list(batch.lengths))
        for (name, example), found in zip(made.items(), packed, strict=True):
            expected = pair.theirs(**reference_inputs(pair, example)).logits[0]
            assert expected.std() > 0.1  # the comparison means something
            torch.testing.assert_close(found, expected, atol=ATOL, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
            alone = pair.ours.decoder.logits(pair.ours(collate([example], pair.prepare)))
            torch.testing.assert_close(alone, expected, atol=ATOL, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_references_padded_on_the_left(family: str, folder: Path, make: Any) -> None:
    pair = make(family)
    made = examples(pair, folder)
    chosen = [made["one"], made["text"], made["other"]]
    inputs = [reference_inputs(pair, example) for example in chosen]
    longest = max(example.num_tokens for example in chosen)
    joined: dict[str, Any] = {}
    for key in {key for one in inputs for key in one}:
        values = [one[key] for one in inputs if key in one]
        if key in {"input_ids", "attention_mask", "mm_token_type_ids"}:
            full = [one.get(key, torch.zeros_like(one["input_ids"])) for one in inputs]
            values = [torch.nn.functional.pad(value, (longest - value.shape[1], 0)) for value in full]
        elif key == "pixel_values" and family in {"llava_next", "llava_onevision"}:
            most = max(value.shape[1] for value in values)
            values = [torch.nn.functional.pad(v, (0, 0, 0, 0, 0, 0, 0, most - v.shape[1])) for v in values]
        joined[key] = torch.cat(values)
    with torch.no_grad():
        batch = collate(chosen, pair.prepare)
        packed = pair.ours.decoder.logits(pair.ours(batch)).split(list(batch.lengths))
        expected = pair.theirs(**joined).logits
    for row, found in enumerate(packed):
        torch.testing.assert_close(found, expected[row, longest - len(found) :], atol=ATOL, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_the_references(family: str, folder: Path, make: Any) -> None:
    pair = make(family)
    made = examples(pair, folder)
    ours, theirs = pair.ours, pair.theirs
    ours.requires_grad_(requires_grad=True)
    ours.zero_grad()
    theirs.zero_grad()
    batch = collate(list(made.values()), pair.prepare)
    loss = supervised_loss(ours(batch), ours.decoder.head_weight, batch.targets_T)
    loss.backward()
    total = torch.zeros(())
    for example in made.values():
        out = theirs(**reference_inputs(pair, example), labels=reference_labels(example))
        summed = out.loss * example.num_supervised
        summed.backward()
        total += summed.detach()
    torch.testing.assert_close(loss.detach(), total, atol=1e-3, rtol=1e-5)
    pairs = [
        (ours.decoder.lm.model.layers[0].self_attn.q_proj.weight, "language_model.layers.0.self_attn.q_proj.weight"),
        (ours.decoder.lm.model.embed_tokens.weight, "language_model.embed_tokens.weight"),
        *gradient_pairs(pair),
    ]
    for mine, name in pairs:
        other = theirs.model.get_parameter(name).grad
        assert mine.grad is not None
        assert other is not None
        assert other.abs().max() > 1e-3
        difference = (mine.grad - other.view_as(mine.grad)).abs().max() / other.abs().max()
        # transformers looks the image token's own row up and overwrites the result; the row gets no gradient in either
        assert difference < 1e-4, name
    ours.requires_grad_(requires_grad=False)


def gradient_pairs(pair: Pair) -> list[tuple[Tensor, str]]:
    connector = pair.ours.connection.connector
    if pair.family == "qwen2_vl":
        vit = pair.ours.encoder.vit
        return [
            (vit.patch_embed.weight, "visual.patch_embed.proj.weight"),
            (vit.blocks[0].attn.qkv.weight, "visual.blocks.0.attn.qkv.weight"),
            (connector.layers[0].weight, "visual.merger.mlp.0.weight"),
            (connector.norm.weight, "visual.merger.ln_q.weight"),
        ]
    found = [
        (connector.layers[0].weight, "multi_modal_projector.linear_1.weight"),
        (connector.layers[2].bias, "multi_modal_projector.linear_2.bias"),
        (
            pair.ours.encoder.tower.get_parameter("encoder.layers.0.mlp.fc1.weight"),
            "vision_tower.encoder.layers.0.mlp.fc1.weight",
        ),
    ]
    if pair.family != "llava":
        found.append((pair.ours.connection.newline, "image_newline"))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_visual_tokens_equal_the_references_image_features(family: str, folder: Path, make: Any) -> None:
    pair = make(family)
    for name in ("one", "several"):
        example = examples(pair, folder)[name]
        inputs = reference_inputs(pair, example)
        wanted = {k: v for k, v in inputs.items() if k in {"pixel_values", "image_sizes", "image_grid_thw"}}
        if family == "llava_onevision":
            wanted["batch_num_images"] = inputs["batch_num_images"]
        with torch.no_grad():
            visual_ND = pair.ours.look(collate([example], pair.prepare))
            features = pair.theirs.get_image_features(**wanted)
        features = getattr(features, "pooler_output", features)
        expected = torch.cat(list(features)) if isinstance(features, list | tuple) else features.flatten(0, -2)
        assert visual_ND is not None
        torch.testing.assert_close(visual_ND, expected, atol=2e-5, rtol=0)


def test_positions_equal_the_references_rope_index(folder: Path, make: Any) -> None:
    pair = make("qwen2_vl")
    for example in examples(pair, folder).values():
        inputs = reference_inputs(pair, example)
        if not example.media:
            continue
        known = {k: inputs.get(k) for k in ("image_grid_thw", "video_grid_thw", "mm_token_type_ids")}
        expected, _ = pair.theirs.model.get_rope_index(inputs["input_ids"], **known)
        assert torch.equal(torch.from_numpy(example.positions_AT), expected[:, 0])


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation_equals_the_references(family: str, folder: Path, make: Any) -> None:
    pair = make(family)
    prompts = {
        name: make_example(Conversation(name, c.turns[:-1]), pair.prepare, open_for_generation=True)
        for name, c in conversations(folder, family).items()
    }
    count = 8
    found = generate(pair.ours, collate(list(prompts.values()), pair.prepare), Sampling(count), frozenset())
    for (name, example), answer in zip(prompts.items(), found, strict=True):
        inputs = reference_inputs(pair, example)
        settings = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "eos_token_id": None}
        out = pair.theirs.generate(**inputs, **settings, pad_token_id=0)
        assert out[0, example.num_tokens :].tolist() == answer, name


def test_the_papers_positions_are_the_default_and_differ_only_behind_clips(folder: Path, make: Any) -> None:
    pair = make("qwen2_vl")
    theirs = pair.prepare
    paper = preparation(pair.ours.config, theirs.tokenizer)
    frames = tuple(Picture(path=draw_picture(folder / f"long{n}.png", n, (60, 60))) for n in range(12))
    turns = (Turn("user", (Clip(frames), "\nWhat happens?")), Turn("assistant", ("It moves.",)))
    long = Conversation("long", turns)
    one, other = (make_example(long, prepare) for prepare in (paper, theirs))
    last = int(one.visual_T.nonzero()[0][-1])
    assert (one.positions_AT[:, : last + 1] == other.positions_AT[:, : last + 1]).all()
    assert (one.positions_AT[:, last + 1 :] > other.positions_AT[:, last + 1 :]).all()
    assert one.positions_AT[:, last + 1 :].min() == one.positions_AT[:, : last + 1].max() + 1
