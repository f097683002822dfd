from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from opsin.checkpoint.model import load_model
from opsin.checkpoint.store import candidates, newest_whole
from opsin.core.errors import DataError, TrainError
from opsin.train.hooks import Hooks
from opsin.train.recipe import Recipe
from opsin.train.run import resume, start
from tests.support.models import recipe_value, write_data

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from opsin.model.vlm import Vlm
    from opsin.train.metrics import StepMetrics
    from opsin.train.recipe import Stage

LORA = {"connector": {"lr": 1e-2}, "language": {"lr": 1e-2, "lora": {"rank": 2}}}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))


def recipe(folder: Path, stage_changes: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    value = recipe_value(folder, **changes)
    for stage in value["stages"]:
        stage |= stage_changes or {}
    made = Recipe.model_validate(value)
    return made.model_copy(update={"model": made.model.resolved()})


def lora_recipe(folder: Path, **changes: Any) -> Recipe:
    value = recipe_value(folder, **changes)
    value["stages"][1]["train"] = LORA
    made = Recipe.model_validate(value)
    return made.model_copy(update={"model": made.model.resolved()})


def crowded_recipe(folder: Path, **changes: Any) -> Recipe:
    """Everything that could make a resumed run another one."""
    value = recipe_value(folder, **changes)
    for stage in value["stages"]:
        stage |= {"packs_per_step": 2, "batch_tokens": 60, "workers": 2, "loss": {"average": "square_root"}}
    value["stages"][1]["train"] = LORA | {"language": {"lr": 1e-2, "lora": {"rank": 2, "dropout": 0.3}}}
    made = Recipe.model_validate(value)
    return made.model_copy(update={"model": made.model.resolved()})


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in ("seconds", "waited", "memory")}
        for line in lines
    ]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """First words of the names of tensors that differ."""
    assert before.keys() == after.keys()
    return {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}


class Killed(BaseException):
    """Stands for a kill: nothing in the package may catch it."""


def killed(at: Callable[[str, int], bool]) -> Hooks:
    """Hooks that stop a run after a step of a stage."""

    def on_step(stage: Stage, done: StepMetrics, _total: int) -> None:
        if at(stage.name, done.step):
            raise Killed

    return Hooks(on_step=on_step)


