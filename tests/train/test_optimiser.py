from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from opsin.core.errors import TrainError
from opsin.core.types import Picture
from opsin.model.lora import MARK
from opsin.model.loss import supervised_loss
from opsin.train.audit import audit_gradients
from opsin.train.optimiser import (
    build_optimiser,
    optimiser_state,
    prepare_parts,
    rate_factor,
    restore_optimiser,
    set_rates,
    store_parts,
    trained_parameters,
)
from opsin.train.recipe import Schedule, Stage
from tests.support.models import dialogue, draw_picture, packed, tiny_vlm

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.core.types import Batch
    from opsin.model.vlm import Vlm

PREFIX = {"vision": "encoder.", "connector": "connection.", "language": "decoder."}


@pytest.fixture
def made(tmp_path: Path) -> tuple[Vlm, Batch]:
    model, prepare = tiny_vlm(tmp_path, tie_word_embeddings=True)
    picture = Picture(path=draw_picture(tmp_path / "a.png", 1))
    return model, packed([dialogue("a", "What?", "A cat.", [picture]), dialogue("b", "Hi?", "Hello.")], prepare)


def stage(**train: Any) -> Stage:
    plan = {name: value if isinstance(value, dict) else {"lr": value} for name, value in train.items()}
    return Stage.model_validate({"name": "x", "data": [{"kind": "llava", "path": "x.json"}], "train": plan})


def ready(model: Vlm, plan: Stage, precision: str) -> None:
    store_parts(model, [plan], precision)
    prepare_parts(model, plan)


def test_what_a_later_stage_trains_is_not_rounded(made: tuple[Vlm, Batch]) -> None:
    model, _ = made
    weights = {name: p.detach().clone() for name, p in model.connection.named_parameters()}
    stages = [stage(language=0.01), stage(connector=0.01)]
    store_parts(model, stages, "bf16")
    for plan in stages:
        prepare_parts(model, plan)
    assert all(torch.equal(p, weights[name]) for name, p in model.connection.named_parameters())
    assert next(model.encoder.parameters()).dtype == torch.bfloat16


def backward(model: Vlm, batch: Batch) -> None:
    with model.computing():
        supervised_loss(model(batch), model.decoder.head_weight, batch.targets_T).backward()


@pytest.mark.parametrize(
    "trained", [{"connector"}, {"vision"}, {"language"}, {"connector", "language"}, {"vision", "connector", "language"}]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_what_is_named_trains(made: tuple[Vlm, Batch], trained: set[str], precision: str) -> None:
    model, batch = made
    model.precision = precision
    plan = stage(**dict.fromkeys(trained, 0.01))
    ready(model, plan, precision)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = build_optimiser(model, plan)
    backward(model, batch)
    audit = audit_gradients(model, plan, optimiser)
    optimiser.step()
    assert set(audit.scalars) == trained
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        named = any(name.startswith(PREFIX[part]) for part in trained)
        assert moved <= named, name
        frozen_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        assert parameter.dtype == (torch.float32 if named else frozen_dtype)
    for part in trained:
        assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters() if n.startswith(PREFIX[part]))


def test_rotary_frequencies_and_colours_stay_exact_in_bfloat16(made: tuple[Vlm, Batch]) -> None:
    model, _ = made
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert {name.rpartition(".")[2] for name in buffers} >= {"inv_freq", "scale", "shift"}
    for plan in (stage(connector=0.01), stage(language=0.01)):
        ready(model, plan, "bf16")
        for name, buffer in model.named_buffers():
            assert buffer.dtype == buffers[name].dtype, name
            assert torch.equal(buffer, buffers[name]), name


def test_adapters_train_and_their_base_does_not(made: tuple[Vlm, Batch]) -> None:
    model, batch = made
    plan = stage(connector=0.01, language={"lr": 0.01, "lora": {"rank": 2}})
    ready(model, plan, "fp32")
    optimiser = build_optimiser(model, plan)
    backward(model, batch)
    audit_gradients(model, plan, optimiser)
    names = trained_parameters(model, plan)
    assert all(MARK in name for name in names["language"])
    assert len(names["language"]) == 2 * 2 * 7  # A and B of seven linear layers in each of two blocks
    assert all((p.grad is None) == (MARK not in n) for n, p in model.decoder.named_parameters())


def test_a_tied_weight_is_held_once(made: tuple[Vlm, Batch]) -> None:
    model, _ = made
    plan = stage(language=0.01)
    ready(model, plan, "bf16")
    held = [id(p) for group in build_optimiser(model, plan).param_groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(model.decoder.parameters()))
    assert model.decoder.head_weight is model.decoder.lm.model.embed_tokens.weight


def test_the_rates_of_the_parts_are_really_used(made: tuple[Vlm, Batch]) -> None:
    model, batch = made
    rates = {"vision": 1e-4, "connector": 1e-2, "language": 1e-3}
    plan = stage(**rates)
    ready(model, plan, "fp32")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = build_optimiser(model, plan)
    backward(model, batch)
    assert set_rates(optimiser, 0.5) == {part: rate / 2 for part, rate in rates.items()}
    optimiser.step()
    for part, rate in rates.items():
        steps = [(p - before[n]).abs().max().item() for n, p in model.named_parameters() if n.startswith(PREFIX[part])]
        assert max(steps) == pytest.approx(rate / 2, rel=0.02)  # Adam's first step is the rate itself


def test_decay_is_for_matrices_only(made: tuple[Vlm, Batch]) -> None:
    model, _ = made
    plan = stage(connector={"lr": 0.1, "weight_decay": 0.5})
    ready(model, plan, "fp32")
    weight, bias = model.connection.connector.layers[0].weight, model.connection.connector.layers[0].bias
    before = weight.detach().clone(), bias.detach().clone()
    for parameter in model.connection.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build_optimiser(model, plan).step()
    torch.testing.assert_close(weight, before[0] * (1 - 0.1 * 0.5))
    assert torch.equal(bias, before[1])


