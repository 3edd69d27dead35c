"""Mixture of Horizons (Jing et al. 2025, arXiv 2511.19433): one network answers for several chunk lengths at
once, and a gate mixes the answers action by action.

Legend: B batch, J horizons, H actions of a chunk, A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from .backbone import Backbone, Head, Output, Sizes, outputs, require_head
from .chain_of_action import ChainOfAction
from .latent import Latent
from .mlp import ResidualMLP
from .ndp import NeuralDynamics

LEAST_NOISE = 0.01  # of the gate's logits in training


@dataclass(frozen=True)
class Horizons:
    """The `inner` network, shared, is run on the first h actions of the chunk for every horizon h. Of action
    i the horizons that reach beyond it speak; a gate of softmax weights, for each horizon and action, mixes
    them. In training every horizon also has a loss of its own, on its own actions.

    Faithful with a Transformer that is not causal: actions beyond h are masked out of the attention, the gate
    is one linear map of each token, it is noisy in training, and kept in use by the published balance loss.
    Not: other networks (ResidualMLP, UNet1D) have no attention to mask, so the actions beyond h are zeros to
    them, h is told them beside the context, and the gate is their last layer's. Study:
    benchmarks/studies/moh_peg.toml."""

    inner: Backbone = ResidualMLP()
    """The network that is run at every horizon."""
    horizons: tuple[int, ...] = (4, 8, 12, 16)
    """Actions from now on that each is about, ascending; the last is the whole chunk."""
    gate: Literal["learned", "uniform"] = "learned"
    """Mix by what the network says, or all that speak alike."""
    balance: float = 1e-3
    """Weight of the loss on uneven use of the horizons: variance over squared mean of the mean gate."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        require_head(self, Head(head.output), Head("chunk"))
        if type(self.inner) in (Horizons, NeuralDynamics, Latent, ChainOfAction):
            raise ValueError(f"Horizons mixes chunks of a plain network, not of {type(self.inner).__name__}")
        ahead = sizes.horizon - sizes.n_past_actions
        steps = (0, *self.horizons)
        if len(steps) < 2 or any(a >= b for a, b in pairwise(steps)) or steps[-1] != ahead:
            raise ValueError(
                f"horizons {self.horizons} must ascend from at least 1 to the {ahead} actions that the chunk "
                "has from now on"
            )
        return HorizonsNet(self, sizes, head)


class HorizonsNet(nn.Module):
    """One call counts as `evaluations` passes: it is J passes in one batch. Rows of one observation lie
    beside each other, so any batch is right (the released sampler mixes the order of its axes, and is right
    for a batch of one)."""

    def __init__(self, c: Horizons, sizes: Sizes, head: Head) -> None:
        super().__init__()
        count = len(c.horizons)
        ends = torch.tensor(c.horizons) + sizes.n_past_actions
        self.ends, self.balance, self.action_dim = ends.tolist(), c.balance, sizes.action_dim
        self.several = count > 1
        self.learned = c.gate == "learned" and self.several
        self.seen: Tensor
        self.register_buffer("seen", torch.arange(sizes.horizon) < ends[:, None], persistent=False)  # (J, H)
        inner = replace(
            sizes,
            # the gate's logit and the size of its noise come out of the network's last layer
            action_dim=sizes.action_dim + 2 * self.learned,
            pooled_width=sizes.pooled_width + (count if self.several else 0),
        )
        self.inner = c.inner.build(inner, head)
        self.masks_actions = bool(getattr(self.inner, "masks_actions", False))
        self.evaluations = count * int(getattr(self.inner, "evaluations", 1))

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        if not self.several:
            return self.inner(x_BHA, s, t, context)
        chunks, gates, _ = self._speak(x_BHA, s, t, context)
        return (gates[..., None] * chunks).sum(1)

    def outputs(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Output:
        if not self.several:
            return outputs(self.inner, x_BHA, s, t, context)
        chunks_BJHA, gates_BJH, extras = self._speak(x_BHA, s, t, context)
        views = tuple((chunks_BJHA[:, j], seen.to(chunks_BJHA)) for j, seen in enumerate(self.seen))
        if self.learned:
            extras = {**extras, "balance": self.balance * self._unevenness(gates_BJH)}
        return Output((gates_BJH[..., None] * chunks_BJHA).sum(1), views, extras, gates_BJH)

    def _speak(
        self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(chunks `(B, J, H, A)`, gates `(B, J, H)` that are 0 for horizons that do not reach so far,
        losses)."""
        b, count = len(x_BHA), len(self.seen)
        x_BJHA = x_BHA[:, None] * self.seen[None, :, :, None]
        x = nn.functional.pad(x_BJHA, (0, 2 * self.learned)).flatten(0, 1)
        which = torch.eye(count, dtype=context.pooled.dtype, device=x.device).repeat(b, 1)
        each = context.repeat(count)
        each = replace(each, pooled=torch.cat([each.pooled, which], dim=-1))
        s, t = s.repeat_interleave(count), t.repeat_interleave(count)
        extras: dict[str, Tensor] = {}
        if self.masks_actions:
            out = self.inner(x, s, t, each, self.seen.repeat(b, 1))
        else:
            output = outputs(self.inner, x, s, t, each)
            out, extras = output.chunk, output.extras
        out_BJHA = out.unflatten(0, (b, count))
        chunks, logits = out_BJHA[..., : self.action_dim], torch.zeros_like(out_BJHA[..., 0])
        if self.learned:
            logits = out_BJHA[..., self.action_dim]
            if self.training:
                spread = nn.functional.softplus(out_BJHA[..., self.action_dim + 1]) + LEAST_NOISE
                logits = logits + spread * torch.randn_like(logits)
        return chunks, logits.masked_fill(~self.seen, -torch.inf).softmax(dim=1), extras

    def _unevenness(self, gates_BJH: Tensor) -> Tensor:
        """Mean over the stretches of the chunk in which the same horizons speak, more than one, of the
        squared coefficient of variation of their mean gates; 0 where all are used alike."""
        terms, start = [], 0
        for j, end in enumerate(self.ends[:-1]):
            share = gates_BJH[:, j:, start:end].mean(dim=(0, 2))
            terms.append(share.var(unbiased=False) / share.mean() ** 2)
            start = end
        return torch.stack(terms).mean()
