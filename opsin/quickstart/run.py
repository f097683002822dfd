"""The quick start itself: assets, data, two stages with an evaluation before, between and after, and the report."""

from __future__ import annotations

import datetime as dt
import os
import shlex
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from opsin.checkpoint.model import CHECKPOINTS
from opsin.checkpoint.prepare import preparation
from opsin.core.errors import OpsinError
from opsin.core.files import write_json
from opsin.core.types import Picture
from opsin.data.example import Preparation, Seen, seen_alone
from opsin.evaluate.heldout import evaluate
from opsin.evaluate.metrics import leave_one_out, nearest_neighbour
from opsin.evaluate.questions import read_questions
from opsin.model.vlm import Vlm
from opsin.quickstart.assets import Pictures, fetch_all
from opsin.quickstart.dataset import TINY, Dataset, DatasetSize, build, build_drawn, build_easy_vqa
from opsin.quickstart.tiny import write_tiny_backbones
from opsin.report.page import write_report
from opsin.report.run import DataFacts, RunFacts
from opsin.report.scores import Evaluation, Reference
from opsin.report.table import scores_table
from opsin.text.tokenizer import Tokenizer
from opsin.train.features import FeatureCache, one
from opsin.train.progress import ProgressHooks
from opsin.train.recipe import Recipe, load_recipe
from opsin.train.run import start

SEED = 0
EASY_VQA_REPEATS = (
    "Easy-VQA: its captions repeat across its own train/test split, so its caption scores say nothing of new captions"
)
TINY_OVERRIDES = (
    "name=quickstart-tiny",
    "model.resolution.size=64",
    "model.connector.side=2",
    "stages.0.epochs=20",
    "stages.1.batch_tokens=256",
    "stages.1.epochs=12",
    "stages.1.train.connector.lr=3e-3",
    "stages.1.train.language={lr: 3e-3}",
)


@dataclass(frozen=True)
class Options:
    """What the command line chooses."""

    out: Path
    tiny: bool = False
    pictures: Pictures = "stamps"


