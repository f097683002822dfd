from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from opsin.core.errors import OutOfMemoryError, TrainError
from opsin.data.collate import collate
from opsin.data.plan import Pack
from opsin.model.loss import supervised_loss
from opsin.train.data import StageData, plan_steps, read_stage
from opsin.train.loop import StageLoop
from opsin.train.objective import Objective
from opsin.train.optimiser import build_optimiser, optimiser_state, prepare_parts, store_parts
from opsin.train.recipe import Stage
from tests.support.models import tiny_vlm, write_data

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.core.types import Batch

TRAIN = {"connector": {"lr": 1e-2}, "language": {"lr": 1e-3}}


def loop_of(
    folder: Path,
    precision: str = "fp32",
    data: dict[str, int] | None = None,
    data_sources: list[dict[str, Any]] | None = None,
    **changes: Any,
) -> StageLoop:
    model, prepare = tiny_vlm(folder)
    model.precision = "bf16" if precision == "bf16" else "fp32"
    source = {"kind": "llava", "path": write_data(folder, **(data or {}))}
    value = {"name": "x", "data": data_sources or [source], "train": TRAIN, "batch_tokens": 96, "clip": 1e9} | changes
    stage = Stage.model_validate(value)
    store_parts(model, [stage], precision)
    prepare_parts(model, stage)
    samples = read_stage(stage, model.config, prepare.tokenizer)
    return StageLoop(
        Objective(model, stage.loss), stage, samples, plan_steps(samples, stage, 0), build_optimiser(model, stage)
    )


