"""Training-time real-time chunking (Black, Ren, Equi and Levine 2025, arXiv 2512.05964). Legend: B batch, H
horizon, A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.backbone import Head, Output, outputs
from ..contexts.context import Context
from ..pred import Pred
from .flow import Flow
from .objective import Draw, Level, Losses, Objective, Path


@dataclass(frozen=True)
class Prefixed:
    """An objective, learned with the beginning of the chunk given: as many actions as will be executed while
    the policy thinks. For each chunk their number is drawn; the network sees them as they are, at the time 1
    of clean data, and the rest at the noise level that was drawn; the loss is about the rest. Chunks are then
    drawn given `Context.prefix` (the hook `Prefix`), or freely where it is not there.

    Faithful: the clean prefix with a time of its own, the loss on the rest, the even draw of its length. Not:
    the times of the actions reach the network as one more element of each action (the backbone `TokenTimes`),
    not by adaptive norms. Study: rtc_catch."""

    inner: Objective = Flow(predict="x")
    """What is learned of the rest."""
    most: int = 8
    """Longest prefix, in actions from the chunk's beginning; lengths from 0 are drawn alike."""

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most is {self.most}: a prefix has at least 1 action")

    @property
    def needs(self) -> Head:
        return replace(self.inner.needs, token_times=True)

    def path(self, steps: int) -> Path:
        return self.inner.path(steps)

    def draw(self, a_BHA: Tensor, progress: float, rng: torch.Generator | None) -> Draw:
        if self.most >= a_BHA.shape[1]:
            raise ValueError(
                f"prefixes of up to {self.most} actions leave nothing of chunks of {a_BHA.shape[1]}: use "
                f"--objective.most {a_BHA.shape[1] // 2}"
            )
        draw = self.inner.draw(a_BHA, progress, rng)
        lengths = torch.randint(0, self.most + 1, (len(a_BHA),), device=a_BHA.device, generator=rng)
        return replace(draw, more={**draw.more, "prefix": lengths})

    def losses(
        self, net: nn.Module, a_BHA: Tensor, context: Context, draw: Draw, teacher: Any = None
    ) -> Losses:
        lengths = draw.more["prefix"]
        given_BH = torch.arange(a_BHA.shape[1], device=a_BHA.device) < lengths[:, None]
        own = replace(draw, more={k: v for k, v in draw.more.items() if k != "prefix"})
        guide = None if teacher is None else _Given(teacher, a_BHA, given_BH)
        losses = self.inner.losses(_Given(net, a_BHA, given_BH), a_BHA, context, own, guide)
        # as much weight for the rest as a whole chunk has
        share = (~given_BH).float() * (a_BHA.shape[1] / (a_BHA.shape[1] - lengths[:, None]))
        return replace(losses, error=losses.error * share[..., None])

    def believe(self, net: nn.Module, a_BHA: Tensor, level: Level, context: Context) -> Pred:
        if context.prefix is None:
            return self.inner.believe(net, a_BHA, level, context)
        known = context.prefix.to(a_BHA)
        n = known.shape[1]
        given_BH = (torch.arange(a_BHA.shape[1], device=a_BHA.device) < n).expand(a_BHA.shape[:2])
        clean = torch.cat([known, torch.zeros_like(a_BHA[:, n:])], dim=1)
        pred = self.inner.believe(_Given(net, clean, given_BH), a_BHA, level, context)
        x = torch.where(given_BH[..., None], clean, pred.x)
        # whatever noise is on the given actions, their way ends on them
        eps = torch.where(given_BH[..., None], Pred.from_x(a_BHA, level.alpha, level.sigma, x).eps, pred.eps)
        return Pred(a_BHA, pred.alpha, pred.sigma, x, eps)


class _Given(nn.Module):
    """A network that sees the actions of `clean` where `given_BH`, at time 1."""

    def __init__(self, net: nn.Module, clean: Tensor, given_BH: Tensor) -> None:
        super().__init__()
        self.net, self.clean, self.given = net, clean, given_BH

    def forward(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Tensor:
        return self.net(*self._inputs(x, s, t), context)

    def outputs(self, x: Tensor, s: Tensor, t: Tensor, context: Context) -> Output:
        return outputs(self.net, *self._inputs(x, s, t), context)

    def _inputs(self, x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        each = torch.where(self.given, torch.ones_like(t)[:, None], t[:, None])
        return torch.where(self.given[..., None], self.clean.to(x), x), s, each
