"""What a file is, told by its first bytes, where it is not what its source says."""

from __future__ import annotations

HEAD_BYTES = 512
PARQUET = b"PAR1"
KINDS = {
    PARQUET: "a Parquet file, not JSON; its kind is parquet, its name ends in .parquet",
    b"\xff\xd8\xff": "a JPEG picture, not JSON; correct the path",
    b"\x89PNG": "a PNG picture, not JSON; correct the path",
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\xff\xfe": "text in UTF-16; save the file as UTF-8",
    b"\xfe\xff": "text in UTF-16; save the file as UTF-8",
}
TAR_MARK = slice(257, 262)


def no_json(head: bytes) -> str | None:
    """What is in place of JSON, and what to do about it; None if it may be JSON."""
    if head[TAR_MARK] == b"ustar":
        return "a tar file, not JSON; its kind is webdataset, its name ends in .tar"
    return next((what for magic, what in KINDS.items() if head.startswith(magic)), None)


def shown_bytes(head: bytes) -> str:
    """First bytes as messages show them."""
    return f"its first bytes are {head[:16]!r}" if head else "it is empty"
