from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from opsin.checkpoint.places import Place
from opsin.checkpoint.saver import LATEST, Saver, Snapshot, superseded
from opsin.checkpoint.store import candidates, newest_whole, verify
from opsin.core.errors import CheckpointError, TrainError
from opsin.core.files import write_json


def snapshot(value: float = 0.0, write: Any = None) -> Snapshot:
    tensors = {"model": {"a": torch.full((3,), value)}, "optimiser": {"a/exp_avg": torch.full((3,), value)}}
    return Snapshot(tensors, write or (lambda folder: write_json(folder / "train.json", value)))


def save(
    saver: Saver, step: int, *, stage: int = 0, done: bool = False, ordinary: bool = True, wait: bool = True
) -> Path:
    return saver.save(Place(stage, step, done, ordinary), "align", lambda: snapshot(float(step)), wait=wait)


def names(folder: Path) -> list[str]:
    return [path.name for path in candidates(folder)]


def full(_folder: Path) -> None:
    raise OSError(28, "No space left on device")


def test_a_save_goes_on_in_the_background_and_the_next_one_waits_for_it(tmp_path: Path) -> None:
    saver, may_go_on, taken = Saver(tmp_path, background=True), threading.Event(), []

    def slow(folder: Path) -> None:
        assert may_go_on.wait(20)
        write_json(folder / "train.json", 1)

    def take(step: int) -> Snapshot:
        taken.append((step, names(tmp_path)))
        return snapshot(step, slow if step == 1 else None)

    saver.save(Place(0, 1), "align", lambda: take(1))
    assert names(tmp_path) == []  # this line is reached while it is being saved
    threading.Timer(0.2, may_go_on.set).start()
    second = saver.save(Place(0, 2), "align", lambda: take(2))
    # There are never two snapshots in memory: the second was taken when the first was on the disk.
    assert taken == [(1, []), (2, ["00-align-000000001"])]
    saver.finish()
    assert saver.last == second
    assert newest_whole(tmp_path) == (second, [])
    assert torch.equal(load_file(second / "model.safetensors")["a"], torch.full((3,), 2.0))
    assert verify(second) == {"stage": "align", "step": 2, "done": False}


@pytest.mark.parametrize(("background", "wait"), [(False, False), (True, True)])
def test_whoever_waits_finds_the_checkpoint(tmp_path: Path, background: bool, wait: bool) -> None:
    saver = Saver(tmp_path, background=background)
    path = save(saver, 7, wait=wait)
    assert saver.last == path
    assert newest_whole(tmp_path) == (path, [])
    assert (tmp_path / LATEST).read_text(encoding="utf-8") == f"{path.name}\n"


def test_an_error_in_the_background_is_raised_by_the_next_call_once(tmp_path: Path) -> None:
    for call in ("save", "finish"):
        saver = Saver(tmp_path, on_error="stop")
        saver.save(Place(0, 1), "align", lambda: snapshot(write=full))
        with pytest.raises(CheckpointError, match=r"could not be saved \(No space left on device"):
            saver.save(Place(0, 2), "align", snapshot) if call == "save" else saver.finish()
        saver.finish()
    assert names(tmp_path) == []


def test_an_error_in_the_background_is_told_before_a_save_that_is_waited_for_which_succeeds(tmp_path: Path) -> None:
    lines: list[str] = []
    saver = Saver(tmp_path, on_error="stop", on_line=lines.append)
    saver.save(Place(0, 1), "align", lambda: snapshot(write=full))
    path = saver.save(Place(0, 2, done=True), "align", snapshot, wait=True)
    assert "00-align-000000001: could not be saved (No space left on device; " in lines[0]
    assert names(tmp_path) == [path.name]


