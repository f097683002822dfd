"""Fusion by gated cross-attention: words look at the latest picture before them (Flamingo, 2204.14198, section 2.2).

The blocks are OpenFlamingo's (`GatedCrossAttentionBlock` with `only_attend_immediate_media`), but on packs: every token
carries the index of the medium it looks at, and media of the same size share one attention call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from opsin.core.errors import ModelError
from opsin.model.attention import sdpa, similar_lengths
from opsin.model.connector_values import GatedCrossAttention
from opsin.model.mlp import feed_forward


@dataclass(frozen=True)
class CrossGroup:
    """Media of equally many tokens: `lookers` (media, longest) into the pack, `tokens` (media, count) into the media.

    Lookers are padded with the medium's last one; what the padding sees is dropped.
    """

    lookers: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class CrossPlan:
    """Who looks at what in one flat pack.

    `inverse_T` finds each token in the concatenated, flattened groups; behind them stands a row of zeros, for the
    tokens that see nothing. `num_tokens` is N, the tokens of all media.
    """

    groups: tuple[CrossGroup, ...]
    inverse_T: Tensor
    num_tokens: int

    @staticmethod
    def plan(seen_T: Tensor, counts: Sequence[int], device: torch.device) -> CrossPlan:
        """Group the media once per batch; every block reads the same plan.

        `seen_T[i]` is the medium that token i looks at (-1: none), `counts[j]` the number of medium j's tokens.

        Raises:
            ModelError: a token looks at a medium that is not there.
        """
        seen = seen_T.cpu()
        latest = int(seen.max()) if len(seen) else -1
        if latest >= len(counts):
            raise ModelError(f"a token looks at medium {latest}, but there are {len(counts)} media")
        order = seen.argsort(stable=True)  # tokens that see nothing, then those of medium 0, 1, ...
        lookers = torch.bincount(seen + 1, minlength=len(counts) + 1).tolist()
        looker_starts = list(accumulate(lookers))
        lookers, token_starts = lookers[1:], [0, *accumulate(counts)]
        groups: list[CrossGroup] = []
        inverse = torch.full((len(seen),), -1)
        offset = 0
        for members in _alike(lookers, counts):
            longest = lookers[members[-1]]
            steps = torch.arange(longest)
            rows = torch.stack([order[looker_starts[j] + steps.clamp(max=lookers[j] - 1)] for j in members])
            for row, j in enumerate(members):
                inverse[rows[row, : lookers[j]]] = offset + row * longest + torch.arange(lookers[j])
            tokens = torch.tensor([token_starts[j] for j in members])[:, None] + torch.arange(counts[members[0]])
            groups.append(CrossGroup(rows.to(device), tokens.to(device)))
            offset += rows.numel()
        inverse[inverse < 0] = offset
        return CrossPlan(tuple(groups), inverse.to(device), token_starts[-1])

    def attend(self, q_TI: Tensor, k_NI: Tensor, v_NI: Tensor, heads: int) -> Tensor:
        """What every token sees (T, I), I being heads times head width; exactly zero for those that see nothing."""
        # The empty slices keep queries, keys and values in autograd's graph when nobody looks at anything.
        attended = [q_TI[:0], k_NI[:0], v_NI[:0]]
        for group in self.groups:
            q, k, v = (
                x[index].view(*index.shape, heads, -1).transpose(1, 2)
                for x, index in ((q_TI, group.lookers), (k_NI, group.tokens), (v_NI, group.tokens))
            )
            out = sdpa(q, k, v, scale=q.shape[-1] ** -0.5, mask=None, causal=False)
            attended.append(out.transpose(1, 2).flatten(0, 1).flatten(1))
        attended.append(q_TI.new_zeros(1, q_TI.shape[1]))
        return torch.cat(attended).index_select(0, self.inverse_T)


def _alike(lookers: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
    """Groups of media that somebody sees, with equal counts and similar numbers of lookers, these in rising order."""
    groups: list[list[int]] = []
    for count in sorted(set(counts) - {0}):
        members = [j for j in range(len(counts)) if counts[j] == count and lookers[j]]
        groups += similar_lengths(sorted(members, key=lambda j: lookers[j]), lookers)
    return groups


class GatedBlock(nn.Module):
    """Cross-attention and a feed-forward layer, each behind a tanh gate that begins at zero: at first, the identity."""

    def __init__(self, fusion: GatedCrossAttention, language_width: int, media_width: int) -> None:
        super().__init__()
        self.heads = fusion.heads
        inner = fusion.heads * fusion.head_width
        self.norm = nn.LayerNorm(language_width)
        self.query = nn.Linear(language_width, inner, bias=False)
        self.key_value = nn.Linear(media_width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, language_width, bias=False)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.feed_forward = feed_forward(language_width, fusion.feed_forward)
        self.feed_forward_gate = nn.Parameter(torch.zeros(1))

    def project(self, media_ND: Tensor) -> Tensor:
        """Media (N, media width) -> their keys and values (N, 2 I), made once for all tokens that are generated."""
        projected: Tensor = self.key_value(media_ND)
        return projected

    def forward(self, hidden_TD: Tensor, keys_values_N: Tensor, plan: CrossPlan) -> Tensor:
        """Hidden states of the same shape and dtype; keys and values as `project` makes them.

        Raises:
            ModelError: the plan was made for another pack.
        """
        if (len(hidden_TD), len(keys_values_N)) != (len(plan.inverse_T), plan.num_tokens):
            raise ModelError(
                f"{len(hidden_TD)} tokens and {len(keys_values_N)} of media, "
                f"but the plan is for {len(plan.inverse_T)} and {plan.num_tokens}"
            )
        keys, values = keys_values_N.chunk(2, dim=-1)
        # Layer norms are not under autocast on a CPU: they want the dtype of their own weights.
        own = self.norm.weight.dtype
        seen = self.out(plan.attend(self.query(self.norm(hidden_TD.to(own))), keys, values, self.heads))
        # Rounding to the hidden states' dtype keeps a residual stream in bfloat16 as it is under any autocast.
        hidden_TD = hidden_TD + (seen * self.attention_gate.tanh()).to(hidden_TD.dtype)
        fed: Tensor = self.feed_forward(hidden_TD.to(own)) * self.feed_forward_gate.tanh()
        return hidden_TD + fed.to(hidden_TD.dtype)


class GatedBlocks(nn.Module):
    """The blocks of one model, by the layer they stand before: every n-th, (layer + 1) % n == 0, as in OpenFlamingo.

    Raises:
        ModelError: the model has fewer layers than that.
    """

    def __init__(self, fusion: GatedCrossAttention, language_width: int, media_width: int, layers: int) -> None:
        super().__init__()
        if fusion.every > layers:
            raise ModelError(
                f"fusion.every is {fusion.every}, but the language model has {layers} layers: no block would stand "
                f"before any of them, and pictures would never be seen; set it to {layers} or less"
            )
        self.blocks = nn.ModuleDict(
            {
                str(layer): GatedBlock(fusion, language_width, media_width)
                for layer in range(layers)
                if (layer + 1) % fusion.every == 0
            }
        )

    @property
    def gates(self) -> list[nn.Parameter]:
        """Two of every block."""
        return [gate for name, gate in self.named_parameters() if name.endswith("_gate")]

    @property
    def closed(self) -> bool:
        """All gates are at zero, as they begin: whatever is behind them gets zero gradients."""
        return not any(bool(gate.any()) for gate in self.gates)

    def project(self, media_ND: Tensor) -> dict[int, Tensor]:
        """Keys and values of media for every block, by the layer that it stands before."""
        return {layer: self._block(layer).project(media_ND) for layer in map(int, self.blocks)}

    def forward(self, layer: int, hidden_TD: Tensor, keys_values_N: Tensor, plan: CrossPlan) -> Tensor:
        """Hidden states after the block before `layer`."""
        looked: Tensor = self._block(layer)(hidden_TD, keys_values_N, plan)
        return looked

    def _block(self, layer: int) -> GatedBlock:
        block = self.blocks[str(layer)]
        assert isinstance(block, GatedBlock)
        return block
