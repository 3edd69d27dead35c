"""How much of a chunk to execute, by how far horizons agree: the dynamic inference of Mixture of Horizons
(Jing et al. 2025, arXiv 2511.19433).

Legend: B observations, N candidates each, V views, H actions of a chunk, A action dimensions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backbones.backbone import Output
from ..contexts.context import Context
from ..field import Field
from ..pred import Pred
from .hook import Hook


@dataclass
class Tally:
    """What was heard in one decision. disagreement: `(B·N, H)`. voices: `(H,)` how many views are about each
    action. level: of the newest evaluation."""

    disagreement: Tensor
    voices: Tensor
    level: int = -1


@dataclass(frozen=True)
class Consensus(Hook):
    """Execute the first `least` actions, and those after them for as long as the horizons of a `Horizons`
    backbone disagree on them no more than `ratio` times as much as on the first.

    The disagreement on an action is summed over the steps of the sampler: how far each horizon alone would
    have the chunk arrive from where the mixture has it, in absolute elements, weighted by the gates. It costs
    no evaluation of its own. Published for flow matching; here for any objective, by its own `believe`, in any
    batch and for the candidate that is chosen (the released code is right for a batch of one). What it gives
    takes the place of n_action_steps and may exceed it; a chunk that ends sooner is executed whole."""

    ratio: float = 1.1
    """Of the disagreement on an action to that on the first ones, up to which it is executed; published: 1.1
    to 1.4."""
    least: int = 5
    """Actions that are executed in any case, against which later ones are measured."""
    active: int = 1
    """Go on only where more horizons than this reach; published: 3 to 5 of ten."""

    def __post_init__(self) -> None:
        if self.least < 1 or self.active < 1 or self.ratio < 0:
            raise ValueError(
                "Consensus needs least and active of at least 1, and a ratio that is not negative"
            )

    def guide(self, field: Field, rng: torch.Generator) -> Field:
        def belief(a: Tensor, i: int, context: Context, rows: Tensor | None) -> Pred:
            with field.listening() as outputs:
                pred = field(a, i, context, rows=rows)
            self._add(field, outputs, a, i, context, rows)
            return pred

        return field.with_belief(belief)

    def execute(self, chunk_BHA: Tensor, field: Field) -> Tensor | None:
        tally: Tally | None = field.notes.get(self)
        if tally is None:
            return None
        b, n_past = len(chunk_BHA), field.n_past_actions
        each = tally.disagreement.unflatten(0, (b, field.candidates))
        assert field.chosen is not None
        ahead = each[torch.arange(b, device=each.device), field.chosen][:, n_past:]
        least = min(self.least, ahead.shape[1])
        bound = self.ratio * ahead[:, :least].mean(dim=1, keepdim=True)
        agreed = (ahead < bound) & (tally.voices[n_past:] > self.active)
        agreed[:, :least] = True
        return agreed.long().cumprod(dim=1).sum(dim=1)

    def _add(
        self, field: Field, outputs: list[Output], a: Tensor, i: int, context: Context, rows: Tensor | None
    ) -> None:
        if not outputs or outputs[0].weights is None:
            raise ValueError(
                "Consensus asks where horizons agree: it needs the backbone Horizons, with several"
            )
        level, after = field.path[i], field.path[min(i + 1, len(field.path))]

        def arrival(chunk_of: Callable[[Output], Tensor]) -> Tensor:
            replies = iter(outputs)

            def net(*_: Any) -> Tensor:
                return chunk_of(next(replies))

            pred = field.objective.believe(net, a, level, context)  # type: ignore[arg-type]
            return after.alpha * pred.x + after.sigma * pred.eps

        mixture, weights = arrival(lambda output: output.chunk), outputs[0].weights
        d_BH = torch.zeros_like(a[..., 0])
        for v in range(weights.shape[1]):
            alone = arrival(lambda output, v=v: output.views[v][0])
            d_BH = d_BH + weights[:, v] * (alone - mixture).abs().sum(dim=-1)
        total = len(field.context.pooled)
        tally: Tally | None = field.notes.get(self)
        if tally is None or i < tally.level:  # sampling has begun, or begun again from a noisier level
            voices = torch.stack([mask > 0 for _, mask in outputs[0].views]).sum(0)
            tally = field.notes[self] = Tally(d_BH.new_zeros(total, a.shape[1]), voices)
        tally.level = i
        where = torch.arange(total, device=a.device) if rows is None else rows
        tally.disagreement = tally.disagreement.index_add(0, where, d_BH.to(tally.disagreement))
