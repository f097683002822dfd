"""A model's weights, gradients and optimiser state divided among ranks (FSDP2), or copied to all of them.

The language model is divided layer by layer. The encoder is one unit: how often its layers are called depends on what
pictures a pack holds, but it is called once as a whole in every pass, on every rank, and so are its collectives. All
the rest (embeddings, connection, norms, head) is gathered once for the whole pass.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate

from opsin.core.errors import TrainError
from opsin.train.objective import Objective, blank_picture
from opsin.train.recipe import Parallel
from opsin.train.world import World, answering


def divide(objective: Objective, parallel: Parallel, world: World, *, encodes: bool) -> None:
    """Divide a model that is prepared for its stage, in place, or leave every rank its copy, as the recipe says.

    `encodes`: the encoder runs in this stage (its features are not cached).

    Raises:
        TrainError: the ranks do not make whole groups.
    """
    if world.group is None:
        return
    model = objective.model
    objective.is_shared = True
    objective.blank = blank_picture(model) if encodes else None
    objective.is_divided = parallel.sharding != "none"
    if not objective.is_divided:
        return
    # Positions must not be rounded, so nothing that is given to a layer is cast; autocast does what has to be done.
    layers = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if model.precision == "bf16" else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    others = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = _mesh(parallel, world)
    offload = OffloadPolicy()
    if parallel.cpu_offload:
        offload = CPUOffloadPolicy(pin_memory=world.device.type == "cuda")
    units: list[tuple[nn.Module, MixedPrecisionPolicy]] = [(layer, layers) for layer in model.decoder.layers]
    for module, precision in (*units, (model.encoder, layers), (objective, others)):
        fully_shard(module, mesh=mesh, mp_policy=precision, offload_policy=offload)


def _mesh(parallel: Parallel, world: World) -> DeviceMesh:
    if parallel.sharding != "hybrid":
        return init_device_mesh(world.device.type, (world.size,))
    group = parallel.group_size or int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    if world.size % group:
        raise TrainError(f"hybrid sharding: {world.size} ranks are no whole groups of {group}; correct group_size")
    shape = (world.size // group, group)
    return init_device_mesh(world.device.type, shape, mesh_dim_names=("copies", "shards"))


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def square_sum(gradients: Sequence[Tensor], world: World) -> float:
    """This rank's contribution to the sum of the squares of all ranks' gradients together."""
    if not gradients:
        return 0.0
    norms = torch.stack(torch._foreach_norm([local(gradient) for gradient in gradients])).double()
    shares = torch.tensor([1 / _copies(gradient, world) for gradient in gradients], dtype=torch.double)
    return float((norms.square() * shares.to(norms.device)).sum())


def _copies(tensor: Tensor, world: World) -> int:
    """How many ranks hold the same numbers: all, where a tensor is not divided."""
    if not isinstance(tensor, DTensor):
        return world.size
    mesh = tensor.device_mesh
    return math.prod(mesh.size(axis) for axis, place in enumerate(tensor.placements) if isinstance(place, Replicate))


def add_up(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Replace the gradients of copied weights by their sums over all ranks; divided ones are summed already."""
    if world.group is None:
        return
    with answering():
        for parameter in parameters:
            if parameter.grad is not None and not isinstance(parameter, DTensor):
                dist.all_reduce(parameter.grad)


@contextmanager
def gathered(objective: nn.Module) -> Iterator[None]:
    """Let parts of a divided model be called by themselves, to generate text; all ranks must make the same calls."""
    if not isinstance(objective, FSDPModule):
        yield
        return
    objective.unshard()
    try:
        yield
    finally:
        objective.reshard()


def same_everywhere(tensors: Iterable[Tensor], world: World) -> None:
    """Give every rank what rank 0 holds of tensors that are not divided."""
    if world.group is None:
        return
    with answering(), torch.no_grad():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