def test_two_stages_end_to_end(tmp_path: Path) -> None:
    lines: list[str] = []
    seen: dict[str, dict[str, torch.Tensor]] = {}

    def note(name: str) -> Callable[[Vlm], None]:
        return lambda model: seen.update({name: {k: v.clone() for k, v in model.state_dict().items()}})

    hooks = Hooks(
        on_line=lines.append,
        before_stages=note("start"),
        after_stage=lambda stage, model: note(stage.name)(model),
    )
    out = tmp_path / "run"
    last = start(recipe(tmp_path), out, hooks)
    assert changed(seen["start"], seen["align"]) == {"connection"}
    assert changed(seen["align"], seen["instruct"]) == {"connection", "decoder"}
    names = [path.name for path in candidates(out / "checkpoints")]
    assert last.name == names[0]
    assert [name.split("-")[1] for name in names] == ["instruct", "align"]
    assert all(name.endswith("-done") for name in names)
    assert next(line for line in lines if "gradient audit passed" in line).startswith("stage 'align': ")
    steps = metrics(out)
    assert [(m["stage"], m["step"]) for m in steps] == [
        (stage, step) for stage in ("align", "instruct") for step in range(1, len(steps) // 2 + 1)
    ]
    assert sum(m["pictures"] for m in steps if m["stage"] == "align") == 6  # and two samples of text alone
    loaded = load_model(out).model
    assert changed(seen["instruct"], loaded.state_dict()) == set()
    provenance = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert {"opsin", "torch", "transformers", "git", "data"} <= provenance.keys()


def test_bfloat16_freezes_bit_for_bit_too(tmp_path: Path) -> None:
    out = tmp_path / "run"
    after: dict[str, dict[str, torch.Tensor]] = {}
    hooks = Hooks(after_stage=lambda stage, model: after.update({stage.name: dict(model.state_dict())}))
    value = recipe(tmp_path, precision="bf16")
    last = start(value, out, hooks)
    first, second = (weights(path) for path in reversed(candidates(out / "checkpoints")))
    assert all(torch.equal(first[name], second[name]) for name in first if name.startswith("encoder."))
    assert {first[name].dtype for name in first if name.startswith("encoder.")} == {torch.bfloat16}
    # The language model is trained later: rounding it while it is frozen would lose what it was.
    assert {first[name].dtype for name in first if name.startswith("decoder.")} == {torch.float32}
    assert {second[name].dtype for name in second if not name.startswith("encoder.")} == {torch.float32}
    assert load_model(last).model.precision == "bf16"


MODES: dict[str, tuple[Callable[..., Recipe], dict[str, Any]]] = {
    "full": (recipe, {}),
    "lora": (lora_recipe, {}),
    "full, bf16": (recipe, {"precision": "bf16"}),
    "lora, bf16": (lora_recipe, {"precision": "bf16"}),
    "lora, dropout, workers, accumulation": (crowded_recipe, {}),
}
KILLS: dict[str, Callable[[str, int], bool]] = {
    "in the first stage": lambda stage, step: stage == "align" and step == 3,
    "at a stage's first step": lambda stage, step: stage == "instruct" and step == 1,
    "in the last stage": lambda stage, step: stage == "instruct" and step == 3,
}


EACH = [(mode, kill) for mode in MODES for kill in KILLS]
QUICK = {("full", "in the last stage"), ("lora", "in the last stage"), ("lora, bf16", "at a stage's first step")}
QUICK |= {("full, bf16", "in the first stage"), ("lora, dropout, workers, accumulation", "in the last stage")}


@pytest.mark.parametrize(
    ("mode", "kill"), [pytest.param(*pair, marks=[] if pair in QUICK else [pytest.mark.slow]) for pair in EACH]
)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, mode: str, kill: str) -> None:
    make, changes = MODES[mode]
    value = make(tmp_path, save_every=2, **changes)
    longer = [stage.model_copy(update={"epochs": 2.0}) for stage in value.stages]
    value = value.model_copy(update={"stages": longer})
    whole = start(value, tmp_path / "whole")
    assert len(metrics(tmp_path / "whole")) >= 10  # enough steps for every kill
    with pytest.raises(Killed):
        start(value, tmp_path / "cut", killed(KILLS[kill]))
    torch.manual_seed(99)  # another process has another random state
    resumed = resume(tmp_path / "cut")
    assert resumed.name == whole.name
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_an_error_in_the_middle_leaves_an_emergency_checkpoint_which_the_run_goes_on_from(tmp_path: Path) -> None:
    def fail(stage: Stage, done: StepMetrics, _total: int) -> None:
        if (stage.name, done.step) == ("instruct", 3):
            raise RuntimeError("somebody's bug")

    value = recipe(tmp_path, save_every=2)
    whole = start(value, tmp_path / "whole")
    out = tmp_path / "cut"
    lines: list[str] = []
    with pytest.raises(RuntimeError, match="somebody's bug"):
        start(value, out, Hooks(on_line=lines.append, on_step=fail))
    emergency = out / "checkpoints" / "emergency-01-instruct-000000003"
    assert lines[-1] == f"the 3 steps that were taken are saved in {emergency}"
    assert (out / "checkpoints" / "01-instruct-000000002").is_dir()  # none is deleted for it
    lines.clear()
    resumed = resume(out, Hooks(on_line=lines.append))
    assert "resuming at stage 'instruct', step 4" in lines
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert metrics(out) == metrics(tmp_path / "whole")


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_killed_between_stages(tmp_path: Path, mode: str) -> None:
    def stop(stage: Stage, _model: Vlm) -> None:
        if stage.name == "align":
            raise Killed

    value = MODES[mode][0](tmp_path)
    whole = start(value, tmp_path / "whole")
    with pytest.raises(Killed):
        start(value, tmp_path / "cut", Hooks(after_stage=stop))
    torch.manual_seed(99)
    lines: list[str] = []
    resumed = resume(tmp_path / "cut", Hooks(on_line=lines.append))
    assert "resuming at stage 'instruct', step 1" in lines
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_killed_many_times(tmp_path: Path) -> None:
    value = recipe(tmp_path, save_every=1)
    whole = start(value, tmp_path / "whole")
    with pytest.raises(Killed):
        start(value, tmp_path / "cut", killed(lambda _stage, step: step == 2))
    for stage, step in (("align", 3), ("instruct", 2), ("instruct", 3)):
        with pytest.raises(Killed):
            resume(tmp_path / "cut", killed(lambda s, n, stage=stage, step=step: (s, n) == (stage, step)))
    resumed = resume(tmp_path / "cut")
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_damaged_newest_checkpoint_is_skipped_by_name(tmp_path: Path) -> None:
    value = recipe(tmp_path, save_every=1)
    whole = start(value, tmp_path / "whole")
    out = tmp_path / "cut"
    with pytest.raises(Killed):
        start(value, out, killed(lambda stage, step: (stage, step) == ("align", 3)))
    newest = candidates(out / "checkpoints")[0]
    (newest / "model.safetensors").write_bytes(b"")
    lines: list[str] = []
    resumed = resume(out, Hooks(on_line=lines.append))
    assert lines[0].startswith(f"skipped {newest}: model.safetensors has 0 bytes, the manifest says ")
    assert lines[1] == "resuming at stage 'align', step 2"
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_old_checkpoints_in_a_stage_are_deleted_and_ends_of_stages_kept(tmp_path: Path) -> None:
    start(recipe(tmp_path, save_every=1, keep=1), tmp_path / "run")
    names = [path.name for path in candidates(tmp_path / "run" / "checkpoints")]
    assert len([name for name in names if name.endswith("-done")]) == 2
    assert len([name for name in names if not name.endswith("-done")]) == 1


