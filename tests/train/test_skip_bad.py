"""`skip_bad` and media that are damaged behind their header: their samples are left out, and all else stays exact."""

from __future__ import annotations

import errno
import io
import json
import re
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import ImageFile
from safetensors.torch import load_file

from opsin.core.errors import DamagedError, DamagedPictureError, DataError, PictureError, VideoError
from opsin.core.types import Clip, Conversation, Picture, Turn
from opsin.data.collate import collate
from opsin.data.plan import Pack
from opsin.report.run import read_metrics
from opsin.train.data import plan_steps, read_stage
from opsin.train.features import FeatureCache
from opsin.train.hooks import Hooks
from opsin.train.loop import StageLoop
from opsin.train.objective import Objective
from opsin.train.optimiser import build_optimiser, prepare_parts, store_parts
from opsin.train.recipe import Recipe, Stage, WarmStart
from opsin.train.run import resume, start
from opsin.train.warm_start import warm_start
from opsin.vision import video
from opsin.vision.picture import open_picture
from tests.support.models import dialogue, draw_picture, examples_of, recipe_value, tiny_vlm, write_data
from tests.support.videos import write_video

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.train.metrics import StepMetrics

TRAIN = {"connector": {"lr": 1e-2}, "language": {"lr": 1e-3}}
DAMAGED = "the file is damaged or cut short; it cannot be decoded"


def damage(folder: Path, number: int) -> None:
    """Cut a picture short behind its header; its size can still be read."""
    path = folder / "pictures" / f"{number}.png"
    path.write_bytes(path.read_bytes()[:-40])


def loop_of(
    folder: Path, bad: tuple[int, ...] = (), groups: list[list[int]] | None = None, **changes: Any
) -> StageLoop:
    """A loop over drawn pictures 0 to 5 and two texts, 6 and 7; `groups` are the packs of its one step."""
    model, prepare = tiny_vlm(folder)
    source = {"kind": "llava", "path": write_data(folder)}
    for number in bad:
        damage(folder, number)
    value = {"name": "x", "data": [source], "train": TRAIN, "batch_tokens": 96, "clip": 1e9} | changes
    stage = Stage.model_validate(value)
    store_parts(model, [stage], "fp32")
    prepare_parts(model, stage)
    data = read_stage(stage, model.config, prepare.tokenizer)
    steps = plan_steps(data, stage, 0)
    if groups is not None:
        steps = [tuple(Pack(tuple(group), 0, 0, 0) for group in groups)]
    return StageLoop(Objective(model, stage.loss), stage, data, steps, build_optimiser(model, stage), skip_bad=True)


def first_step(loop: StageLoop, monkeypatch: pytest.MonkeyPatch) -> tuple[StepMetrics, dict[str, torch.Tensor]]:
    """What the first step did, and the gradients that its optimiser saw."""
    seen: dict[str, torch.Tensor] = {}

    def note(**_: Any) -> None:
        seen.update({name: p.grad.clone() for name, p in loop.model.named_parameters() if p.grad is not None})

    monkeypatch.setattr(loop.optimiser, "step", note)
    done = loop.take_step()
    loop.close()
    return done, seen


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_with_a_damaged_sample_is_the_step_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    whole, gradients = first_step(loop_of(tmp_path, (), [[0, 6], [3, 7], [4]]), monkeypatch)
    told: list[tuple[int, str]] = []
    loop = loop_of(
        tmp_path, (1, 2, 5), [[0, 1, 6], [2, 5], [3, 7], [4]], workers=workers
    )  # of one pack nothing is left
    loop.told.damaged = lambda step, line: told.append((step, line))
    done, found = first_step(loop, monkeypatch)
    assert (done.loss, done.grad_norm, done.skipped) == (whole.loss, whole.grad_norm, 3)
    assert (done.tokens, done.supervised, done.pictures) == (whole.tokens, whole.supervised, whole.pictures)
    assert found.keys() == gradients.keys()
    assert all(torch.equal(found[name], gradients[name]) for name in gradients)
    assert told == [(1, named_bad(tmp_path, number)) for number in (1, 2, 5)]


BAD = (1, 4)


def recipe(folder: Path, *, skip_bad: bool = True, **changes: Any) -> Recipe:
    """Two epochs of one sample a pack and two packs a step, of which pictures 1 and 4 are damaged."""
    value = recipe_value(folder, save_every=2, skip_bad=skip_bad)
    stage = {"batch_tokens": 40, "packs_per_step": 2, "epochs": 2.0}
    value["stages"] = [value["stages"][1] | stage | changes]
    for number in BAD:
        damage(folder, number)
    made = Recipe.model_validate(value)
    return made.model_copy(update={"model": made.model.resolved()})


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in ("seconds", "waited", "memory")}
        for line in lines
    ]


def skipped(out: Path) -> list[str]:
    return (out / "skipped.txt").read_text(encoding="utf-8").splitlines()


