"""Tensors of a run as a checkpoint keeps them: whole ones, on the CPU, every rank with its share of them.

A checkpoint knows nothing of how many ranks wrote it. A tensor that is split over ranks is put together to be written,
and a rank that reads it takes its part of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from opsin.core.ranks import Ranks


def owners(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """Which rank keeps which tensor, by their bytes: the largest first, each to the rank that has least so far."""
    loads = [0] * ranks
    found = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = loads.index(min(loads))
        loads[rank] += sizes[name]
        found[name] = rank
    return found


def whole_tensors(named: Mapping[str, Tensor], ranks: Ranks, *, copy: bool = True) -> dict[str, Tensor]:
    """This rank's share of the tensors, whole and on the CPU; with all ranks' shares there is each of them once.

    They are copies, so that the originals can change at once; without `copy`, those on the CPU may be the originals.
    Where tensors are split over ranks (DTensor), all ranks must call this at the same time with the same names.
    """
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in named.items()}
    owner = owners(sizes, ranks.size)
    kept = {}
    for name, tensor in named.items():
        whole = tensor.detach()
        if isinstance(whole, DTensor):
            whole = whole.full_tensor()  # also for what another rank keeps: it needs this rank's part
        if owner[name] == ranks.rank:
            kept[name] = whole.to("cpu", copy=copy)
    return kept


def placed_like(whole: Tensor, other: Tensor) -> Tensor:
    """A whole tensor on the device of another of its shape, and split as that is; no rank hears of any other.

    Each rank holds the same whole tensor, having read it from the same file.
    """
    whole = whole.to(other.device)
    if not isinstance(other, DTensor):
        return whole
    return distribute_tensor(whole, other.device_mesh, other.placements, src_data_rank=None)
