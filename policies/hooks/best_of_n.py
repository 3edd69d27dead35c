"""Candidates ranked by a critic (Nakamoto et al. 2024, V-GPS, arXiv 2410.13816). Legend: B observations, N
candidates each, H horizon, A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from ..field import Field
from ..hashed import stamp_of
from ..learn.critic import Critic, load_critic, require_match
from ..policy import Policy
from ..sampler import stream
from .hook import Hook


@dataclass(frozen=True)
class BestOfN(Hook):
    """Draw N chunks and execute the one that the critic values most, or one drawn by softmax of the values.
    Any policy, which is not changed: V-GPS with a critic over chunks in the place of one over single actions.

    The critic sees as many of the chunk's actions as it was learned with. Its value is what is climbed, so it
    is no evidence: success is."""

    by_request: ClassVar[bool] = False
    critic: str = ""
    """Folder of the critic's checkpoint."""
    candidates: int = 16
    """N, chunks drawn at every decision."""
    temperature: float = 0.0
    """β of the draw in proportion to exp(Q/β), in units of reward; 0: the best one, inf: any of them, which
    is the control."""

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.temperature < 0:
            raise ValueError("candidates is at least 1, temperature not negative")

    @property
    def wants_candidates(self) -> int:
        return self.candidates

    def score(self, chunks_BNHA: Tensor, field: Field) -> Tensor | None:
        b, n = chunks_BNHA.shape[:2]
        policy = field.policy
        if not isinstance(policy, Policy):
            raise TypeError("BestOfN needs the policy behind the chunks: sample through Policy.sample")
        critic = self._critic(chunks_BNHA.device)
        recipe = policy.recipe
        require_match(critic, policy.features, recipe.horizon, recipe.n_past_actions, recipe.n_obs_steps)
        actions = field.unnormalise(chunks_BNHA.flatten(0, 1))[:, recipe.n_past_actions :]
        seen = {k: field.request.observation[k].repeat_interleave(n, dim=0) for k in critic.keys}
        value_BN = critic.score(seen, actions).reshape(b, n)
        if self.temperature == 0:
            return value_BN
        seeds = [field.request.seed] if isinstance(field.request.seed, int) else list(field.request.seed)
        per_row = [stream([s], "BestOfN draw", chunks_BNHA.device) for s in seeds]
        uniform = (
            torch.rand((b, n), generator=per_row[0], device=value_BN.device)
            if len(per_row) == 1
            else torch.stack([torch.rand(n, generator=g, device=value_BN.device) for g in per_row])
        )
        # the largest of values with Gumbel noise is a draw by softmax
        return value_BN / self.temperature - (-uniform.clamp(1e-12, 1 - 1e-7).log()).log()

    def _critic(self, device: torch.device) -> Critic:
        if not self.critic:
            raise ValueError("BestOfN needs a critic: name its folder with --BestOfN.critic")
        return _loaded(self.critic, stamp_of(self.critic), str(device))


@lru_cache(maxsize=8)
def _loaded(folder: str, stamp: str, device: str) -> Critic:
    """Once for each folder, content (`stamp`) and device."""
    return load_critic(folder, device)
