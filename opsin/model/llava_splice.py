"""LLaVA's own splice, `prepare_inputs_labels_for_multimodal`, for those who come from there and as an oracle for packs.

Its contract is that of LLaVA's `llava/model/llava_arch.py`: padded rows, a sentinel id where an image stands, six
values in and out. Where every embedding ends up is computed for the whole batch at once; one gather brings it there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from opsin.core.errors import ModelError
from opsin.core.types import IGNORE_INDEX

IMAGE_TOKEN_INDEX = -200
"""The id that stands for an image, whatever its number of tokens. It has no embedding."""

Prepared = tuple[Tensor | None, Tensor | None, Tensor | None, Any, Tensor | None, Tensor | None]
"""(input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels), LLaVA's order."""


class TooFewImagesError(ModelError, IndexError):
    """The ids ask for more images than there are. LLaVA raises an IndexError here, so this is one too."""


def prepare_inputs_labels_for_multimodal(
    input_ids: Tensor,
    position_ids: Tensor | None,
    attention_mask: Tensor | None,
    past_key_values: Any,
    labels: Tensor | None,
    images: Any,
    image_sizes: Any = None,
    *,
    embed_tokens: Callable[[Tensor], Tensor],
    encode_images: Callable[[Any, Any], Sequence[Tensor]],
    max_length: int | None = None,
    padding_side: Literal["left", "right"] = "right",
    compat: bool = False,
) -> Prepared:
    """Rows of ids (B, L) with image sentinels -> padded embeddings, labels, mask and positions, as LLaVA makes them.

    `embed_tokens` maps ids (n,) to embeddings (n, D); `encode_images(images, image_sizes)` gives the features (k, D) of
    every image. Images are used in reading order; a row without a sentinel uses one too, a dummy of which nothing is
    seen (LLaVA's data loader provides it). What was None comes back as None. The result is
    `(None, position_ids, attention_mask, past_key_values, inputs_embeds, labels)`, or the inputs as they are, with None
    for the embeddings, where there are no images or the ids are one decoding step. Rows longer than `max_length` lose
    their end. Padding has zero embeddings, label -100, mask 0 and position 0.

    By default what LLaVA does silently is refused: an image cut in half, a row whose labels are all cut off, images
    that no row uses, sentinels without `images` or as the only token. `compat=True` does as LLaVA does.

    Raises:
        TooFewImagesError: there are fewer images than the rows use, dummies included.
        ModelError: one of the above, unless `compat`.
    """
    if images is None or input_ids.shape[1] == 1:
        if not compat:
            _refuse_sentinels(input_ids, "no images" if images is None else "a single token, as in a decoding step")
        return input_ids, position_ids, attention_mask, past_key_values, None, labels

    features = list(encode_images(images, image_sizes))
    kept = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
    tokens = _find(input_ids, kept, [len(feature) for feature in features], all_used=not compat)
    if max_length is not None and not compat:
        _refuse_cuts(tokens, None if labels is None else labels[kept], max_length)

    words_ND = embed_tokens(tokens.ids_K[tokens.image_K < 0])
    table = torch.cat([words_ND, *(feature.to(words_ND.dtype) for feature in features)])
    placed = _place(tokens, max_length, padding_side)
    embeds = table.new_zeros(*placed.real_BL.shape, table.shape[1])
    embeds[placed.real_BL] = table.index_select(0, tokens.source_K[placed.token_E] + placed.offset_E)

    new_labels = new_mask = new_positions = None
    if labels is not None:
        labels_K = labels[kept].masked_fill(tokens.image_K >= 0, IGNORE_INDEX)
        new_labels = labels.new_full(placed.real_BL.shape, IGNORE_INDEX)
        new_labels[placed.real_BL] = labels_K[placed.token_E]
    if attention_mask is not None:
        new_mask = placed.real_BL.to(attention_mask.dtype)
    if position_ids is not None:
        new_positions = position_ids.new_zeros(placed.real_BL.shape)
        new_positions[placed.real_BL] = placed.position_E.to(position_ids.dtype)
    return None, new_positions, new_mask, past_key_values, embeds, new_labels


@dataclass(frozen=True)
class _Tokens:
    """The tokens that the mask keeps (K), row after row.

    - `image_K`: which image stands there, -1 for a word; `width_K`: its embeddings, 1 for a word
    - `start_K`: embeddings before it in its row
    - `source_K`: its first embedding in the table of all words, then all images
    """

    rows: int
    row_K: Tensor
    ids_K: Tensor
    image_K: Tensor
    width_K: Tensor
    start_K: Tensor
    source_K: Tensor


