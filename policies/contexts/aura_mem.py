"""A memory of one matrix of fast weights, to which a gate writes what surprises (AURA-Mem, Chen 2026, arXiv
2606.02775).

Legend: B batch, T = n_obs_steps, K tokens of a frame, F = T·K·width of all frames, R rows and columns of the
memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .context import Conditions, Context, ContextNet, carried
from .stack import stacked


@dataclass(frozen=True)
class AuraMem:
    """The last `n_obs_steps` encodings, and one more token that is read from a matrix W by what is seen now.
    Where its gate opens, W learns by the delta rule the value of what is seen for its key. With a size of 32
    the memory, W and what was read last, is 4224 bytes, of which a decision that does not write changes 128.
    Conditions are not remembered, since they may change."""

    size: int = 32
    """Rows and columns of W."""
    gate: Literal["learned", "surprise", "always", "periodic"] = "learned"
    """When W is written: where a gate opens that has learned what is worth it; where the surprise is above a
    threshold, which training moves until the budget is kept to; at every decision; or at one in so many as
    the budget allows."""
    budget: float = 0.1
    """Share of decisions that write, of a gate that does not learn."""
    write_cost: float = 0.01
    """What the learned gate pays in training for a decision that writes, in units of the loss; the price
    grows from nothing to this over the training. To keep to a budget, try prices."""
    chain: int = 40
    """Decisions in a row that a training goes back through; the memory is empty at the first."""
    begin: Literal["anywhere", "episode"] = "episode"
    """Where a chain begins: at any tick, or where its episode does, as the memory will when the policy acts.
    What lies beyond a chain that is shorter than the episode is not learned then."""

    def build(
        self, width: int, tokens_per_frame: int, n_obs_steps: int, conditions: int, condition_tokens: int
    ) -> ContextNet:
        if self.size < 1 or not 0 < self.budget <= 1:
            raise ValueError(
                f"AuraMem has a size of {self.size} and a budget of {self.budget}: at least 1, and a share "
                "above 0 and up to 1"
            )
        return AuraMemNet(self, width, tokens_per_frame * n_obs_steps, conditions, condition_tokens)


class AuraMemNet(ContextNet):
    def __init__(self, part: AuraMem, width: int, seen: int, conditions: int, condition_tokens: int) -> None:
        super().__init__()
        self.part = part
        self.token_width, self.tokens = width, seen + condition_tokens + 1
        self.pooled_width = width * (seen + conditions) + part.size
        # W, what was read last, and for the periodic gate how many decisions ago W was written
        self.memory_width = part.size**2 + part.size + (part.gate == "periodic")
        self.kqv = nn.Linear(width * seen, 3 * part.size)
        self.rate = nn.Parameter(torch.zeros(()))  # of the delta rule, before its sigmoid: begins at a half
        self.token = nn.Linear(part.size, width)
        if part.gate == "surprise":
            self.threshold: Tensor  # moved by its own rule: no weight that is averaged
            self.register_buffer("threshold", torch.zeros(()))
        if part.gate == "learned":
            opens = nn.Linear(64, 1)
            # it begins open: of a memory that nothing is written to, nothing can be learned
            nn.init.constant_(opens.bias, 2.0)
            self.opens = nn.Sequential(nn.Linear(width * seen + 1 + part.size, 64), nn.Mish(), opens)

    def forward(
        self,
        z_BTKD: Tensor,
        conditions: Conditions | None = None,
        memory: Tensor | None = None,
        fresh: Tensor | None = None,
    ) -> Context:
        seen, n = z_BTKD.flatten(1), self.part.size
        memory, _ = carried(memory, fresh, seen.new_zeros(len(seen), self.memory_width))
        w_BRR, last = memory[:, : n * n].unflatten(1, (n, n)), memory[:, n * n : n * n + n]
        key, query, value = self.kqv(seen).chunk(3, dim=1)
        key = F.normalize(key, dim=1)
        query = F.normalize(query, dim=1)
        error = value - torch.einsum("brc,bc->br", w_BRR, key)
        write, cost, more = self._write(seen, error, last, memory[:, n * n + n :])
        step = write[:, None] * torch.sigmoid(self.rate) * error
        w_BRR = w_BRR + step[:, :, None] * key[:, None, :]
        read = torch.einsum("brc,bc->br", w_BRR, query)
        context = stacked(z_BTKD, conditions).first(self.token(read)[:, None], read)
        memory = torch.cat([w_BRR.flatten(1), read, more], dim=1)
        return replace(context, memory=memory, cost=cost, wrote=write.detach() > 0.5)

    def _write(
        self, seen: Tensor, error: Tensor, last: Tensor, counted: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """(1 where W is written, else 0, `(B,)`; what that costs; what there is of the memory beside W and
        what was read)."""
        if self.part.gate == "always":
            return torch.ones_like(error[:, 0]), None, counted
        if self.part.gate == "periodic":
            every = max(1, round(1 / self.part.budget))
            writes = (counted[:, 0] == 0).to(error.dtype)  # the first decision does
            return writes, None, torch.where(counted + 1 >= every, 0.0, counted + 1)
        surprise = torch.log(error.square().sum(1, keepdim=True) + 1e-6)
        if self.part.gate == "surprise":
            writes = (surprise[:, 0] > self.threshold).to(error.dtype)
            if self.training:  # up where more write than may, down where fewer do
                self.threshold.add_(0.05 * (writes.detach().mean() - self.part.budget))
            return writes, None, counted
        p = torch.sigmoid(self.opens(torch.cat([seen, surprise, last], dim=1))[:, 0])
        hard = (p > 0.5).to(p.dtype)
        # forward it writes or does not, backward as if it wrote by p (straight through)
        return hard + (p - p.detach()), self.part.write_cost * p, counted
