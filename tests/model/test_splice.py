from __future__ import annotations

import pytest
import torch

from opsin.core.errors import ModelError
from opsin.model.splice import splice


def test_visual_tokens_take_exactly_their_places() -> None:
    text, visual = torch.randn(6, 3), torch.randn(2, 3)
    out = splice(text, visual, torch.tensor([4, 1]))
    assert torch.equal(out[4], visual[0])
    assert torch.equal(out[1], visual[1])
    rest = [0, 2, 3, 5]
    assert torch.equal(out[rest], text[rest])


def test_gradients_go_to_the_text_and_to_the_pictures() -> None:
    text, visual = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    splice(text, visual, torch.tensor([1, 2])).sum().backward()
    assert visual.grad is not None
    assert text.grad is not None
    assert (visual.grad == 1).all()
    assert text.grad[:, 0].tolist() == [1, 0, 0, 1]


def test_the_result_has_the_texts_dtype() -> None:
    assert splice(torch.zeros(3, 2).bfloat16(), torch.ones(1, 2), torch.tensor([0])).dtype == torch.bfloat16


@pytest.mark.parametrize(("visual", "places"), [(5, 3), (1, 2), (0, 1)])
def test_a_mismatch_is_an_error_with_both_counts(visual: int, places: int) -> None:
    with pytest.raises(ModelError) as caught:
        splice(torch.zeros(9, 2), torch.zeros(visual, 2), torch.arange(places))
    assert str(caught.value) == (
        f"{visual} visual tokens for {places} places in the text; "
        "the pictures' layouts and the encoder's output disagree"
    )
