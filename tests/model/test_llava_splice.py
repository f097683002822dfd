from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from opsin.core.errors import ModelError
from opsin.core.types import IGNORE_INDEX, PLACEHOLDER_ID
from opsin.model.loss import supervised_loss
from opsin.model.splice import IMAGE_TOKEN_INDEX, TooFewImagesError, prepare_inputs_labels_for_multimodal, splice
from tests.support.golden import golden

IMG = IMAGE_TOKEN_INDEX
CASES = golden("llava_splice")["cases"]
WHAT_STRICT_REFUSES = {"truncate_batch_left": "row 0: max_length 5 would cut off all 2 tokens that are learned"}


def words(ids: Tensor) -> Tensor:
    """The golden embedding: [id, 1]."""
    return torch.stack([ids.float(), torch.ones_like(ids).float()], dim=-1)


def images(sizes: list[int]) -> list[Tensor]:
    """The golden features: token j of image i is [1000 (i + 1) + j, 2]."""
    return [
        torch.stack([1000.0 * (i + 1) + torch.arange(size), torch.full((size,), 2.0)], 1)
        for i, size in enumerate(sizes)
    ]


def prepared(
    ids: list[list[int]],
    labels: list[list[int]] | None = None,
    mask: list[list[int]] | None = None,
    sizes: list[int] | None = None,
    **options: Any,
) -> tuple[Any, ...]:
    return prepare_inputs_labels_for_multimodal(
        torch.tensor(ids),
        torch.arange(len(ids[0])).expand(len(ids), -1),
        None if mask is None else torch.tensor(mask),
        "past",
        None if labels is None else torch.tensor(labels),
        None if sizes is None else sizes,
        **{"embed_tokens": words, "encode_images": lambda sizes, _: images(sizes), **options},
    )


def run_golden(case: dict[str, Any], *, compat: bool) -> tuple[Any, ...]:
    args = case["args"]
    return prepared(
        args["ids"],
        args["labels"],
        args["mask"],
        [3] * args["n_images"],
        max_length=args.get("maxlen"),
        padding_side=args.get("side", "right"),
        compat=compat,
    )


