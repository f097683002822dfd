"""A decoder whose layers are compiled, as a recipe's `compile` asks for, learns what an eager one does."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from opsin.model.attention import PackedAttention
from opsin.model.config import LanguageModel
from opsin.model.decoder import Decoder, load_decoder
from tests.support.models import language_facts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opsin.model.recompute import Recompute

PACKS = ([5, 9, 30], [44], [7, 7, 8], [3, 60, 61, 2], [1] * 9)
"""Lengths of the documents of five packs; groups, documents and tokens differ in number."""

LAYERS = 10
"""More than torch compiles versions of one function (8)."""


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Where torch would give up and go on eagerly, for too many versions, it raises."""
    torch.compiler.reset()
    with warnings.catch_warnings(), torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        warnings.simplefilter("ignore")  # the compiler's own, which change with torch
        yield
    torch.compiler.reset()


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def decoder(layers: int = LAYERS) -> Decoder:
    torch.manual_seed(0)
    config = language_facts("llama", num_hidden_layers=layers)
    return load_decoder(LanguageModel.model_validate({"config": config, "tokenizer": "."}))


def steps(model: Decoder, packs: Sequence[list[int]] = PACKS) -> list[float]:
    """The losses of a step on each pack, each after the update of the one before."""
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for lengths in packs:
        ids = torch.randint(1, 500, (1, sum(lengths)), generator=torch.Generator().manual_seed(1))
        positions = torch.cat([torch.arange(length) for length in lengths])[None, None]
        attend = PackedAttention.plan(lengths, torch.device("cpu"))
        hidden = model(model.embed(ids), positions, attend)[0]
        loss = torch.nn.functional.cross_entropy(model.logits(hidden), ids[0].roll(-1))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return losses


def compiled(model: Decoder, backend: Any) -> CompileCounterWithBackend:
    counter = CompileCounterWithBackend(backend)
    for layer in model.layers:
        layer.compile(dynamic=True, backend=counter)
    return counter


@pytest.mark.parametrize(
    "recompute", ["selective", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("none", "full"))]
)
def test_packs_of_all_shapes_are_compiled_for_once_and_learned_from_as_eagerly(recompute: Recompute) -> None:
    expected = steps(decoder())
    model = decoder()
    model.recompute = recompute
    counter = compiled(model, "aot_eager")
    losses = steps(model, PACKS[:1])
    pieces = counter.frame_count
    assert 2 <= pieces <= 12  # of one layer, around its attention, for the first layer and for those behind it
    assert losses + steps(model, PACKS[1:]) == pytest.approx(expected, rel=1e-5)
    assert counter.frame_count == pieces


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_layers_are_compiled_before_they_are_divided_among_ranks(one_rank: None, recompute: Recompute) -> None:
    expected = steps(decoder(layers=3))
    model = decoder(layers=3)
    model.recompute = recompute
    counter = compiled(model, "aot_eager")
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    assert isinstance(next(model.layers[0].parameters()), DTensor)
    assert steps(model) == pytest.approx(expected, rel=1e-5)
    assert 2 <= counter.frame_count <= 12


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_inductor_gives_the_same_losses(recompute: Recompute) -> None:
    expected = steps(decoder(layers=2))
    model = decoder(layers=2)
    model.recompute = recompute
    counter = compiled(model, "inductor")
    assert steps(model) == pytest.approx(expected, rel=1e-5)
    assert counter.frame_count <= 12
