"""Denoising diffusion (Ho et al. 2020, arXiv 2006.11239; DDIM: Song et al. 2021, arXiv 2010.02502)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from ..pred import Pred
from .objective import Path, full, masked_mean


@dataclass(frozen=True)
class Diffusion:
    """Denoising diffusion, the network gives eps; schedules and steps are diffusers' own schedulers.

    sampler: `ddpm` (ancestral; as many steps as in training in the paper) or `ddim` (deterministic, few
    steps). Source: Ho et al. 2020, Song et al. 2021, with Diffusion Policy's settings (Chi et al. 2023)."""

    train_steps: int = 100
    """Levels of noise; sampling_steps may not be more."""
    schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    """How the noise grows over the levels, by diffusers' names."""
    sampler: Literal["ddpm", "ddim"] = "ddim"
    """Ancestral (ddpm; wants as many steps as train_steps) or deterministic (ddim; few steps do)."""
    clip: float = 1.0
    """Bound of the clean chunk's elements at every step, normalised; 0: none."""

    def _scheduler(self, steps: int) -> Any:
        return _scheduler(self.sampler, self.train_steps, self.schedule, self.clip, steps)

    def path(self, steps: int, device: torch.device) -> Path:
        if not 1 <= steps <= self.train_steps:
            raise ValueError(f"sampling steps must lie in 1..{self.train_steps} (train_steps), not {steps}")
        scheduler = self._scheduler(steps)
        native = tuple(int(k) for k in scheduler.timesteps)
        alpha_bar = scheduler.alphas_cumprod[list(native)].to(device)
        one, zero = torch.ones(1, device=device), torch.zeros(1, device=device)
        return Path(torch.cat([alpha_bar.sqrt(), one]), torch.cat([(1 - alpha_bar).sqrt(), zero]), native)

    def start(self, noise_BHA: Tensor) -> Tensor:
        return noise_BHA

    def loss(self, net: nn.Module, a_BHA: Tensor, context: Context, mask_BH: Tensor) -> Tensor:
        alpha_bar = self._scheduler(self.train_steps).alphas_cumprod.to(a_BHA.device)
        k = torch.randint(0, self.train_steps, (len(a_BHA),), device=a_BHA.device)
        alpha, sigma = alpha_bar[k].sqrt(), (1 - alpha_bar[k]).sqrt()
        eps = torch.randn_like(a_BHA)
        tau = alpha / (alpha + sigma)
        output = net(alpha[:, None, None] * a_BHA + sigma[:, None, None] * eps, tau, tau, context)
        return masked_mean((output.float() - eps) ** 2, mask_BH)

    def predict_at(self, net: nn.Module, a_BHA: Tensor, path: Path, i: int, context: Context) -> Pred:
        alpha, sigma = path.alpha[i], path.sigma[i]
        tau = full(alpha / (alpha + sigma), a_BHA)
        return Pred.from_eps(a_BHA, alpha, sigma, net(a_BHA, tau, tau, context).float())

    def step(self, pred: Pred, path: Path, i: int, rng: torch.Generator) -> Tensor:
        scheduler = self._scheduler(len(path.native))
        # DDIM must take eps anew from the clipped x, or a clipped guidance pushes the wrong way: x stops at
        # the clip while eps goes on, against it
        consistent = {"use_clipped_model_output": True} if self.sampler == "ddim" else {}
        return scheduler.step(pred.eps, path.native[i], pred.a, generator=rng, **consistent).prev_sample


@lru_cache(maxsize=32)
def _scheduler(sampler: str, train_steps: int, schedule: str, clip: float, steps: int) -> Any:
    """A diffusers scheduler set to `steps`. Their DDPM and DDIM keep no state from step to step, so one may
    be shared."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    common: dict[str, Any] = {
        "num_train_timesteps": train_steps,
        "beta_schedule": schedule,
        "clip_sample": clip > 0,
        "clip_sample_range": clip,
        "prediction_type": "epsilon",
    }
    if sampler == "ddim":
        # trailing: the first step starts at the noisiest level, whatever the number of steps (Lin et al.
        # 2024)
        scheduler = DDIMScheduler(**common, set_alpha_to_one=True, timestep_spacing="trailing")
    else:
        scheduler = DDPMScheduler(**common, variance_type="fixed_small")
    scheduler.set_timesteps(steps)
    return scheduler