def named_bad(folder: Path, number: int) -> str:
    """What is said of a sample whose picture is damaged."""
    return f"{folder}/data.json:1: (picture-{number}) {folder}/pictures/{number}.png: {DAMAGED}"


def weights(checkpoint: Path) -> bytes:
    return (checkpoint / "model.safetensors").read_bytes()


def test_a_run_names_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    lines: list[str] = []
    out = tmp_path / "run"
    start(recipe(tmp_path), out, Hooks(on_line=lines.append))
    steps = metrics(out)
    places, named = zip(*(line.split(": ", 1) for line in skipped(out)), strict=True)
    assert list(places) == [f"instruct, step {step['step']}" for step in steps for _ in range(step.get("skipped", 0))]
    assert sorted(named) == sorted(2 * [named_bad(tmp_path, n) for n in BAD])  # in every epoch
    told = [
        f"stage 'instruct', {place.split(', ')[1]}: left out: {name}" for place, name in zip(places, named, strict=True)
    ]
    assert [line for line in lines if "left out: " in line] == told
    end = f"stage 'instruct': left out because a picture or video is damaged: 4, see {out / 'skipped.txt'}"
    assert end in lines


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_leave_out_the_same(tmp_path: Path, workers: int) -> None:
    alone = start(recipe(tmp_path), tmp_path / "alone")
    helped = start(recipe(tmp_path, workers=workers), tmp_path / "helped")
    assert weights(alone) == weights(helped)
    assert metrics(tmp_path / "alone") == metrics(tmp_path / "helped")
    assert skipped(tmp_path / "alone") == skipped(tmp_path / "helped")


class Killed(BaseException):
    """Stands for a kill."""


def cut(folder: Path, made: Recipe, whole: Path) -> int:
    """A run in `cut`, killed behind a step that leaves something out and has no checkpoint; returns that step."""
    steps = [step["step"] for step in metrics(whole) if "skipped" in step]
    at: int = next(step for step in steps if step % 2 and step > 1)

    def kill(_stage: Stage, done: StepMetrics, _total: int) -> None:
        if done.step == at:
            raise Killed

    with pytest.raises(Killed):
        start(made, folder / "cut", Hooks(on_step=kill))
    assert f"step {at}:" in skipped(folder / "cut")[-1]
    return at


@pytest.mark.parametrize("changes", [{}, {"packs_per_step": 1}, {"workers": 2}, {"cache_features": True}])
def test_a_resumed_run_leaves_out_the_same_and_names_it_once(tmp_path: Path, changes: dict[str, Any]) -> None:
    made = recipe(tmp_path, **changes)
    whole = start(made, tmp_path / "whole")
    cut(tmp_path, made, tmp_path / "whole")
    lines: list[str] = []
    resumed = resume(tmp_path / "cut", Hooks(on_line=lines.append))
    assert weights(resumed) == weights(whole)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert skipped(tmp_path / "cut") == skipped(tmp_path / "whole")
    assert any("is damaged: 4, see" in line for line in lines)


