"""Every CUDA path against the CPU reference, on the same seeded models.

    python -m bench.gpu_check [--device cuda] [--tiny] [--json FILE]

Prints check, tolerance, what was found, and whether that is good; ends with 1 if anything is not. What is found is the
norm of the difference relative to that of the reference (float32 on the CPU, unless another is named), or the number of
things that differ where the tolerance is 0. With `--device cpu` it tests itself, `--tiny` leaves out the larger models.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from bench.gpu_models import KINDS, SMALL, TINY, Case, Passed, Precision, Size, apart, case_of, passed, value_of
from opsin.core.types import Batch, Grid
from opsin.data.collate import TENSORS, to_device
from opsin.model.attention import Attend, PackedAttention, dense_attention
from opsin.model.generate import Sampling, generate
from opsin.model.native_vit import MapAttention
from opsin.model.recompute import Recompute
from opsin.model.varlen import has_kernel
from opsin.model.vlm import Vlm
from opsin.train.hooks import Hooks
from opsin.train.metrics import StepMetrics
from opsin.train.objective import Objective
from opsin.train.recipe import Parallel, Recipe, Stage
from opsin.train.run import resume, start
from opsin.train.sharding import divide
from opsin.train.world import joined
from tests.support.models import appended, recipe_value

ROUNDED = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Largest error of attention, by dtype: some units in the last place (2^-9 in bfloat16, 2^-12 in float16)."""

EXACT, SAME, STEP, BF16_LOSS, BF16_GRADIENTS = 1e-4, 1e-5, 1e-3, 1e-2, 0.15
"""float32 across devices; the same sums in another order; after some updates; bfloat16 against float32."""

MODES: tuple[Recompute, ...] = ("none", "selective", "full")
PRECISIONS: tuple[tuple[Precision, float], ...] = (("fp32", EXACT), ("bf16", BF16_LOSS))


@dataclass(frozen=True)
class Finding:
    """One line of the table."""

    check: str
    tolerance: float
    found: float | None
    trouble: str = ""

    @property
    def ok(self) -> bool:
        """Within the tolerance; not a number is not."""
        return self.found is not None and self.found <= self.tolerance


@dataclass(frozen=True)
class Bench:
    """Where to check, and with models of which size."""

    device: torch.device
    folder: Path
    size: Size

    def cases(self) -> Iterator[Case]:
        """Every kind of model."""
        for kind in KINDS:
            yield case_of(self.folder / kind, kind, self.size)

    @property
    def has_kernel(self) -> bool:
        """Flash attention is to be used."""
        return has_kernel(self.device)


Check = Callable[[Bench], Iterator[Finding]]


def attention(bench: Bench) -> Iterator[Finding]:
    """Packed documents, forward and backward, against the dense twin."""
    lengths = [1, 2, 300, 17, 129, 128, 64]
    for dtype, tolerance in ROUNDED.items():
        for heads, width, window in (((4, 4), 64, None), ((6, 2), 128, None), ((6, 2), 72, 100), ((4, 1), 20, None)):
            states = _states(sum(lengths), heads, width, dtype)
            plan = PackedAttention.plan(lengths, bench.device)
            found = _differentiated(partial(_attended, plan, window), states, bench.device)
            twin = partial(_attended, dense_attention(lengths), window)
            expected = _differentiated(twin, [x.float() for x in states], torch.device("cpu"))
            name = f"attention {_short(dtype)}, {heads[0]}/{heads[1]} heads of {width}, window {window}"
            yield from _each(name, ("out", "dq", "dk", "dv"), found, expected, tolerance)
            if bench.has_kernel:
                wanted = dtype != torch.float32 and width % 8 == 0
                used = plan.varlen is not None and plan.varlen.takes(states[0])
                yield Finding(f"{name}: kernel as expected", 0, float(used != wanted))


def map_attention(bench: Bench) -> Iterator[Finding]:
    """Patches of maps of several sizes."""
    grids = [Grid(1, 12, 9), Grid(2, 8, 8), Grid(1, 9, 12), Grid(1, 20, 31)]
    patches = sum(grid.patches for grid in grids)
    for dtype, tolerance in ROUNDED.items():
        states = [x[0].transpose(0, 1) for x in _states(patches, (4, 4), 80, dtype)]
        found = _differentiated(MapAttention(grids, bench.device), states, bench.device)
        exact = [x.float() for x in states]
        expected = _differentiated(MapAttention(grids, torch.device("cpu")), exact, torch.device("cpu"))
        yield from _each(f"maps {_short(dtype)}", ("out", "dq", "dk", "dv"), found, expected, tolerance)


def parts(bench: Bench) -> Iterator[Finding]:
    """Encoder, connection and decoder in float32."""
    for case in bench.cases():
        with torch.no_grad():
            one, other = (_parts(model, case.batch) for model in (case.on(bench.device), case.model))
        yield from _each(f"{case.kind} fp32", ("features", "visual tokens", "hidden"), one, other, EXACT)