def _find(input_ids: Tensor, kept: Tensor, sizes: Sequence[int], *, all_used: bool) -> _Tokens:
    """Give the images to their sentinels.

    Raises:
        ModelError: too few images, or too many if `all_used`.
    """
    rows, device = len(input_ids), input_ids.device
    row_K, ids_K = kept.nonzero()[:, 0], input_ids[kept]
    is_image = ids_K == IMAGE_TOKEN_INDEX
    images_B = torch.bincount(row_K[is_image], minlength=rows)
    used_B = images_B.clamp(min=1)  # a row without an image uses a dummy
    _check_count(used_B, len(sizes), all_used=all_used)
    # The n-th sentinel of the batch is image n, plus the dummies of the rows before.
    dummies_B = (used_B - images_B).cumsum(0)
    image_K = torch.where(is_image, is_image.cumsum(0) - 1 + dummies_B[row_K], -1)

    sizes_I = torch.tensor(sizes, dtype=torch.long, device=device)
    width_K = torch.where(is_image, sizes_I[image_K], 1)
    before_K = width_K.cumsum(0) - width_K
    lengths_B = torch.zeros_like(images_B).index_add_(0, row_K, width_K)
    start_K = before_K - (lengths_B.cumsum(0) - lengths_B)[row_K]
    first_I = (~is_image).sum() + sizes_I.cumsum(0) - sizes_I
    source_K = torch.where(is_image, first_I[image_K], (~is_image).cumsum(0) - 1)
    return _Tokens(rows, row_K, ids_K, image_K, width_K, start_K, source_K)


@dataclass(frozen=True)
class _Placed:
    """Where embeddings go: `real_BL` is false on padding; its true places, in raster order, are the embeddings (E).

    `token_E` is the kept token that an embedding belongs to, `offset_E` which of the token's embeddings it is, and
    `position_E` how many come before it in its row.
    """

    real_BL: Tensor
    token_E: Tensor
    offset_E: Tensor
    position_E: Tensor


def _place(tokens: _Tokens, max_length: int | None, padding_side: Literal["left", "right"]) -> _Placed:
    """Lay the embeddings out in rows, cut to `max_length`."""
    device = tokens.row_K.device
    token_E = torch.repeat_interleave(torch.arange(len(tokens.row_K), device=device), tokens.width_K)
    first_K = tokens.width_K.cumsum(0) - tokens.width_K
    offset_E = torch.arange(len(token_E), device=device) - first_K[token_E]
    position_E = tokens.start_K[token_E] + offset_E
    if max_length is not None:
        fits = position_E < max_length
        token_E, offset_E, position_E = token_E[fits], offset_E[fits], position_E[fits]
    lengths_B = torch.bincount(tokens.row_K[token_E], minlength=tokens.rows)
    longest = int(lengths_B.max())
    steps = torch.arange(longest, device=device)
    real_BL = steps < lengths_B[:, None] if padding_side == "right" else steps >= longest - lengths_B[:, None]
    return _Placed(real_BL, token_E, offset_E, position_E)


def _check_count(used_B: Tensor, given: int, *, all_used: bool) -> None:
    """As many images as the rows use."""
    used = used_B.cumsum(0)
    needed = int(used[-1])
    rule = "one for every image sentinel, and a dummy for every row without one"
    if given < needed:
        row = int((used > given).nonzero()[0])
        raise TooFewImagesError(f"{given} images, but the rows use {needed} ({rule}); row {row} is the first without")
    if given > needed and all_used:
        raise ModelError(
            f"{given} images, but the rows use {needed} ({rule}), up to the last row, {len(used_B) - 1}; "
            "images and rows may be out of step, so remove what is left over"
        )


def _refuse_sentinels(input_ids: Tensor, reason: str) -> None:
    """Refuse to hand back ids that have no embedding.

    Raises:
        ModelError: naming the first row with a sentinel.
    """
    found = (input_ids == IMAGE_TOKEN_INDEX).nonzero()
    if len(found):
        raise ModelError(
            f"row {int(found[0, 0])} holds an image sentinel ({len(found)} in the batch), but there is {reason}: "
            "the image would never be seen"
        )


def _refuse_cuts(tokens: _Tokens, labels_K: Tensor | None, max_length: int) -> None:
    """Refuse truncation that does harm.

    Raises:
        ModelError: an image would be cut in half, or a row would lose all its labels.
    """
    end_K = tokens.start_K + tokens.width_K
    cut = ((tokens.image_K >= 0) & (tokens.start_K < max_length) & (end_K > max_length)).nonzero()
    if len(cut):
        at = int(cut[0])
        raise ModelError(
            f"row {int(tokens.row_K[at])}: image {int(tokens.image_K[at])} takes positions {int(tokens.start_K[at])} "
            f"to {int(end_K[at]) - 1}, and max_length {max_length} would cut it in half; raise max_length, or shorten "
            "the row's text"
        )
    if labels_K is None:
        return
    learned_K = (labels_K != IGNORE_INDEX) & (tokens.image_K < 0)
    before = torch.bincount(tokens.row_K[learned_K], minlength=tokens.rows)
    after = torch.bincount(tokens.row_K[learned_K & (tokens.start_K < max_length)], minlength=tokens.rows)
    lost = ((before > 0) & (after == 0)).nonzero()
    if len(lost):
        row = int(lost[0])
        raise ModelError(
            f"row {row}: max_length {max_length} would cut off all {int(before[row])} tokens that are learned; "
            "raise max_length or leave the row out"
        )
