"""Weight files, read one tensor at a time: safetensors, and other people's zip files of PyTorch, weights only.

Names and shapes come first, from the headers, so that nothing is read before it is known to fit. A tensor is read into
memory of its own: nothing stays mapped, and the peak is the tensors that are kept.
"""

from __future__ import annotations

import json
import math
import pickletools  # which lists what a pickle would do, without doing it
import re
import struct
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError  # only the name of the error that torch's weights-only reader raises

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from opsin.checkpoint.json_files import read_json
from opsin.core.errors import CheckpointError
from opsin.core.files import write_parts

MAX_INDEX_BYTES = 50_000_000
GROUP_BYTES = 1 << 26
"""A zip file is opened anew after this many bytes: its tensors are mapped, and closing it lets their pages go."""

MAX_PICKLE_BYTES = 4_000_000
"""The table of names in a zip file: some 200 bytes a tensor."""

PICKLED = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(?:tensor_v[23]|parameter)"
    r"|torch (?:\w+Storage|float\w+)|torch\.storage \w+Storage"
)
"""All that a table of tensors calls. What else torch's reader allows can take any amount of memory (`bytearray`)."""

DAMAGE = (
    *(UnpicklingError, RuntimeError, ValueError, EOFError, LookupError, AttributeError, TypeError, AssertionError),
    *(ArithmeticError, OSError, struct.error),
)
"""What torch's reader raises of a damaged table: it is a machine that runs until something does not fit."""

PLACES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where weights are looked for, in this order (transformers' own)."""

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "I8": torch.int8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Stored:
    """Where a tensor is, and its shape and type."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a directory's weights: its one file, or the shards that its index names.

    Raises:
        CheckpointError: there are none, one is missing, or the index names a file outside of the directory.
    """
    for name in PLACES:
        if (folder / name).is_file():
            return _shards(folder / name) if name.endswith(".json") else [folder / name]
    raise CheckpointError(f"{folder}: no weights there; expected {', '.join(PLACES)}")


def _shards(index: Path) -> list[Path]:
    places = read_json(index, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index}: 'weight_map' must name a file for every tensor")
    files = []
    for name in sorted(set(places.values())):
        if PurePosixPath(name).name != name or "\\" in name or name in {"", ".", ".."}:
            raise CheckpointError(f"{index}: names the file {name!r}, which is not a file beside it; not followed")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index.parent}: the shard {name} is missing; download it again")
        files.append(index.parent / name)
    return files


class Weights:
    """The tensors of some files: names, shapes and types at once, contents one by one."""

    def __init__(self, files: Collection[Path]) -> None:
        """Read the headers.

        Raises:
            CheckpointError: a file is missing, damaged or not a file of weights, or two files hold the same tensor.
        """
        self.stored: dict[str, Stored] = {}
        for file in files:
            for name, stored in _header(file).items():
                if name in self.stored:
                    raise CheckpointError(f"{file}: holds {name}, and so does {self.stored[name].file.name}")
                self.stored[name] = stored

    @classmethod
    def of(cls, folder: Path) -> Weights:
        """The weights of a directory."""
        return cls(weight_files(folder))

    def read(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, file by file.

        Raises:
            CheckpointError: a file cannot be read after all.
        """
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.stored[name].file, []).append(name)
        for file, wanted in by_file.items():
            if file.suffix == ".safetensors":
                yield from _read_safetensors(file, {name: self.stored[name] for name in wanted})
            else:
                yield from _read_zip(file, {name: self.stored[name] for name in wanted})


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file straight from the tensors' memory; tensors elsewhere are copied one at a time.

    Not by the library's own function, which holds the whole file in memory or writes it out of sight: the bytes are
    written by `opsin.core.files`, where tests let every single write fail.

    Format: https://huggingface.co/docs/safetensors (the header's length, the header as JSON, the tensors' bytes).

    Raises:
        CheckpointError: a tensor is of a type that is not read back.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, end = {}, 0
    # The widest types first, so that every tensor begins at a multiple of its item's size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in names:
            raise CheckpointError(f"{file}: {name} is of type {tensor.dtype}, which is not stored")
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    write_parts(file, _parts(text, (tensors[name] for name in order)))


def _parts(header: bytes, tensors: Iterable[Tensor]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little") + header
    for tensor in tensors:
        yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _header(file: Path) -> dict[str, Stored]:
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    if file.suffix != ".safetensors":
        return {name: Stored(file, tuple(t.shape), t.dtype) for name, t in _open_zip(file).items()}
    found = {}
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (the file is not a dict)
                part = opened.get_slice(name)
                if part.get_dtype() not in DTYPES:
                    raise CheckpointError(_unreadable(file, name, part.get_dtype()))
                found[name] = Stored(file, tuple(part.get_shape()), DTYPES[part.get_dtype()])
    except (SafetensorError, OSError):
        raise CheckpointError(f"{file}: damaged or not a whole safetensors file; download it again") from None
    return found


def _unreadable(file: Path, name: str, dtype: object) -> str:
    return f"{file}: {name} is stored as {dtype}; convert the weights (quantised ones too) to bfloat16 or float32 first"


def _read_safetensors(file: Path, wanted: Mapping[str, Stored]) -> Iterator[tuple[str, Tensor]]:
    """Tensors read straight into their memory; a mapped file would be counted, and could change, beneath them."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")  # checked by `safe_open` when the header was read
        header = json.loads(opened.read(length))
        for name in sorted(wanted, key=lambda name: header[name]["data_offsets"][0]):
            stored = wanted[name]
            tensor = torch.empty(math.prod(stored.shape), dtype=stored.dtype)
            opened.seek(8 + length + header[name]["data_offsets"][0])
            if tensor.numel() and opened.readinto(tensor.view(torch.uint8).numpy().data) != tensor.nbytes:
                raise CheckpointError(f"{file}: ends in the middle of {name}; download it again")
            yield name, tensor.view(stored.shape)


