"""The checks of the CUDA paths: they find nothing wrong with the CPU, and what is wrong, they find."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
import torch

from bench import gpu_check
from bench.gpu_check import Bench, Finding, main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.mark.parametrize(
    "checks",
    [
        (gpu_check.parts, gpu_check.generation, gpu_check.moved),
        pytest.param(gpu_check.CHECKS, marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore")]),
    ],
    ids=["some", "all"],
)
def test_the_cpu_agrees_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checks: tuple[gpu_check.Check, ...]
) -> None:
    monkeypatch.setattr(gpu_check, "CHECKS", checks)
    assert main(["--device", "cpu", "--tiny", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["torch"] == torch.__version__
    assert len(found["checks"]) > 10
    assert all(check["ok"] for check in found["checks"])


@pytest.mark.gpu
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_a_gpu_agrees_with_the_cpu() -> None:
    assert main(["--device", "cuda"]) == 0


@pytest.mark.parametrize("found", [0.2, math.nan])
def test_one_thing_that_is_wrong_is_told_and_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: float
) -> None:
    def off(_bench: Bench) -> Iterator[Finding]:
        yield Finding("off", 0.1, found)
        raise RuntimeError("no kernel image is available\nand more")

    def good(_bench: Bench) -> Iterator[Finding]:
        yield Finding("good", 0.1, 0.1)

    monkeypatch.setattr(gpu_check, "CHECKS", (off, good))
    assert main(["--device", "cpu", "--tiny"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[-1].strip() for line in lines[1:4]] == ["NOT OK", "NOT OK", "ok"]
    assert "RuntimeError: no kernel image is available" in lines[2]
    assert lines[-1] == "3 checks, 2 not ok"


def test_a_mistake_in_attention_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = gpu_check.PackedAttention.plan
    monkeypatch.setattr(gpu_check.PackedAttention, "plan", lambda lengths, device: real([sum(lengths)], device))
    bench = Bench(torch.device("cpu"), tmp_path, gpu_check.TINY)
    assert not any(finding.ok for finding in gpu_check.attention(bench))