def passes(bench: Bench) -> Iterator[Finding]:
    """Loss and gradients of every part, in both precisions, with all that can be made again."""
    for case in bench.cases():
        expected = passed(case, case.on(torch.device("cpu")))
        model = case.on(bench.device)
        for recompute in MODES:
            found = passed(case, model, recompute=recompute)
            yield from _compared(f"{case.kind} fp32, recompute {recompute}", found, expected, EXACT, 10 * EXACT)
        plain = passed(case, model, precision="bf16")
        yield from _compared(f"{case.kind} bf16", plain, expected, BF16_LOSS, BF16_GRADIENTS)
        for recompute in MODES[1:]:
            found = passed(case, model, precision="bf16", recompute=recompute)
            yield from _compared(f"{case.kind} bf16, recompute {recompute} / none", found, plain, SAME, BF16_LOSS)


def generation(bench: Bench) -> Iterator[Finding]:
    """Greedy answers: those of the CPU, and the same with and without a cache."""
    for case in bench.cases():
        model, reference = (case.on(device).eval() for device in (bench.device, torch.device("cpu")))
        wrong = uncached = 0
        for prompt in case.prompts:
            moved = to_device(prompt, bench.device)
            (ids,) = generate(model, moved, Sampling(max_new_tokens=12), frozenset())
            (expected,) = generate(reference, prompt, Sampling(max_new_tokens=12), frozenset())
            wrong += sum(one != other for one, other in zip(ids, expected, strict=True))
            uncached += sum(one != other for one, other in zip(ids, _uncached(model, prompt, 12), strict=True))
        yield Finding(f"{case.kind} greedy ids other than the CPU's", 0, float(wrong))
        yield Finding(f"{case.kind} greedy ids other than without a cache", 0, float(uncached))


def compiled(bench: Bench) -> Iterator[Finding]:
    """Layers compiled as a recipe's `compile` does it."""
    backend: Any = "inductor" if bench.device.type == "cuda" else "aot_eager"
    case = case_of(bench.folder / "compiled", "llava", bench.size)
    for precision, tolerance in PRECISIONS:
        torch.compiler.reset()
        expected = passed(case, case.on(bench.device), precision=precision)
        model = case.on(bench.device)
        counter = CompileCounterWithBackend(backend)
        for layer in model.decoder.layers:
            layer.compile(dynamic=True, backend=counter)
        found = passed(case, model, precision=precision)
        yield from _compared(f"compiled {precision} / eager", found, expected, tolerance, 10 * tolerance)
        pieces = counter.frame_count
        passed(replace(case, batch=case.other), model, precision=precision)
        yield Finding(f"compiled {precision}: compiled again for another pack", 0, counter.frame_count - pieces)


def divided(bench: Bench) -> Iterator[Finding]:
    """FSDP2 on one rank, against the whole model on the same device."""
    with _one_rank(), joined(bench.device.type, 60) as world:
        for case in bench.cases():
            for precision, tolerance in PRECISIONS:
                expected = passed(case, case.on(bench.device), precision=precision)
                model = case.on(bench.device)
                model.precision = precision
                objective = Objective(model, case.stage.loss)
                divide(objective, Parallel(), world, encodes=True)
                found = passed(case, objective, precision=precision)
                name = f"{case.kind} FSDP2 {precision} / whole"
                yield from _compared(name, found, expected, tolerance, 10 * tolerance)


def runs(bench: Bench) -> Iterator[Finding]:
    """Steps of a whole run with workers, its loss against the CPU's, and what a resumed one does."""
    expected = _run(bench, "cpu", "fp32", torch.device("cpu"))
    found = _run(bench, "whole", "fp32", bench.device)
    yield Finding("run fp32: losses of all steps", STEP, apart(found, expected))
    rounded = _run(bench, "bf16", "bf16", bench.device)
    yield Finding("run bf16: losses of all steps", BF16_GRADIENTS, apart(rounded, expected))
    for precision, whole in (("fp32", found), ("bf16", rounded)):
        again = _run(bench, f"cut-{precision}", precision, bench.device, cut=3)
        yield Finding(f"run {precision} resumed / whole", STEP, apart(again, whole))


def moved(bench: Bench) -> Iterator[Finding]:
    """Batches that are copied while the device is busy arrive whole."""
    case = case_of(bench.folder / "moved", "onevision", bench.size)
    burden = torch.randn(2048 if bench.device.type == "cuda" else 64, device=bench.device).diag()
    wrong = 0
    for _ in range(20):
        for _ in range(10):
            burden = (burden @ burden).clamp(-1, 1)
        there = to_device(case.batch, bench.device)
        wrong += sum(_differ(getattr(there, name), getattr(case.batch, name)) for name in TENSORS)
    yield Finding("tensors of a batch that arrive changed", 0, float(wrong))


CHECKS: tuple[Check, ...] = (attention, map_attention, parts, passes, generation, compiled, divided, runs, moved)


