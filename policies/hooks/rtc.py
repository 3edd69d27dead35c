"""Real-time chunking at inference time (Black, Galliker and Levine 2025, arXiv 2506.07339). Legend: B
observations, N candidates each, H horizon, A action dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..contexts.context import Context
from ..field import Field
from ..pred import Pred
from .hook import Hook, Steered
from .previous import previous_of, require_actions


@dataclass(frozen=True)
class RTC(Hook):
    """Draw a chunk that goes on from what is left of the last one, for any policy that was trained to draw
    from noise.

    At every evaluation the belief is pushed towards the last chunk (pseudoinverse guidance, Song et al. 2023;
    Pokle et al. 2024), as `weights` says: wholly on the `delay` actions that will be executed before this
    chunk is used, less and less on those after them. The push is the vector-Jacobian product of the network's
    belief of the clean chunk, one backward pass an evaluation, times min(beta, (1 - t)/(t·r²)) with r² = (1 -
    t)²/(t² + (1 - t)²); at pure noise, where that has no bound, it is beta. The paper is about flow matching
    on the straight path; every Gaussian path is that one, scaled, so the same push serves diffusion, with the
    derivative by the scaled chunk. Where a request has nothing of a last chunk, nothing is pushed.

    The soft mask ends where the last chunk ends. Evaluations are counted as the network's: a backward pass
    costs about two more, which no count shows. Studies: rtc_catch, rtc_lift."""

    beta: float = 5.0
    """Most weight of the guidance; published: 5."""
    jacobian: Literal["true", "identity"] = "true"
    """The network's own, by a backward pass; or the identity, as in LeRobot's code at 7427f31, whose backward
    pass sees no network."""

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"RTC's beta is {self.beta}: it is a number from 0")

    def require(self, recipe: Steered) -> None:
        # of others the noise only says which of several chunks, and none has a derivative by it
        guided = recipe.objective.needs.output in ("chunk", "energy")
        if not guided or not any(recipe.objective.path(recipe.sampling_steps).sigma):
            raise ValueError(
                f"RTC guides the way from noise to a chunk, and the {type(recipe.objective).__name__} of the "
                f"recipe {recipe.name} has no such way: use the strategy overlap or ensemble"
            )
        require_actions(self, recipe)

    def guide(self, field: Field, rng: torch.Generator) -> Field:
        assert field.start is not None
        horizon = field.start.a.shape[1]
        previous = previous_of(field, horizon)
        if previous is None or not self.beta:
            return field
        target = previous.chunk
        hard = previous.ahead(field.request.delay)
        weight = weights(horizon, hard, previous.last, target.device)[:, None]
        if not previous.has_past:
            weight[: previous.first] = 0

        def belief(a: Tensor, i: int, context: Context, rows: Tensor | None) -> Pred:
            level, goal = field.path[i], target if rows is None else target[rows]
            push = min(self.beta, guidance(level.tau))
            if self.jacobian == "identity":
                pred = field(a, i, context, rows=rows)
                return pred.push(push * (weight * (goal - pred.x)))
            with torch.enable_grad():
                at = a.detach().requires_grad_(True)
                pred = field(at, i, context, grad=True, rows=rows)
                error = (weight * (goal - pred.x)).detach()
                (product,) = torch.autograd.grad(pred.x, at, error)
            there = Pred(a, pred.alpha, pred.sigma, pred.x.detach(), pred.eps.detach())
            return there.push(push * (level.alpha + level.sigma) * product)

        return field.with_belief(belief)


def weights(horizon: int, hard: int, end: int, device: torch.device | None = None) -> Tensor:
    """`(H,)`, how much of the last chunk each action is held to: 1 before `hard`; c(e^c - 1)/(e - 1), with c
    falling evenly, up to `end`, which is excluded, where the last chunk ends; 0 from there on. It is the
    soft mask of Black et al. 2025, and of their code for Kinetix."""
    i = torch.arange(horizon, dtype=torch.float32, device=device)
    c = ((end - i) / (end - hard + 1)).clamp(0, 1)
    soft = c * torch.expm1(c) / (math.e - 1)
    return torch.where(i < hard, torch.ones_like(i), torch.where(i < end, soft, torch.zeros_like(i)))


def guidance(tau: float) -> float:
    """(1 - t)/(t·r²) = (t² + (1 - t)²)/(t(1 - t)); infinite at both ends."""
    spread = tau * (1 - tau)
    return (tau**2 + (1 - tau) ** 2) / spread if spread > 0 else math.inf
