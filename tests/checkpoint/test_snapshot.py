from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from opsin.checkpoint.model import fill_model, read_optimiser, unique_state
from opsin.checkpoint.places import MODEL, OPTIMISER, shard_name
from opsin.checkpoint.shards import write_tensors
from opsin.checkpoint.snapshot import owners, placed_like, whole_tensors
from opsin.core.ranks import ALONE, Alone
from tests.support.forks import joined_forks

if TYPE_CHECKING:
    from pathlib import Path


@given(st.dictionaries(st.text(max_size=4), st.integers(0, 10**12), max_size=30), st.integers(1, 9))
def test_every_tensor_has_one_owner_and_no_rank_has_much_more_than_its_share(sizes: dict[str, int], ranks: int) -> None:
    found = owners(sizes, ranks)
    assert found.keys() == sizes.keys()
    assert found == owners(dict(reversed(sizes.items())), ranks)  # all ranks come to the same, whatever the order
    loads = [sum(sizes[name] for name, rank in found.items() if rank == number) for number in range(ranks)]
    assert max(loads) <= sum(sizes.values()) / ranks + max(sizes.values(), default=0)


def named() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    values = {f"t{n}": torch.randn(n + 1, 3, generator=draw) for n in range(7)}
    return values | {
        "step": torch.tensor(5.0),
        "half": torch.randn(4, generator=draw).bfloat16(),
        "none": torch.zeros(0, 2),
    }


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_shares_of_all_ranks_are_the_whole(ranks: int) -> None:
    shares = [whole_tensors(named(), Alone(rank, ranks)) for rank in range(ranks)]
    assert sorted(name for share in shares for name in share) == sorted(named())
    for share in shares:
        assert all(torch.equal(tensor, named()[name]) for name, tensor in share.items())


def test_training_may_go_on_at_once() -> None:
    tensors = named()
    copies = whole_tensors(tensors, ALONE)
    originals = whole_tensors(tensors, ALONE, copy=False)
    for tensor in tensors.values():
        tensor.fill_(-1)
    assert torch.equal(copies["t3"], named()["t3"])
    assert torch.equal(originals["t3"], tensors["t3"])  # no second copy in memory where nobody needs it


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.other = nn.Linear(4, 3)


@dataclass(frozen=True)
class Process:
    """A rank that says nothing to the others: nothing here may need more than the tensors' own collective calls."""

    rank: int
    size: int

    def gather(self, value: Any) -> list[Any]:
        raise AssertionError(value)

    def barrier(self) -> None:
        raise AssertionError


@pytest.mark.parametrize("placement", [Shard(0), Shard(1), Replicate()])
def test_split_tensors_are_put_together_and_split_again(tmp_path: Path, placement: Any) -> None:
    """Rows and columns do not divide by the number of ranks."""

    def work(rank: int) -> None:
        mesh = init_device_mesh("cpu", (2,))
        split = {n: distribute_tensor(t, mesh, [placement]) if t.dim() == 2 else t for n, t in named().items()}
        share = whole_tensors(split, Process(rank, 2))
        assert not any(isinstance(tensor, DTensor) for tensor in share.values())
        write_tensors(tmp_path / shard_name(MODEL, rank, 2), share)
        write_tensors(tmp_path / shard_name(OPTIMISER, rank, 2), {f"{name}/exp_avg": t for name, t in share.items()})
        again = placed_like(named()["t6"], split["t6"])
        assert isinstance(again, DTensor)
        assert torch.equal(again.to_local(), split["t6"].to_local())

    assert joined_forks(tmp_path / "store", 2, work) == [0, 0]
    read = dict(read_optimiser(tmp_path))
    assert read.keys() == {f"{name}/exp_avg" for name in named()}
    assert all(torch.equal(read[f"{name}/exp_avg"], tensor) for name, tensor in named().items())


def test_a_split_model_is_saved_by_two_ranks_and_filled_by_one_and_by_three(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = Tied()

    def save(rank: int) -> None:
        model = Tied()
        model.load_state_dict(original.state_dict())
        fully_shard(model)
        write_tensors(tmp_path / shard_name(MODEL, rank, 2), whole_tensors(unique_state(model), Process(rank, 2)))

    assert joined_forks(tmp_path / "store", 2, save) == [0, 0]
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [shard_name(MODEL, r, 2) for r in range(2)]
    torch.manual_seed(1)
    alone = Tied()
    fill_model(alone, tmp_path)
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in alone.state_dict().items())

    def fill(rank: int) -> None:
        model = Tied()
        fully_shard(model)
        fill_model(model, tmp_path)
        for name, tensor in whole_tensors(unique_state(model), Process(rank, 3)).items():
            assert torch.equal(tensor, original.state_dict()[name])
        assert torch.equal(model.head.weight.full_tensor(), original.embed.weight)  # type: ignore[operator]

    assert joined_forks(tmp_path / "store of three", 3, fill) == [0, 0, 0]