def test_what_is_whole_when_its_step_is_taken_again_is_not_named(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    start(made, tmp_path / "whole")
    at = cut(tmp_path, made, tmp_path / "whole")
    for number in BAD:
        draw_picture(tmp_path / "pictures" / f"{number}.png", number)
    resume(tmp_path / "cut")
    assert skipped(tmp_path / "cut") == [
        line for line in skipped(tmp_path / "whole") if int(line.split()[2].rstrip(":")) < at
    ]
    assert all("skipped" not in step for step in metrics(tmp_path / "cut") if step["step"] >= at)


def test_a_step_of_which_nothing_is_left_is_counted_and_changes_nothing(tmp_path: Path) -> None:
    seen: dict[int, dict[str, torch.Tensor]] = {}
    out = tmp_path / "run"

    def note(stage: Stage, loop: StageLoop) -> None:
        del stage
        model = loop.model
        take = loop.take_step

        def watched() -> StepMetrics:
            seen[loop.step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            return take()

        loop.take_step = watched  # type: ignore[method-assign]

    last = start(recipe(tmp_path, packs_per_step=1), out, Hooks(on_stage=note))
    steps = metrics(out)
    assert [step["step"] for step in steps] == list(range(1, 17))
    empty = [step for step in steps if step["loss"] is None]
    assert len(empty) == 4
    seen[16] = load_file(last / "model.safetensors")
    for step in empty:
        assert [step[name] for name in ("tokens", "supervised", "pictures")] == [0, 0, 0]
        assert (step["grad_norm"], step["skipped"]) == (None, 1)
        before, after = seen[step["step"] - 1], seen[step["step"]]
        assert all(torch.equal(after[name], before[name]) for name in after)
    assert [step.step for step in read_metrics(out / "metrics.jsonl")["instruct"].steps] == [
        step["step"] for step in steps if step["loss"] is not None
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_without_skip_bad_the_run_stops_and_names_the_sample(tmp_path: Path, workers: int) -> None:
    with pytest.raises(DamagedPictureError, match=r"\(picture-[14]\) .*[14]\.png: the file is damaged.*--skip-bad"):
        start(recipe(tmp_path, skip_bad=False, workers=workers), tmp_path / "run")
    assert not (tmp_path / "run" / "skipped.txt").exists()


def test_cached_features_leave_out_the_same(tmp_path: Path) -> None:
    lines: list[str] = []
    start(recipe(tmp_path), tmp_path / "decoded")
    start(recipe(tmp_path, cache_features=True), tmp_path / "cached", Hooks(on_line=lines.append))
    assert skipped(tmp_path / "cached") == skipped(tmp_path / "decoded")
    of_cached, of_decoded = metrics(tmp_path / "cached"), metrics(tmp_path / "decoded")
    for cached, decoded in zip(of_cached, of_decoded, strict=True):
        assert (cached["loss"] or 0.0) == pytest.approx(decoded["loss"] or 0.0, rel=1e-4)
        for name in ("step", "tokens", "supervised", "pictures", "skipped"):
            assert cached.get(name) == decoded.get(name)
    told = r"stage 'instruct': features of 4 pictures: 4 computed in [0-9.]+ s, 0 read, 2 are damaged"
    assert any(re.fullmatch(told, line) for line in lines)


def test_features_that_cannot_be_computed_stop_a_run_without_skip_bad(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        start(recipe(tmp_path, skip_bad=False, cache_features=True), tmp_path / "run")
    assert list(caught.value.problems) == [named_bad(tmp_path, number) for number in BAD]
    assert "data check FILE --decode" in str(caught.value).splitlines()[-1]


def test_a_cache_of_damaged_pictures_alone(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, (0, 1, 2, 3, 4, 5))
    cache = FeatureCache(loop.model, loop.data.preparation, tmp_path / "features")
    added = cache.add(loop.data.examples, attrgetter("seen"))
    assert (added.computed, added.read, cache.damaged) == (0, 0, 6)
    with pytest.raises(DamagedError, match=r"0\.png: the file is damaged"):
        cache.get(loop.data.examples[0].seen)


def test_a_warm_start_leaves_them_out_too(tmp_path: Path) -> None:
    def started(loop: StageLoop, numbers: list[int]) -> tuple[Any, list[torch.Tensor]]:
        examples = [loop.data.examples[number] for number in numbers]
        cache = FeatureCache(loop.model, loop.data.preparation, tmp_path / "features")
        cache.add(examples, attrgetter("seen"))
        done = warm_start(loop.model, examples, cache, WarmStart(epochs=3, lr=1e-2), seed=0)
        return done, list(loop.model.connection.parameters())

    done, parameters = started(loop_of(tmp_path, BAD), [0, 1, 2, 3, 4, 5])
    expected, others = started(loop_of(tmp_path), [0, 2, 3, 5])
    assert done.pictures == 4
    assert done == expected
    assert all(torch.equal(one, other) for one, other in zip(parameters, others, strict=True))


def test_a_video_that_ends_before_its_header_says_is_left_out(tmp_path: Path) -> None:
    prepare = tiny_vlm(tmp_path)[1]
    path = write_video(tmp_path / "a.mkv", range(30))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    turns = (Turn("user", (Clip(path=path), "What moves?")), Turn("assistant", ("A square.",)))
    cut = Conversation("cut", turns, where="videos.json:7")
    batch = collate(examples_of([cut, dialogue("text", "Hello?", "Hi.")], prepare), prepare, skip_bad=True)
    assert (batch.ids, batch.layouts, batch.pixels_X) == (("text",), (), None)
    (line,) = batch.skipped
    assert line.startswith(f"videos.json:7: (cut) {path}: cut short: its header says 3.0 s")


class Failing(io.FileIO):
    """A file on a drive that goes away after the first read."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > 3:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(size) or b""


def test_an_error_of_the_disk_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drive that goes away must not empty the data set."""
    film = write_video(tmp_path / "a.mkv", range(60), size=(160, 160))
    picture = Picture(path=draw_picture(tmp_path / "a.png", 1))

    def fail(_image: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    monkeypatch.setattr(video, "_stream", lambda path: Failing(path))
    with pytest.raises(PictureError, match=r"a\.png: cannot be read \(Input/output error\)") as of_picture:
        open_picture(picture)
    with pytest.raises(VideoError, match=r"a\.mkv: cannot be read \(Input/output error\)") as of_video:
        list(video.read_frames(film, range(60)))
    assert not any(isinstance(caught.value, DamagedError) for caught in (of_picture, of_video))


def test_records_that_cannot_be_used_say_what_to_do(tmp_path: Path) -> None:
    made = recipe(tmp_path, skip_bad=False)
    path = tmp_path / "data.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    del records[0]["conversations"]
    path.write_text(json.dumps(records), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        start(made, tmp_path / "run")
    assert str(caught.value).splitlines()[-1] == (
        "`opsin data check FILE ...` lists them; `opsin train RECIPE --skip-bad` trains without them"
    )
