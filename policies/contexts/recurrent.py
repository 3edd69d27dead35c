"""A context with a memory that is carried from one decision of an episode to the next.

Legend: B batch, T = n_obs_steps, K tokens of a frame, D width, M memory width."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from .context import Conditions, Context, ContextNet, carried
from .stack import stacked


@dataclass(frozen=True)
class Recurrent:
    """The last `n_obs_steps` encodings, and a gated recurrent unit (GRU, Cho et al. 2014, arXiv 1406.1078)
    over the decisions of the episode, which is one more token. Trained through windows in a row, `chain` of
    them, as far apart as decisions are; what lies further back than a chain can be learned only as far as the
    memory happens to keep it. Conditions are not remembered, since they may change."""

    memory: int = 64
    """Width of the memory."""
    chain: int = 8
    """Decisions in a row that training goes back through; the memory is empty at the first."""
    begin: Literal["anywhere", "episode"] = "anywhere"
    """Where a chain begins: at any tick, or where its episode does, as the memory will when the policy acts.
    In this case a chain as long as the episodes has a use, and what lies beyond a shorter one is not
    learned."""

    def build(
        self, width: int, tokens_per_frame: int, n_obs_steps: int, conditions: int, condition_tokens: int
    ) -> ContextNet:
        return RecurrentNet(self, width, tokens_per_frame, n_obs_steps, conditions, condition_tokens)


class RecurrentNet(ContextNet):
    def __init__(
        self,
        part: Recurrent,
        width: int,
        per_frame: int,
        n_obs_steps: int,
        conditions: int,
        condition_tokens: int,
    ) -> None:
        super().__init__()
        frames = per_frame * n_obs_steps
        self.token_width, self.memory_width = width, part.memory
        self.tokens = frames + condition_tokens + 1
        self.pooled_width = width * (frames + conditions) + part.memory
        self.cell = nn.GRUCell(width * frames, part.memory)
        self.token = nn.Linear(part.memory, width)

    def forward(
        self,
        z_BTKD: Tensor,
        conditions: Conditions | None = None,
        memory: Tensor | None = None,
        fresh: Tensor | None = None,
    ) -> Context:
        seen = z_BTKD.flatten(1)
        before, _ = carried(memory, fresh, seen.new_zeros(len(seen), self.memory_width))
        now: Tensor = self.cell(seen, before)
        context = stacked(z_BTKD, conditions).first(self.token(now)[:, None], now)
        return replace(context, memory=now)