def test_with_continue_it_is_told_and_the_next_save_succeeds(tmp_path: Path) -> None:
    lines: list[str] = []
    saver = Saver(tmp_path, on_error="continue", on_line=lines.append)
    saver.save(Place(0, 1), "align", lambda: snapshot(write=full))
    path = save(saver, 2)
    assert len(lines) == 1
    assert "00-align-000000001: could not be saved (No space left on device; " in lines[0]
    assert lines[0].endswith("; training goes on, and the next save tries again")
    assert names(tmp_path) == [path.name]


def test_a_save_that_is_waited_for_raises_whatever_was_wanted_for_others(tmp_path: Path) -> None:
    saver = Saver(tmp_path, on_error="continue")
    with pytest.raises(CheckpointError, match="No space left on device"):
        saver.save(Place(0, 9, done=True), "align", lambda: snapshot(write=full), wait=True)


@pytest.mark.parametrize("error", [TrainError("a rank is gone"), KeyError("a bug")])
def test_nothing_else_is_ever_passed_over(tmp_path: Path, error: Exception) -> None:
    def broken(_folder: Path) -> None:
        raise error

    saver = Saver(tmp_path, on_error="continue")
    saver.save(Place(0, 1), "align", lambda: snapshot(write=broken))
    with pytest.raises(type(error)):
        saver.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_save_when_the_run_ends_by_another_error_is_waited_for_and_only_told(tmp_path: Path) -> None:
    lines: list[str] = []
    saver = Saver(tmp_path, on_error="stop", on_line=lines.append)
    saver.save(Place(0, 1), "align", lambda: snapshot(write=full))
    saver.close()
    assert "No space left on device" in lines[0]


def test_the_newest_are_kept_and_every_mth_and_the_end_of_every_stage(tmp_path: Path) -> None:
    saver = Saver(tmp_path, keep=2, keep_every=4)
    for step in range(1, 8):
        save(saver, step)
    save(saver, 9, done=True)
    for step in (1, 2, 3):
        save(saver, step, stage=1)
    assert names(tmp_path) == [
        "01-align-000000003",
        "01-align-000000002",
        "00-align-000000009-done",
        "00-align-000000004",
    ]


def test_an_emergency_checkpoint_takes_nobodys_place_and_is_used(tmp_path: Path) -> None:
    saver = Saver(tmp_path, keep=1)
    save(saver, 4)
    emergency = save(saver, 6, ordinary=False)
    assert names(tmp_path) == ["emergency-00-align-000000006", "00-align-000000004"]
    assert newest_whole(tmp_path) == (emergency, [])
    assert save(saver, 6, ordinary=False) == emergency  # the resumed run failed at the same place
    ordinary = save(saver, 6)
    assert newest_whole(tmp_path) == (ordinary, [])
    save(saver, 8)
    assert names(tmp_path) == ["00-align-000000008"]


def test_an_old_checkpoint_that_cannot_be_deleted_is_told_and_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    saver = Saver(tmp_path, keep=1, on_line=lines.append)
    save(saver, 1)

    def refuse(_path: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("opsin.checkpoint.saver.delete", refuse)
    path = save(saver, 2)
    assert lines == [f"{path} was saved, but an older checkpoint could not be deleted (Read-only file system)"]
    assert newest_whole(tmp_path) == (path, [])


@given(
    st.sets(st.builds(Place, st.integers(0, 3), st.integers(0, 40), st.booleans(), st.booleans())), st.integers(1, 4)
)
def test_what_is_deleted_is_never_the_newest(places: set[Place], keep: int) -> None:
    paths = [Path(place.name("s")) for place in sorted(places, reverse=True)]
    ordinary = [place.name("s") for place in sorted(places, reverse=True) if place.ordinary and not place.done]
    dropped = {path.name for path in superseded(paths, keep, None)}
    assert dropped.isdisjoint(ordinary[:keep])
    assert dropped >= set(ordinary[keep:])
    assert dropped.isdisjoint(place.name("s") for place in places if place.done)
    if paths:
        assert paths[0].name not in dropped
