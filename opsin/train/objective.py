"""What a step minimises: the weighed loss of a pack, as one module whose forward pass every rank makes alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from opsin.core.types import IGNORE_INDEX, Batch
from opsin.data.collate import to_device
from opsin.model.loss import Terms, weighed_loss
from opsin.model.vlm import Vlm
from opsin.train.recipe import Loss

POWERS = {"token": 0.0, "square_root": 0.5, "sample": 1.0}
"""A token of a sample with n supervised ones weighs n to the power of minus this."""


@dataclass(frozen=True)
class Weighing:
    """How much a pack's positions count: `weights_T`, and the sum over those that are supervised; by document, too."""

    weights_T: Tensor
    mass: float
    supervised: tuple[int, ...]

    @staticmethod
    def of(batch: Batch, average: str) -> Weighing:
        """Weights that make the step's mean one over tokens, over samples, or between the two."""
        supervised_T = batch.targets_T != IGNORE_INDEX
        each = torch.stack([part.sum() for part in torch.split(supervised_T, list(batch.lengths))])
        weights = each.clamp(min=1).double() ** -POWERS[average]
        mass = float((weights * each).sum())
        weights_T = weights.float().repeat_interleave(torch.tensor(batch.lengths))
        return Weighing(weights_T, mass, tuple(each.tolist()))

    def by_document(self, losses_S: Tensor) -> list[float]:
        """Sums of the losses of supervised positions, by document."""
        return [float(part.double().sum()) for part in torch.split(losses_S.cpu(), list(self.supervised))]


class Objective(nn.Module):
    """A model with its loss.

    Where it `is_shared` by ranks, every pass reaches all that any rank may reach. With `blank`, a pack of one blank
    picture, the encoder runs for packs without pictures, too: where weights are divided (`is_divided`), its collective
    calls must be the same on every rank.
    """

    def __init__(self, model: Vlm, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self.blank: Batch | None = None
        self.is_shared = False
        self.is_divided = False
        self._terms = Terms(loss.z_loss, loss.label_smoothing)

    def forward(self, batch: Batch, weights_T: Tensor) -> tuple[Tensor, Tensor]:
        """The weighed sum of a pack's losses, and the losses of its supervised positions."""
        with self.model.computing():
            nothing = self._nothing(batch) if self.is_shared else None
            hidden_TD = self.model(batch, nothing=nothing)
            head_VD = self.model.decoder.head_weight
            total, losses_S = weighed_loss(hidden_TD, head_VD, batch.targets_T, weights_T, self._terms)
        return total, losses_S

    def _nothing(self, batch: Batch) -> Tensor:
        """Zero, made of all that other ranks may reach in this pass, where its pictures would come in.

        So every rank goes back through the same layers, and has the same gradients to reduce.
        """
        nothing = torch.zeros((), device=self.model.device)
        for parameter in self.model.connection.parameters():
            if parameter.requires_grad:
                nothing = nothing + 0 * parameter.flatten()[0].float()
        if self.blank is not None and not batch.layouts:
            nothing = nothing + 0 * self.model.encode(self.blank).flatten()[0].float()
        return nothing


def blank_picture(model: Vlm) -> Batch:
    """A pack of nothing but a blank picture, on the model's device."""
    layout = model.config.layout(*model.config.usual_size, "single")
    batch = replace(idle(model), layouts=(layout,), pixels_X=torch.zeros(layout.bytes, dtype=torch.uint8))
    return to_device(batch, model.device)


def idle(model: Vlm) -> Batch:
    """A pack of one word of which nothing is learned, for a rank that has fewer packs than others."""
    return Batch(
        tokens_T=torch.zeros(1, dtype=torch.long),
        targets_T=torch.full((1,), IGNORE_INDEX),
        positions_AT=torch.from_numpy(model.config.positions.ids(1, [])),
        lengths=(1,),
        visual_N=torch.empty(0, dtype=torch.long),
        seen_T=torch.full((1,), -1),
        sights=(),
        layouts=(),
        ids=(),
    )


def names(batches: Sequence[Batch]) -> list[str]:
    """The samples of some packs."""
    return [name for batch in batches for name in batch.ids]
