"""Behaviour generation with latent actions, VQ-BeT (Lee et al. 2024, arXiv 2403.03181): which code a chunk
has is classified, what is off is regressed.

Legend: B batch, H horizon, A action dimensions, G codebooks, C codes of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.backbone import Head
from ..backbones.codes import Coded
from ..contexts.context import Context
from ..pred import Pred
from .choice import choice, uniforms
from .objective import Draw, Level, Losses, Path, full


@dataclass(frozen=True)
class VQBeT:
    """A training has two phases. First the codes of chunks are learned, and nothing else; then they stay as
    they are, and the network learns which codes a chunk has, by the focal loss, and the offset of the chunk
    from what they stand for, by L1. Codes that were learned before, in a checkpoint to start from or in a
    training that goes on, are not learned anew. A decision draws the codes by the sampler's noise.

    Faithful: the phases, the residual codebooks, the focal loss, with the first code weighted ten times the
    others, the offsets of each code. Not: the offset is learned for the chunk's own codes, as the paper's
    equation has it, where the released code takes codes that it draws; a code is told those before it (there
    an option that is off); and codes are drawn by the shares that the focal loss's flat answer stands for
    (Charoenphakdee et al. 2021, arXiv 2011.09172), where published ones are drawn by that answer."""

    codes_until: float = 0.2
    """Share of a training in which the codes are learned, 0 to below 1."""
    commitment: float = 5.0
    """Weight of how far encodings are from their codes, beside the autoencoder's L1 error."""
    gamma: float = 2.0
    """Of the focal loss: how much less those codes count that are told right already."""
    code_weights: tuple[float, float] = (1.0, 0.1)
    """Of the first codebook's focal loss, and of each later one's, beside the offset's L1 error times
    offset_weight."""
    offset_weight: float = 10.0
    """Of the chunk's L1 error."""
    temperature: float = 1.0
    """Codes are drawn by their shares to the power of 1/this, above 0; towards 0 the likeliest ones are."""

    def __post_init__(self) -> None:
        if not 0 <= self.codes_until < 1:
            raise ValueError(
                f"codes_until is {self.codes_until}: it is a share of the training, 0 to below 1"
            )
        if min(self.commitment, self.gamma, *self.code_weights, self.offset_weight) < 0:
            raise ValueError("VQBeT's weights and its gamma are not negative")
        if self.temperature <= 0:
            raise ValueError(f"VQBeT's temperature is {self.temperature}: it must be above 0")

    @property
    def needs(self) -> Head:
        return Head("codes")

    def path(self, steps: int) -> Path:
        """The noise, which says which codes, and the chunk."""
        if steps != 1:
            raise ValueError(f"codes are drawn in one step, not {steps}")
        return Path((0.0, 1.0), (0.0, 1.0), (1.0, 0.0))

    def draw(self, a_BHA: Tensor, progress: float, rng: torch.Generator | None) -> Draw:
        """Nothing is drawn. more: `codes` `(B,)` bool, whether it is the phase of the codes."""
        early = torch.full((len(a_BHA),), bool(progress < self.codes_until))
        return Draw(torch.zeros_like(a_BHA), full(0.0, a_BHA), {"codes": early})

    def losses(
        self, net: nn.Module, a_BHA: Tensor, context: Context, draw: Draw, teacher: Any = None
    ) -> Losses:
        if teacher is not None:
            raise ValueError("VQBeT learns from data: another network's codes are not its own")
        coded, mask = self._ask(net, a_BHA, context), draw.more.get("mask")
        quantiser, a = coded.quantiser, a_BHA.float()
        mask = torch.ones(a.shape[:2], dtype=torch.bool, device=a.device) if mask is None else mask
        if bool(draw.more["codes"].all()) and not bool(quantiser.settled):
            chunk, far = quantiser.learn(a, mask)
            return Losses((chunk.float() - a).abs() + self.commitment * far[:, None, None])
        if net.training and torch.is_grad_enabled():
            quantiser.settled.fill_(True)
        codes = quantiser.codes(a, mask)
        error = self.offset_weight * (coded.chunk(codes) - a).abs()
        # in the error, where rows are weighted
        for g in range(codes.shape[1]):
            weight = self.code_weights[min(g, 1)]
            error = error + weight * self._focal(coded.logits(codes[:, :g]), codes[:, g])[:, None, None]
        return Losses(error)

    def _focal(self, logits_BC: Tensor, code_B: Tensor) -> Tensor:
        """`(B,)`: the log-likelihood of a code, less where it is high already (Lin et al. 2017, arXiv
        1708.02002)."""
        log_q = logits_BC.log_softmax(1).gather(1, code_B[:, None])[:, 0]
        return -((1 - log_q.exp()) ** self.gamma) * log_q

    def shares(self, logits_BC: Tensor) -> Tensor:
        """`(B, C)`, the shares of codes at which the focal loss gives these logits: it is least at an answer
        q that is flatter than the shares, which are as q / ((1 - q)^gamma - gamma q (1 - q)^(gamma - 1) log
        q)."""
        log_q = logits_BC.log_softmax(1)
        q = log_q.exp()
        rest = (1 - q).clamp(min=1e-6)
        weight = q / (rest**self.gamma - self.gamma * q * rest ** (self.gamma - 1) * log_q)
        return weight / weight.sum(1, keepdim=True)

    def believe(self, net: nn.Module, a_BHA: Tensor, level: Level, context: Context) -> Pred:
        coded = self._ask(net, a_BHA, context)
        books = coded.net.shape[0]
        codes = torch.zeros(len(a_BHA), 0, dtype=torch.long, device=a_BHA.device)
        for u_B in uniforms(a_BHA, books).T:
            shares = self.shares(coded.logits(codes)) ** (1 / self.temperature)
            codes = torch.cat([codes, choice(shares, u_B)[:, None]], dim=1)
        return Pred(a_BHA, 0.0, 1.0, coded.chunk(codes), a_BHA)

    def _ask(self, net: nn.Module, a_BHA: Tensor, context: Context) -> Coded:
        zero = full(0.0, a_BHA)
        return net(torch.zeros_like(a_BHA), zero, zero, context)