def first_gradients(loop: StageLoop, monkeypatch: pytest.MonkeyPatch) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients as the optimiser sees them in the first step."""
    seen: dict[str, torch.Tensor] = {}

    def note(**_: Any) -> None:
        seen.update({name: p.grad.clone() for name, p in loop.model.named_parameters() if p.grad is not None})

    monkeypatch.setattr(loop.optimiser, "step", note)
    return loop.take_step().loss, seen


def one_step(data: StageData, groups: list[list[int]]) -> list[tuple[Pack, ...]]:
    """One step of these packs."""
    return [
        tuple(
            Pack(
                tuple(group),
                sum(data.examples[i].num_tokens for i in group),
                sum(data.examples[i].num_patches for i in group),
                sum(data.examples[i].num_supervised for i in group),
            )
            for group in groups
        )
    ]


def test_the_step_is_the_same_however_it_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for groups in ([[0, 1, 2, 3, 4, 5, 6, 7]], [[i] for i in range(8)], [[6, 7], [0, 5, 1], [4, 2, 3]]):
        loop = loop_of(tmp_path)
        loop.steps = one_step(loop.data, groups)
        results.append(first_gradients(loop, monkeypatch))
    (loss, gradients), *others = results
    assert gradients
    for other_loss, other in others:
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert other.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(other[name], gradient, atol=1e-6, rtol=1e-3, msg=name)


def test_budget_and_packs_per_step_only_regroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for budget, packs in ((1000, 1), (96, 100), (60, 100)):
        loop = loop_of(tmp_path, batch_tokens=budget, packs_per_step=packs)
        assert len(loop.steps) == 1
        results.append(first_gradients(loop, monkeypatch))
    for other_loss, other in results[1:]:
        assert other_loss == pytest.approx(results[0][0], rel=1e-5)
        for name, gradient in results[0][1].items():
            torch.testing.assert_close(other[name], gradient, atol=1e-6, rtol=1e-3, msg=name)


def test_the_metrics_count_what_was_in_the_step(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, batch_tokens=1000)
    done = loop.take_step()
    assert (done.step, done.pictures) == (1, 6)
    assert done.tokens == sum(example.num_tokens for example in loop.data.examples)
    assert done.supervised == sum(example.num_supervised for example in loop.data.examples)
    assert done.rates == {"connector": 1e-2, "language": 1e-3}
    assert done.grad_norm > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls(tmp_path: Path, precision: str) -> None:
    loop = loop_of(tmp_path, precision, epochs=25, clip=1.0)
    losses = [loop.take_step().loss for _ in loop.steps]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("where", ["loss", "norm of the gradients"])
def test_a_step_that_is_not_finite_changes_nothing_and_three_of_them_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    loop = loop_of(tmp_path, batch_tokens=60, epochs=4)
    loop.take_step()
    told: list[tuple[int, str, list[str]]] = []
    loop.told.trouble = lambda step, why, _batches, ids: told.append((step, why, list(ids)))
    original = Objective.forward

    def poisoned(self: Objective, batch: Batch, weights_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total, losses_S = original(self, batch, weights_T)
        if where == "loss":
            return total * float("nan"), losses_S
        total.register_hook(lambda gradient: gradient * float("inf"))
        return total, losses_S

    with monkeypatch.context() as patch:
        before = {name: tensor.clone() for name, tensor in loop.model.state_dict().items()}
        state = {key: value.clone() for key, value in optimiser_state(loop.model, loop.optimiser).items()}
        patch.setattr(Objective, "forward", poisoned)
        named = [loop.data.examples[i].id for i in loop.steps[1][0].samples]
        done = loop.take_step()
        assert done.step == loop.step == 2
        assert done.trouble.startswith(f"the {where} is ")
        assert done.loss is None
        assert told == [(2, done.trouble, named)]
        assert all(torch.equal(tensor, before[name]) for name, tensor in loop.model.state_dict().items())
        after = optimiser_state(loop.model, loop.optimiser)
        assert all(torch.equal(value, after[key]) for key, value in state.items())
        loop.take_step()
    assert loop.take_step().loss is not None  # what is finite again is trained on
    monkeypatch.setattr(Objective, "forward", poisoned)
    with pytest.raises(TrainError) as caught:
        loop.take_step()
    message = str(caught.value)
    assert message.startswith(f"stage 'x', step 5: the {where} is ")
    assert "3 steps of the stage were skipped for that, so the run ends; no weight was changed by them" in message
    assert all(loop.data.examples[i].id in message for i in loop.steps[4][0].samples)


def test_a_pack_that_does_not_fit_into_memory_is_named_with_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_of(tmp_path)

    def full(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Objective, "forward", full)
    with pytest.raises(OutOfMemoryError) as caught:
        loop.take_step()
    pack = loop.steps[0][0]
    assert f"a pack of {pack.tokens:,} tokens, {pack.patches:,} patches" in str(caught.value)
    assert all(loop.data.examples[i].id in str(caught.value) for i in pack.samples)
    assert "Lower batch_tokens (96) or batch_patches (3,072)" in str(caught.value)


@pytest.mark.parametrize("average", ["token", "sample", "square_root"])
def test_what_a_token_counts_is_what_the_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: str
) -> None:
    loop = loop_of(tmp_path, loss={"average": average})
    loop.steps = one_step(loop.data, [[0, 1, 6], [2, 7]])
    power = {"token": 0.0, "square_root": 0.5, "sample": 1.0}[average]
    total = mass = 0.0
    for sample in (0, 1, 6, 2, 7):
        example = loop.data.examples[sample]
        alone = collate([example], loop.data.preparation)
        own = float(supervised_loss(loop.model(alone), loop.model.decoder.head_weight, alone.targets_T).detach())
        weight = example.num_supervised**-power
        total += weight * own
        mass += weight * example.num_supervised
    loss, _ = first_gradients(loop, monkeypatch)
    assert loss == pytest.approx(total / mass, rel=1e-5)


def test_the_loss_of_every_source_is_told(tmp_path: Path) -> None:
    one = {"kind": "llava", "path": write_data(tmp_path / "one"), "name": "one"}
    two = {"kind": "llava", "path": write_data(tmp_path / "two", pictures=2), "name": "two"}
    loop = loop_of(tmp_path, data_sources=[one, two], batch_tokens=1000)
    done = loop.take_step()
    assert set(done.sources) == {"one", "two"}
    assert sum(count for _, count in done.sources.values()) == done.supervised
    assert sum(total for total, _ in done.sources.values()) / done.supervised == pytest.approx(done.loss, rel=1e-5)


def test_text_alone_trains_the_language_model(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, data={"pictures": 0, "texts": 4}, train={"language": {"lr": 1e-3}}, epochs=3)
    before = loop.model.decoder.head_weight.detach().clone()
    metrics = [loop.take_step() for _ in loop.steps]
    assert {step.pictures for step in metrics} == {0}
    assert not torch.equal(loop.model.decoder.head_weight, before)


def test_a_later_step_of_text_alone_leaves_the_connector_without_a_gradient(tmp_path: Path) -> None:
    loop = loop_of(tmp_path)
    with_picture = next(i for i, e in enumerate(loop.data.examples) if e.media)
    text = next(i for i, e in enumerate(loop.data.examples) if not e.media)
    loop.steps = [*one_step(loop.data, [[with_picture]]), *one_step(loop.data, [[text]])]
    assert [loop.take_step().pictures for _ in range(2)] == [1, 0]


def test_a_first_step_of_text_alone_does_not_fail_the_audit(tmp_path: Path) -> None:
    loop = loop_of(tmp_path)
    text = next(i for i, e in enumerate(loop.data.examples) if not e.media)
    with_picture = next(i for i, e in enumerate(loop.data.examples) if e.media)
    loop.steps = [*one_step(loop.data, [[text]]), *one_step(loop.data, [[with_picture]])]
    assert [loop.take_step().pictures for _ in range(2)] == [0, 1]


def test_text_alone_in_a_stage_that_trains_the_connector_only(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, train={"connector": {"lr": 1e-2}})
    text = next(i for i, e in enumerate(loop.data.examples) if not e.media)
    with_picture = next(i for i, e in enumerate(loop.data.examples) if e.media)
    loop.steps = [*one_step(loop.data, [[text]]), *one_step(loop.data, [[with_picture], [text]])]
    before = [p.detach().clone() for p in loop.model.connection.parameters()]
    done = loop.take_step()
    assert done.loss > 0
    assert done.grad_norm == 0
    assert all(torch.equal(p, b) for p, b in zip(loop.model.connection.parameters(), before, strict=True))
    loop.take_step()
    assert not torch.equal(next(loop.model.connection.parameters()), before[0])


def test_the_first_step_with_pictures_is_audited_too(tmp_path: Path) -> None:
    loop = loop_of(tmp_path)
    text = next(i for i, e in enumerate(loop.data.examples) if not e.media)
    with_picture = next(i for i, e in enumerate(loop.data.examples) if e.media)
    loop.steps = [*one_step(loop.data, [[text]]), *one_step(loop.data, [[with_picture]]) * 2]
    audits: list[Any] = []
    loop.told.audited = audits.append
    for _ in loop.steps:
        loop.take_step()
    assert len(audits) == 2
    loop = loop_of(tmp_path)
    loop.steps = [*one_step(loop.data, [[text]]), *one_step(loop.data, [[with_picture]])]
    loop.model.connection.register_forward_hook(lambda _module, _inputs, visual: visual.detach())
    loop.take_step()
    with pytest.raises(TrainError, match="connector: trained by the plan, but no gradient reaches any of its 4"):
        loop.take_step()


def test_gradients_are_clipped_to_the_norm_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = loop_of(tmp_path, clip=1e-3)
    _, gradients = first_gradients(loop, monkeypatch)
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-2)
