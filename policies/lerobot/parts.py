"""What a policy of LeRobot is to our sampler: objectives, a solver, and a context that carries what its
network is shown.

Legend: B batch (times candidates), H horizon, A action dimensions, N levels in training."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..backbones.backbone import Head, Sizes
from ..contexts.context import Context
from ..objectives.objective import Draw, Level, Losses, Path, full
from ..pred import Pred
from ..solvers.solver import Move

if TYPE_CHECKING:
    from ..field import Field


@dataclass(frozen=True)
class Shown(Context):
    """A context with the prepared observations themselves, each with a leading axis B, or a list of B."""

    batch: Mapping[str, Any] = field(default_factory=dict)

    def _map(self, f: Callable[[Tensor], Tensor]) -> Shown:
        rows = f(torch.arange(len(self.pooled))).tolist()
        batch: dict[str, Any] = {}
        for key, value in self.batch.items():
            if isinstance(value, Tensor):
                batch[key] = f(value)
            elif isinstance(value, list):
                batch[key] = [value[i] for i in rows]
        return Shown(f(self.tokens), f(self.pooled), batch=batch)


@dataclass(frozen=True)
class Theirs:
    """A network that LeRobot builds, by the type of the policy."""

    type: str

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        raise ValueError(f"the network of LeRobot's {self.type} comes with its weights: LeRobot trains it")


class _Trained:
    """Objectives that are LeRobot's to train."""

    @property
    def needs(self) -> Head:
        return Head()

    def draw(self, a_BHA: Tensor, progress: float, rng: torch.Generator | None) -> Draw:
        raise ValueError(
            "LeRobot trains this policy: `ulna train --start` goes on with those that are mapped"
        )

    def losses(
        self, net: nn.Module, a_BHA: Tensor, context: Context, draw: Draw, teacher: Any = None
    ) -> Losses:
        raise ValueError(
            "LeRobot trains this policy: `ulna train --start` goes on with those that are mapped"
        )


@dataclass(frozen=True)
class Drawn(_Trained):
    """Whole chunks, which the policy draws by itself: there is no way from noise to a chunk to steer. What
    the sampler draws only says which chunk it is, so that seeds count and candidates differ."""

    type: str

    def path(self, steps: int) -> Path:
        if steps != 1:
            raise ValueError(f"LeRobot's {self.type} samples in its own number of steps: leave it out")
        return Path((0.0, 1.0), (0.0, 1.0), (0.0, 0.0), start=1.0)

    def believe(self, net: nn.Module, a_BHA: Tensor, level: Level, context: Context) -> Pred:
        tau = full(0.0, a_BHA)
        x = net(a_BHA, tau, tau, context).float()
        return Pred(a_BHA, level.alpha, level.sigma, x, torch.zeros_like(x))


@dataclass(frozen=True)
class Denoising(_Trained):
    """The field of LeRobot's diffusion policy. The network is told the number of the level.

    As diffusers' schedulers have it: the levels of a run are spaced from the cleanest one ("leading"), so
    that in fewer steps than in training the first one still shows something, and a chunk begins as plain
    noise all the same."""

    alpha_bar: tuple[float, ...]
    """The share of the signal's variance at each of the N levels, the cleanest first."""
    prediction: Literal["epsilon", "sample"] = "epsilon"
    """Whether the network gives the noise or the clean chunk."""

    def path(self, steps: int) -> Path:
        n = len(self.alpha_bar)
        if not 1 <= steps <= n:
            raise ValueError(f"sampling steps must lie in 1..{n}, those of its training, not {steps}")
        levels = [self.alpha_bar[(steps - 1 - i) * (n // steps)] for i in range(steps)]
        alpha, sigma = [math.sqrt(v) for v in levels], [math.sqrt(1 - v) for v in levels]
        path = Path.of([*alpha, 1.0], [*sigma, 0.0])
        return Path(path.tau, path.alpha, path.sigma, start=1.0)

    def believe(self, net: nn.Module, a_BHA: Tensor, level: Level, context: Context) -> Pred:
        number = full(float(_number(self.alpha_bar, level.tau)), a_BHA)
        said = net(a_BHA, number, number, context).float()
        if self.prediction == "sample":
            return Pred.from_x(a_BHA, level.alpha, level.sigma, said)
        return Pred.from_eps(a_BHA, level.alpha, level.sigma, said)


def _number(alpha_bar: tuple[float, ...], tau: float) -> int:
    """Of the level whose time is `tau`."""
    taus = _taus(alpha_bar)  # falling with the number
    i = bisect.bisect_left(taus, -tau)
    return min((j for j in (i - 1, i) if 0 <= j < len(taus)), key=lambda j: abs(taus[j] + tau))


@lru_cache(maxsize=8)
def _taus(alpha_bar: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(-math.sqrt(v) / (math.sqrt(v) + math.sqrt(1 - v)) for v in alpha_bar)


@dataclass(frozen=True)
class DiffusersDDIM:
    """DDIM as diffusers' scheduler takes its steps: the clean chunk is clipped, and the noise is the one that
    the network gave, not the one that then explains the chunk (`DDIM`)."""

    clip: float = 1.0
    """Bound of the clean chunk's elements at every step, normalised; 0: none."""

    def step(self, field: Field, a: Tensor, i: int, state: Any) -> Move:
        pred, after = field(a, i), field.path[i + 1]
        x = pred.x.clamp(-self.clip, self.clip) if self.clip else pred.x
        return Move(after.alpha * x + after.sigma * pred.eps)
