"""How far opsin's models are from transformers' on tiny random checkpoints of each family (float32, CPU).

    python -m bench.parity

Prints, for every family and kind of document, the largest difference of a logit, next to the logits' own spread.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from opsin.data.collate import collate
from tests.support.reference import FAMILIES, examples, pair_of, reference_inputs


def main() -> None:
    """Print the table."""
    print(f"{'family':16} {'document':8} {'tokens':>6} {'logits std':>10} {'max |difference|':>16}")
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            pair = pair_of(Path(folder), family)
            for name, example in examples(pair, Path(folder)).items():
                with torch.no_grad():
                    expected = pair.theirs(**reference_inputs(pair, example)).logits[0]
                    found = pair.ours.decoder.logits(pair.ours(collate([example], pair.prepare)))
                worst = (found - expected).abs().max()
                print(f"{family:16} {name:8} {example.num_tokens:6} {expected.std():10.2f} {worst:16.1e}")


if __name__ == "__main__":
    main()
