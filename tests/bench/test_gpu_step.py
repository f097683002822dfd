from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from bench import gpu_step

if TYPE_CHECKING:
    from pathlib import Path

ARGUMENTS = ["--device", "cpu", "--tiny", "--rounds", "2"]


def test_a_step_is_timed_on_the_same_samples_with_the_same_loss(tmp_path: Path) -> None:
    assert gpu_step.main([*ARGUMENTS, "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["tokens"] <= gpu_step.SMALL.tokens
    assert found["losses"]["opsin"] == pytest.approx(found["losses"]["transformers"], rel=gpu_step.ROUNDED)
    assert found["opsin"]["tokens_per_second"] > 0
    assert found["ratio"]["least"] <= found["ratio"]["median"] <= found["ratio"]["most"]


def test_nothing_is_timed_where_the_losses_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    real = gpu_step.own_pass
    monkeypatch.setattr(gpu_step, "own_pass", lambda objective, batch: 1.001 * real(objective, batch))
    with pytest.raises(SystemExit, match="fp32: the losses differ"):
        gpu_step.main(ARGUMENTS)
