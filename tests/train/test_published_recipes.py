"""Every published recipe runs as it is shipped, through all its stages, on parts and data that are tiny."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from opsin.checkpoint.load import load
from opsin.core.types import Picture
from opsin.data.costs import KINDS
from opsin.model.generate import Sampling
from opsin.serve.session import Session
from opsin.text.tokenizer import Tokenizer
from opsin.train.data import plan_steps, read_stage
from opsin.train.hooks import Hooks
from opsin.train.recipe import load_recipe
from opsin.train.run import resume, start
from tests.support.backbones import TINY, Tiny, variables
from tests.support.loss_curves import FILE, Trained, run_tiny
from tests.support.models import draw_picture

if TYPE_CHECKING:
    from opsin.train.metrics import StepMetrics
    from opsin.train.recipe import Stage

TOLERANCE = 1e-5
"""Of a loss, relative. Sums in another order (other threads, other instructions of the processor) were seen to change
it by at most 2e-7 in 20 steps; a rate of the last stage's language model that is twice as high by more than 2e-4."""

LLAVA = {"align": {"image"}, "instruct": {"image", "text"}}
KINDS_OF: dict[str, dict[str, set[str]]] = {
    "llava-v1": LLAVA,
    "llava-1.5": LLAVA,
    "llava-1.5-lora": LLAVA,
    "llava-onevision": {
        "align": {"image"},
        "knowledge": {"image", "text"},
        "single-image": {"image", "text"},
        "onevision": {"text", "image", "images", "video"},
    },
    "qwen2-vl": {"vision": {"image"}, "all": {"text", "image", "images", "video"}, "instruct": {"image", "text"}},
}


@pytest.fixture(scope="module", params=TINY, ids=lambda tiny: tiny.recipe)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    value: Tiny = request.param
    return value


@pytest.fixture(scope="module")
def done(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp(tiny.recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPSIN_HOME", str(folder / "home"))
        return run_tiny(tiny, folder)


def test_all_stages_end_and_change_what_they_train_and_nothing_else(tiny: Tiny, done: Trained) -> None:
    assert [stage.name for stage in done.recipe.stages] == list(done.changed)
    for stage in done.recipe.stages:
        parts = {part for part in ("vision", "connector", "language") if stage.train.trains(part)}
        if "language" in parts and not any(group.plan.lora for group in stage.train.groups):
            parts.add("embeddings")
        if (stage.resolution or done.recipe.composition.resolution).newline:
            parts.add("newline")
        assert done.changed[stage.name] == parts
    assert len(done.losses) == sum(tiny.steps) == 20
    assert all(math.isfinite(loss) for loss in done.losses)


def test_losses_are_those_that_are_kept(tiny: Tiny, done: Trained) -> None:
    kept = json.loads(FILE.read_text(encoding="utf-8"))[tiny.recipe]
    assert done.losses == pytest.approx(kept, rel=TOLERANCE), "meant? see tests/support/loss_curves.py"


def test_the_model_answers(done: Trained, tmp_path: Path) -> None:
    loaded = load(done.checkpoint)
    session = Session(loaded.model, loaded.preparation, Sampling(max_new_tokens=3))
    picture = Picture(path=draw_picture(tmp_path / "new.png", 77))
    answer = "".join(session.ask("What is it?", [picture]))
    assert session.turns[-1].parts == (answer,)


def test_the_data_of_every_stage_are_of_its_kinds(tiny: Tiny, done: Trained) -> None:
    tokenizer = Tokenizer.load(done.recipe.composition.language.tokenizer_path)
    found = {}
    for stage in done.recipe.stages:
        data = read_stage(stage, done.recipe.composition, tokenizer)
        samples = {i for step in plan_steps(data, stage, done.recipe.seed) for pack in step for i in pack.samples}
        found[stage.name] = {KINDS[kind] for kind in data.examples.costs.kinds[sorted(samples)]}
    assert found == KINDS_OF[tiny.recipe]


class CutOffError(Exception):
    """Ends a run in the middle of a step's report, as a crash would."""


def test_a_published_run_that_is_cut_off_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    tiny = next(
        tiny for tiny in TINY if tiny.recipe == "llava-1.5-lora"
    )  # adapters, dropout, packs that differ in number
    values = variables(tmp_path, tiny.recipe)
    recipe = load_recipe(Path(tiny.recipe), [*tiny.overrides, "save_every=2"], variables=values)
    losses: list[float | None] = []

    def cut(_stage: Stage, step: StepMetrics, _total: int) -> None:
        if len(losses) == 13:
            raise CutOffError
        losses.append(step.loss)

    with pytest.raises(CutOffError):
        start(recipe, tmp_path / "run", Hooks(on_step=cut))
    shutil.rmtree(next((tmp_path / "run" / "checkpoints").glob("emergency-*"), tmp_path / "none"), ignore_errors=True)
    del losses[12:]  # the newest checkpoint is that of step 4 of the second stage
    resume(tmp_path / "run", Hooks(on_step=lambda _stage, step, _total: losses.append(step.loss)))
    kept = json.loads(FILE.read_text(encoding="utf-8"))[tiny.recipe]
    assert losses == pytest.approx(kept, rel=TOLERANCE)
