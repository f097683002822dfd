from __future__ import annotations

import json
import os
import zipfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from opsin.checkpoint.json_files import read_json
from opsin.checkpoint.shards import DTYPES, Weights, weight_files, write_tensors
from opsin.core.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
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
    with pytest.raises(CheckpointError, match="a is stored as F8_E4M3; convert the weights"):
        Weights.of(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float64, torch.complex64])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_both_formats_take_the_same_types(tmp_path: Path, dtype: torch.dtype, ending: str) -> None:
    file = tmp_path / f"x.{ending}"
    content = {"a": torch.zeros(2, dtype=dtype)}
    save_file(content, file) if ending == "safetensors" else torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"a is stored as \w+; convert the weights"):
        Weights([file])


def test_safetensors_go_before_pickles_and_one_file_before_shards(tmp_path: Path) -> None:
    index = sharded(tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert {file.suffix for file in weight_files(tmp_path)} == {".safetensors"}
    assert_all(Weights.of(tmp_path))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    index.unlink()
    assert weight_files(tmp_path) == [tmp_path / "pytorch_model.bin"]


def repacked(file: Path, change: Callable[[zipfile.ZipInfo, bytes], bytes], compression: int) -> None:
    """Write a zip file anew."""
    with zipfile.ZipFile(file) as old:
        entries = [(entry, old.read(entry)) for entry in old.infolist()]
    with zipfile.ZipFile(file, "w", compression) as new:
        for entry, content in entries:
            new.writestr(entry.filename, change(entry, content))


def test_a_compressed_zip_file_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, file)
    repacked(file, lambda _, content: content, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="compressed, which PyTorch's files never are"):
        Weights([file])


def test_a_table_of_names_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, file)
    repacked(
        file,
        lambda entry, content: bytes(5_000_000) if entry.filename.endswith("data.pkl") else content,
        zipfile.ZIP_STORED,
    )
    with pytest.raises(CheckpointError, match=r"one table of names \(data\.pkl\) of at most 4,000,000 bytes"):
        Weights([file])


def test_a_table_that_asks_for_memory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1)}, file)
    asks = b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."  # bytearray(2 ** 31 - 1)
    repacked(file, lambda entry, old: asks if entry.filename.endswith("data.pkl") else old, zipfile.ZIP_STORED)
    with pytest.raises(CheckpointError, match="could run code; refused"):
        Weights([file])


def test_tensors_larger_than_what_is_stored_of_them(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1).expand(100_000)}, file)
    with pytest.raises(CheckpointError, match="a is larger than what is stored of it; save a contiguous copy"):
        Weights([file])
    many = torch.zeros(1000)
    torch.save({str(number): many for number in range(100)}, file)
    with pytest.raises(CheckpointError, match=r"its tensors have 400,000 bytes, the file \d+,\d+"):
        Weights([file])


def test_tied_and_transposed_tensors_are_read(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    tensor = torch.arange(600.0).view(20, 30)
    torch.save({"a": tensor, "b": tensor.T}, file)
    found = dict(Weights([file]).read(["a", "b"]))
    assert torch.equal(found["a"], tensor)
    assert torch.equal(found["b"], tensor.T)
    assert found["b"].is_contiguous()


@pytest.mark.parametrize(
    "tensor", [torch.eye(3).to_sparse(), torch.empty(3, device="meta"), torch.zeros(0, device="meta")]
)
def test_tensors_that_are_not_dense_numbers(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({"a": tensor}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"refused|store it densely"):
        Weights.of(tmp_path)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(cuts=st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=3)), min_size=1, max_size=3))
def test_a_damaged_table_of_names_is_an_error_of_opsin(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[tuple[int, bytes]]
) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "pytorch_model.bin"
    torch.save({"a": torch.zeros(2, 3), "b": torch.zeros(4)}, file)

    def damaged(entry: zipfile.ZipInfo, content: bytes) -> bytes:
        if not entry.filename.endswith("data.pkl"):
            return content
        table = bytearray(content)
        for at, some in cuts:
            at %= len(table)
            table[at : at + len(some)] = some
        return bytes(table)

    repacked(file, damaged, zipfile.ZIP_STORED)
    with suppress(CheckpointError):  # and nothing else
        weights = Weights([file])
        dict(weights.read(weights.stored))


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


SHAPES = st.lists(st.integers(0, 3), max_size=3)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.tuples(st.sampled_from(sorted(DTYPES)), SHAPES), max_size=6))
def test_what_is_written_is_what_safetensors_reads(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict[str, tuple[str, list[int]]]
) -> None:
    tensors = {name: torch.randint(0, 2, shape).to(DTYPES[dtype]) for name, (dtype, shape) in kinds.items()}
    file = tmp_path_factory.mktemp("written") / "x.safetensors"
    write_tensors(file, tensors)
    with file.open("rb") as opened:  # whoever maps the file finds aligned numbers
        assert int.from_bytes(opened.read(8), "little") % 8 == 0
    for read in (load_file(file), dict(Weights([file]).read(list(tensors)))):
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(read[name], tensor)


def test_any_layout_in_memory_is_written_row_by_row(tmp_path: Path) -> None:
    table = torch.arange(12.0).view(3, 4)
    write_tensors(
        tmp_path / "x.safetensors", {"t": table.T, "part": table[:, 1], "grad": table.clone().requires_grad_()}
    )
    read = load_file(tmp_path / "x.safetensors")
    assert torch.equal(read["t"], table.T)
    assert torch.equal(read["part"], table[:, 1])
    assert torch.equal(read["grad"], table)


def test_a_type_that_is_not_read_back_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"x\.safetensors: z is of type torch\.complex64, which is not stored"):
        write_tensors(tmp_path / "x.safetensors", {"z": torch.zeros(1, dtype=torch.complex64)})
