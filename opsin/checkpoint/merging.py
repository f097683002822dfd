"""Folding adapters into the weights that they stand beside, and the proof that it is still the same model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from opsin.checkpoint.compare import TOLERANCE, Asked, ask
from opsin.checkpoint.hub_names import Family
from opsin.checkpoint.model import Loaded
from opsin.core.errors import ModelError
from opsin.model.config import Lora, ModuleName
from opsin.model.lora import MARK, merge_lora
from opsin.model.vlm import Vlm

ROUNDING = 0.25
"""Largest difference of a logit, in standard deviations of the logits, that is taken for rounding of merged weights.

A weight of bfloat16 has 8 significant bits: rounding moves it by 0.1% (root mean square), a sum of many by as much of
its size, and the errors of some 200 layers add up to under 2% of the spread of the logits, the largest of millions of
logits to five or six times that. A published base is rounded already; adapters, in float32, were not yet.
"""


@dataclass(frozen=True)
class Difference:
    """How far the logits of one prompt are from those with adapters beside the base, by the largest of any logit.

    `exact`: after merging in float32; `rounded`: with the merged weights in the type that the base is stored in;
    `spread`: the standard deviation of the logits.
    """

    prompt: str
    exact: float
    rounded: float
    spread: float

    @property
    def agrees(self) -> bool:
        """Merging is exact but for rounding, and rounding is small; not a number is neither."""
        return self.exact <= TOLERANCE and self.rounded <= TOLERANCE + ROUNDING * self.spread


@dataclass(frozen=True)
class Merged:
    """What was folded in, and what it changed."""

    lora: Mapping[ModuleName, Lora]
    differences: tuple[Difference, ...]

    def lines(self) -> Iterator[str]:
        """For the terminal."""
        yield f"merged {told(self.lora)}; logits before and after differ by at most"
        for found in self.differences:
            yield (
                f"{found.prompt:<6} {found.exact:.1e} merged in float32 (limit {TOLERANCE:g}), {found.rounded:.1e} as "
                f"stored (limit {ROUNDING * found.spread:.1e})"
            )

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "adapters": {part: {"rank": lora.rank, "alpha": lora.alpha} for part, lora in self.lora.items()},
            "logits": {found.prompt: asdict(found) for found in self.differences},
            "limit": TOLERANCE,
            "limit_rounded": ROUNDING,
        }


def refuse_adapters(loaded: Loaded) -> None:
    """Say what to do about a model that carries adapters, where none can be.

    Raises:
        ModelError: it carries some.
    """
    if loaded.lora:
        raise ModelError(
            f"{loaded.path}: carries adapters beside its weights ({told(loaded.lora)}); --merge folds them into the "
            "weights and compares the logits, --adapters writes them alone, in peft's format"
        )


def told(lora: Mapping[ModuleName, Lora]) -> str:
    """`language: rank 128; vision: rank 8`."""
    return "; ".join(f"{part}: rank {value.rank}" for part, value in lora.items())


def merge(loaded: Loaded, family: Family) -> tuple[Loaded, Merged]:
    """The model with its adapters folded in, in place.

    Logits are computed in float32 throughout, so that merging in float32 must change none by more than `TOLERANCE`.

    Raises:
        ModelError: it has no adapters, or the logits are others than before by more than the limits.
    """
    if not loaded.lora:
        raise ModelError(f"{loaded.path}: has no adapters to merge (a stage before the last folds its own in)")
    model, prepare = loaded.model, loaded.preparation
    with _in_float32(model) as stored:
        before = ask(model, prepare, family)
        for part in loaded.lora:
            merge_lora(model.part(part))
        exact = ask(model, prepare, family)
        _round(model, stored)
        rounded = ask(model, prepare, family)
    merged = Merged(loaded.lora, tuple(_differences(before, exact, rounded)))
    if wrong := [found for found in merged.differences if not found.agrees]:
        raise ModelError(f"merging changes what the model says: {'; '.join(map(_wrong, wrong))}; nothing was written")
    return replace(loaded, lora={}), merged


@contextmanager
def _in_float32(model: Vlm) -> Iterator[dict[str, torch.dtype]]:
    """The model in float32, and afterwards again in the types its weights are stored in, which are yielded by name."""
    stored = {
        name.replace(".base_layer", ""): parameter.dtype
        for name, parameter in model.named_parameters()
        if MARK not in name
    }
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    yield stored
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(stored[name])


def _round(model: Vlm, stored: Mapping[str, torch.dtype]) -> None:
    """What storing does to the merged weights; the others come from there, and do not change."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(stored[name]).float()


def _differences(before: Sequence[Asked], exact: Sequence[Asked], rounded: Sequence[Asked]) -> Iterator[Difference]:
    for was, one, other in zip(before, exact, rounded, strict=True):
        merged, stored = (float((after.logits - was.logits).abs().max()) for after in (one, other))
        yield Difference(was.prompt, merged, stored, spread=float(was.logits.std()))


def _wrong(found: Difference) -> str:
    return (
        f"{found.prompt}, logits differ by {found.exact:.2g} merged in float32 (limit {TOLERANCE:g}), and by "
        f"{found.rounded:.2g} with merged weights in the type they are stored in (limit {ROUNDING:g} of the logits' "
        f"spread, {found.spread:.2g})"
    )
