"""Are synthesised instructions worth their trouble, and is it what they say of the pictures?

    python -m bench.synthesis_gain OUT [--tiny] [--steps 300] [--seeds 0 1]

Makes the quick start's pictures and their annotations in COCO's format, runs `opsin synthesize` on the annotations with
the rule-based teacher, trains the connector on captions, and goes on from there three times with the same steps:

    captions        captions alone
    shuffled        the instructions, each record with the picture of another one: what an answer looks like, and which
                    ones are common
    instructions    the instructions as they are; what they give beyond `shuffled` comes from what they say of pictures

Pictures are permuted, not answers, so that every conversation stays whole: a strange answer ("How many?" "Yes") would
teach a wrong form, where only the picture is to be wrong.

Every model answers the same held-out questions, as they are taught and in other words. Beside the share of right
answers stand those "in form", which are the truth of some question of that task, and those "right at first", up to
their first comma or full stop ("No. It is a flower"). `--tiny` draws pictures and starts from random weights, so it
needs no download; its numbers only show that the script works.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from rich.console import Console

import opsin
from bench.reworded import REWORDINGS, refuse_taught, reworded
from opsin.core.files import write_json, write_text
from opsin.evaluate.heldout import evaluate
from opsin.evaluate.metrics import matches, normalised
from opsin.quickstart.assets import fetch_all
from opsin.quickstart.dataset import TINY, DatasetSize, build, build_drawn
from opsin.quickstart.tiny import write_tiny_backbones
from opsin.synthesize.recipe import load_synthesis
from opsin.synthesize.run import synthesize
from opsin.train.recipe import load_recipe
from opsin.train.run import start

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.reworded import Record
    from opsin.quickstart.records import Dataset
    from opsin.report.scores import Prediction

MORE = ("kinds=[{kind: conversation, draws: 2}, {kind: detail, share: 0.1}, {kind: reasoning, share: 0.2}]",)


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


def recipe(name: str, seed: int, stage: Record, start_from: Record) -> str:
    """The YAML of one run of one stage."""
    return yaml.safe_dump({"name": name, "seed": seed, "precision": "bf16", **start_from, "stages": [stage]})


def trained(out: Path, text: str) -> Path:
    """Train a recipe; the run directory."""
    path = out.with_suffix(".yaml")
    write_text(path, text)
    start(load_recipe(path), out)
    return out


def read(path: Path) -> list[Record]:
    """The records of a JSON file."""
    found: list[Record] = json.loads(path.read_text(encoding="utf-8"))
    return found


def shuffled(records: Sequence[Record], seed: int) -> list[Record]:
    """The records in their order, each with another one's picture; every picture is as frequent as before.

    Raises:
        ValueError: one picture is that of more than half of the records.
    """
    often = Counter(record["image"] for record in records)
    most = max(often.values())
    if 2 * most > len(records):
        raise ValueError(f"{most} of {len(records)} records have the same picture, so they cannot all get another one")
    pictures = random.Random(seed).sample(sorted(often), len(often))
    # Records of one picture stand together; what stands as far on as the most frequent picture has records is another.
    place = {picture: index for index, picture in enumerate(pictures)}
    order = sorted(range(len(records)), key=lambda index: place[records[index]["image"]])
    changed = list(records)
    for index, other in zip(order, order[most:] + order[:most], strict=True):
        changed[index] = records[index] | {"image": records[other]["image"]}
    return changed


def exams(out: Path, dataset: Dataset) -> dict[str, Path]:
    """The held-out questions as they are taught and in other words, of which none may be taught."""
    taught = [
        turn["value"].replace("<image>", "").strip()
        for record in read(out / "synthesis" / "instruct.json")
        for turn in record["conversations"]
        if turn["from"] == "human"
    ]
    found = {"as taught": dataset.held_out}
    for name, wordings in REWORDINGS.items():
        refuse_taught(wordings, taught)
        found[name] = out / f"{name.replace(' ', '-')}.json"
        write_json(found[name], reworded(read(dataset.held_out), wordings))
    return found


def scores(run: Path, questions: Path, images: Path) -> dict[str, float]:
    """What one set of questions gives, by task and metric. The answers are written to the run, to be looked at."""
    loaded = opsin.load(run)
    found = evaluate(loaded.model, loaded.tokenizer, questions, images)
    write_json(run / f"answers-{questions.stem}.json", found.as_dict())
    values = {f"{score.task} {score.metric}": score.value for score in found.scores}
    for task in dict.fromkeys(score.task for score in found.scores if score.metric == "accuracy"):
        told = [prediction for prediction in found.predictions if prediction.task == task]
        values |= {f"{task} in form": in_form(told), f"{task} right at first": right_at_first(told)}
    return {name: round(value, 3) for name, value in values.items()}


def in_form(told: Sequence[Prediction]) -> float:
    """The share of answers that are the truth of some of the questions, whichever."""
    truths = {normalised(prediction.truth) for prediction in told}
    return sum(normalised(prediction.answer) in truths for prediction in told) / len(told)


def right_at_first(told: Sequence[Prediction]) -> float:
    """The share of answers that are right up to their first comma or full stop, whatever follows."""
    return sum(matches(re.split("[,.]", said.answer)[0], said.truth) for said in told) / len(told)


def compared(
    out: Path, dataset: Dataset, model: Record, seed: int, steps: int, asked: dict[str, Path], *, tiny: bool
) -> None:
    """All arms of one seed; a line is printed for every arm and set of questions."""
    synthesised = out / "synthesis" / "instruct.json"
    mismatched = out / f"shuffled-{seed}.json"
    write_json(mismatched, shuffled(read(synthesised), seed))
    sources = {
        arm: {"kind": "llava", "path": str(path.absolute()), "image_root": str(dataset.images.absolute())}
        for arm, path in (("captions", dataset.align), ("shuffled", mismatched), ("instructions", synthesised))
    }
    align: Record = {"name": "align", "data": [sources["captions"]], "template": {"kind": "plain"}, "batch_tokens": 256}
    align |= {"train": {"connector": {"lr": 1e-3}}, "warm_start": {"epochs": 15}, "cache_features": True}
    language: Any = {"lr": 3e-3} if tiny else {"lr": 1e-3, "lora": {"rank": 16, "alpha": 32}}
    later: Record = {"batch_tokens": 256 if tiny else 512, "epochs": 1000, "steps": steps, "cache_features": True}
    later |= {"train": {"connector": {"lr": 1e-3}, "language": language}}
    aligned = trained(
        out / f"align-{seed}", recipe("align", seed, align | ({"epochs": 20} if tiny else {}), {"model": model})
    )
    for arm, source in sources.items():
        stage = {"name": "instruct", "data": [source], **later}
        run = trained(out / f"{arm}-{seed}", recipe(arm, seed, stage, {"start_from": str(aligned.absolute())}))
        for name, questions in asked.items():
            found = scores(run, questions, dataset.images)
            print(json.dumps({"seed": seed, "arm": arm, "questions": name} | found), flush=True)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    out: Path = given.out
    dataset, model = prepared(out, Console(stderr=True), tiny=given.tiny)
    synthesize(load_synthesis(dataset.folder / "synthesis.yaml", MORE), out / "synthesis")
    asked = exams(out, dataset)
    for seed in given.seeds:
        compared(out, dataset, model, seed, given.steps, asked, tiny=given.tiny)


if __name__ == "__main__":
    main()
