"""Peak memory of `opsin.load`, against the size of the model: a random LLaVA of some hundred megabytes on disk.

    python -m bench.load_memory [--megabytes 600] [--format safetensors|bin|opsin]

The model is made in this process and loaded in another, whose peak is compared with what it needs before the load.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from opsin.checkpoint.load import load
from opsin.checkpoint.model import write_model
from opsin.checkpoint.store import commit
from tests.support.hub import hub_dir

CHILD = """
import json, sys
import opsin
import opsin.checkpoint.load, transformers.models.llama.modeling_llama, transformers.models.clip.modeling_clip
def peak():  # of this program alone: what the system calls maxrss begins with the parent's
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
before = peak()
model = opsin.load(sys.argv[1]).model
size = sum(p.nbytes for p in model.parameters())
print(json.dumps({"before": before, "peak": peak(), "model": size, "ratio": round((peak() - before) / size, 3)}))
"""


def main() -> None:
    """Make the model, load it in a fresh process, print the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--format", choices=("safetensors", "bin", "opsin"), default="safetensors")
    options = parser.parse_args()
    width = 1024
    per_layer = 4 * (2.5 * width * width + 3 * width * 4 * width)
    layers = max(1, round(options.megabytes * 1e6 / per_layer))
    text = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "vocab_size": 4096,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = hub_dir(Path(name), "llava", text_config=text)
        if options.format == "bin":
            torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()
        if options.format == "opsin":
            loaded = load(folder)
            folder = commit(
                Path(name) / "own", lambda x: write_model(x, loaded.model, loaded.tokenizer, {}), {"step": 1}
            )
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(folder)], check=True, capture_output=True, text=True, cwd=Path.cwd()
        )
    print(json.dumps({"format": options.format, **json.loads(done.stdout)}, indent=1))


if __name__ == "__main__":
    main()
