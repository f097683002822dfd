"""A save goes wrong at each of its system calls in turn, until one gets through: nothing that was saved is lost."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from opsin.checkpoint.places import Place
from opsin.checkpoint.saver import LATEST, Saver, Snapshot
from opsin.checkpoint.store import candidates, newest_whole, verify
from opsin.core.errors import CheckpointError
from opsin.core.files import make_directory, write_bytes, write_json
from tests.support.disk import Fault, Journal, hooked
from tests.support.forks import KILLED, ended, fork

if TYPE_CHECKING:
    from pathlib import Path

SAVED, REPORTED, DONE = 0, 3, 4
MOST_CALLS = 1000


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(step)
    numbers = torch.randn(60, generator=draw)
    return {"model": {"a": numbers, "b": numbers[:7].bfloat16()}, "optimiser": {"a/exp_avg": numbers * step}}


def write_others(folder: Path, step: int) -> None:
    write_json(folder / "train.json", {"step": step})
    make_directory(folder / "tokenizer")
    write_bytes(folder / "tokenizer" / "tokenizer.json", b"{}" * step)


def save(folder: Path, step: int) -> Path:
    """As a run does, keeping one checkpoint: whatever this deletes is older."""
    saver = Saver(folder, background=True, keep=1)
    return saver.save(
        Place(0, step), "align", lambda: Snapshot(tensors(step), lambda out: write_others(out, step)), wait=True
    )


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with a checkpoint of step 1, and with what a save and a deletion that were killed left behind."""
    monkeypatch.setattr("opsin.core.files.WRITE_BYTES", 64)  # so that files are written in parts
    folder = tmp_path / "begun" / "checkpoints"
    first = save(folder, 1)
    (folder / ".00-align-000000002.partial" / "0").mkdir(parents=True)
    (folder / ".00-align-000000002.partial" / "0" / "model.safetensors").write_bytes(b"half")
    shutil.copytree(first, folder / ".trash-00-align-000000000")
    return folder


def assert_recovers(folder: Path, steps: set[int]) -> int:
    """The newest whole checkpoint is of one of these steps, bit by bit; the next save succeeds and leaves no debris."""
    newest, _ = newest_whole(folder)
    step = int(newest.name[-9:])
    assert step in steps
    for stem, expected in tensors(step).items():
        found = load_file(newest / f"{stem}.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert (newest / "tokenizer" / "tokenizer.json").read_bytes() == b"{}" * step
    last = save(folder, 3)
    verify(last)
    assert sorted(path.name for path in folder.iterdir()) == [last.name, LATEST]
    assert (folder / LATEST).read_text(encoding="utf-8") == f"{last.name}\n"
    return step


def save_with(fault: Fault, folder: Path) -> int:
    """Save step 2 with a fault; SAVED, REPORTED for a proper error, or DONE where there are no more calls to fail."""
    try:
        with hooked(fault):
            save(folder, 2)
    except CheckpointError as error:
        told = re.fullmatch(
            r".+: could not be saved \(.+; [\d,]+ MB free\); earlier checkpoints are untouched", str(error)
        )
        return REPORTED if told else 1
    return SAVED if fault.calls >= fault.at else DONE


@pytest.mark.parametrize("kind", ["kill", "ENOSPC", "EIO"])
def test_a_fault_at_any_call_of_a_save(begun: Path, tmp_path: Path, kind: str) -> None:
    ends: Counter[tuple[int, int]] = Counter()
    for at in range(1, MOST_CALLS):
        folder = tmp_path / f"{at}" / "checkpoints"
        shutil.copytree(begun, folder)
        if kind == "kill":
            code = ended(fork(lambda folder=folder, at=at: save_with(Fault(kind, at), folder)))  # type: ignore[misc]
        else:
            code = save_with(Fault(kind, at), folder)
        if code == DONE:
            break
        for path in candidates(folder):  # half of a checkpoint, be it new or old, is never seen
            verify(path)
        assert code in ({KILLED} if kind == "kill" else {SAVED, REPORTED}), f"call {at}"
        step = assert_recovers(folder, {2} if code == SAVED else {1, 2})
        ends[code, step] += 1
        shutil.rmtree(folder.parent)
    print(f"{kind}: {at - 1} faults, {dict(ends)}")  # noqa: T201
    assert at - 1 >= 100
    expected = {"kill": {(KILLED, 1), (KILLED, 2)}}.get(kind, {(REPORTED, 1), (SAVED, 2)})
    assert expected <= ends.keys()


@pytest.mark.parametrize("lost", ["all", "data", "some"])
def test_a_power_cut_behind_any_call_of_a_save(begun: Path, tmp_path: Path, lost: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(begun.parent, run)
    journal = Journal(run)
    with hooked(journal):
        newest = save(run / "checkpoints", 2)
    folder = journal.entries[0]["checkpoints"]
    renamed = journal.calls.index(next(c for c in journal.calls if c[0] == "rename" and c[-1] == newest.name))
    durable = journal.calls.index(("fsync", folder), renamed)
    steps = Counter()
    for cut in range(len(journal.calls) + 1):
        target = tmp_path / f"cut-{cut}"
        journal.survivors(cut, target, lost)
        steps[assert_recovers(target / "checkpoints", {2} if cut > durable else {1, 2})] += 1
        shutil.rmtree(target)
    print(f"power cut, {lost} lost: {len(journal.calls) + 1} faults, {dict(steps)}")  # noqa: T201
    assert len(journal.calls) >= 60
    assert min(steps[1], steps[2]) > 10