@pytest.mark.parametrize(
    ("step", "total", "warmup", "factor"),
    [
        (0, 100, 0.1, 0.1),
        (4, 100, 0.1, 0.5),
        (9, 100, 0.1, 1.0),
        (10, 100, 0.1, 1.0),
        (55, 100, 0.1, 0.5),
        (0, 100, 0.0, 1.0),
        (50, 100, 0.0, 0.5),
        (0, 1, 0.03, 1.0),
        (0, 10, 0.03, 1.0),
        (1, 10, 0.03, 1.0),
    ],
)
def test_the_schedule(step: int, total: int, warmup: float, factor: float) -> None:
    assert rate_factor(step, total, math.ceil(warmup * total)) == pytest.approx(factor)


@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5, 0.99])
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_every_step_moves_and_the_rate_only_rises_then_falls(total: int, warmup: float) -> None:
    factors = [rate_factor(step, total, math.ceil(warmup * total)) for step in range(total)]
    peak = factors.index(max(factors))
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_falling_rate_ends_at_its_least(schedule: Schedule) -> None:
    factors = [rate_factor(step, 100, 10, schedule, 0.2) for step in range(101)]
    assert factors[9] == factors[10] == 1
    assert factors[55] == pytest.approx(0.6)
    assert factors[100] == pytest.approx(0.2)
    assert factors[10:] == sorted(factors[10:], reverse=True)


class TestAudit:
    @pytest.fixture
    def trained(self, made: tuple[Vlm, Batch]) -> tuple[Vlm, Stage, torch.optim.Optimizer]:
        model, batch = made
        plan = stage(connector=0.01)
        ready(model, plan, "fp32")
        optimiser = build_optimiser(model, plan)
        backward(model, batch)
        return model, plan, optimiser

    def problems(self, model: Vlm, plan: Stage, optimiser: torch.optim.Optimizer) -> list[str]:
        with pytest.raises(TrainError) as caught:
            audit_gradients(model, plan, optimiser)
        head, *problems = str(caught.value).splitlines()
        assert head == "stage 'x': the gradient audit failed"
        return [problem.strip() for problem in problems]

    def test_passes(self, trained: tuple[Vlm, Stage, torch.optim.Optimizer]) -> None:
        model = trained[0]
        audit = audit_gradients(*trained)
        assert audit.scalars == {"connector": sum(p.numel() for p in model.connection.parameters())}
        assert audit.unreached == ()

    def test_a_frozen_parameter_with_a_gradient(self, trained: tuple[Vlm, Stage, torch.optim.Optimizer]) -> None:
        norm = trained[0].decoder.lm.model.norm.weight
        norm.grad = torch.zeros_like(norm)
        assert self.problems(*trained) == ["decoder.lm.model.norm.weight: frozen by the plan, but it has a gradient"]

    def test_a_trained_part_without_any(self, trained: tuple[Vlm, Stage, torch.optim.Optimizer]) -> None:
        trained[0].zero_grad()
        expected = ["connector: trained by the plan, but no gradient reaches any of its 4 tensors"]
        assert self.problems(*trained) == expected
        for parameter in trained[0].connection.parameters():
            parameter.grad = torch.zeros_like(parameter)
        assert self.problems(*trained) == expected

    def test_a_tensor_that_nothing_reaches_is_told(self, trained: tuple[Vlm, Stage, torch.optim.Optimizer]) -> None:
        trained[0].connection.connector.layers[0].bias.grad = None
        assert audit_gradients(*trained).unreached == ("connection.connector.layers.0.bias",)

    def test_a_gradient_that_is_not_finite(self, trained: tuple[Vlm, Stage, torch.optim.Optimizer]) -> None:
        trained[0].connection.connector.layers[2].bias.grad[0] = math.nan
        assert self.problems(*trained) == ["connection.connector.layers.2.bias: gradient is not finite"]

    def test_an_optimiser_that_misses_a_parameter(self, trained: tuple[Vlm, Stage, torch.optim.Optimizer]) -> None:
        model, plan, _ = trained
        partial = torch.optim.AdamW(list(model.connection.parameters())[1:])
        assert self.problems(model, plan, partial) == [
            "connection.connector.layers.0.weight: trained by the plan, but not in the optimiser"
        ]

    def test_an_optimiser_with_others_too(self, trained: tuple[Vlm, Stage, torch.optim.Optimizer]) -> None:
        model, plan, _ = trained
        wide = torch.optim.AdamW([*model.connection.parameters(), model.decoder.head_weight])
        assert self.problems(model, plan, wide) == ["the optimiser holds parameters that the plan does not train"]


def test_the_optimisers_state_goes_round(made: tuple[Vlm, Batch]) -> None:
    model, batch = made
    plan = stage(connector=0.01, language=0.001)
    ready(model, plan, "fp32")
    first, second = build_optimiser(model, plan), build_optimiser(model, plan)
    backward(model, batch)
    first.step()
    state = optimiser_state(model, first)
    assert {key.rpartition("/")[2] for key in state} == {"exp_avg", "exp_avg_sq", "step"}
    restore_optimiser(model, second, state.items())
    restored = optimiser_state(model, second)
    assert state.keys() == restored.keys()
    assert all(torch.equal(state[key], restored[key]) for key in state)
    zero = torch.zeros(())
    with pytest.raises(TrainError, match=r"of other parameters: decoder\.gone, encoder\.stem\.weight"):
        restore_optimiser(model, second, [("decoder.gone/step", zero), ("encoder.stem.weight/step", zero)])
