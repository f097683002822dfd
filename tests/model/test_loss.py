from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from opsin.core.types import IGNORE_INDEX
from opsin.model import loss as module
from opsin.model.loss import PLAIN, ChunkedCrossEntropy, Terms, supervised_loss, weighed_loss


def inputs(tokens: int, vocabulary: int = 17, width: int = 6, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=generator, requires_grad=True)
    targets = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return hidden, weight, targets


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 40), chunk=st.integers(1, 50), scale=st.sampled_from([1.0, 0.125, -3.0]))
def test_chunked_equals_plain_cross_entropy(tokens: int, chunk: int, scale: float) -> None:
    results = []
    for chunked in (True, False):
        hidden, weight, targets = inputs(tokens, seed=tokens)
        if chunked:
            loss, _ = ChunkedCrossEntropy.apply(hidden, weight, targets, torch.ones(tokens), PLAIN, chunk)
        else:
            loss = functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
        (loss * scale).backward()
        results.append((loss.detach(), hidden.grad, weight.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("chunk_logits", [1, 40, 1 << 25])
def test_only_supervised_positions_count(monkeypatch: pytest.MonkeyPatch, chunk_logits: int) -> None:
    monkeypatch.setattr(module, "CHUNK_LOGITS", chunk_logits)
    hidden, weight, targets = inputs(12)
    targets[[0, 3, 4, 11]] = IGNORE_INDEX
    loss = supervised_loss(hidden, weight, targets)
    loss.backward()
    assert hidden.grad is not None
    assert (hidden.grad[[0, 3, 4, 11]] == 0).all()
    plain = functional.cross_entropy(hidden @ weight.T, targets, reduction="sum", ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(loss, plain)
    expected = torch.autograd.grad(plain, [hidden, weight])
    torch.testing.assert_close([hidden.grad, weight.grad], list(expected))


def test_a_head_tied_to_the_embedding_gets_both_gradients() -> None:
    results = []
    for ours in (True, False):
        _, weight, targets = inputs(9)
        hidden = torch.tanh(functional.embedding(targets.roll(1), weight))
        if ours:
            loss = supervised_loss(hidden, weight, targets)
        else:
            loss = functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
        loss.backward()
        results.append((loss.detach(), weight.grad))
    torch.testing.assert_close(*results)


def test_nothing_supervised_is_exactly_zero_with_zero_gradients() -> None:
    hidden, weight, targets = inputs(5)
    loss = supervised_loss(hidden, weight, torch.full_like(targets, IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None
    assert weight.grad is not None
    assert (hidden.grad == 0).all()
    assert (weight.grad == 0).all()


@pytest.mark.parametrize("trains", [(True, False), (False, True)])
def test_a_frozen_side_gets_no_gradient(trains: tuple[bool, bool]) -> None:
    hidden, weight, targets = inputs(5)
    hidden.requires_grad_(trains[0])
    weight.requires_grad_(trains[1])
    supervised_loss(hidden, weight, targets).backward()
    assert (hidden.grad is not None, weight.grad is not None) == trains


def test_target_ids_at_both_ends_of_the_vocabulary() -> None:
    hidden, weight, _ = inputs(2)
    targets = torch.tensor([0, 16])
    log_probabilities = torch.log_softmax(hidden @ weight.T, dim=-1)
    expected = -(log_probabilities[0, 0] + log_probabilities[1, 16])
    torch.testing.assert_close(supervised_loss(hidden, weight, targets), expected)


def test_extreme_logits_stay_finite() -> None:
    hidden, weight, targets = inputs(4)
    loss = supervised_loss(hidden * 1e4, weight, targets)
    loss.backward()
    assert loss.isfinite()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_bfloat16_autocast_keeps_a_float32_sum_and_float32_gradients() -> None:
    hidden, weight, targets = inputs(30)
    with torch.autocast("cpu", torch.bfloat16):
        loss = supervised_loss(hidden, weight, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    plain = functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    assert loss.item() == pytest.approx(plain.item(), rel=0.02)


@settings(max_examples=30, deadline=None)
@given(z_loss=st.sampled_from([0.0, 1e-3, 0.5]), smoothing=st.sampled_from([0.0, 0.1, 0.9]), chunk=st.integers(1, 9))
def test_z_loss_smoothing_and_weights_equal_their_formulas(z_loss: float, smoothing: float, chunk: int) -> None:
    hidden, weight, targets = inputs(7)
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 0.25, 1.0])
    total, losses = ChunkedCrossEntropy.apply(hidden, weight, targets, weights, Terms(z_loss, smoothing), chunk)
    logits = hidden @ weight.T
    entropies = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    expected = entropies + z_loss * torch.logsumexp(logits, dim=-1).square()
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(total, (weights * expected).sum())
    gradients = torch.autograd.grad(total, [hidden, weight])
    by_autograd = torch.autograd.grad((weights * expected).sum(), [hidden, weight])
    torch.testing.assert_close(gradients, by_autograd)


def test_weights_are_those_of_supervised_positions() -> None:
    hidden, weight, targets = inputs(4)
    targets[1] = IGNORE_INDEX
    total, losses = weighed_loss(hidden, weight, targets, torch.tensor([2.0, 100.0, 1.0, 0.0]))
    torch.testing.assert_close(total, 2 * losses[0] + losses[1])