def _states(tokens: int, heads: tuple[int, int], width: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(1, tokens, n, width) for n in (heads[0], heads[1], heads[1])]
    return [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2) for shape in shapes]


def _attended(attend: Attend, window: int | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(0, q, k, v, 0.1, window)


def _differentiated(attend: Callable[..., Tensor], states: list[Tensor], device: torch.device) -> list[Tensor]:
    """What comes out, and the gradients of queries, keys and values."""
    leaves = [x.to(device).detach().requires_grad_() for x in states]
    out = attend(*leaves)
    weights = torch.linspace(-1, 1, out.shape[-1], device=device)
    (out.float() * weights).sum().backward()
    return [out, *(x.grad for x in leaves if x.grad is not None)]


def _each(
    name: str, words: tuple[str, ...], found: list[Tensor], expected: list[Tensor], tolerance: float
) -> Iterator[Finding]:
    for word, one, other in zip(words, found, expected, strict=True):
        yield Finding(f"{name}: {word}", tolerance, apart(one, other))


def _parts(model: Vlm, batch: Batch) -> list[Tensor]:
    there = to_device(batch, model.device)
    features_PC = model.encode(there)
    return [features_PC, model.connection(features_PC, there.layouts), model(there)]


def _compared(name: str, found: Passed, expected: Passed, loss: float, gradients: float) -> Iterator[Finding]:
    yield Finding(f"{name}: loss", loss, abs(found.loss - expected.loss) / abs(expected.loss))
    for group in sorted(found.gradients.keys() | expected.gradients.keys()):
        apart_ = apart(found.gradients[group], expected.gradients[group])
        yield Finding(f"{name}: gradients of {group}", gradients, apart_)


@torch.no_grad()
def _uncached(model: Vlm, prompt: Batch, count: int) -> list[int]:
    ids: list[int] = []
    for _ in range(count):
        hidden_TD = model(to_device(appended(prompt, ids), model.device))
        ids.append(int(model.decoder.logits(hidden_TD[-1]).argmax()))
    return ids


class _CutError(Exception):
    """The run is cut off."""


def _run(bench: Bench, name: str, precision: str, device: torch.device, cut: int | None = None) -> Tensor:
    """Losses of the steps of a run; with `cut`, one that is cut off after that many and resumed."""
    folder = bench.folder / f"run-{name}"
    value = recipe_value(folder, precision=precision, device=device.type, save_every=1)
    value["model"] = value_of(folder, "llava", bench.size)
    stage = {**value["stages"][1], "batch_tokens": 160, "epochs": 3, "workers": 2}
    recipe = Recipe.model_validate(value | {"stages": [stage]})
    recipe = recipe.model_copy(update={"model": recipe.composition.resolved()})
    losses: list[float] = []

    def note(_stage: Stage, done: StepMetrics, _total: int) -> None:
        losses.append(done.loss or 0.0)
        if done.step == cut:
            raise _CutError

    try:
        start(recipe, folder / "run", Hooks(on_step=note))
    except _CutError:
        resume(folder / "run", Hooks(on_step=lambda _stage, done, _total: losses.append(done.loss or 0.0)))
    return torch.tensor(losses)


@contextmanager
def _one_rank() -> Iterator[None]:
    """The environment of the only process of a `torchrun`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= own
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]


def _differ(one: Tensor | None, other: Tensor | None) -> bool:
    return (one is None) != (other is None) or (one is not None and not torch.equal(one.cpu(), other))


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def findings(bench: Bench) -> Iterator[Finding]:
    """Of all checks; one that fails is a finding, too."""
    for check in CHECKS:
        try:
            for finding in check(bench):
                yield replace(finding, check=f"{bench.size.name}: {finding.check}")
        except Exception as error:  # noqa: BLE001 (whatever it is: the others tell something, too)
            text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            yield Finding(f"{bench.size.name}: {check.__name__}", 0, None, text)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device; --device cpu lets the checks test themselves", file=sys.stderr)
        return 2
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32 here, in convolutions as in products
    device = torch.device(chosen.device, 0) if chosen.device == "cuda" else torch.device("cpu")
    about = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "flash attention of packs": has_kernel(device),
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    found: list[Finding] = []
    for size in (TINY,) if chosen.tiny else (TINY, SMALL):
        with tempfile.TemporaryDirectory() as folder:
            for finding in findings(Bench(device, Path(folder), size)):
                found.append(finding)
                value = finding.trouble if finding.found is None else f"{finding.found:.1e}"
                print(f"{finding.check:72} | {finding.tolerance:7.0e} | {value} | {'ok' if finding.ok else 'NOT OK'}")
    wrong = sum(not finding.ok for finding in found)
    print(f"{len(found)} checks, {wrong} not ok")
    if chosen.json is not None:
        table = [asdict(finding) | {"ok": finding.ok} for finding in found]
        chosen.json.write_text(json.dumps(about | {"checks": table}, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