def test_a_finished_run_has_nothing_to_do(tmp_path: Path) -> None:
    out = tmp_path / "run"
    last = start(recipe(tmp_path), out)
    lines: list[str] = []
    assert resume(out, Hooks(on_line=lines.append)) == last
    assert lines == [f"{out}: all 2 stages are complete; nothing to do"]


def test_changed_data_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        start(recipe(tmp_path, save_every=1), out, killed(lambda stage, step: (stage, step) == ("align", 2)))
    write_data(tmp_path, pictures=5)
    with pytest.raises(TrainError) as caught:
        resume(out)
    data = tmp_path / "data.json"
    assert str(caught.value) == (
        f"{out}: a resumed run must be the one that began, but this changed since:\n"
        f"  {data}: not the data that the run began with\n"
        "put it back, start a new run, or go on all the same with --override"
    )
    data.unlink()
    with pytest.raises(DataError, match=r"data\.json: no such file; correct the path"):
        resume(out)


def test_a_changed_recipe_or_tokenizer_is_named_and_goes_on_only_if_asked(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        start(recipe(tmp_path, save_every=1), out, killed(lambda stage, step: (stage, step) == ("align", 2)))
    value = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
    value["stages"][1]["train"]["connector"][0]["lr"] = 5e-3
    (out / "recipe.json").write_text(json.dumps(value), encoding="utf-8")
    tokenizer = tmp_path / "chatml" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(TrainError) as caught:
        resume(out)
    told = [
        f"{out / 'recipe.json'}: stages.1.train.connector.0.lr: was 0.01, now 0.005",
        f"{tokenizer.parent}: not the tokenizer that the run began with",
    ]
    assert all(f"\n  {line}\n" in str(caught.value) for line in told)
    lines: list[str] = []
    resume(out, Hooks(on_line=lines.append), override=True)
    assert [f"changed since the run began: {line}" for line in told] == lines[:2]
    assert metrics(out)[-1]["lr"]["connector"] <= 5e-3
    lines.clear()
    resume(out, Hooks(on_line=lines.append))  # from then on, that is the run
    assert not any("changed since" in line for line in lines)


def test_a_directory_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    last = start(recipe(tmp_path), out)
    before = (last / "model.safetensors").read_bytes()
    with pytest.raises(TrainError, match="holds a run already; resume it with --resume"):
        start(recipe(tmp_path), out)
    assert newest_whole(out / "checkpoints") == (last, [])
    assert (last / "model.safetensors").read_bytes() == before


def test_resuming_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"no recipe.json there; this is not a run directory"):
        resume(tmp_path)


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    runs = [start(recipe(tmp_path, seed=seed), tmp_path / f"run{i}") for i, seed in enumerate((3, 3, 4))]
    contents = [(path / "model.safetensors").read_bytes() for path in runs]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_a_run_does_not_depend_on_the_hooks_use_of_randomness(tmp_path: Path) -> None:
    def draw(*_: Any) -> None:
        torch.rand(7)

    plain = start(lora_recipe(tmp_path), tmp_path / "plain")
    drawn = start(lora_recipe(tmp_path), tmp_path / "drawn", Hooks(before_stages=draw, after_stage=draw))
    assert (plain / "model.safetensors").read_bytes() == (drawn / "model.safetensors").read_bytes()


def test_cached_features_are_computed_once_and_a_damaged_cache_again(tmp_path: Path) -> None:
    value = recipe(tmp_path, {"cache_features": True}, precision="bf16")
    lines: list[str] = []
    first = start(value, tmp_path / "one", Hooks(on_line=lines.append))
    cached = [re.sub(r"[0-9.]+ s", "T s", line) for line in lines if "features of" in line]
    assert cached == [
        "stage 'align': features of 6 pictures: 6 computed in T s, 0 read",
        "stage 'instruct': features of 6 pictures: 0 computed, 6 read, about T s saved",
    ]
    (file,) = (tmp_path / "home" / "features").glob("*/*")
    file.write_bytes(b"x" * 100)
    lines.clear()
    second = start(value, tmp_path / "two", Hooks(on_line=lines.append))
    assert f"{file}: this chunk of the feature cache is damaged (not whole); computing its features again" in lines
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_a_loss_that_is_not_finite_saves_nothing(tmp_path: Path) -> None:
    def poison(stage: Stage, loop: Any) -> None:
        if stage.name == "instruct":
            loop.model.connection.connector.layers[0].bias.data.fill_(float("nan"))

    out = tmp_path / "run"
    with pytest.raises(
        TrainError, match=r"stage 'instruct', step 3: the loss is nan; 3 steps of the stage were skipped"
    ):
        start(recipe(tmp_path, {"batch_tokens": 60}, keep=9), out, Hooks(on_stage=poison))
    newest, skipped = newest_whole(out / "checkpoints")
    assert "-align-" in newest.name
    assert skipped == []
    assert all(tensor.isfinite().all() for tensor in weights(newest).values())