@pytest.mark.parametrize("compat", [True, False], ids=["compat", "strict"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_it_does_what_llava_does(case: dict[str, Any], compat: bool) -> None:
    expected = case["out"]
    if "error" in expected:
        assert expected["error"] == "IndexError"
        with pytest.raises(IndexError, match=r"row 1 is the first without"):
            run_golden(case, compat=compat)
        return
    if not compat and case["name"] in WHAT_STRICT_REFUSES:
        with pytest.raises(ModelError, match=WHAT_STRICT_REFUSES[case["name"]]):
            run_golden(case, compat=False)
        return
    ids, positions, mask, past, embeds, labels = run_golden(case, compat=compat)
    assert past == "past"
    assert (positions.tolist(), mask.tolist()) == (expected["position_ids"], expected["attention_mask"])
    assert str(mask.dtype) == expected["mask_dtype"]
    assert labels.tolist() == expected["labels"]
    if expected["embeds"] is None:
        assert embeds is None
        assert ids.tolist() == case["args"]["ids"]
    else:
        assert ids is None
        assert embeds.tolist() == expected["embeds"]


def row_by_row(
    ids: Tensor, mask: Tensor, labels: Tensor, features: list[Tensor], max_length: int | None, side: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The slow twin: LLaVA's own loop (positions, mask, embeddings, labels)."""
    rows, image = [], 0
    for row_ids, row_labels, kept in zip(ids, labels, mask, strict=True):
        pieces, targets = [torch.zeros(0, 2)], [torch.zeros(0, dtype=torch.long)]
        for token, label in zip(row_ids[kept], row_labels[kept], strict=True):
            is_image = int(token) == IMG
            pieces.append(features[image] if is_image else words(token[None]))
            targets.append(torch.full((len(pieces[-1]),), IGNORE_INDEX) if is_image else label[None])
            image += is_image
        image += IMG not in row_ids[kept]
        rows.append((torch.cat(pieces)[:max_length], torch.cat(targets)[:max_length]))
    longest = max(len(embeds) for embeds, _ in rows)
    out_embeds, out_labels = torch.zeros(len(rows), longest, 2), torch.full((len(rows), longest), IGNORE_INDEX)
    out_mask, out_positions = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest).long()
    for row, (embeds, targets) in enumerate(rows):
        length = len(embeds)
        at = slice(0, length) if side == "right" else slice(longest - length, longest)
        out_embeds[row, at], out_labels[row, at] = embeds, targets
        out_mask[row, at], out_positions[row, at] = 1, torch.arange(length)
    return out_positions, out_mask, out_embeds, out_labels


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """(ids, mask, image sizes): images anywhere, several a row, padding anywhere, just enough images or one more."""
    length = draw(st.integers(2, 7))
    token = st.sampled_from([IMG, 0, 1, 2, 3, 4, 5])
    rows = draw(st.lists(st.lists(token, min_size=length, max_size=length), min_size=1, max_size=4))
    mask = [draw(st.lists(st.sampled_from([1, 1, 1, 0]), min_size=length, max_size=length)) for _ in rows]
    used = sum(max(1, sum(t == IMG for t, m in zip(*row, strict=True) if m)) for row in zip(rows, mask, strict=True))
    sizes = draw(st.lists(st.integers(0, 4), min_size=used, max_size=used + 1))
    return rows, mask, sizes


@settings(max_examples=100, deadline=None)
@given(batches(), st.none() | st.integers(1, 9), st.sampled_from(["left", "right"]))
def test_it_is_llavas_loop(
    batch: tuple[list[list[int]], list[list[int]], list[int]], max_length: int | None, side: str
) -> None:
    ids, mask, sizes = batch
    labels = [[IGNORE_INDEX if t % 2 else t + 10 for t in row] for row in ids]
    _, positions, new_mask, _, embeds, new_labels = prepared(
        ids, labels, mask, sizes, max_length=max_length, padding_side=side, compat=True
    )
    expected = row_by_row(
        torch.tensor(ids), torch.tensor(mask).bool(), torch.tensor(labels), images(sizes), max_length, side
    )
    for mine, theirs in zip((positions, new_mask, embeds, new_labels), expected, strict=True):
        assert torch.equal(mine, theirs)


def test_what_was_none_comes_back_as_none() -> None:
    out = prepare_inputs_labels_for_multimodal(
        torch.tensor([[1, IMG, 5]]),
        None,
        None,
        None,
        None,
        [3],
        embed_tokens=words,
        encode_images=lambda sizes, _: images(sizes),
    )
    assert [value is None for value in out] == [True, True, True, True, False, True]
    assert out[4].shape == (1, 5, 2)


def test_without_images_everything_is_handed_back() -> None:
    ids, mask = torch.tensor([[1, 5]]), torch.ones(1, 2)
    out = prepare_inputs_labels_for_multimodal(
        ids, None, mask, "past", None, None, embed_tokens=words, encode_images=lambda *_: []
    )
    assert out[0] is ids
    assert out[2] is mask
    assert out[3:] == ("past", None, None)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_the_mask_keeps_its_dtype(dtype: torch.dtype) -> None:
    out = prepare_inputs_labels_for_multimodal(
        torch.tensor([[1, IMG]]),
        None,
        torch.ones(1, 2, dtype=dtype),
        None,
        None,
        [3],
        embed_tokens=words,
        encode_images=lambda sizes, _: images(sizes),
    )
    assert out[2].dtype == dtype


def test_image_sizes_go_to_the_encoder() -> None:
    given_sizes = []

    def encode(images_given: list[int], sizes: Any) -> list[Tensor]:
        given_sizes.append(sizes)
        return images(images_given)

    prepare_inputs_labels_for_multimodal(
        torch.tensor([[1, IMG]]), None, None, None, None, [3], [(480, 640)], embed_tokens=words, encode_images=encode
    )
    assert given_sizes == [[(480, 640)]]


def test_a_text_only_row_takes_a_dummy_image_so_that_the_next_row_gets_its_own() -> None:
    embeds = prepared([[1, 5, 6], [1, IMG, 7]], sizes=[3, 3])[4]
    assert embeds[1, 1:4, 0].tolist() == [2000, 2001, 2002]


def test_the_dummy_image_keeps_the_encoder_in_the_graph() -> None:
    weight = torch.ones(2, requires_grad=True)
    embeds = prepared([[1, 5, 6]], sizes=[3], encode_images=lambda sizes, _: [x * weight for x in images(sizes)])[4]
    embeds.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [0, 0]


@pytest.mark.parametrize("compat", [True, False])
def test_too_few_images_name_both_counts_and_the_row(compat: bool) -> None:
    with pytest.raises(TooFewImagesError) as caught:
        prepared([[1, IMG, IMG], [1, 5, 6], [1, IMG, 7]], sizes=[3, 3, 3], compat=compat)
    assert str(caught.value) == (
        "3 images, but the rows use 4 (one for every image sentinel, and a dummy for every row without one); "
        "row 2 is the first without"
    )


def test_too_many_images_are_refused_with_both_counts_unless_asked_for() -> None:
    with pytest.raises(ModelError, match=r"^3 images, but the rows use 2 .* up to the last row, 1; "):
        prepared([[1, IMG], [1, IMG]], sizes=[3, 3, 3])
    assert prepared([[1, IMG], [1, IMG]], sizes=[3, 3, 3], compat=True)[4].shape == (2, 4, 2)


def test_truncation_inside_an_image_is_refused_unless_asked_for() -> None:
    ids, labels = [[1, 10, IMG, 11, 12]], [[-100, -100, -100, 11, 12]]
    with pytest.raises(
        ModelError, match=r"^row 0: image 0 takes positions 2 to 4, and max_length 4 would cut it in half"
    ):
        prepared(ids, labels, sizes=[3], max_length=4)
    out = prepared(ids, labels, sizes=[3], max_length=4, compat=True)
    assert out[4].shape == (1, 4, 2)
    assert out[5].tolist() == [[-100] * 4]


def test_truncation_just_before_or_behind_an_image_is_allowed() -> None:
    ids = [[1, 10, IMG, 11]]
    assert prepared(ids, [[-100, 10, -100, 11]], sizes=[3], max_length=2)[4].shape == (1, 2, 2)
    assert prepared(ids, [[-100, 10, -100, 11]], sizes=[3], max_length=5)[4].shape == (1, 5, 2)


def test_a_row_that_never_had_labels_may_be_truncated() -> None:
    out = prepared([[1, 2, 3], [1, 2, 3]], [[-100] * 3, [-100, 2, 3]], sizes=[3, 3], max_length=2)
    assert out[5].tolist() == [[-100, -100], [-100, 2]]


def test_a_label_at_a_sentinel_is_none_that_could_be_lost() -> None:
    out = prepared([[1, 2, IMG]], [[-100, -100, 7]], sizes=[3], max_length=2)
    assert out[5].tolist() == [[-100, -100]]


def test_features_take_the_embeddings_dtype() -> None:
    embeds = prepared([[1, IMG, 5]], sizes=[2], embed_tokens=lambda ids: words(ids).bfloat16())[4]
    assert embeds.dtype == torch.bfloat16


def test_a_batch_whose_labels_are_all_cut_off_has_a_loss_of_zero() -> None:
    labels = prepared([[1, IMG, 12]], [[-100, -100, 12]], sizes=[3], max_length=4, compat=True)[5]
    hidden = torch.randn(4, 8, requires_grad=True)
    loss = supervised_loss(hidden, torch.randn(20, 8), labels[0])
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_a_real_unknown_token_is_not_taken_for_padding() -> None:
    embeds = prepared([[1, 0, IMG, 0, 5]], mask=[[1, 1, 1, 1, 1]], sizes=[2])[4]
    assert embeds[0, :, 0].tolist() == [1, 0, 1000, 1001, 0, 5]


@pytest.mark.parametrize("sizes", [[3], None], ids=["one token", "no images"])
def test_an_image_that_would_never_be_seen_is_refused_unless_asked_for(sizes: list[int] | None) -> None:
    ids = [[1], [IMG]] if sizes else [[1, 2], [IMG, 2]]
    reason = "a single token, as in a decoding step" if sizes else "no images"
    with pytest.raises(ModelError, match=rf"^row 1 holds an image sentinel \(1 in the batch\), but there is {reason}"):
        prepared(ids, sizes=sizes)
    assert prepared(ids, sizes=sizes, compat=True)[0].tolist() == ids


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config).eval()


IDS = [[1, 10, IMG, 11, 12], [1, 20, 21, 0, 0], [IMG, IMG, 7, 0, 0]]
MASK = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
SIZES = [3, 2, 4, 1]  # the second is the dummy of the row of words


def spliced(padding_side: str, table: nn.Embedding, features: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    _, positions, mask, _, embeds, _ = prepared(
        IDS, None, MASK, SIZES, embed_tokens=table, encode_images=lambda *_: features, padding_side=padding_side
    )
    return embeds, mask, positions


@torch.no_grad()
def test_padding_on_either_side_gives_the_same_logits() -> None:
    model = tiny_llama()
    features = [torch.randn(size, 16) for size in SIZES]
    logits = {}
    for side in ("left", "right"):
        embeds, mask, positions = spliced(side, model.get_input_embeddings(), features)
        out = model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
        logits[side] = out[mask.bool()]
    torch.testing.assert_close(logits["left"], logits["right"], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_its_rows_are_the_documents_of_a_pack(side: str) -> None:
    model = tiny_llama()
    table = model.get_input_embeddings()
    features = [torch.randn(size, 16) for size in SIZES]
    embeds, mask, positions = spliced(side, table, features)
    sizes, documents = iter([3, 4, 1]), []
    for ids, kept in zip(IDS, MASK, strict=True):
        shown = [token for token, keep in zip(ids, kept, strict=True) if keep]
        documents.append([t for token in shown for t in ([token] if token != IMG else [IMG] * next(sizes))])
    tokens = torch.tensor([t for document in documents for t in document])
    visual = tokens == IMG
    text = table(tokens.masked_fill(visual, PLACEHOLDER_ID))
    packed = splice(text, torch.cat([features[0], *features[2:]]), visual.nonzero()[:, 0])
    assert torch.equal(embeds[mask.bool()], packed)
    logits = model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits[mask.bool()]
    alone = [model(inputs_embeds=part[None]).logits[0] for part in packed.split([len(d) for d in documents])]
    torch.testing.assert_close(logits, torch.cat(alone), atol=1e-5, rtol=1e-5)
