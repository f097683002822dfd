"""Two ranks save one checkpoint, and one of them fails, dies or hangs: all commit, or nobody does, and nobody waits."""

from __future__ import annotations

import errno
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from opsin.checkpoint.places import Place, shard_files
from opsin.checkpoint.saver import Saver, Snapshot
from opsin.checkpoint.store import candidates, commit, newest_whole, read_manifest, verify
from opsin.core.errors import CheckpointError, TrainError
from opsin.core.files import write_json
from opsin.train.world import World
from tests.support.disk import Fault, hooked
from tests.support.forks import KILLED, joined_forks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SAVED, REPORTED, LOST, DONE = 0, 3, 4, 5
SIZE = 2


@dataclass
class Threads:
    """Ranks that are threads of one process."""

    rank: int
    size: int = SIZE
    shared: dict[str, Any] = field(default_factory=dict)

    def gather(self, value: Any) -> list[Any]:
        self.shared["values"][self.rank] = value
        self.barrier()
        values = list(self.shared["values"])
        self.barrier()
        return values

    def barrier(self) -> None:
        self.shared["barrier"].wait(timeout=20)


def by_threads(work: Callable[[Threads], Any]) -> list[Any]:
    """What each rank's work gave, or the error that it raised."""
    shared = {"values": [None] * SIZE, "barrier": threading.Barrier(SIZE)}

    def caught(rank: int) -> Any:
        try:
            return work(Threads(rank, shared=shared))
        except (CheckpointError, KeyError) as error:
            return error

    with ThreadPoolExecutor(SIZE) as pool:
        return list(pool.map(caught, range(SIZE)))


def share(rank: int) -> dict[str, torch.Tensor]:
    return {f"of rank {rank}": torch.arange(9.0) + rank}


def save(folder: Path, step: int, ranks: Any) -> Path:
    saver = Saver(folder, ranks, keep=1)
    snapshot = Snapshot({"model": share(ranks.rank)}, lambda out: write_json(out / "train.json", {"step": step}))
    return saver.save(Place(0, step), "align", lambda: snapshot, wait=True)


def test_all_ranks_write_one_checkpoint(tmp_path: Path) -> None:
    first, second = by_threads(lambda ranks: save(tmp_path / "checkpoints", 1, ranks))
    assert first == second
    assert verify(first) == {"stage": "align", "step": 1, "done": False}
    assert read_manifest(first)["ranks"] == 2
    files = shard_files(first, "model")
    assert [path.name for path in files] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert all(torch.equal(load_file(path)[f"of rank {n}"], torch.arange(9.0) + n) for n, path in enumerate(files))
    assert sorted(path.name for path in first.iterdir()) == ["manifest.json", *(p.name for p in files), "train.json"]


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_rank_that_fails_is_named_by_all_and_nobody_commits(tmp_path: Path, failing: int, code: int) -> None:
    folder = tmp_path / "checkpoints"
    first, _ = by_threads(lambda ranks: save(folder, 1, ranks))

    def write(own: Path, rank: int) -> None:
        (own / f"{rank}.bin").write_bytes(b"1")
        if rank == failing:
            raise OSError(code, os.strerror(code))

    path = folder / "00-align-000000002"
    errors = by_threads(lambda ranks: commit(path, lambda own: write(own, ranks.rank), {}, ranks))
    for error in errors:
        assert isinstance(error, CheckpointError)
        assert str(error).startswith(f"{path}: could not be saved (rank {failing}: {os.strerror(code)}; ")
        assert str(error).endswith(" MB free); earlier checkpoints are untouched")
    assert sorted(p.name for p in folder.iterdir()) == [first.name, "LATEST"]


def test_a_mistake_in_one_rank_is_its_own_error_and_told_to_the_others(tmp_path: Path) -> None:
    def write(_own: Path, rank: int) -> None:
        if rank == 1:
            raise KeyError("a bug")

    errors = by_threads(lambda ranks: commit(tmp_path / "x", lambda own: write(own, ranks.rank), {}, ranks))
    assert "could not be saved (rank 1: KeyError: 'a bug'; " in str(errors[0])
    assert isinstance(errors[1], KeyError)
    assert list(tmp_path.iterdir()) == []


def test_two_ranks_must_not_write_the_same_file(tmp_path: Path) -> None:
    errors = by_threads(lambda ranks: commit(tmp_path / "x", lambda own: write_json(own / "a.json", 1), {}, ranks))
    assert [str(error) for error in errors] == [f"{tmp_path / 'x'}: rank 1 wrote a.json, and so did another"] * 2
    assert list(tmp_path.iterdir()) == []


def outcome(folder: Path, ranks: World) -> int:
    try:
        save(folder, 2, ranks)
    except CheckpointError:
        return REPORTED
    except TrainError:
        return LOST
    return SAVED


def test_a_rank_that_is_killed_at_any_call_of_a_save(tmp_path: Path) -> None:
    ends = set()
    for at in range(1, 200):
        folder = tmp_path / f"{at}" / "checkpoints"
        by_threads(lambda ranks, folder=folder: save(folder, 1, ranks))  # type: ignore[misc]

        def work(rank: int, folder: Path = folder, at: int = at) -> int:
            ranks = World(rank, SIZE, torch.device("cpu"), dist.group.WORLD)
            if rank == 0:
                return outcome(folder, ranks)
            fault = Fault("kill", at)
            with hooked(fault):
                code = outcome(folder, ranks)
            return code if fault.calls >= at else DONE

        codes = joined_forks(tmp_path / f"{at}" / "store", SIZE, work, timeout=10)
        if codes[1] == DONE:
            break
        assert codes == [LOST, KILLED], f"call {at}"
        newest, skipped = newest_whole(folder, weights_only=True)
        assert (newest.name, skipped) == ("00-align-000000001", [])
        by_threads(lambda ranks, folder=folder: save(folder, 3, ranks))  # type: ignore[misc]
        assert sorted(p.name for p in folder.iterdir()) == ["00-align-000000003", "LATEST"]
        ends.add(at)
    assert len(ends) >= 5
    assert codes == [SAVED, DONE]


def test_a_rank_that_hangs_ends_the_save_of_the_others_in_time(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    by_threads(lambda ranks: save(folder, 1, ranks))

    def work(rank: int) -> int:
        ranks = World(rank, SIZE, torch.device("cpu"), dist.group.WORLD)
        if rank == 0:
            return outcome(folder, ranks)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, 4)  # which ends it
        signal.pause()
        return SAVED

    codes = joined_forks(tmp_path / "store", SIZE, work, timeout=2)
    assert codes[0] == LOST
    assert [path.name for path in candidates(folder)] == ["00-align-000000001"]
