"""The feature cache on many pictures: writing, opening again, and reading, with its peak of memory.

    python -m bench.feature_cache [--pictures 2000] [--side 12] [--width 1280]

The encoder is a stand-in that costs nothing, so that what is measured is the cache: `side` x `side` patches of `width`
in bfloat16 for every picture, written chunk by chunk, then opened by a new cache, then read one after the other.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch

from opsin.train import feature_chunks
from opsin.train.feature_chunks import ChunkFolder


def main() -> None:
    """Write, open, read; print seconds and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--side", type=int, default=12)
    parser.add_argument("--width", type=int, default=1280)
    given = parser.parse_args()
    patches, keys = given.side**2, [f"{number:032x}" for number in range(given.pictures)]
    size = patches * given.width * 2
    print(f"{given.pictures:,} pictures of {size / 1e3:,.0f} kB: {given.pictures * size / 1e6:,.0f} MB; {_memory()}")
    with tempfile.TemporaryDirectory() as folder:
        chunks = ChunkFolder(Path(folder) / "features", print)
        began = time.perf_counter()
        rows: dict[str, torch.Tensor] = {}
        made = torch.randn(patches, given.width).bfloat16()
        for key in keys:
            rows[key] = made + len(rows)
            if len(rows) * size >= feature_chunks.CHUNK_BYTES or key == keys[-1]:
                chunks.write(rows, 1.0)
                rows = {}
        print(f"written in {time.perf_counter() - began:.2f} s; {_memory()}")
        began = time.perf_counter()
        chunks = ChunkFolder(Path(folder) / "features", print)
        assert len(chunks.open(keys)) == given.pictures
        print(f"opened and checked in {time.perf_counter() - began:.2f} s; {_memory()}")
        began = time.perf_counter()
        for key in keys:
            torch.cat([chunks.rows(key)])
        each = (time.perf_counter() - began) / given.pictures
        print(f"read in {1e6 * each:.0f} us a picture; {_memory()}")


def _memory() -> str:
    return f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:,.0f} MB"


if __name__ == "__main__":
    main()
