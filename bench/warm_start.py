"""What the connector's warm start is worth: stage align of a finished quick start, with and without it.

    python -m bench.warm_start RUN        # RUN: a directory that `opsin quickstart` made

Prints, for captions of held-out pictures, the negative log-likelihood of a token, and how much it grows when every
picture is exchanged for another one: what the model has from the picture, and not from knowing what captions are like.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from operator import attrgetter
from pathlib import Path

import torch

from opsin.core.types import IGNORE_INDEX
from opsin.data.collate import collate
from opsin.data.example import make_example
from opsin.evaluate.questions import read_questions
from opsin.model.vlm import Vlm
from opsin.text.tokenizer import Tokenizer
from opsin.train.data import plan_steps, read_stage
from opsin.train.features import FeatureCache
from opsin.train.loop import StageLoop
from opsin.train.objective import Objective
from opsin.train.optimiser import build_optimiser, prepare_parts, store_parts
from opsin.train.record import read_record
from opsin.train.warm_start import warm_start

SHIFTS = (1, 7, 23)


def main() -> None:
    """Train the stage twice and print both results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run: Path = parser.parse_args().run
    recipe, _ = read_record(run)
    stage = recipe.stages[0]
    assert stage.warm_start is not None, "the recipe's first stage has no warm start"
    tokenizer = Tokenizer.load(recipe.composition.language.tokenizer_path)
    for warm in (False, True):
        torch.manual_seed(recipe.seed)
        model = Vlm(recipe.composition)
        model.precision = recipe.precision
        store_parts(model, recipe.stages, recipe.precision)
        prepare_parts(model, stage)
        data = read_stage(stage, recipe.composition, tokenizer)
        cache = FeatureCache(model, data.preparation)
        asked = [
            q for q in read_questions(run / "data" / "heldout.json", run / "data" / "images") if q.task == "caption"
        ]
        examples = [make_example(question.answered(data.preparation.template), data.preparation) for question in asked]
        cache.add([*data.examples, *examples], attrgetter("seen"))
        held_out = collate(examples, data.preparation, cache)
        steps = plan_steps(data, stage, recipe.seed)
        objective = Objective(model, stage.loss)
        loop = StageLoop(objective, stage, data, steps, build_optimiser(model, stage), features=cache)
        began = time.perf_counter()
        if warm:
            warm_start(model, data.examples, cache, stage.warm_start, recipe.seed)
        warmed = time.perf_counter() - began
        while loop.step < len(loop.steps):
            loop.take_step()
        with torch.no_grad():
            count = int((held_out.targets_T != IGNORE_INDEX).sum())
            weights_T = torch.ones(held_out.num_tokens)
            own = objective(held_out, weights_T)[0].item() / count
            shifted = [examples[k:] + examples[:k] for k in SHIFTS]
            others_seen = [cache.get([pair for example in rolled for pair in example.seen]) for rolled in shifted]
            exchanged = [dataclasses.replace(held_out, features_PC=features_PC) for features_PC in others_seen]
            others = sum(objective(batch, weights_T)[0].item() for batch in exchanged) / len(SHIFTS) / count
        print(
            f"warm start {'on ' if warm else 'off'}: {own:.2f} nats a token, {others - own:+.2f} with another picture; "
            f"{warmed:.0f} s of {time.perf_counter() - began:.0f} s"
        )


if __name__ == "__main__":
    main()
