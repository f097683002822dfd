"""Are synthesised instructions worth their trouble? The same pictures and steps, with captions alone and with them.

    python -m bench.synthesis_gain OUT [--tiny] [--steps 200] [--seeds 0 1]

Makes the quick start's pictures and their annotations in COCO's format, runs `opsin synthesize` on the annotations with
the rule-based teacher, trains the connector on captions, and goes on from there twice: with captions alone, and with
the conversations, descriptions and reasoning. Both models answer the same held-out questions. `--tiny` draws pictures
and starts from random weights, so it needs no download; its numbers only show that the script works.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from rich.console import Console

import opsin
from opsin.core.files import write_text
from opsin.evaluate.heldout import evaluate
from opsin.quickstart.assets import fetch_all
from opsin.quickstart.dataset import TINY, DatasetSize, build, build_drawn
from opsin.quickstart.tiny import write_tiny_backbones
from opsin.synthesize.recipe import load_synthesis
from opsin.synthesize.run import synthesize
from opsin.train.recipe import load_recipe
from opsin.train.run import start

if TYPE_CHECKING:
    from opsin.quickstart.records import Dataset

MORE = ("kinds=[{kind: conversation, draws: 2}, {kind: detail, share: 0.1}, {kind: reasoning, share: 0.2}]",)
Arm = dict[str, Any]


def prepared(out: Path, console: Console, *, tiny: bool) -> tuple[Dataset, dict[str, Any]]:
    """The pictures, their annotations, and the model's parts."""
    if tiny:
        torch.manual_seed(0)
        dataset = build_drawn(out / "data", 0, TINY)
        backbones = write_tiny_backbones(out / "backbones", dataset)
        encoder, language, size, side = backbones.encoder, backbones.language, 64, 2
    else:
        assets = fetch_all(console)
        if assets.stamps is None:
            raise SystemExit("the stamps could not be fetched: this needs apt-get, or try --tiny")
        dataset = build(assets.stamps, out / "data", 0, DatasetSize())
        encoder, language, size, side = assets.encoder, assets.language_model, 224, 3
    model = {
        "encoder": {"kind": "efficientnet_lite", "path": str(encoder.absolute())},
        "connector": {"kind": "average_pool", "side": side, "depth": 2},
        "language": {"path": str(language.absolute())},
        "resolution": {"kind": "square", "size": size, "fit": "pad"},
        "template": {"kind": "chatml"},
    }
    return dataset, model


def recipe(name: str, seed: int, stage: Arm, start_from: Arm) -> str:
    """The YAML of one run of one stage."""
    return yaml.safe_dump({"name": name, "seed": seed, "precision": "bf16", **start_from, "stages": [stage]})


def trained(out: Path, text: str) -> Path:
    """Train a recipe; the run directory."""
    path = out.with_suffix(".yaml")
    write_text(path, text)
    start(load_recipe(path), out)
    return out


def scores(run: Path, dataset: Dataset) -> dict[str, float]:
    """What the held-out questions give, by task and metric."""
    loaded = opsin.load(run)
    found = evaluate(loaded.model, loaded.tokenizer, dataset.held_out, dataset.images)
    return {f"{score.task} {score.metric}": round(score.value, 3) for score in found.scores}


def compared(out: Path, dataset: Dataset, model: Arm, seed: int, steps: int, *, tiny: bool) -> dict[str, Any]:
    """Both arms of one seed."""
    data = {"kind": "llava", "image_root": str(dataset.images.absolute())}
    captions = data | {"path": str(dataset.align.absolute())}
    taught = data | {"path": str((out / "synthesis" / "instruct.json").absolute())}
    align: Arm = {"name": "align", "data": [captions], "template": {"kind": "plain"}, "batch_tokens": 256}
    align |= {"train": {"connector": {"lr": 1e-3}}, "warm_start": {"epochs": 15}, "cache_features": True}
    language: Any = {"lr": 3e-3} if tiny else {"lr": 1e-3, "lora": {"rank": 16, "alpha": 32}}
    later: Arm = {"batch_tokens": 256 if tiny else 512, "epochs": 1000, "steps": steps, "cache_features": True}
    later |= {"train": {"connector": {"lr": 1e-3}, "language": language}}
    aligned = trained(
        out / f"align-{seed}", recipe("align", seed, align | ({"epochs": 20} if tiny else {}), {"model": model})
    )
    found: dict[str, Any] = {}
    for arm, source in (("captions", captions), ("instructions", taught)):
        stage = {"name": "instruct", "data": [source], **later}
        run = trained(out / f"{arm}-{seed}", recipe(arm, seed, stage, {"start_from": str(aligned.absolute())}))
        found[arm] = scores(run, dataset)
        print(json.dumps({"seed": seed, "arm": arm} | found[arm]), flush=True)
    return found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    out: Path = given.out
    dataset, model = prepared(out, Console(stderr=True), tiny=given.tiny)
    synthesize(load_synthesis(dataset.folder / "synthesis.yaml", MORE), out / "synthesis")
    for seed in given.seeds:
        compared(out, dataset, model, seed, given.steps, tiny=given.tiny)


if __name__ == "__main__":
    main()
