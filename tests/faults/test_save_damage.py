"""Checkpoints that were damaged after they were saved, made by others, or written by another opsin."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
from collections import namedtuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from opsin.checkpoint.model import find_checkpoint, read_optimiser
from opsin.checkpoint.places import Place
from opsin.checkpoint.saver import Saver, Snapshot
from opsin.checkpoint.shards import Weights
from opsin.checkpoint.store import MANIFEST, commit, newest_whole, read_manifest, verify
from opsin.core.errors import CheckpointError
from opsin.core.files import make_directory, write_bytes, write_json
from tests.support.forks import ended, fork
from tests.support.golden import FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = ("manifest.json", "model.safetensors", "optimiser.safetensors", "tokenizer/tokenizer.json", "train.json")
OLD = FOLDER / "checkpoint_format_1"


def save(folder: Path, step: int, *, done: bool = False) -> Path:
    def write(out: Path) -> None:
        write_json(out / "train.json", {"stage": 0, "step": step})
        make_directory(out / "tokenizer")
        write_bytes(out / "tokenizer" / "tokenizer.json", b'{"version": "1.0"}')

    tensors = {"model": {"a": torch.arange(20.0) + step}}
    tensors |= {} if done else {"optimiser": {"a/exp_avg": torch.arange(20.0) - step}}
    return Saver(folder, keep=9).save(Place(0, step, done), "align", lambda: Snapshot(tensors, write), wait=True)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "checkpoints"
    save(folder, 1)
    save(folder, 2)
    return folder


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 2)


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def remove(file: Path) -> None:
    file.unlink()


def add(file: Path) -> None:
    shutil.copy(file, file.with_name(f"{file.name}.1"))


def swap(file: Path) -> None:
    """With train.json, or that with the manifest."""
    top = next(folder for folder in file.parents if (folder / MANIFEST).exists())
    other = top / (MANIFEST if file.name == "train.json" else "train.json")
    content = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, zero, flip, remove, add, swap])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(
    checkpoints: Path, name: str, damage: Callable[[Path], None]
) -> None:
    newest, before = checkpoints / "00-align-000000002", checkpoints / "00-align-000000001"
    assert sorted(p.relative_to(newest).as_posix() for p in newest.rglob("*") if p.is_file()) == sorted(FILES)
    damage(newest / name)
    found, skipped = newest_whole(checkpoints)
    assert found == before
    assert len(skipped) == 1
    assert skipped[0].startswith(f"skipped {newest}")
    # Of two swapped files the first one is named, and a manifest that is none before all.
    assert any(file in skipped[0] for file in ((name, MANIFEST, "train.json") if damage is swap else (name,)))
    damage(before / name)
    with pytest.raises(CheckpointError) as caught:
        newest_whole(checkpoints)
    head, *reasons = str(caught.value).splitlines()
    assert head == f"{checkpoints}: no valid checkpoint"
    assert [str(newest) in reasons[0], str(before) in reasons[1]] == [True, True]


def test_any_flipped_bit_of_a_manifest_is_seen(checkpoints: Path) -> None:
    path = checkpoints / "00-align-000000002"
    whole, told = (path / MANIFEST).read_bytes(), read_manifest(path)
    for place in range(len(whole)):
        for bit in (1, 4, 32):
            content = bytearray(whole)
            content[place] ^= bit
            (path / MANIFEST).write_bytes(content)
            try:
                assert read_manifest(path) == told, f"{place} {content!r}"  # a blank for a tab, for example
            except CheckpointError:
                continue


def test_without_an_optimiser_a_stage_goes_on_only_if_told_to(checkpoints: Path) -> None:
    path = commit(
        checkpoints / "00-align-000000005",
        lambda out: write_json(out / "train.json", {}),
        {"stage": "align", "step": 5, "done": False},
    )
    with pytest.raises(CheckpointError) as caught:
        newest_whole(checkpoints)
    assert str(caught.value) == (
        f"{path}: was made within a stage, but holds no optimiser state; --weights-only goes on from its weights with "
        "a fresh optimiser"
    )
    assert newest_whole(checkpoints, weights_only=True) == (path, [])
    end = save(checkpoints, 6, done=True)  # the end of a stage needs none
    assert newest_whole(checkpoints) == (end, [])


@pytest.mark.parametrize("damage", [truncate, zero, flip, remove])
def test_with_weights_only_a_damaged_optimiser_does_not_matter(
    checkpoints: Path, damage: Callable[[Path], None]
) -> None:
    newest = checkpoints / "00-align-000000002"
    damage(newest / "optimiser.safetensors")
    assert newest_whole(checkpoints)[0].name == "00-align-000000001"
    assert newest_whole(checkpoints, weights_only=True) == (newest, [])
    assert find_checkpoint(checkpoints.parent) == newest  # a conversation needs no optimiser either
    damage(newest / "model.safetensors")
    assert newest_whole(checkpoints, weights_only=True)[0].name == "00-align-000000001"


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["model.pt", ".metadata", "optimiser.safetensors", "model.safetensors", "train.json"])
def test_a_pickle_is_never_run_even_where_the_manifest_vouches_for_it(tmp_path: Path, name: str) -> None:
    """Whoever can write a manifest can write its hashes: that the files verify must not mean that they are trusted."""
    ran = tmp_path / "ran"

    def write(out: Path) -> None:
        for file in ("model.json", "model.safetensors", "optimiser.safetensors", "train.json", name):
            (out / file).write_bytes(pickle.dumps(Payload(ran)))

    path = commit(tmp_path / "checkpoints" / "00-align-000000001", write, {"stage": "align", "step": 1, "done": False})
    assert newest_whole(path.parent) == (path, [])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged or not a whole safetensors file"):
        Weights([path / "model.safetensors"])
    with pytest.raises(CheckpointError, match=r"optimiser\.safetensors: damaged or not a whole safetensors file"):
        dict(read_optimiser(path))
    with pytest.raises(ValueError):
        json.loads((path / "train.json").read_bytes())
    assert not ran.exists()


def test_a_checkpoint_of_the_first_format_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(OLD, folder)
    path = folder / "00-align-000000003"
    assert newest_whole(folder) == (path, [])
    assert verify(path) == {"stage": "align", "step": 3, "done": False}
    read = {name: tensor.tolist() for name, tensor in Weights([path / "model.safetensors"]).read(["head.weight"])}
    assert read == {"head.weight": [1.5, -2.0]}
    assert {name: t.shape for name, t in read_optimiser(path)} == {
        "embed.weight/exp_avg": (3, 2),
        "embed.weight/step": (),
    }
    newer = save(folder, 4)  # the run goes on with this opsin
    assert newest_whole(folder) == (newer, [])


def test_one_of_a_later_format_is_passed_over_with_what_to_do(checkpoints: Path) -> None:
    path = checkpoints / "00-align-000000002"
    write_json(path / MANIFEST, read_manifest(path) | {"format": 3, "opsin": "7.0", "files": "elsewhere"})
    found, skipped = newest_whole(checkpoints)
    assert found.name == "00-align-000000001"
    assert skipped == [f"skipped {path}: written by opsin 7.0 in format 3; this opsin reads up to 2: upgrade it"]


def test_a_save_does_not_begin_without_room_for_it(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(file.stat().st_size for file in (checkpoints / "00-align-000000002").rglob("*") if file.is_file())
    size -= (checkpoints / "00-align-000000002" / MANIFEST).stat().st_size
    usage = namedtuple("usage", "total used free")

    def free(amount: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**9, 0, int(amount)))

    free(1.1 * size)
    with pytest.raises(
        CheckpointError, match=r"not begun: 0\.0 MB are free and 0\.0 MB needed \(1\.2 x the last check"
    ):
        save(checkpoints, 3)
    free(1.3 * size)
    verify(save(checkpoints, 3))


def test_a_limit_on_files_is_reported_and_nothing_is_lost(checkpoints: Path) -> None:
    """A real error of the system, not a made one: the process may not write files of more than 100 bytes."""

    def work() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            save(checkpoints, 3)
        except CheckpointError as error:
            return 3 if "could not be saved (File too large; " in str(error) else 1
        return 0

    assert ended(fork(work)) == 3
    assert newest_whole(checkpoints) == (checkpoints / "00-align-000000002", [])
    verify(save(checkpoints, 3))
