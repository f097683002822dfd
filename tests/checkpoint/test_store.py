from __future__ import annotations

import builtins
import errno
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from opsin.checkpoint.store import MANIFEST, candidates, commit, delete, newest_whole, verify
from opsin.core.errors import CheckpointError
from opsin.core.files import sha256_bytes, write_json


def fill(folder: Path) -> None:
    save_file({"weight": torch.arange(10.0)}, folder / "model.safetensors")
    write_json(folder / "model.json", {"a": 1})
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}", encoding="utf-8")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return commit(tmp_path / "checkpoints" / "00-align-000010", fill, {"step": 10})


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        verify(path)
    return str(caught.value).removeprefix(f"{path}: ")


def test_a_committed_checkpoint_verifies_and_says_what_it_is(checkpoint: Path) -> None:
    assert verify(checkpoint) == {"step": 10}
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    assert set(manifest["files"]) == {"model.json", "model.safetensors", "tokenizer/tokenizer.json"}
    content = (checkpoint / "model.json").read_bytes()
    assert manifest["files"]["model.json"] == {"bytes": len(content), "sha256": sha256_bytes(content)}


@pytest.mark.parametrize("name", ["model.json", "model.safetensors", "tokenizer/tokenizer.json"])
class TestDamage:
    def test_one_changed_byte(self, checkpoint: Path, name: str) -> None:
        file = checkpoint / name
        old = file.read_bytes()
        new = old[:-1] + bytes([old[-1] ^ 1])
        file.write_bytes(new)
        assert refusal(checkpoint) == (
            f"{name} was altered: its sha256 is {sha256_bytes(new)[:12]}..., the manifest says "
            f"{sha256_bytes(old)[:12]}...; restore the file or use another checkpoint"
        )

    def test_a_truncated_file(self, checkpoint: Path, name: str) -> None:
        size = (checkpoint / name).stat().st_size
        os.truncate(checkpoint / name, size - 1)
        assert refusal(checkpoint) == f"{name} has {size - 1:,} bytes, the manifest says {size:,}"

    def test_an_empty_file(self, checkpoint: Path, name: str) -> None:
        size = (checkpoint / name).stat().st_size
        os.truncate(checkpoint / name, 0)
        assert refusal(checkpoint) == f"{name} has 0 bytes, the manifest says {size:,}"

    def test_a_missing_file(self, checkpoint: Path, name: str) -> None:
        (checkpoint / name).unlink()
        assert refusal(checkpoint) == f"{name} is missing; the checkpoint is incomplete"

    def test_an_extra_file(self, checkpoint: Path, name: str) -> None:
        shutil.copy(checkpoint / name, checkpoint / f"{name}.bak")
        assert refusal(checkpoint) == f"{name}.bak is not in the manifest; the checkpoint was altered"


def test_swapped_files_of_one_size(tmp_path: Path) -> None:
    def two(folder: Path) -> None:
        (folder / "a.bin").write_bytes(b"1111")
        (folder / "b.bin").write_bytes(b"2222")

    path = commit(tmp_path / "x", two, {})
    (path / "a.bin").rename(path / "c")
    (path / "b.bin").rename(path / "a.bin")
    (path / "c").rename(path / "b.bin")
    assert refusal(path).startswith("a.bin was altered: its sha256 is ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, f"no {MANIFEST}; this is not a whole checkpoint"),
        ("{", "not valid JSON; the checkpoint was altered"),
        ("", "not valid JSON; the checkpoint was altered"),
        ("[1]", "not valid JSON; the checkpoint was altered"),
        ('{"format": 1}', "keys are missing; the checkpoint was altered"),
        ('{"format": "1", "opsin": "0", "meta": {}, "files": {}}', "the checkpoint was altered"),
        ('{"format": 1, "opsin": "0", "meta": {}, "files": []}', "the checkpoint was altered"),
        ('{"format": 1, "opsin": "0", "meta": {}, "files": {"model.json": 3}}', "the checkpoint was altered"),
        ('{"format": 1, "opsin": "0", "meta": {}, "files": {"model.json": {}}}', "the checkpoint was altered"),
    ],
)
def test_a_damaged_manifest(checkpoint: Path, content: str | None, message: str) -> None:
    file = checkpoint / MANIFEST
    file.unlink() if content is None else file.write_text(content, encoding="utf-8")
    assert refusal(checkpoint).endswith(message)