def _read_zip(file: Path, wanted: Mapping[str, Stored]) -> Iterator[tuple[str, Tensor]]:
    names = list(wanted)
    while names:
        opened, copied = _open_zip(file), 0
        while names and copied < GROUP_BYTES:
            name = names.pop(0)
            copied += opened[name].nbytes
            yield name, opened.pop(name).clone(memory_format=torch.contiguous_format)


def _open_zip(file: Path) -> dict[str, Tensor]:
    """Mapped tensors of a PyTorch file. Anything in it but tensors is refused and never run."""
    _check_zip(file)
    try:
        found = torch.load(file, weights_only=True, mmap=True, map_location="cpu")
    except DAMAGE:
        # The library's text is long, and advises to run the file's code.
        raise CheckpointError(_suspicious(file)) from None
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) and isinstance(n, str) for n, t in found.items()):
        raise CheckpointError(f"{file}: expected a table of names and tensors; refused")
    for name, tensor in found.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise CheckpointError(f"{file}: {name} is a {tensor.layout} tensor on {tensor.device}; store it densely")
        if tensor.dtype not in DTYPES.values():
            raise CheckpointError(_unreadable(file, name, str(tensor.dtype).removeprefix("torch.")))
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{file}: {name} is larger than what is stored of it; save a contiguous copy")
    # Two names may share their numbers (a tied head), but a small file cannot hold a large model.
    total, size = sum(tensor.nbytes for tensor in found.values()), file.stat().st_size
    if total > 2 * size:
        raise CheckpointError(f"{file}: its tensors have {total:,} bytes, the file {size:,}; save contiguous copies")
    return found


def _check_zip(file: Path) -> None:
    """Refuse, before PyTorch opens it, a zip file that is compressed or whose table of names does more than name."""
    try:
        with zipfile.ZipFile(file) as opened:
            entries = opened.infolist()
            packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
            tables = [entry for entry in entries if PurePosixPath(entry.filename).name == "data.pkl"]
            if packed or len({entry.filename for entry in entries}) != len(entries):
                raise CheckpointError(f"{file}: compressed, which PyTorch's files never are, or damaged; refused")
            if len(tables) != 1 or tables[0].file_size > MAX_PICKLE_BYTES:
                raise CheckpointError(
                    f"{file}: expected one table of names (data.pkl) of at most {MAX_PICKLE_BYTES:,} bytes; refused"
                )
            table = opened.read(tables[0])
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError):
        raise CheckpointError(
            f"{file}: damaged, or not a zip file of PyTorch 1.6 or later; convert it to safetensors"
        ) from None
    try:
        called = [str(argument) for code, argument, _ in pickletools.genops(table) if code.name == "GLOBAL"]
    except (ValueError, LookupError, UnicodeDecodeError):
        raise CheckpointError(_suspicious(file)) from None
    if not all(PICKLED.fullmatch(name) for name in called):
        raise CheckpointError(_suspicious(file))


def _suspicious(file: Path) -> str:
    return f"{file}: damaged, or holds something else than tensors, which could run code; refused"
