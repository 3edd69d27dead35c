"""Selective state spaces of two grains as a context (Decision Mamba, Lv et al. 2024, arXiv 2406.05427).

Legend: S decisions, B batch, k tokens of a decision, W width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .context import ContextNet
from .sequence import SequenceNet
from .state_space import Mamba, StateSpace


@dataclass(frozen=True)
class DecisionMamba:
    """The last `n_obs_steps` encodings, and one more token of layers that are Mamba over all tokens of the
    episode (coarse) and, added to it, Mamba over its decisions, each joined of its tokens (fine). Conditions
    are not remembered, since they may change."""

    width: int = 64
    """Of the tokens in the layers."""
    depth: int = 2
    """Layers."""
    poles: int = 8
    """Numbers of the state per channel; a layer remembers 4 · width · (3 + poles)."""
    chain: int = 40
    """Decisions in a row that a training sees; the memory is empty at the first."""
    begin: Literal["anywhere", "episode"] = "episode"
    """Where a chain begins: at any tick, or where its episode does, as the memory will when the policy acts.
    What lies beyond a chain that is shorter than the episode is not learned then."""

    def build(
        self, width: int, tokens_per_frame: int, n_obs_steps: int, conditions: int, condition_tokens: int
    ) -> ContextNet:
        seen = tokens_per_frame * n_obs_steps
        layers = [TwoGrains(self.width, self.poles, seen) for _ in range(self.depth)]
        return SequenceNet([*layers], width, seen, self.width, conditions, condition_tokens, parts=seen)


class TwoGrains(StateSpace):
    """Over decisions of k tokens, which lie side by side in the width `k·W`."""

    def __init__(self, width: int, poles: int, tokens: int) -> None:
        super().__init__()
        self.width, self.tokens = width, tokens
        self.norm, self.fine_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.join = nn.Linear(tokens * width, width)  # a convolution as long as its stride
        self.coarse, self.fine = Mamba(width, poles), Mamba(width, poles)
        self.state = self.coarse.state + self.fine.state

    def forward(self, u_SBD: Tensor) -> Tensor:
        y = self._normed(u_SBD)
        steps = y.unflatten(-1, (self.tokens, -1)).transpose(1, 2).flatten(0, 1)  # (S·k, B, W)
        coarse = self.coarse(steps).unflatten(0, (-1, self.tokens)).transpose(1, 2).flatten(2)
        return u_SBD + coarse + self._fine(self.fine(self.join(y)))

    def step(self, u_BD: Tensor, state_BM: Tensor) -> tuple[Tensor, Tensor]:
        y = self._normed(u_BD)
        coarse, fine = state_BM.split([self.coarse.state, self.fine.state], dim=1)
        out = []
        for token in y.chunk(self.tokens, dim=-1):
            one, coarse = self.coarse.step(token, coarse)
            out.append(one)
        joined, fine = self.fine.step(self.join(y), fine)
        return u_BD + torch.cat(out, dim=-1) + self._fine(joined), torch.cat([coarse, fine], dim=1)

    def _normed(self, u: Tensor) -> Tensor:
        return self.norm(u.unflatten(-1, (self.tokens, -1))).flatten(-2)

    def _fine(self, joined: Tensor) -> Tensor:
        """To each token of the decision that it was joined of. Those are all seen before the decision: unlike
        in the code that was released, where they hold the action that is asked for, nothing leaks."""
        return torch.cat([self.fine_norm(joined)] * self.tokens, dim=-1)
