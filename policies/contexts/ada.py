"""A transformer over the decisions of a task's trials (AdA, Adaptive Agent Team 2023, arXiv 2301.07608).

Legend: S decisions in a row, B batch, N remembered, H heads, E width of a head, W inner width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .context import ContextNet
from .sequence import SequenceNet
from .state_space import StateSpace


@dataclass(frozen=True)
class AdA:
    """The last `n_obs_steps` encodings, and one more token of attention over the last `steps` decisions,
    those of earlier trials among them: an episode is a task, in which several are made. All at once in
    training; when acting from a memory that holds what each layer was given. Conditions are not remembered,
    since they may change."""

    width: int = 64
    """Of a decision's token."""
    depth: int = 2
    """Layers; each looks `steps` back, so that together they look further."""
    heads: int = 4
    """Of each layer's attention."""
    steps: int = 40
    """Decisions that a layer looks at, this one among them; the memory is depth · (steps - 1) · (width + 1)
    numbers."""
    chain: int = 40
    """Decisions in a row that a training sees; the memory is empty at the first."""
    begin: Literal["anywhere", "episode"] = "episode"
    """Where a chain begins: at any tick, or where its episode does, as the memory will when the policy acts.
    What lies beyond a chain that is shorter than the episode is not learned then."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.width % self.heads:
            raise ValueError(
                f"AdA's steps {self.steps} must be at least 1, and its heads {self.heads} divide its width "
                f"{self.width}"
            )

    def build(
        self, width: int, tokens_per_frame: int, n_obs_steps: int, conditions: int, condition_tokens: int
    ) -> ContextNet:
        layers = [Remembering(self.width, self.heads, self.steps) for _ in range(self.depth)]
        seen = tokens_per_frame * n_obs_steps
        return SequenceNet([*layers], width, seen, self.width, conditions, condition_tokens)


class Remembering(StateSpace):
    """A layer of a transformer whose tokens see themselves and the `steps` - 1 before them, told how far back
    each is. Its state is what it was given then, each with a 1 where there is one."""

    def __init__(self, width: int, heads: int, steps: int) -> None:
        super().__init__()
        self.width, self.heads, self.steps = width, heads, steps
        self.state = (steps - 1) * (width + 1)
        self.norm, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.back = nn.Parameter(torch.zeros(heads, steps))  # added to a score, by how far back
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, u_SBD: Tensor) -> Tensor:
        s, u = len(u_SBD), u_SBD.transpose(0, 1)
        back = torch.arange(s, device=u.device)[:, None] - torch.arange(s, device=u.device)
        sees = (back >= 0) & (back < self.steps)
        bias = self.back[:, back.clamp(0, self.steps - 1)].masked_fill(~sees, -torch.inf)
        return self._after(u, u, bias).transpose(0, 1)

    def step(self, u_BD: Tensor, state_BM: Tensor) -> tuple[Tensor, Tensor]:
        slots = state_BM.unflatten(1, (self.steps - 1, self.width + 1))
        now = torch.cat([u_BD, torch.ones_like(u_BD[:, :1])], dim=1)[:, None]
        slots = torch.cat([slots, now], dim=1)
        there = slots[..., -1] > 0.5
        bias = self.back.flip(1)[:, None].masked_fill(~there[:, None, None], -torch.inf)
        return self._after(u_BD[:, None], slots[..., :-1], bias)[:, 0], slots[:, 1:].flatten(1)

    def _after(self, u: Tensor, seen: Tensor, bias: Tensor) -> Tensor:
        """bias: `(1 or B, H, of u, of seen)`, or without the first."""
        k, v = self.key_value(self.norm(seen)).chunk(2, dim=-1)
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.query(self.norm(u)), k, v)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        u = u + self.out(attended.transpose(1, 2).flatten(2))
        return u + self.mlp(self.between(u))
