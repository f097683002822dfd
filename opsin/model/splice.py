"""Fusion by splicing: visual tokens take the places of their placeholders, in one checked scatter."""

from __future__ import annotations

from torch import Tensor

from opsin.core.errors import ModelError
from opsin.model.llava_splice import IMAGE_TOKEN_INDEX, TooFewImagesError, prepare_inputs_labels_for_multimodal

__all__ = ["IMAGE_TOKEN_INDEX", "TooFewImagesError", "prepare_inputs_labels_for_multimodal", "splice"]


def splice(embeddings_TD: Tensor, visual_ND: Tensor, places_N: Tensor) -> Tensor:
    """Embeddings with row `places_N[i]` replaced by `visual_ND[i]`.

    Raises:
        ModelError: the number of visual tokens and of their places differ.
    """
    if len(visual_ND) != len(places_N):
        raise ModelError(
            f"{len(visual_ND)} visual tokens for {len(places_N)} places in the text; "
            "the pictures' layouts and the encoder's output disagree"
        )
    return embeddings_TD.index_copy(0, places_N, visual_ND.to(embeddings_TD.dtype))
