from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from opsin.checkpoint.json_files import read_json
from opsin.checkpoint.shards import Weights, weight_files
from opsin.core.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "half": torch.arange(5, dtype=torch.bfloat16),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
    "whole": torch.tensor([1, 2]),
}


def sharded(folder: Path, ending: str = "safetensors") -> Path:
    names = sorted(TENSORS)
    places = {}
    for number, part in enumerate((names[:2], names[2:]), start=1):
        file = f"model-{number}-of-2.{ending}"
        content = {name: TENSORS[name] for name in part}
        save_file(content, folder / file) if ending == "safetensors" else torch.save(content, folder / file)
        places |= dict.fromkeys(part, file)
    index = "model.safetensors.index.json" if ending == "safetensors" else "pytorch_model.bin.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    return folder / index


def assert_all(weights: Weights) -> None:
    assert {name: stored.shape for name, stored in weights.stored.items()} == {
        n: tuple(t.shape) for n, t in TENSORS.items()
    }
    found = dict(weights.read(weights.stored))
    assert found.keys() == TENSORS.keys()
    for name, tensor in found.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_and_single_files_hold_the_same(tmp_path: Path, ending: str) -> None:
    sharded(tmp_path, ending)
    assert_all(Weights.of(tmp_path))
    single = tmp_path / ("model.safetensors" if ending == "safetensors" else "pytorch_model.bin")
    save_file(TENSORS, single) if ending == "safetensors" else torch.save(TENSORS, single)
    assert weight_files(tmp_path) == [single]
    assert_all(Weights.of(tmp_path))


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_tensors_outlive_their_file(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"x.{ending}"
    save_file(TENSORS, file) if ending == "safetensors" else torch.save(TENSORS, file)
    (_, tensor), *_ = Weights([file]).read(["a"])
    with file.open("r+b") as opened:
        opened.write(bytes(file.stat().st_size))
    assert torch.equal(tensor, TENSORS["a"])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model-2-of-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"the shard model-2-of-2\.safetensors is missing"):
        Weights.of(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b"])
def test_an_index_that_points_elsewhere_is_not_followed(tmp_path: Path, name: str) -> None:
    save_file(TENSORS, tmp_path.parent / "model.safetensors")
    index = {"weight_map": {"a": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"is not a file beside it; not followed"):
        Weights.of(tmp_path)


@pytest.mark.parametrize("places", [None, {}, [], {"a": 3}])
def test_an_index_without_places(tmp_path: Path, places: Any) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="'weight_map' must name a file for every tensor"):
        Weights.of(tmp_path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no weights there; expected model\.safetensors"):
        Weights.of(tmp_path)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("kept", [0, 5, 0.5, -1])
def test_truncated_files_are_named(tmp_path: Path, ending: str, kept: float) -> None:
    file = tmp_path / f"model.{ending}"
    save_file(TENSORS, file) if ending == "safetensors" else torch.save(TENSORS, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(CheckpointError, match=rf"model\.{ending}: damaged"):
        Weights([file])


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    for content in (
        {"a": Evil(tmp_path / "run")},
        Evil(tmp_path / "run"),
        {"a": torch.zeros(1), "b": Evil(tmp_path / "run")},
    ):
        torch.save(content, tmp_path / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="could run code; refused"):
            Weights.of(tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], {"a": 3}, {1: torch.zeros(1)}, {"state_dict": {"a": torch.zeros(1)}}]
)
def test_a_zip_file_of_something_else(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="expected a table of names and tensors; refused"):
        Weights.of(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"a": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"two\.safetensors: holds a, and so does one\.safetensors"):
        Weights([tmp_path / "one.safetensors", tmp_path / "two.safetensors"])


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, dtype=torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="a is stored as F8_E4M3; convert quantised weights"):
        Weights.of(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "expected a JSON object, got a list"),
        ('{"a": ' + " " * 2_000_000 + "1}", "more than the 1,000,000"),
        ("\ud800", "not valid JSON"),
    ],
)
def test_json_is_bounded(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match=message):
        read_json(tmp_path / "x.json", 1_000_000)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path / "none.json", 1_000_000)
