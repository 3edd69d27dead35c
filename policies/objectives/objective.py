"""Training objectives. Each owns both its loss and the meaning of the network's output, so that training and
sampling cannot disagree.

The contract (`Objective`): a path of levels from noise to data, a loss, what the network believes at one
level (`Pred`), and the step from one level to the next. Time is tau, 0 = noise and 1 = data, for every
network. Legend: B batch, H horizon, A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ..contexts.context import Context
from ..pred import Pred


@dataclass(frozen=True)
class Path:
    """alpha, sigma: `(steps + 1,)` levels from the start to the clean chunk. native: `(steps,)` the
    objective's own index of each level (a diffusion timestep), or empty."""

    alpha: Tensor
    sigma: Tensor
    native: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.alpha) - 1


class Objective(Protocol):
    def path(self, steps: int, device: torch.device) -> Path: ...

    def start(self, noise_BHA: Tensor) -> Tensor:
        """The chunk at the first level, from standard normal noise."""
        ...

    def loss(self, net: nn.Module, a_BHA: Tensor, context: Context, mask_BH: Tensor) -> Tensor:
        """Scalar; `mask_BH` is True where an action counts. Draws from torch's global generator."""
        ...

    def predict_at(self, net: nn.Module, a_BHA: Tensor, path: Path, i: int, context: Context) -> Pred: ...

    def step(self, pred: Pred, path: Path, i: int, rng: torch.Generator) -> Tensor:
        """The chunk at level i + 1."""
        ...


def masked_mean(error_BHA: Tensor, mask_BH: Tensor) -> Tensor:
    """Mean over the actions that count: divided by how many there are, not by all (ACT's released code
    divides by all, so padding shrinks its loss)."""
    mask = mask_BH[..., None].to(error_BHA.dtype)
    return (error_BHA * mask).sum() / (mask.sum() * error_BHA.shape[-1]).clamp(min=1.0)


def full(value: float | Tensor, like_BHA: Tensor) -> Tensor:
    """One time per row `(B,)`."""
    return torch.as_tensor(value, dtype=torch.float32, device=like_BHA.device).expand(like_BHA.shape[0])


@dataclass(frozen=True)
class Flow:
    """Conditional flow matching on the straight path, integrated by Euler steps; the loss is the velocity's.

    time: `beta` draws 1 - tau from 0.999·Beta(1.5, 1) + 0.001 (pi0: more weight on the noisy end), `uniform`
    U(0, 1). predict: the network's output is the velocity x - eps, or the clean chunk `x`, from which the
    velocity follows. A velocity carries the noise through the whole network, so a small one leaves some in
    every dimension of the chunk. Source: Lipman et al. 2023; pi0 (Black et al. 2024), whose t is 1 - tau; for
    `x` Li and He 2025 (arXiv 2511.13720)."""

    time: Literal["beta", "uniform"] = "beta"
    """Levels of noise to train at: beta has more of the noisy ones, as pi0; uniform has all alike."""
    predict: Literal["velocity", "x"] = "velocity"
    """What the network gives: the velocity from noise to data, or x, the clean chunk."""

    def path(self, steps: int, device: torch.device) -> Path:
        tau = torch.linspace(0, 1, steps + 1, device=device)
        return Path(tau, 1 - tau)

    def start(self, noise_BHA: Tensor) -> Tensor:
        return noise_BHA

    def loss(self, net: nn.Module, a_BHA: Tensor, context: Context, mask_BH: Tensor) -> Tensor:
        tau = torch.rand(len(a_BHA), device=a_BHA.device)
        if self.time == "beta":  # Beta(1.5, 1) has the distribution function u^1.5
            tau = 1 - (0.999 * tau ** (1 / 1.5) + 0.001)
        eps = torch.randn_like(a_BHA)
        t = tau[:, None, None]
        noisy = (1 - t) * eps + t * a_BHA
        v = self._velocity(net(noisy, tau, tau, context).float(), noisy, t)
        return masked_mean((v - (a_BHA - eps)) ** 2, mask_BH)

    def _velocity(self, output: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        if self.predict == "velocity":
            return output
        return (output - noisy) / (1 - t).clamp(min=0.05)  # else the loss would have no bound at tau = 1

    def predict_at(self, net: nn.Module, a_BHA: Tensor, path: Path, i: int, context: Context) -> Pred:
        tau = full(path.alpha[i], a_BHA)
        output = net(a_BHA, tau, tau, context).float()
        return Pred.from_velocity(a_BHA, path.alpha[i], self._velocity(output, a_BHA, path.alpha[i]))

    def step(self, pred: Pred, path: Path, i: int, rng: torch.Generator) -> Tensor:
        return pred.a + (path.alpha[i + 1] - path.alpha[i]) * pred.velocity


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
        predicted = net(alpha[:, None, None] * a_BHA + sigma[:, None, None] * eps, tau, tau, context)
        return masked_mean((predicted.float() - eps) ** 2, mask_BH)

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
        made = DDIMScheduler(**common, set_alpha_to_one=True, timestep_spacing="trailing")
    else:
        made = DDPMScheduler(**common, variance_type="fixed_small")
    made.set_timesteps(steps)
    return made


@dataclass(frozen=True)
class Regression:
    """The chunk in one pass, from x = 0 at tau = 0 (ACT's decoder queries, without its latent). loss: `l1` or
    `l2`."""

    norm: Literal["l1", "l2"] = "l1"
    """Of the error: absolute (l1) or squared (l2)."""

    def path(self, steps: int, device: torch.device) -> Path:
        if steps != 1:
            raise ValueError(f"regression samples in one step, not {steps}")
        return Path(torch.tensor([0.0, 1.0], device=device), torch.tensor([1.0, 0.0], device=device))

    def start(self, noise_BHA: Tensor) -> Tensor:
        return torch.zeros_like(noise_BHA)

    def loss(self, net: nn.Module, a_BHA: Tensor, context: Context, mask_BH: Tensor) -> Tensor:
        tau = full(0.0, a_BHA)
        error = net(torch.zeros_like(a_BHA), tau, tau, context).float() - a_BHA
        return masked_mean(error.abs() if self.norm == "l1" else error**2, mask_BH)

    def predict_at(self, net: nn.Module, a_BHA: Tensor, path: Path, i: int, context: Context) -> Pred:
        tau = full(0.0, a_BHA)
        x = net(torch.zeros_like(a_BHA), tau, tau, context).float()
        return Pred.from_x(a_BHA, path.alpha[0], path.sigma[0], x)

    def step(self, pred: Pred, path: Path, i: int, rng: torch.Generator) -> Tensor:
        return pred.x
