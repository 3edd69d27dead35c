"""A latent that tells demonstrations of one observation apart, as a conditional variational autoencoder
learns it (Sohn et al. 2015; ACT, Zhao et al. 2023, arXiv 2304.13705).

Legend: B batch, Z latent width, K tokens of an observation step, H horizon, A action dimensions, D width."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..contexts.context import Context, Shown
from .backbone import Backbone, Head, Output, Sizes, outputs
from .encoder_decoder import EncoderDecoder
from .post_norm import EncoderLayer, require_width, sines, xavier


@dataclass(frozen=True)
class Latent:
    """The `inner` network is told a latent: one more token, and more of the pooled context. In training it is
    drawn from what a transformer says of the demonstrated chunk and of what the newest step observed, but for
    pictures that have tokens of their own; when acting it is 0, the middle of what it could be. The width of
    the latent is the objective's (`CVAE`); with an objective that has none, this is the inner network."""

    inner: Backbone = EncoderDecoder()
    """The network that is told the latent."""
    width: int = 512
    """Of a token of the transformer over the demonstration; a multiple of 4 and of heads."""
    depth: int = 4
    """Number of its layers."""
    heads: int = 8
    """Of the attention, in each layer."""
    ffn: int = 3200
    """Width of a layer's hidden units."""
    dropout: float = 0.1
    """Share of units that training switches off, 0 to 1, in the attention and in the feed-forward layers."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        if not head.latent:
            return self.inner.build(sizes, head)
        require_width(self, self.width, self.heads)
        told = replace(sizes, tokens=sizes.tokens + 1, pooled_width=sizes.pooled_width + head.latent)
        return LatentNet(self, self.inner.build(told, replace(head, latent=0)), sizes, head)


class LatentNet(nn.Module):
    def __init__(self, c: Latent, inner: nn.Module, sizes: Sizes, head: Head) -> None:
        super().__init__()
        self.inner, self.width = inner, head.latent
        self.evaluations = int(getattr(inner, "evaluations", 1))
        self.posterior = Posterior(c, sizes, head)
        self.token = nn.Linear(head.latent, sizes.token_width)

    def forward(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        return self.inner(x_BHA, s, t, self._told(context)[0])

    def outputs(self, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Output:
        told, kl = self._told(context)
        output = outputs(self.inner, x_BHA, s, t, told)
        return output if kl is None else replace(output, extras={**output.extras, "kl": kl})

    def _told(self, context: Context) -> tuple[Context, Tensor | None]:
        """The context with the latent, and the latent's divergence from a standard normal, where the chunk
        is shown: of each row the sum over the latent, of all rows the mean."""
        z, kl = context.tokens.new_zeros(len(context.tokens), self.width), None
        if context.shown is not None:
            mean, log_variance = self.posterior(context, context.shown)
            z = mean + (log_variance / 2).exp() * context.shown.noise
            kl = context.shown.mean(divergence(mean, log_variance))
        told = context.first(self.token(z)[:, None], z)
        return replace(told, shown=None), kl


def divergence(mean_BZ: Tensor, log_variance_BZ: Tensor) -> Tensor:
    """Kullback and Leibler's `(B,)` of a normal distribution from a standard one, in nats."""
    mean, log_variance = mean_BZ.float(), log_variance_BZ.float()
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(-1)


class Posterior(nn.Module):
    """A chunk that is shown, and what was observed, to the mean and the logarithm of the variance of the
    latent, `(B, Z)` each."""

    def __init__(self, c: Latent, sizes: Sizes, head: Head) -> None:
        super().__init__()
        self.per_step = len(sizes.places)
        self.vectors = [i for i, place in enumerate(sizes.places) if place is None]
        self.asks = nn.Parameter(torch.randn(c.width))
        self.tokens_in, self.actions_in = (
            nn.Linear(n, c.width) for n in (sizes.token_width, sizes.action_dim)
        )
        self.positions: Tensor
        positions = sines(1 + len(self.vectors) + sizes.horizon, c.width)
        self.register_buffer("positions", positions, persistent=False)
        self.layers = nn.ModuleList(EncoderLayer(c.width, c.heads, c.ffn, c.dropout) for _ in range(c.depth))
        xavier(self.layers)
        self.out = nn.Linear(c.width, 2 * head.latent)
        self.plain_attention = head.forward_mode or head.second_order

    def forward(self, context: Context, shown: Shown) -> tuple[Tensor, Tensor]:
        newest = context.tokens[:, -self.per_step :][:, self.vectors]
        asks = self.asks.expand(len(newest), 1, -1)
        x = torch.cat([asks, self.tokens_in(newest), self.actions_in(shown.actions)], dim=1)
        padding = nn.functional.pad(~shown.mask, (1 + newest.shape[1], 0))
        with sdpa_kernel(SDPBackend.MATH) if self.plain_attention else contextlib.nullcontext():
            for layer in self.layers:
                x = layer(x, self.positions, padding)
        mean, log_variance = self.out(x[:, 0]).chunk(2, dim=-1)
        return mean, log_variance
