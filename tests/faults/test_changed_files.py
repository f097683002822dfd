"""Row D10 of the faults: files that change, shrink or go away under a training stop it, by their names."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from opsin.core.errors import DataError, OpsinError, PictureError, TrainError
from opsin.data import collate as collate_module
from opsin.data.corpus import Corpus, Part
from opsin.data.index import index_of
from opsin.data.loader import Loader
from opsin.data.plan import Budget, plan_epoch
from opsin.data.sources import LlavaFile
from opsin.train.hooks import Hooks
from opsin.train.recipe import Recipe
from opsin.train.run import resume, start
from tests.support.models import draw_picture, model_value, recipe_value, tiny_vlm, write_data

if TYPE_CHECKING:
    from collections.abc import Callable

    from opsin.core.types import Picture
    from opsin.train.metrics import StepMetrics
    from opsin.train.recipe import Stage

SAMPLES = 12


def write_shard(folder: Path) -> Path:
    """A shard of samples with a picture each."""
    path = folder / "data.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(SAMPLES):
            picture = draw_picture(folder / "drawn.png", number).read_bytes()
            said = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": f"Number {number}"}]
            for name, content in (("json", json.dumps({"conversations": said}).encode()), ("png", picture)):
                info = tarfile.TarInfo(f"{number:02d}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def recipe(folder: Path, source: dict[str, Any], **changes: Any) -> Recipe:
    """One stage of one sample a pack."""
    value = recipe_value(folder, save_every=2)
    value["stages"] = [value["stages"][0] | {"data": [source], "batch_tokens": 40} | changes]
    made = Recipe.model_validate(value)
    return made.model_copy(update={"model": made.model.resolved()})


def after_a_step(fault: Callable[[], object]) -> Hooks:
    def on_step(_stage: Stage, done: StepMetrics, _total: int) -> None:
        if done.step == 1:
            fault()

    return Hooks(on_step=on_step)


FAULTS: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "changed": lambda path: path.write_bytes(path.read_bytes()),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_shard_that_does_not_stay_as_it_was_stops_the_run_and_is_named(
    tmp_path: Path, fault: str, workers: int
) -> None:
    path = write_shard(tmp_path)
    made = recipe(tmp_path, {"kind": "webdataset", "path": str(path)}, workers=workers)
    steps: list[int] = []

    def fail() -> None:
        FAULTS[fault](path)
        steps.append(1)

    with pytest.raises(OpsinError, match=r"data\.tar.*(changed while it was read|gone while it was read|no such file)"):
        start(made, tmp_path / "run", after_a_step(fail))
    assert steps == [1]


def native(folder: Path) -> tuple[Corpus, Callable[..., Loader]]:
    """A corpus under a resolution that follows a picture's size, and its loader of one pack."""
    prepare = tiny_vlm(folder, encoder="native_vit", connector="patch_merger", resolution="native")[1]
    source = LlavaFile(path=write_data(folder, pictures=4, texts=1))
    index = index_of(source, prepare)
    corpus = Corpus(prepare, [Part("data", source, index, np.arange(len(index)), index.costs)])
    packs = plan_epoch(corpus.costs, Budget(400, 4000), seed=0, epoch=0).packs
    return corpus, lambda **options: Loader(corpus, prepare, packs, name_of=corpus.name, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_of_another_size_than_planned_is_named_with_its_sample(tmp_path: Path, workers: int) -> None:
    """Its pack could be over its budgets, and the loss be divided by a wrong number of tokens."""
    corpus, load = native(tmp_path)
    before = corpus[2].num_patches
    draw_picture(tmp_path / "pictures" / "2.png", 2, (90, 60))
    with pytest.raises(DataError) as caught, load(workers=workers) as loader:
        list(loader)
    (problem,) = caught.value.problems
    assert "data.json:1: (picture-2) one of its pictures or videos changed since the sample was measured" in problem
    assert f"{before} patches, now " in problem


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_is_gone_is_named_with_its_sample(tmp_path: Path, workers: int) -> None:
    _, load = native(tmp_path)
    (tmp_path / "pictures" / "2.png").unlink()
    gone = r"data\.json:1: \(picture-2\).*2\.png.*: no such file"
    with pytest.raises(OpsinError, match=gone), load(workers=workers) as loader:
        list(loader)


def test_a_picture_replaced_between_its_header_and_its_pixels_is_not_stretched_into_the_old_geometry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, load = native(tmp_path)
    open_picture = collate_module.open_picture

    def replaced(picture: Picture) -> Any:
        assert picture.path is not None
        if picture.path.name == "2.png":
            draw_picture(picture.path, 2, (90, 60))
        return open_picture(picture)

    monkeypatch.setattr(collate_module, "open_picture", replaced)
    changed = r"\(picture-2\).*2\.png: changed while it was read \(40x30.*now 90x60\)"
    with pytest.raises(PictureError, match=changed), load(skip_bad=True) as loader:  # changed is not damaged
        list(loader)


def test_a_picture_that_changes_its_colours_only_is_used_as_it_is(tmp_path: Path) -> None:
    _, load = native(tmp_path)
    with load() as loader:
        (before,) = loader
    draw_picture(tmp_path / "pictures" / "2.png", 77)
    with load() as loader:
        (after,) = loader
    assert before.layouts == after.layouts
    assert before.tokens_T.equal(after.tokens_T)


def test_a_run_is_not_resumed_on_pictures_that_cost_something_else(tmp_path: Path) -> None:
    """Its plan would be another one: some samples would be seen twice and others never."""
    value = recipe_value(tmp_path, save_every=1)
    facts = {"encoder": "native_vit", "connector": "patch_merger", "resolution": "native"}
    value["model"] = model_value(tmp_path / "chatml", **facts)
    value["stages"] = value["stages"][:1]
    made = Recipe.model_validate(value)

    def stop() -> None:
        raise KeyboardInterrupt

    hooks = Hooks(on_step=lambda _stage, done, _total: stop() if done.step == 2 else None)
    with pytest.raises(KeyboardInterrupt):
        start(made, tmp_path / "run", hooks)
    path = tmp_path / "pictures" / "2.png"
    whole = path.read_bytes()
    draw_picture(path, 2, (90, 60))
    with pytest.raises(TrainError, match="stage 'align': its samples are not those that the run began with"):
        resume(tmp_path / "run")
    path.write_bytes(whole)
    assert resume(tmp_path / "run").name.endswith("-done")
