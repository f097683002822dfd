"""The loader: the same batches in the same order for any number of workers and ranks, and nothing left behind."""

from __future__ import annotations

import gc
import time
from itertools import chain
from typing import TYPE_CHECKING

import pytest
import torch

from opsin.core.errors import LoaderError
from opsin.data.collate import collate
from opsin.data.loader import Loader
from opsin.data.plan import rank_share
from tests.support.loading import PACKS, Watched, assert_equal, children, nothing_left, samples
from tests.support.models import tiny_vlm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from opsin.core.types import Batch, Example
    from opsin.data.example import Preparation, Seen


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Preparation:
    return tiny_vlm(tmp_path_factory.mktemp("model"))[1]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory, prepare: Preparation) -> list[Example]:
    return samples(tmp_path_factory.mktemp("pictures"), prepare)


@pytest.fixture(scope="module")
def expected(examples: Sequence[Example], prepare: Preparation) -> list[Batch]:
    return [collate([examples[i] for i in pack.samples], prepare) for pack in PACKS]


@pytest.mark.parametrize("workers", [0, 1, 4, 9])
def test_batches_are_those_of_collate_whatever_the_number_of_workers(
    examples: list[Example], prepare: Preparation, expected: list[Batch], workers: int
) -> None:
    with nothing_left(), Loader(examples, prepare, PACKS, workers=workers) as loader:
        assert_equal(list(loader), expected)


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_together_make_the_batches_of_one_process(
    examples: list[Example], prepare: Preparation, expected: list[Batch], ranks: int, workers: int
) -> None:
    steps = [PACKS[:4], PACKS[4:]]
    shares = [[pack for step in steps for pack in rank_share(step, rank, ranks)] for rank in range(ranks)]
    made = [list(Loader(examples, prepare, share, workers=workers)) for share in shares]
    of_pack = dict(zip(chain.from_iterable(shares), chain.from_iterable(made), strict=True))
    assert_equal([of_pack[pack] for pack in PACKS], expected)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_going_on_at_a_pack_gives_what_an_uninterrupted_run_would(
    examples: list[Example], prepare: Preparation, expected: list[Batch], workers: int
) -> None:
    for done in range(len(PACKS) + 1):
        with Loader(examples, prepare, PACKS[done:], workers=workers) as loader:
            assert_equal(list(loader), expected[done:])


def test_a_slow_worker_does_not_change_the_order(
    examples: list[Example], prepare: Preparation, expected: list[Batch]
) -> None:
    slow = Watched(examples, lambda i: time.sleep(0.3 if i == PACKS[0].samples[0] else 0))
    with Loader(slow, prepare, PACKS, workers=3) as loader:
        assert_equal(list(loader), expected)


def test_a_pack_that_takes_longer_than_the_timeout_is_no_fault_while_it_gets_on(
    examples: list[Example], prepare: Preparation, expected: list[Batch]
) -> None:
    slow = Watched(examples, lambda _: time.sleep(0.6))
    with Loader(slow, prepare, PACKS[2:3], workers=1, timeout=1.1) as loader:
        assert_equal(list(loader), expected[2:3])


def test_batches_stay_valid_and_may_be_written_to_when_the_loader_is_gone(
    examples: list[Example], prepare: Preparation, expected: list[Batch]
) -> None:
    loader = Loader(examples, prepare, PACKS, workers=2)
    batches = list(loader)
    loader.close()
    del loader
    assert_equal(batches, expected)
    pixels_X = batches[-1].pixels_X
    assert pixels_X is not None
    pixels_X.zero_()
    assert not pixels_X.any()


def test_loading_leaves_the_random_state_alone(examples: list[Example], prepare: Preparation) -> None:
    before = torch.get_rng_state()
    with Loader(examples, prepare, PACKS, workers=2) as loader:
        next(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_make_only_a_few_batches_ahead(examples: list[Example], prepare: Preparation) -> None:
    read = torch.zeros(len(examples)).share_memory_()
    with Loader(Watched(examples, lambda i: read[i].add_(1)), prepare, PACKS, workers=1) as loader:
        next(loader)
        time.sleep(0.3)
        assert read.nonzero().flatten().tolist() == sorted(i for pack in PACKS[:3] for i in pack.samples)


def test_cached_features_are_read_in_the_process_itself(examples: list[Example], prepare: Preparation) -> None:
    class Cache:
        def get(self, seen: Sequence[Seen]) -> Tensor:
            return torch.full((sum(layout.patches for _, layout in seen), 3), 0.5)

    before = children()
    with Loader(examples, prepare, PACKS, workers=4, features=Cache()) as loader:
        batch = list(loader)[1]
        assert children() == before
    assert batch.pixels_X is None
    assert batch.features_PC is not None


def test_no_worker_outlives_a_loader_that_is_closed_failed_under_or_forgotten(
    examples: list[Example], prepare: Preparation
) -> None:
    with nothing_left():
        loader = Loader(examples, prepare, PACKS, workers=2)
        loader.close()
        loader.close()
        with pytest.raises(LoaderError, match="closed"):
            next(loader)
    with nothing_left(), pytest.raises(ZeroDivisionError), Loader(examples, prepare, PACKS, workers=2) as loader:
        sum(batch.num_tokens / 0 for batch in loader)
    with nothing_left():
        loader = Loader(examples, prepare, PACKS, workers=2)
        next(loader)
        del loader
        gc.collect()


def test_no_packs_are_no_batches(examples: list[Example], prepare: Preparation) -> None:
    assert list(Loader(examples, prepare, (), workers=2)) == []