def test_a_future_format_says_to_upgrade(checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    write_json(checkpoint / MANIFEST, manifest | {"format": 7, "opsin": "9.1"})
    assert refusal(checkpoint) == "written by opsin 9.1 in format 7; this opsin reads up to 2: upgrade it"


def test_an_existing_directory_is_refused_and_left_alone(checkpoint: Path) -> None:
    def never(_folder: Path) -> None:
        raise AssertionError("must not be called")

    with pytest.raises(CheckpointError) as caught:
        commit(checkpoint, never, {})
    assert str(caught.value) == f"{checkpoint}: exists already; a checkpoint is never overwritten"
    assert verify(checkpoint) == {"step": 10}


class FailingCalls:
    """Raises at the n-th call of any of the file operations that a save makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int, code: int) -> None:
        self.calls, self.fail_at, self.code = 0, fail_at, code
        places: list[tuple[Any, str]] = [
            (os, "replace"),
            (os, "rename"),
            (os, "fsync"),
            (os, "open"),
            (os, "mkdir"),
            (builtins, "open"),
            (io, "open"),
        ]
        for owner, name in places:
            monkeypatch.setattr(owner, name, self.wrapped(getattr(owner, name)))

    @property
    def failed(self) -> bool:
        return self.calls >= self.fail_at

    def wrapped(self, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.fail_at:
                raise OSError(self.code, os.strerror(self.code))
            return original(*args, **kwargs)

        return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failure_at_any_point_leaves_nothing_that_verifies_but_whole_checkpoints(checkpoint: Path, code: int) -> None:
    path = checkpoint.with_name("00-align-000020")
    reported = 0
    for fail_at in range(1, 500):
        with pytest.MonkeyPatch.context() as patch:
            failing = FailingCalls(patch, fail_at, code)
            try:
                commit(path, fill, {"step": 20})
                error = None
            except CheckpointError as caught:
                error = str(caught)
        if not failing.failed:
            break
        if error is None:  # only tidying up failed, which a save outlives
            assert verify(path) == {"step": 20}
        else:
            reported += 1
            assert error.startswith(f"{path}: could not be saved ({os.strerror(code)}; ")
            assert error.endswith(" MB free); earlier checkpoints are untouched")
        assert verify(checkpoint) == {"step": 10}
        assert newest_whole(checkpoint.parent)[0] in {checkpoint, path}
        if path.exists():  # the failure came after the rename: the checkpoint is whole
            assert verify(path) == {"step": 20}
            delete(path)
        assert candidates(checkpoint.parent) == [checkpoint]
    assert reported > 15
    assert newest_whole(checkpoint.parent) == (path, [])


def test_a_full_disk_reported_by_safetensors_is_a_checkpoint_error(tmp_path: Path) -> None:
    def full(_folder: Path) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(CheckpointError, match=r"could not be saved \(I/O error: No space left on device"):
        commit(tmp_path / "x", full, {})
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_writer_leaves_nothing(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        fill(folder)
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        commit(tmp_path / "x", broken, {})
    assert list(tmp_path.iterdir()) == []


def test_the_newest_whole_checkpoint_is_found_and_what_was_skipped_is_said(checkpoint: Path) -> None:
    newer = commit(checkpoint.with_name("00-align-000020"), fill, {"step": 20})
    newest = commit(checkpoint.with_name("01-instruct-000005"), fill, {"step": 5})
    assert newest_whole(checkpoint.parent) == (newest, [])
    (newest / "model.json").unlink()
    (newer / MANIFEST).unlink()
    assert newest_whole(checkpoint.parent) == (
        checkpoint,
        [
            f"skipped {newest}: model.json is missing; the checkpoint is incomplete",
            f"skipped {newer}: no manifest.json; this is not a whole checkpoint",
        ],
    )
    (checkpoint / "extra").touch()
    with pytest.raises(CheckpointError) as caught:
        newest_whole(checkpoint.parent)
    head, *reasons = str(caught.value).splitlines()
    assert head == f"{checkpoint.parent}: no valid checkpoint"
    assert len(reasons) == 3


def test_no_checkpoints_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        newest_whole(tmp_path / "none")
    assert str(caught.value) == f"{tmp_path / 'none'}: no valid checkpoint"


def test_leftovers_of_killed_saves_and_deletions_are_not_checkpoints(checkpoint: Path) -> None:
    shutil.copytree(checkpoint, checkpoint.with_name(".01-x-000001.partial-77"))
    shutil.copytree(checkpoint, checkpoint.with_name(".trash-01-x-000001"))
    assert candidates(checkpoint.parent) == [checkpoint]
    delete(checkpoint)
    assert candidates(checkpoint.parent) == []


class Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["optimiser.pt", "model.safetensors", "train.json", MANIFEST])
def test_a_pickle_is_refused_and_never_run(checkpoint: Path, tmp_path: Path, name: str) -> None:
    (checkpoint / name).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    refusal(checkpoint)
    assert not (tmp_path / "ran").exists()
