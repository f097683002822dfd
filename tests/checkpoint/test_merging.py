"""`opsin export --merge`: adapters are folded in on request only, and logits before and after are compared."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from typer.testing import CliRunner

from opsin.checkpoint import merging
from opsin.checkpoint.compare import TOLERANCE
from opsin.checkpoint.export import export
from opsin.checkpoint.load import load
from opsin.checkpoint.merging import merge
from opsin.checkpoint.model import write_model
from opsin.checkpoint.store import commit
from opsin.cli import app
from opsin.core.errors import ModelError
from opsin.model.lora import MARK, merge_lora
from opsin.train.optimiser import prepare_parts, store_parts
from tests.support.models import stage_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from opsin.checkpoint.hub_names import Family

pytest.importorskip("peft")

TRAIN = {
    "vision": {"lr": 1e-3, "layers": "0-0", "lora": {"rank": 2}},
    "language": {"lr": 1e-3, "lora": {"rank": 3, "alpha": 4}},
}


def tuned(source: Path, folder: Path, precision: str = "fp32", train: dict[str, Any] = TRAIN) -> Path:
    """A checkpoint as a run with adapters leaves it."""
    loaded = load(source)
    stage = stage_of(train)
    loaded.model.precision = precision
    store_parts(loaded.model, [stage], precision)
    lora = prepare_parts(loaded.model, stage)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in loaded.model.named_parameters():
        if MARK in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return commit(folder, lambda path: write_model(path, loaded.model, loaded.tokenizer, lora), {"step": 1})


def plain(run: Result) -> str:
    """What a command told, on one line."""
    return " ".join(run.stderr.split())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["llava", "llava_onevision", "qwen2_vl"])
def test_what_is_merged_is_what_a_checkpoint_loads_as(
    checkpoint: Callable[..., Path], tmp_path: Path, family: Family, precision: str
) -> None:
    path = tuned(checkpoint(family), tmp_path / "tuned", precision)
    loaded, merged = merge(load(path, merge=False), family)
    assert loaded.lora == {}
    usual = load(path).model.state_dict()
    own = loaded.model.state_dict()
    assert own.keys() == usual.keys()
    assert all(torch.equal(own[name], usual[name]) and own[name].dtype == usual[name].dtype for name in own)
    assert [found.prompt for found in merged.differences] == ["text", "image", "video"][: 2 + (family != "llava")]
    for found in merged.differences:
        assert 0 < found.exact < 1e-4
        if precision == "bf16":  # which rounds what is merged
            assert TOLERANCE < found.rounded < merging.ROUNDING * found.spread
        else:
            assert found.rounded == found.exact


def test_adapters_are_folded_in_only_when_that_is_asked_for(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = tuned(checkpoint("llava"), tmp_path / "tuned", "bf16")
    run = CliRunner().invoke(app, ["export", str(path), str(tmp_path / "out")])
    assert run.exit_code == 2
    assert "carries adapters beside its weights (vision: rank 2; language: rank 3); --merge folds them" in plain(run)
    assert not (tmp_path / "out").exists()
    run = CliRunner().invoke(app, ["export", str(path), str(tmp_path / "out"), "--merge", "--json"])
    assert run.exit_code == 0, run.output
    done = json.loads(run.stdout)["merged"]
    assert done["adapters"] == {"vision": {"rank": 2, "alpha": 32.0}, "language": {"rank": 3, "alpha": 4.0}}
    assert done["logits"].keys() == {"text", "image"}
    assert done["logits"]["image"]["exact"] < done["limit"] == TOLERANCE
    run = CliRunner().invoke(app, ["export", str(path), str(tmp_path / "again"), "--merge"])
    assert "merged vision: rank 2; language: rank 3; logits before and after differ by at most\n" in run.stdout
    ours, theirs = load(path).model.state_dict(), load(tmp_path / "out").model.state_dict()
    assert all(torch.equal(ours[name].bfloat16(), theirs[name].bfloat16()) for name in theirs)


def test_adapters_are_written_alone(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = tuned(checkpoint("llava"), tmp_path / "tuned")
    both = ["export", str(path), str(tmp_path / "out"), "--adapters"]
    run = CliRunner().invoke(app, both)
    assert run.exit_code == 0, run.output
    assert run.stdout == f"exported  {tmp_path / 'out'}  (peft's adapter for llava)\n"
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    assert "give one of them" in plain(CliRunner().invoke(app, [*both, "--merge"]))


def test_without_adapters_there_is_nothing_to_merge_or_to_write(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    for option, told in (("--merge", "has no adapters to merge"), ("--adapters", "carries no adapters")):
        run = CliRunner().invoke(app, ["export", str(checkpoint("llava")), str(tmp_path / "out"), option])
        assert told in plain(run)
    assert not (tmp_path / "out").exists()


def test_a_merge_that_changes_the_model_stops_the_export(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(part: torch.nn.Module) -> None:
        for name, parameter in part.named_parameters():
            if "layers.1.self_attn.q_proj.lora_B" in name:
                parameter.data.zero_()
        merge_lora(part)

    path = tuned(checkpoint("llava"), tmp_path / "tuned")
    monkeypatch.setattr(merging, "merge_lora", forgetful)
    told = r"merging changes what the model says: text, logits differ by [0-9.]+ merged in float32 \(limit 0.001\)"
    with pytest.raises(ModelError, match=told):
        export(load(path, merge=False), tmp_path / "out", merge=True)
    assert not (tmp_path / "out").exists()


def test_weights_that_rounding_would_spoil_are_not_merged(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tuned(checkpoint("llava"), tmp_path / "tuned", "bf16")
    monkeypatch.setattr(merging, "ROUNDING", 1e-6)
    with pytest.raises(ModelError, match=r"with merged weights in the type they are stored in \(limit 1e-06 of the"):
        export(load(path, merge=False), tmp_path / "out", merge=True)
