"""Information Maximizing Curriculum: experts that may ignore data (Blessing et al. 2023, arXiv 2303.15349).

Legend: B batch, N windows of the data, C experts, H horizon, A action dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..backbones.backbone import Head
from ..contexts.context import Context
from ..pred import Pred
from .choice import choice, uniforms
from .objective import Draw, Level, Losses, Path, full, row_weights


@dataclass(frozen=True)
class IMC:
    """C experts, each with a curriculum: weights, one for each window of the data, by which it learns what it
    can represent and ignores the rest; and a gate that says which expert is good where.

    Each expert is a Gaussian of variance 1 about its chunk, in normalised actions. With R = log p_z(a|o) +
    eta log q(z|n), a curriculum is proportional to exp(R / eta); a table keeps it as a logarithm, and q, the
    share of an expert in a window, is its softmax over the experts. Each of `rounds` makes the table anew
    from the one before, so shares harden from round to round. Between rounds the experts learn, each window
    by its weight, and the gate learns q. A decision draws one expert from the gate, by the sampler's noise,
    and gives its chunk.

    The released code trains the gate after the experts; here it learns beside them, from the same table.
    Without a table (validation, a batch by itself, rounds 0) the weights are the responsibilities, gate times
    Gaussian: with rounds 0 this is a mixture density network (Bishop 1994) trained by expectation
    maximisation."""

    eta: float = 2.0
    """How much the curricula are kept wide: above 0; small ones make an expert choosy."""
    rounds: int = 50
    """How often in a training the table is made anew, at equal distances, from its start on; 0: never, there
    is none."""
    largest: Literal["window", "expert"] = "window"
    """Weights are scaled so that the largest is 1: of a window's, as in the released code, so that every
    window has an expert that learns it; or of an expert's, as in the paper, so that windows which no expert
    represents are ignored."""
    gate_weight: float = 1.0
    """Of the gate's cross-entropy in the loss."""

    def __post_init__(self) -> None:
        if self.eta <= 0 or self.rounds < 0 or self.gate_weight < 0:
            raise ValueError("IMC's eta is positive, its rounds and its gate_weight are not negative")

    @property
    def needs(self) -> Head:
        return Head("mixture")

    def path(self, steps: int) -> Path:
        """The noise, which says which expert, and the chunk."""
        if steps != 1:
            raise ValueError(f"a mixture of experts samples in one step, not {steps}")
        return Path((0.0, 1.0), (0.0, 1.0), (1.0, 0.0))

    def draw(self, a_BHA: Tensor, progress: float, rng: torch.Generator | None) -> Draw:
        """Nothing is drawn. The rows of the table come in `more` as `table` `(B, C)`."""
        return Draw(torch.zeros_like(a_BHA), full(0.0, a_BHA))

    def losses(
        self, net: nn.Module, a_BHA: Tensor, context: Context, draw: Draw, teacher: Any = None
    ) -> Losses:
        if teacher is not None:
            raise ValueError("IMC learns from data: which expert of another network would be meant?")
        chunks, logits = self._ask(net, a_BHA, context)
        error_BCHA = 0.5 * (chunks - a_BHA[:, None]) ** 2
        log_gate = logits.log_softmax(1)
        if "table" in draw.more:
            table = draw.more["table"]
            weight, share = table.exp(), table.softmax(1)
        else:
            log_p = -error_BCHA.detach().flatten(2).sum(2)
            weight = share = (log_p + log_gate.detach()).softmax(1)
        gate = -((share * log_gate).sum(1) * row_weights(draw)).mean()
        error = (weight[:, :, None, None] * error_BCHA).sum(1)
        return Losses(error, {"gate": self.gate_weight * gate})

    def assess(self, net: nn.Module, a_BHA: Tensor, context: Context, mask_BH: Tensor) -> Tensor:
        """log p_z(a|o) `(B, C)` but for a constant, over the actions that count."""
        chunks, _ = self._ask(net, a_BHA, context)
        squared = (chunks - a_BHA[:, None]) ** 2 * mask_BH[:, None, :, None]
        return -0.5 * squared.flatten(2).sum(2)

    def refresh(self, values: Tensor, table: Tensor | None) -> Tensor:
        """The table `(N, C)` of the next round from what `assess` gave `(N, C)` and the last table; at the
        first, all shares are equal."""
        log_share = torch.full_like(values, -math.log(values.shape[1]))
        if table is not None:
            log_share = table.log_softmax(1)
        fresh = values / self.eta + log_share
        return fresh - fresh.amax(1 if self.largest == "window" else 0, keepdim=True)

    def believe(self, net: nn.Module, a_BHA: Tensor, level: Level, context: Context) -> Pred:
        chunks, logits = self._ask(net, a_BHA, context)
        z = choice(logits.softmax(1), uniforms(a_BHA)[:, 0])
        x = chunks[torch.arange(len(z), device=z.device), z]
        return Pred(a_BHA, 0.0, 1.0, x, a_BHA)

    def _ask(self, net: nn.Module, a_BHA: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        zero = full(0.0, a_BHA)
        chunks, logits = net(torch.zeros_like(a_BHA), zero, zero, context)
        return chunks.float(), logits.float()
