"""What is measured while a stage trains, and that measuring changes nothing."""

from __future__ import annotations

import json
from copy import deepcopy
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import pytest
import torch

from opsin.core.errors import DamagedError, DataError, OpsinError
from opsin.core.types import IGNORE_INDEX
from opsin.data.collate import collate
from opsin.model.loss import supervised_loss
from opsin.train.checks import Checked, Checker, read_checker
from opsin.train.features import FeatureCache
from opsin.train.objective import Objective
from opsin.train.recipe import Loss, Stage
from tests.support.models import stage_of, tiny_vlm, write_data
from tests.support.ranks import Two, by_two

if TYPE_CHECKING:
    from pathlib import Path

    from opsin.model.vlm import Vlm

TRAIN = {"connector": {"lr": 1e-2}, "language": {"lr": 1e-3}}


class Checking:
    """A model, a stage with checks on six pictures and four texts, and its checker."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        model, prepare = tiny_vlm(folder)
        self.path = write_data(folder, pictures=6, texts=4)
        checks = {"every": 3, "data": [{"kind": "llava", "path": str(self.path)}], **changes}
        self.stage = stage_of(TRAIN, batch_tokens=128, checks=checks)
        self.tokenizer = prepare.tokenizer
        self.objective = Objective(model.train(), Loss())

    def checker(self, seed: int = 0, **given: Any) -> Checker:
        found = read_checker(self.stage, self.objective.model.config, self.tokenizer, seed=seed, **given)
        assert found is not None
        return found


def one_by_one(checker: Checker, model: Vlm) -> float:
    """The loss of a supervised token, sample by sample."""
    assert checker.data is not None
    total, count = 0.0, 0
    model.eval()
    with torch.no_grad():
        for example in checker.samples:
            batch = collate([example], checker.data.preparation)
            total += supervised_loss(model(batch), model.decoder.head_weight, batch.targets_T).item()
            count += int((batch.targets_T != IGNORE_INDEX).sum())
    return total / count


def test_the_loss_is_that_of_all_supervised_tokens(tmp_path: Path) -> None:
    checking = Checking(tmp_path)
    checker = checking.checker()
    assert len(checker.samples) == 10
    assert len(checker.packs) > 1
    found = checker.check(checking.objective).loss
    assert found == pytest.approx(one_by_one(checker, checking.objective.model), rel=1e-5)


def test_the_samples_are_the_same_every_time_and_few(tmp_path: Path) -> None:
    checking = Checking(tmp_path, samples=4)
    first, again, other = checking.checker(), checking.checker(), checking.checker(seed=1)
    names = [{example.id for example in checker.samples} for checker in (first, again, other)]
    assert names[0] == names[1] != names[2]
    assert len(names[0]) == 4


def test_a_check_changes_nothing(tmp_path: Path) -> None:
    checking = Checking(tmp_path)
    model = checking.objective.model
    model.encoder.eval()  # as a frozen one
    parameter = next(model.connection.parameters())
    parameter.grad = torch.ones_like(parameter)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()

    def drawing(asked: Vlm) -> dict[str, float]:
        assert not any(module.training for module in asked.modules())
        assert not torch.is_grad_enabled()
        torch.rand(3)
        return {"accuracy": 0.5}

    checker = checking.checker(benchmarks={"small": drawing})
    found = checker.check(checking.objective)
    assert found.benchmarks == {"small": {"accuracy": 0.5}}
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(parameter.grad, torch.ones_like(parameter))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_modes_come_back_after_an_error(tmp_path: Path) -> None:
    checking = Checking(tmp_path)

    def failing(_model: Vlm) -> dict[str, float]:
        raise DataError(["no questions"])

    with pytest.raises(DataError):
        checking.checker(benchmarks={"small": failing}).check(checking.objective)
    assert all(module.training for module in checking.objective.modules())


def test_when_it_is_due(tmp_path: Path) -> None:
    checker = Checking(tmp_path).checker()
    assert [step for step in range(1, 11) if checker.is_due(step, 10)] == [3, 6, 9, 10]


def test_a_stage_without_checks_has_no_checker_and_one_without_data_no_loss(tmp_path: Path) -> None:
    checking = Checking(tmp_path)
    config = checking.objective.model.config
    assert read_checker(stage_of(TRAIN), config, checking.tokenizer, seed=0) is None
    questions = {"name": "small", "questions": str(checking.path)}
    checking.stage = stage_of(TRAIN, checks={"every": 1, "benchmarks": [questions]})
    found = checking.checker(benchmarks={"small": lambda _model: {"accuracy": 0.25}}).check(checking.objective)
    assert (found.loss, found.benchmarks) == (None, {"small": {"accuracy": 0.25}})
    assert str(found) == "small accuracy 0.250"


def test_a_line_of_metrics() -> None:
    line = Checked(1.23456, {"small": {"accuracy": 0.5}}, 0.12345).as_dict("align", 30)
    assert json.loads(json.dumps(line)) == {
        "stage": "align",
        "step": 30,
        "check": {"loss": 1.23456, "benchmarks": {"small": {"accuracy": 0.5}}, "seconds": 0.123},
    }


def test_problems_of_the_data_are_told_before_training(tmp_path: Path) -> None:
    checking = Checking(tmp_path)
    checking.path.write_text('[{"id": "x", "conversations": "none"}]', encoding="utf-8")
    with pytest.raises(DataError, match=r"\.json:1"):
        checking.checker()


def test_cached_features_stand_for_pictures(tmp_path: Path) -> None:
    checking = Checking(tmp_path)
    checker = checking.checker()
    plain = checker.check(checking.objective).loss
    model = checking.objective.model
    assert checker.data is not None
    cache = FeatureCache(model, checker.data.preparation, tmp_path / "features")
    cache.add(checker.samples, attrgetter("seen"))
    checker.features = cache
    model.encoder.forward = None  # not called any more
    assert checker.check(checking.objective).loss == pytest.approx(plain, rel=1e-5)


def damaged(checking: Checking) -> None:
    for path in sorted(checking.path.parent.rglob("*.png"))[:2]:
        path.write_bytes(path.read_bytes()[:-40])


def test_damaged_pictures_stop_it_or_are_left_out(tmp_path: Path) -> None:
    checking = Checking(tmp_path)
    damaged(checking)
    with pytest.raises(DamagedError):
        checking.checker().check(checking.objective)
    checker = checking.checker(skip_bad=True)
    found = checker.check(checking.objective).loss
    assert found is not None
    whole = {example.id for example in checker.samples}
    assert len(whole) == 10


@pytest.mark.parametrize("budget", [128, 4096])
def test_ranks_share_the_packs_and_make_as_many_passes(tmp_path: Path, budget: int) -> None:
    checking = Checking(tmp_path)
    checking.stage = Stage.model_validate(checking.stage.model_dump() | {"batch_tokens": budget})
    alone = checking.checker().loss(checking.objective)
    owns = [(deepcopy(checking.objective), checking.checker()) for _ in range(2)]
    passes = [0, 0]

    def work(ranks: Two) -> float | None:
        objective, checker = owns[ranks.rank]
        checker.ranks = ranks

        def count(*_: Any) -> None:
            passes[ranks.rank] += 1

        objective.register_forward_hook(count)
        with torch.no_grad():
            return checker.loss(objective.eval())

    assert by_two(work) == [pytest.approx(alone, rel=1e-5)] * 2
    assert passes[0] == passes[1] >= 1


def test_a_damaged_picture_on_one_rank_ends_both(tmp_path: Path) -> None:
    checking = Checking(tmp_path)
    owns = [(deepcopy(checking.objective), checking.checker()) for _ in range(2)]
    first = tmp_path / "pictures" / "0.png"
    first.write_bytes(first.read_bytes()[:-40])

    def work(ranks: Two) -> str:
        objective, checker = owns[ranks.rank]
        checker.ranks = ranks
        with pytest.raises(OpsinError) as caught:
            checker.loss(objective)
        return str(caught.value)

    assert all("0.png: the file is damaged" in message for message in by_two(work))