@dataclass
class Outcome:
    """What a quick start made."""

    run: Path
    checkpoint: Path
    report: Path
    evaluations: list[Evaluation]
    references: list[Reference]
    seconds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Scores and times, ready for JSON; the single answers are in RUN/scores.json."""
        return {
            "run": str(self.run),
            "checkpoint": str(self.checkpoint),
            "report": str(self.report),
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "references": [
                {"task": r.task, "metric": r.metric, "name": r.name, "value": r.value} for r in self.references
            ],
            "evaluations": {e.name: e.scores.as_dict()["scores"] for e in self.evaluations},
        }


@dataclass
class Measuring:
    """Evaluates the model at each moment of the run, on features computed once."""

    dataset: Dataset
    tokenizer: Tokenizer
    hooks: ProgressHooks
    evaluations: list[Evaluation] = field(default_factory=list)
    references: list[Reference] = field(default_factory=list)

    def measure(self, name: str, model: Vlm) -> None:
        """One evaluation under this name."""
        prepare = preparation(model.config, self.tokenizer)
        cache = FeatureCache(model, prepare, on_line=self.hooks.on_line)
        asked = read_questions(self.dataset.held_out, self.dataset.images)
        cache.add(seen_alone([question.picture for question in asked], prepare), one, self.hooks.on_features)
        if not self.references:
            self.references += self._encoder_level(cache, prepare)
        with self.hooks.bar(f"evaluate {name}") as on_progress:
            scores = evaluate(
                model,
                self.tokenizer,
                self.dataset.held_out,
                self.dataset.images,
                features=cache,
                on_progress=on_progress,
            )
        self.evaluations.append(Evaluation(name, scores))
        told = ", ".join(f"{s.task} {s.metric} {s.value:.2f}" for s in scores.scores)
        self.hooks.on_line(f"{name}: {told} ({scores.seconds:.0f} s)")

    def _encoder_level(self, cache: FeatureCache, prepare: Preparation) -> list[Reference]:
        """What the frozen encoder's own features tell of a picture's group, by the nearest picture.

        Once as the model is asked, held-out pictures next to the training pictures; and once over all of them, each
        next to all others: more pictures, so a steadier number.
        """
        groups: dict[str, str] = self.dataset.statistics["labels"]
        asked = [q for q in read_questions(self.dataset.held_out, self.dataset.images) if q.task == "category"]
        if not groups or not asked:
            return []
        train = seen_alone([Picture(path=self.dataset.images / name) for name in groups], prepare)
        cache.add(train, one, self.hooks.on_features)
        known, labels = _pooled(cache, train), list(groups.values())
        held_out, truths = _pooled(cache, seen_alone([q.picture for q in asked], prepare)), [q.truth for q in asked]
        levels = {
            "encoder's 1-NN": nearest_neighbour(known, labels, held_out, truths),
            "1-NN, leave one out": leave_one_out(np.concatenate([known, held_out]), [*labels, *truths]),
        }
        return [Reference("category", "accuracy", name, level.share) for name, level in levels.items()]


def _pooled(cache: FeatureCache, seen: list[Seen]) -> np.ndarray:
    """Mean feature vectors (G, C)."""
    return np.stack([cache.get([pair]).float().mean(dim=0).numpy() for pair in seen])


def quickstart(options: Options, console: Console) -> Outcome:
    """Everything, from nothing to a report.

    Raises:
        OpsinError: an asset cannot be had, or `out` holds something already.
    """
    _claim(options.out)
    with ProgressHooks(console) as hooks:
        return _quickstart(options, hooks, console)


def _claim(out: Path) -> None:
    """Make the run directory; one that holds something is refused with what can be done about it."""
    if out.exists() and any(out.iterdir()):
        message = (
            f"{out}: not empty; choose another directory with --out, or remove it to begin anew "
            "(with make: make quickstart OUT=runs/another)"
        )
        if (out / CHECKPOINTS).is_dir():
            resume = f"{opsin_command()} train --resume {shlex.quote(str(out))}"
            message += f". To only finish the training of the run that it holds: {resume}"
        raise OpsinError(message)
    out.mkdir(parents=True, exist_ok=True)


def _quickstart(options: Options, hooks: ProgressHooks, console: Console) -> Outcome:
    began = time.perf_counter()
    torch.manual_seed(SEED)
    recipe, dataset = _tiny(options, hooks) if options.tiny else _real(options, hooks, console)
    prepared = time.perf_counter()
    measuring = Measuring(dataset, Tokenizer.load(recipe.composition.language.tokenizer_path), hooks)
    hooks.before = lambda model: measuring.measure("before", model)
    hooks.after = lambda stage, model: measuring.measure(f"after {stage.name}", model)
    checkpoint = start(recipe, options.out, hooks.hooks())
    ended = time.perf_counter()
    outcome = Outcome(
        run=options.out,
        checkpoint=checkpoint,
        report=options.out / "report.html",
        evaluations=measuring.evaluations,
        references=measuring.references,
        seconds={"data": prepared - began, "training and evaluation": ended - prepared},
    )
    write_json(options.out / "scores.json", [{"name": e.name, **e.scores.as_dict()} for e in outcome.evaluations])
    write_report(options.out, _facts(recipe, dataset, outcome, ended - began))
    outcome.seconds["all"] = time.perf_counter() - began
    return outcome


def _real(options: Options, hooks: ProgressHooks, console: Console) -> tuple[Recipe, Dataset]:
    assets = fetch_all(console, pictures=options.pictures)
    hooks.on_line("making the data")
    folder = options.out / "data"
    if assets.stamps is not None:
        dataset = build(assets.stamps, folder, SEED, DatasetSize())
    elif assets.easy_vqa is not None:
        hooks.on_line(EASY_VQA_REPEATS)
        dataset = build_easy_vqa(assets.easy_vqa, folder, SEED, DatasetSize())
    else:
        raise OpsinError("no pictures were fetched")
    return _recipe(dataset, assets.encoder, assets.language_model, ()), dataset


def _tiny(options: Options, hooks: ProgressHooks) -> tuple[Recipe, Dataset]:
    hooks.on_line("drawing pictures, making a tiny model from scratch")
    dataset = build_drawn(options.out / "data", SEED, TINY)
    backbones = write_tiny_backbones(options.out / "backbones", dataset)
    return _recipe(dataset, backbones.encoder, backbones.language, TINY_OVERRIDES), dataset


def _recipe(dataset: Dataset, encoder: Path, language: Path, overrides: tuple[str, ...]) -> Recipe:
    path = Path(str(files("opsin.recipes").joinpath("quickstart.yaml")))
    variables = {
        "ENCODER": str(encoder.absolute()),
        "LANGUAGE": str(language.absolute()),
        "DATA": str(dataset.folder.absolute()),
    }
    return load_recipe(path, overrides, variables=variables)


def _facts(recipe: Recipe, dataset: Dataset, outcome: Outcome, seconds: float) -> RunFacts:
    statistics = dataset.statistics
    groups = {name: (count["train"], count["held_out"]) for name, count in statistics.get("groups", {}).items()}
    counts = {
        "pictures": int(statistics["pictures"]),
        "captions to align with": int(statistics["align"]["records"]),
        "instruction samples": int(statistics["instruct"]["records"]),
        **{f"held-out questions: {task}": int(n) for task, n in statistics["heldout"].items()},
    }
    skipped = Counter(entry["reason"] for entry in statistics.get("skipped", []))
    return RunFacts(
        name=recipe.name,
        date=dt.datetime.now(tz=dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        seconds=seconds,
        machine=f"{os.cpu_count()} CPU cores, torch {torch.__version__}",
        chat=chat_command(outcome.run),
        evaluations=outcome.evaluations,
        image_root=dataset.images,
        references=outcome.references,
        data=DataFacts(counts=counts, groups=groups, skipped=dict(skipped)),
    )


def show(outcome: Outcome, console: Console) -> None:
    """What a person sees at the end."""
    console.print(scores_table(outcome.evaluations, outcome.references))
    for name, value in (("report", str(outcome.report)), ("chat", chat_command(outcome.run))):
        console.print(f"{name:<7} {value}", markup=False, highlight=False, soft_wrap=True)


def chat_command(run: Path) -> str:
    """What to type, here and now, to talk with a run's model."""
    return f"{opsin_command()} chat {shlex.quote(str(run))}"


def opsin_command() -> str:
    """How opsin is started from this folder: by its name where the shell finds it, else by its path."""
    if shutil.which("opsin") is not None:
        return "opsin"
    script = Path(sys.argv[0]).absolute()
    if script.name != "opsin":  # python -m opsin, or another program that calls it
        return f"{shlex.quote(_from_here(Path(sys.executable)))} -m opsin"
    return shlex.quote(_from_here(script))


def _from_here(program: Path) -> str:
    """The path of a program relative to the working directory when it is below it; never a bare name."""
    if not program.is_relative_to(Path.cwd()):
        return str(program)
    relative = program.relative_to(Path.cwd())
    return str(relative) if len(relative.parts) > 1 else f"./{relative}"
