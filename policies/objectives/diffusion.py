"""Denoising diffusion (Ho et al. 2020, arXiv 2006.11239)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..backbones.backbone import Head, outputs
from ..contexts.context import Context
from ..pred import Pred
from .objective import Draw, Level, Losses, Path, compare, full


@dataclass(frozen=True)
class Diffusion:
    """Denoising diffusion; the noise schedules are diffusers' own, and so is what the network may give, the
    noise `eps`, the clean chunk `x` or the velocity `v` = alpha·eps - sigma·x. The loss is its squared error.

    Sampled by `DDIM(eta=0)` in few steps or by `DDIM(eta=1)`, the ancestral sampler of the paper, in as many
    as in training. Source: Ho et al. 2020, with Diffusion Policy's settings (Chi et al. 2023); for `v`
    Salimans and Ho 2022 (arXiv 2202.00512)."""

    train_steps: int = 100
    """Levels of noise; sampling_steps may not be more."""
    schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    """How the noise grows over the levels, by diffusers' names."""
    predict: Literal["eps", "x", "v"] = "eps"
    """What the network gives: the noise, the clean chunk, or the velocity from one to the other."""

    @property
    def needs(self) -> Head:
        return Head()

    def path(self, steps: int) -> Path:
        """Evenly spaced timesteps, the noisiest first whatever their number ("trailing", Lin et al. 2024,
        arXiv 2305.08891)."""
        if not 1 <= steps <= self.train_steps:
            raise ValueError(f"sampling steps must lie in 1..{self.train_steps} (train_steps), not {steps}")
        return _path(self.schedule, self.train_steps, steps)

    def draw(self, a_BHA: Tensor, progress: float, rng: torch.Generator | None) -> Draw:
        k = torch.randint(0, self.train_steps, (len(a_BHA),), device=a_BHA.device, generator=rng)
        noise = torch.randn(a_BHA.shape, dtype=a_BHA.dtype, device=a_BHA.device, generator=rng)
        alpha_bar = _alpha_bar(self.schedule, self.train_steps, str(a_BHA.device))[k]
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        return Draw(noise, alpha / (alpha + sigma), {"alpha": alpha, "sigma": sigma})

    def losses(
        self, net: nn.Module, a_BHA: Tensor, context: Context, draw: Draw, teacher: Any = None
    ) -> Losses:
        alpha, sigma = (draw.more[k][:, None, None] for k in ("alpha", "sigma"))
        noisy = alpha * a_BHA + sigma * draw.noise
        if teacher is not None:
            target = teacher(noisy, draw.tau, draw.tau, context).float()
        elif self.predict == "eps":
            target = draw.noise
        else:
            target = a_BHA if self.predict == "x" else alpha * draw.noise - sigma * a_BHA
        output = outputs(net, noisy, draw.tau, draw.tau, context)
        return compare(output, lambda chunk: (chunk.float() - target) ** 2)

    def believe(self, net: nn.Module, a_BHA: Tensor, level: Level, context: Context) -> Pred:
        tau = full(level.tau, a_BHA)
        output, alpha, sigma = net(a_BHA, tau, tau, context).float(), level.alpha, level.sigma
        if self.predict == "eps":
            return Pred.from_eps(a_BHA, alpha, sigma, output)
        return Pred.from_x(
            a_BHA, alpha, sigma, output if self.predict == "x" else alpha * a_BHA - sigma * output
        )


@lru_cache(maxsize=64)
def _path(schedule: str, train_steps: int, steps: int) -> Path:
    alpha_bar = _alpha_bar(schedule, train_steps)
    stride = train_steps / steps
    levels = [float(alpha_bar[round(train_steps - i * stride) - 1]) for i in range(steps)]
    alpha, sigma = [math.sqrt(v) for v in levels], [math.sqrt(1 - v) for v in levels]
    return Path.of([*alpha, 1.0], [*sigma, 0.0])


@lru_cache(maxsize=16)
def _alpha_bar(schedule: str, train_steps: int, device: str = "cpu") -> Tensor:
    """`(train_steps,)` float32, the share of the signal's variance at each level, as diffusers has it."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(num_train_timesteps=train_steps, beta_schedule=schedule).alphas_cumprod.to(device)
